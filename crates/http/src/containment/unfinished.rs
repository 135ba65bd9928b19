//! Detection of requests that do not become complete.
//!
//! The fault: tiny_http limits a head neither in size nor in time.
//!
//! Skip this file if this suffices: a connection that received bytes since its last request, but
//! completed no request, has an unfinished one. It may take as long as any request, and a bounded
//! number of bytes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::diag::Seen;

/// The longest head, in bytes. nginx allows 32 KiB.
const HEAD_BYTES_MAX: u64 = 128 * 1024;

/// The kernel's clock for received data is exact to its tick (10 ms at most).
const MARGIN: Duration = Duration::from_millis(50);

/// The unfinished requests seen so far.
#[derive(Default)]
pub(crate) struct Unfinished {
    since: HashMap<SocketAddr, Start>,
}

/// When an unfinished request was first seen, and after how many bytes.
#[derive(Clone, Copy)]
struct Start {
    at: Instant,
    consumed: u64,
    /// Whether the current check has seen it too.
    current: bool,
}

/// What is wrong with an unfinished request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It takes longer than a request may.
    Slow,
    /// Its head is longer than a head may be.
    Long,
}

/// The state of a connection, as its requests show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// No request has arrived yet.
    Silent,
    /// A request is in progress.
    Busy,
    /// The last request arrived, or was answered, at this moment.
    Since(Instant),
}

impl Unfinished {
    /// Whether the last check saw none.
    pub(crate) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Records what the kernel reports at `now`. Returns the connections to be ended.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        timeout: Duration,
        seen: &[Seen],
        known: impl Fn(SocketAddr) -> Known,
    ) -> Vec<(SocketAddr, Fault)> {
        for start in self.since.values_mut() {
            start.current = false;
        }
        let mut faults = Vec::new();
        for connection in seen {
            let unfinished = match known(connection.peer) {
                Known::Busy => false,
                Known::Silent => connection.consumed > 0,
                Known::Since(last) => {
                    // Subtracting could reach before the clock's origin.
                    now.saturating_duration_since(last) > connection.silent + MARGIN
                }
            };
            if !unfinished {
                continue;
            }
            let fresh = Start {
                at: now,
                consumed: connection.consumed,
                current: true,
            };
            let start = self.since.entry(connection.peer).or_insert(fresh);
            start.current = true;
            let read = connection.consumed.saturating_sub(start.consumed);
            if read > HEAD_BYTES_MAX {
                faults.push((connection.peer, Fault::Long));
            } else if now.duration_since(start.at) >= timeout {
                faults.push((connection.peer, Fault::Slow));
            }
        }
        self.since.retain(|_, start| start.current);
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn peer() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    fn seen(consumed: u64, silent: Duration) -> [Seen; 1] {
        [Seen {
            peer: peer(),
            unread: 0,
            consumed,
            silent,
        }]
    }

    /// Looks now and `after` later, at `grown` more bytes. The connection's last request was 10 s
    /// ago.
    fn look_twice(
        known: impl Fn(Instant) -> Known,
        silent: Duration,
        after: Duration,
        grown: u64,
    ) -> Vec<Fault> {
        let mut unfinished = Unfinished::default();
        let start = Instant::now();
        let now = start + Duration::from_secs(10);
        let look = |unfinished: &mut Unfinished, now, seen: &[Seen]| {
            unfinished.look(now, TIMEOUT, seen, |_| known(start))
        };
        assert!(look(&mut unfinished, now, &seen(10, silent)).is_empty());
        look(&mut unfinished, now + after, &seen(10 + grown, silent))
            .into_iter()
            .map(|(_, fault)| fault)
            .collect()
    }

    #[test]
    fn a_head_that_takes_too_long_is_slow_even_if_it_drips() {
        let drips = Duration::from_secs(1);
        assert_eq!(
            look_twice(|_| Known::Silent, drips, TIMEOUT, 1),
            [Fault::Slow]
        );
        assert_eq!(look_twice(Known::Since, drips, TIMEOUT, 1), [Fault::Slow]);
        let earlier = TIMEOUT - Duration::from_millis(1);
        assert_eq!(look_twice(|_| Known::Silent, drips, earlier, 1), []);
    }

    #[test]
    fn a_head_without_end_is_long() {
        let (silent, soon) = (Duration::ZERO, Duration::from_millis(1));
        assert_eq!(
            look_twice(|_| Known::Silent, silent, soon, HEAD_BYTES_MAX + 1),
            [Fault::Long]
        );
    }

    #[test]
    fn an_idle_or_busy_connection_may_take_its_time() {
        let (quiet, hour) = (Duration::from_secs(10), Duration::from_secs(3600));
        assert_eq!(
            look_twice(|_| Known::Busy, Duration::ZERO, hour, 1 << 30),
            []
        );
        // Nothing came in since the last request: 10 s of silence, then an hour.
        let known = |start| Known::Since(start + hour);
        assert_eq!(look_twice(known, quiet, hour, 0), []);
    }
}
