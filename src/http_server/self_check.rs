//! The thread that looks after what nothing else here can bound or repair.
//!
//! tiny_http's accept thread ends at the first error (no descriptor left) and
//! its memory has no limit (a header line without end). Neither can be mended
//! from outside, so the process has to end, loudly, for its supervisor to start
//! a new one.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::serve::Shared;

/// How often memory and overdue reads are looked at. An endless header line
/// grows by about 100 MB a second.
const TICK: Duration = Duration::from_millis(200);

/// How often a connection is made: it proves that connections are accepted and
/// answered, and keeps `accept` from ever reaching the listener's time-out, of
/// which it must be a small part.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long a ping may take, and how many in a row may fail: long enough for a
/// machine that is merely busy.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const PINGS_FAILED_MAX: u32 = 3;

pub(super) struct SelfCheck {
    pub(super) addr: SocketAddr,
    pub(super) memory_limit_bytes: u64,
}

impl SelfCheck {
    /// Runs until `stop` is disconnected or says so. Returns why the process has
    /// to end, if it has to.
    pub(super) fn run(&self, shared: &Shared, stop: &Receiver<()>) -> Option<String> {
        let mut pinged = Instant::now();
        let mut failed = 0;
        loop {
            match stop.recv_timeout(TICK) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return None,
            }
            shared.watch.stop_overdue();
            if let Some(resident) = resident_bytes().filter(|n| *n > self.memory_limit_bytes) {
                return Some(format!(
                    "memory is at {} MiB, beyond its limit of {} MiB",
                    resident >> 20,
                    self.memory_limit_bytes >> 20
                ));
            }
            if pinged.elapsed() >= PING_INTERVAL {
                pinged = Instant::now();
                match ping(self.addr, &shared.ping) {
                    Ok(()) => failed = 0,
                    Err(error) => {
                        failed += 1;
                        log::warn!(target: "tbd::http", "the server does not answer itself: {error}");
                    }
                }
                // Once stopping, the listener is closed on purpose.
                let stopping = shared.stopping.load(std::sync::atomic::Ordering::Relaxed);
                if failed >= PINGS_FAILED_MAX && !stopping {
                    return Some(format!(
                        "no connection was accepted and answered {failed} times in a row"
                    ));
                }
            }
        }
    }
}

/// Asks the server for its secret path.
fn ping(addr: SocketAddr, path: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&reachable(addr), PING_TIMEOUT)?;
    stream.set_read_timeout(Some(PING_TIMEOUT))?;
    stream.set_write_timeout(Some(PING_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    if &answer == b"HTTP/1.1 204" {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Where to reach a listener that may listen on every address.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// The process's resident memory; `None` without `/proc`.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_known_and_plausible() {
        let bytes = resident_bytes().unwrap();
        assert!((1 << 20..1 << 40).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        let addr = reachable("0.0.0.0:80".parse().unwrap());
        assert_eq!(addr, "127.0.0.1:80".parse().unwrap());
        let addr = reachable("[::]:80".parse().unwrap());
        assert_eq!(addr, "[::1]:80".parse().unwrap());
    }
}
