//! `tbd-api healthcheck`, `tbd-worker healthcheck`: a container's health check in an
//! image that holds nothing but the program.
//!
//! It asks for readiness, not for life. What a container's health decides in Compose is who
//! may start after whom, and what people see: both are about being usable. Compose restarts
//! a container when its process ends, never because it is unhealthy, and a program that waits
//! for its database is no better for a restart. Where unhealthy means restarted (Kubernetes'
//! liveness probe), ask `/healthz` instead.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use tbd_deadline::Deadline;

/// All that asking may take.
const BUDGET: Duration = Duration::from_secs(2);
/// Of an answer, more than this is not read.
const ANSWER_MAX: usize = 16 * 1024;

/// The exit code of the command: 0 if the program that was told to listen on `listens_on`
/// is ready; else 1, and the reason on standard error. Waits 2 s at most.
pub fn healthcheck_command(listens_on: SocketAddr) -> i32 {
    match healthcheck(listens_on) {
        Ok(()) => 0,
        Err(reason) => {
            eprintln!("{reason}");
            1
        }
    }
}

/// Asks the program that was told to listen on `listens_on` for `/readyz`. Waits 2 s at most.
///
/// # Errors
/// A sentence that says why it is not ready: not to be reached, no answer in time, or what
/// it answered.
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

/// "Every address of this machine" is for listening; to connect, the loopback is one of them.
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
        // Anew before each read, so that a dripping answer cannot outlive the deadline.
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut piece)? {
            0 => break,
            read => answer.extend_from_slice(&piece[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What is left until `deadline`; a socket takes no time-out of zero.
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

    /// Listens, answers one request with `answer`, and gives what `healthcheck` says to it.
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
