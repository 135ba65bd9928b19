//! The commands `tbd-api healthcheck` and `tbd-worker healthcheck`: a container's health check in
//! an image that contains only the program.
//!
//! They check readiness, not liveness. In Compose a container's health decides the start order and
//! what people see; both concern readiness. Compose restarts a container when its process ends,
//! never because it is unhealthy. A restart would not help a program that waits for its database.
//! Where an unhealthy container is restarted (Kubernetes' liveness probe), use `/healthz` instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use ureq::Agent;
use ureq::tls::TlsConfig;

use crate::config::HttpConfig;

/// Time limit of the whole check.
const BUDGET: Duration = Duration::from_secs(2);
/// Maximum number of bytes to read of a response.
const ANSWER_MAX: u64 = 16 * 1024;

/// Runs the command against the program with this server. Returns the exit code: 0 if the program is
/// ready; else 1, with the reason on standard error. Waits 2 s at most.
pub fn healthcheck_command(server: &HttpConfig) -> i32 {
    match healthcheck(server.address(), server.tls.is_some(), BUDGET) {
        Ok(()) => 0,
        Err(reason) => {
            eprintln!("{reason}");
            1
        }
    }
}

/// Requests `/readyz` from the program that listens on `listens_on`. Waits for `budget` at most.
///
/// The certificate is not checked. It names the service, not the loopback, and the check asks about
/// its own program: whoever listens there in its place has its port already.
///
/// # Errors
/// Why the program is not ready, in a sentence: unreachable, no answer in time, or its answer.
fn healthcheck(listens_on: SocketAddr, is_tls: bool, budget: Duration) -> Result<(), String> {
    let address = reachable(listens_on);
    let unanswered = |error| format!("no answer from {address}: {error}");
    let tls = TlsConfig::builder()
        .disable_verification(true)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
    let agent: Agent = Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_global(Some(budget))
        .tls_config(tls.build())
        .build()
        .into();
    let scheme = if is_tls { "https" } else { "http" };
    let mut answer = agent
        .get(format!("{scheme}://{address}/readyz"))
        .call()
        .map_err(unanswered)?;
    if answer.status() == 200 {
        return Ok(());
    }
    let body = answer.body_mut().with_config().limit(ANSWER_MAX);
    let body = body.read_to_string().map_err(unanswered)?;
    Err(format!("status {} {body}", answer.status().as_u16()))
}

/// The address to connect to. Nothing can connect to the unspecified address; the loopback is one
/// of the addresses it stands for.
fn reachable(listens_on: SocketAddr) -> SocketAddr {
    let host = match listens_on.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(host, listens_on.port())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Listens, answers one request with `answer`, and returns the verdict of `healthcheck`.
    fn verdict(answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let read = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let verdict = healthcheck(SocketAddr::from(([0, 0, 0, 0], port)), false, BUDGET);
        let request = server.join().unwrap();
        assert!(request.starts_with("GET /readyz HTTP/1.1\r\n"), "{request}");
        verdict
    }

    #[test]
    fn a_ready_program_is_healthy() {
        let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"status\":\"ready\"}";
        assert_eq!(verdict(answer), Ok(()));
    }

    #[test]
    fn the_answer_of_an_unready_program_is_passed_on() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"status\":\"unready\"}";
        assert_eq!(
            verdict(answer),
            Err("status 503 {\"status\":\"unready\"}".to_owned())
        );
    }

    #[test]
    fn an_empty_answer_and_noise_are_unhealthy() {
        assert!(verdict("").is_err());
        assert!(verdict("200").is_err());
    }

    #[test]
    fn nobody_listening_is_unhealthy() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(
            healthcheck(address, false, BUDGET)
                .unwrap_err()
                .starts_with("no answer from")
        );
    }

    #[test]
    fn a_silent_program_is_given_up_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (began, budget) = (Instant::now(), Duration::from_millis(50));
        for is_tls in [false, true] {
            assert!(healthcheck(address, is_tls, budget).is_err());
        }
        assert!(began.elapsed() >= 2 * budget);
    }

    #[test]
    fn the_unspecified_address_is_reached_over_the_loopback() {
        let reached = |listens_on: &str| reachable(listens_on.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(reached("[::]:8080"), "[::1]:8080");
        assert_eq!(reached("10.1.2.3:8080"), "10.1.2.3:8080");
    }
}
