//! The commands `tbd-api healthcheck` and `tbd-worker healthcheck`: a container's health check in
//! an image that contains only the program.
//!
//! They check readiness, not liveness. In Compose a container's health decides the start order and
//! what people see; both concern readiness. Compose restarts a container when its process ends,
//! never because it is unhealthy. A restart would not help a program that waits for its database.
//! Where an unhealthy container is restarted (Kubernetes' liveness probe), use `/healthz` instead.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use tbd_deadline::Deadline;

/// Time limit of the whole check.
const BUDGET: Duration = Duration::from_secs(2);
/// Maximum number of bytes to read of a response.
const ANSWER_MAX: usize = 16 * 1024;

/// Runs the command against the program that listens on `listens_on`. Returns the exit code: 0 if
/// the program is ready; else 1, with the reason on standard error. Waits 2 s at most.
pub fn healthcheck_command(listens_on: SocketAddr) -> i32 {
    match healthcheck(listens_on) {
        Ok(()) => 0,
        Err(reason) => {
            eprintln!("{reason}");
            1
        }
    }
}

/// Requests `/readyz` from the program that listens on `listens_on`. Waits 2 s at most.
///
/// # Errors
/// Why the program is not ready, in a sentence: unreachable, no answer in time, or its answer.
fn healthcheck(listens_on: SocketAddr) -> Result<(), String> {
    let address = reachable(listens_on);
    let answer = ask(address, Deadline::after(BUDGET))
        .map_err(|error| format!("no answer from {address}: {error}"))?;
    let status = answer.split_ascii_whitespace().nth(1);
    if status == Some("200") {
        return Ok(());
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Err(format!(
        "status {} {body}",
        status.unwrap_or("missing in the answer")
    ))
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

fn ask(address: SocketAddr, deadline: Deadline) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, left(deadline)?)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while answer.len() < ANSWER_MAX {
        // Set before each read, so that a slow trickle of bytes cannot exceed the deadline.
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut piece)? {
            0 => break,
            read => answer.extend_from_slice(&piece[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The time left until `deadline`. A socket does not accept a time-out of zero.
fn left(deadline: Deadline) -> io::Result<Duration> {
    match deadline.remaining() {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        remaining => Ok(remaining),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

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
        let verdict = healthcheck(SocketAddr::from(([0, 0, 0, 0], port)));
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
            healthcheck(address)
                .unwrap_err()
                .starts_with("no answer from")
        );
    }

    #[test]
    fn a_silent_program_is_given_up_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let budget = Deadline::after(Duration::from_millis(50));
        assert!(ask(address, budget).is_err());
        assert!(budget.is_past());
    }

    #[test]
    fn the_unspecified_address_is_reached_over_the_loopback() {
        let reached = |listens_on: &str| reachable(listens_on.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(reached("[::]:8080"), "[::1]:8080");
        assert_eq!(reached("10.1.2.3:8080"), "10.1.2.3:8080");
    }
}
