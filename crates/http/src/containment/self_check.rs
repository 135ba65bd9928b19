//! The thread that detects faults which nothing else here can bound or repair.
//!
//! The faults: tiny_http's accept thread ends at the first error (no descriptor left), and its
//! memory has no limit (a header line without end). Neither can be repaired from outside, so the
//! process must end, loudly, and its supervisor must start a new one.
//!
//! Skip this file if this suffices: every 0.2 s, or 0.5 s at rest, it ends overdue reads and
//! unfinished requests. It frees connections that tiny_http left unread; when new clients arrive,
//! within milliseconds. For the rest it calls [`OnFatal`](crate::OnFatal).

use std::collections::HashSet;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, never, select};

use super::diag::{Diag, Seen};
use super::socket::Survey;
use super::unfinished::Unfinished;
use crate::serve::ServerShared;
use tbd_deadline::Deadline;

/// How often everything but the ping is checked. In this time an endless header line grows by about
/// 20 MB (100 MB a second), and a stuck connection waits. One check costs about 1 ms.
const TICK: Duration = Duration::from_millis(200);

/// The interval while connections may be stuck.
const TICK_STUCK: Duration = Duration::from_millis(5);

/// The interval while no connection does anything.
const TICK_AT_REST: Duration = Duration::from_millis(500);

/// How often the server connects to itself. This proves that connections are accepted and answered.
/// It also keeps `accept` from reaching the listener's time-out, so it must be a small part of
/// that.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long a ping may take, and how many may fail in a row. Both tolerate a machine that is merely
/// busy.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const PINGS_FAILED_MAX: u32 = 3;

/// How often the check verifies that tiny_http still listens.
const LISTENER_INTERVAL: Duration = Duration::from_secs(1);

/// How often closed connections are forgotten.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

/// After this many refusals in a row the kernel is no longer asked.
const REFUSED_MAX: u32 = 3;

/// Connections rescued per check.
const NUDGES_MAX: usize = 32;

/// How long a nudge may take. One that is not accepted at once does not help.
const NUDGE_TIMEOUT: Duration = Duration::from_millis(20);

pub(crate) struct SelfCheck {
    pub(crate) addr: SocketAddr,
    pub(crate) memory_limit_bytes: u64,
    pub(crate) ping: Arc<Ping>,
}

/// The server as its own client. It has a thread to itself. While a ping waits for its answer,
/// another thread must check the connections, and the stuck one may be the ping's own.
pub(crate) struct Ping {
    pub(crate) addr: SocketAddr,
    /// How many pings in a row have failed.
    pub(crate) failed: AtomicU32,
}

impl Ping {
    /// Runs until `stop` is disconnected or receives a message.
    pub(crate) fn run(&self, shared: &ServerShared, stop: &Receiver<()>) {
        while stop.recv_timeout(PING_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            // While stopping, the listener is closed on purpose.
            if shared.stopping.load(Ordering::Relaxed) {
                continue;
            }
            match ping(self.addr, &shared.ping) {
                Ok(()) => self.failed.store(0, Ordering::Relaxed),
                Err(error) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    log::warn!(target: "tbd::http", "the server does not answer itself: {error}");
                }
            }
        }
    }
}

/// When new clients bring the next check forward.
///
/// A burst of connections may leave some of them stuck (see [`nudge`]), so the first requests of
/// new clients are the moment to look. A check costs a millisecond or more, and clients that connect
/// for each request are not a burst. So each check that finds nothing doubles the pause before the
/// next one.
struct Haste {
    pause: Duration,
    /// No check is brought forward before this.
    not_before: Instant,
}

impl Haste {
    fn new(now: Instant) -> Self {
        Self {
            pause: TICK_STUCK,
            not_before: now,
        }
    }

    /// When to check because a new client's request arrived at `now`. The rest of its burst has a
    /// moment to arrive.
    fn newcomer(&self, now: Instant) -> Instant {
        (now + TICK_STUCK).max(self.not_before)
    }

    /// Records a check at `now`: whether new clients brought it forward, and whether it found
    /// connections that may be stuck.
    fn checked(&mut self, now: Instant, was_hasty: bool, found: bool) {
        self.pause = match (found, was_hasty) {
            (false, true) => (self.pause * 2).min(TICK),
            _ => TICK_STUCK,
        };
        self.not_before = now + self.pause;
    }
}

/// What the thread remembers from check to check.
struct Watcher {
    /// `None` where the kernel does not answer.
    diag: Option<Diag>,
    /// How many times in a row the kernel refused.
    refused: u32,
    unfinished: Unfinished,
    /// Connections that were unread at the last check.
    untouched: HashSet<SocketAddr>,
    /// Whether the last check saw no request, complete or not.
    is_at_rest: bool,
    purged: Instant,
}

impl Watcher {
    fn new() -> Self {
        Self {
            diag: Diag::open().ok(),
            refused: 0,
            unfinished: Unfinished::default(),
            untouched: HashSet::new(),
            is_at_rest: false,
            purged: Instant::now(),
        }
    }

    /// The open connections; `None` when the kernel did not answer.
    fn ask(&mut self, local: SocketAddr) -> Option<Vec<Seen>> {
        match self.diag.as_mut()?.connections(local) {
            Ok(seen) => {
                self.refused = 0;
                Some(seen)
            }
            Err(error) => {
                self.refused += 1;
                // A new socket: the old one may hold the rest of an answer.
                self.diag = Diag::open().ok().filter(|_| self.refused < REFUSED_MAX);
                if self.diag.is_none() {
                    log::warn!(target: "tbd::http", "cannot ask the kernel about connections, so unfinished requests are not ended: {error}");
                }
                None
            }
        }
    }
}

impl SelfCheck {
    /// Checks all connections: ends those whose request does not become complete, and counts those
    /// that no thread of tiny_http reads.
    ///
    /// Without connections it does not ask the kernel. The answer is most of a check's cost, since the kernel walks
    /// the whole machine's table for it.
    fn look_at_connections(&self, watcher: &mut Watcher, shared: &ServerShared) -> usize {
        let now = Instant::now();
        if watcher.is_at_rest && !self.has_connections() {
            shared.connections.forget(now, |_| false);
            return 0;
        }
        watcher.is_at_rest = false;
        let Some(seen) = watcher.ask(self.addr) else {
            shared.connections.forget(now, |_| false);
            return Survey::take(self.addr.port()).unread;
        };
        let known = |peer| shared.connections.look_up(peer);
        let faults = watcher
            .unfinished
            .look(now, shared.request_timeout, &seen, known);
        watcher.is_at_rest = watcher.unfinished.is_empty()
            && seen.iter().all(|seen| seen.unread == 0)
            && shared
                .connections
                .wait_until_idle(Deadline::after(Duration::ZERO));
        for (peer, fault) in faults {
            shared.end_unfinished(peer, fault);
        }
        if watcher.purged.elapsed() >= PURGE_INTERVAL {
            watcher.purged = Instant::now();
            let open: HashSet<_> = seen.iter().map(|seen| seen.peer).collect();
            shared.connections.forget(now, |peer| open.contains(peer));
        }
        // Unread now and at the last check.
        let untouched: HashSet<_> = seen
            .iter()
            .filter(|seen| seen.consumed == 0 && seen.unread > 0)
            .map(|seen| seen.peer)
            .collect();
        let stuck = untouched.intersection(&watcher.untouched).count();
        watcher.untouched = untouched;
        stuck
    }

    /// Whether the process has a connection of the server. True without `/proc`.
    fn has_connections(&self) -> bool {
        let survey = Survey::take(self.addr.port());
        survey.is_connected || survey.listening == 0
    }

    /// Why tiny_http accepts no more connections, if so. `spare` is a descriptor for the survey.
    fn has_stopped_accepting(&self, spare: &mut Option<std::fs::File>) -> Option<String> {
        drop(spare.take());
        let listening = Survey::take(self.addr.port()).listening;
        *spare = std::fs::File::open("/dev/null").ok();
        // One is the server's own; tiny_http's is closed with its accept thread.
        if listening != 1 {
            return None;
        }
        Some(match scarce_descriptors() {
            Some(error) => format!("the accept thread has ended: {error}"),
            None => "the accept thread has ended".to_owned(),
        })
    }

    /// Runs until `stop` is disconnected or receives a message. `newcomers` has a message after a
    /// new client's first request. `shed` refuses the requests of a stuck queue. Returns the reason
    /// if the process must end.
    pub(crate) fn run(
        &self,
        shared: &ServerShared,
        stop: &Receiver<()>,
        newcomers: &Receiver<()>,
        mut shed: impl FnMut(),
    ) -> Option<String> {
        let mut looked = Instant::now();
        let mut spare = std::fs::File::open("/dev/null").ok();
        let mut watcher = Watcher::new();
        let mut haste = Haste::new(looked);
        let mut due = looked + TICK;
        let mut is_hasty = false;
        let nobody = never();
        let mut awaited = newcomers;
        loop {
            select! {
                recv(stop) -> _ => return None,
                recv(awaited) -> _ => {
                    let sooner = haste.newcomer(Instant::now());
                    is_hasty = sooner < due;
                    due = due.min(sooner);
                    // One message until the check: more would only wake this thread.
                    awaited = &nobody;
                    continue;
                }
                default(due.saturating_duration_since(Instant::now())) => {}
            }
            due = Instant::now() + TICK;
            awaited = newcomers;
            let was_hasty = std::mem::take(&mut is_hasty);
            shared.watch.stop_overdue();
            if let Some(resident) = resident_bytes().filter(|n| *n > self.memory_limit_bytes) {
                return Some(format!(
                    "memory is at {} MiB, beyond its limit of {} MiB",
                    resident >> 20,
                    self.memory_limit_bytes >> 20
                ));
            }
            // While stopping, the listener is closed on purpose.
            if shared.stopping.load(Ordering::Relaxed) {
                continue;
            }
            shed();
            if looked.elapsed() >= LISTENER_INTERVAL {
                looked = Instant::now();
                if let Some(reason) = self.has_stopped_accepting(&mut spare) {
                    return Some(reason);
                }
            }
            let stuck = self.look_at_connections(&mut watcher, shared);
            for _ in 0..stuck.min(NUDGES_MAX) {
                nudge(self.addr);
            }
            let now = Instant::now();
            let may_be_stuck = !watcher.untouched.is_empty();
            haste.checked(now, was_hasty, may_be_stuck);
            due = now
                + match may_be_stuck {
                    true => TICK_STUCK,
                    false if watcher.is_at_rest => TICK_AT_REST,
                    false => TICK,
                };
            let failed = self.ping.failed.load(Ordering::Relaxed);
            if failed >= PINGS_FAILED_MAX {
                return Some(format!(
                    "no connection was accepted and answered {failed} times in a row"
                ));
            }
        }
    }
}

/// The system's refusal if few descriptors are left, which is what ends tiny_http's accept thread.
/// The dying thread returns the one or two that it held, so a single free one proves nothing.
fn scarce_descriptors() -> Option<io::Error> {
    const FEW: usize = 8;
    let held: io::Result<Vec<std::fs::File>> =
        (0..FEW).map(|_| std::fs::File::open("/dev/null")).collect();
    held.err()
}

/// Connects and disconnects, to free a thread of tiny_http.
///
/// tiny_http gives a new connection to a thread that it believes to be idle. In a burst, it may
/// promise the same thread to all of them. The others wait, unread, until some connection ends.
/// This one ends at once, and its thread takes on one that waits.
fn nudge(addr: SocketAddr) {
    let _ = TcpStream::connect_timeout(&reachable(addr), NUDGE_TIMEOUT);
}

/// Requests the server's secret path.
fn ping(addr: SocketAddr, path: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&reachable(addr), PING_TIMEOUT)?;
    stream.set_read_timeout(Some(PING_TIMEOUT))?;
    stream.set_write_timeout(Some(PING_TIMEOUT))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    if &answer == b"HTTP/1.1 204" {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// An address that reaches a listener on any address, the unspecified one included.
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
    let sizes = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = sizes.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn new_clients_bring_a_check_forward_to_milliseconds() {
        let start = Instant::now();
        let mut haste = Haste::new(start);
        assert_eq!(haste.newcomer(start + ms(100)), start + ms(105));
        haste.checked(start + ms(105), true, true);
        assert_eq!(haste.newcomer(start + ms(106)), start + ms(111));
    }

    #[test]
    fn clients_that_come_all_the_time_bring_forward_fewer_and_fewer_checks() {
        let start = Instant::now();
        let mut haste = Haste::new(start);
        let mut now = start;
        let mut checks = 0;
        while now < start + ms(2_000) {
            now = haste.newcomer(now);
            haste.checked(now, true, false);
            checks += 1;
        }
        assert!((10..20).contains(&checks), "{checks}");
        // A check by the clock: no client came since the last one.
        haste.checked(now + ms(200), false, false);
        assert_eq!(haste.newcomer(now + ms(300)), now + ms(305));
    }

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
