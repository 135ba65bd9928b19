//! A connection's timers, as points in time. The reading thread asks what is due.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::transport::Flushed;
use super::{LinkConfig, LinkState};
use crate::h2::ErrorCode;

/// The payload of the PING that follows the first GOAWAY: its answer shows that the peer has read that.
pub(super) const DRAIN_PING: [u8; 8] = *b"drain...";
/// How long that answer is waited for.
const PONG_WAIT: Duration = Duration::from_secs(1);
/// The payload of a keepalive PING.
const KEEPALIVE_PING: [u8; 8] = *b"alive?..";

/// PINGs that find out whether the peer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// A PING is sent when nothing was received for so long.
    pub interval: Duration,
    /// The connection is over when nothing is received for so long after it.
    pub timeout: Duration,
    /// Whether a connection without calls is asked, too. Many servers allow their clients a PING only every five minutes
    /// without calls, and close the connection otherwise.
    pub without_calls: bool,
}

/// When what is due.
#[derive(Debug)]
pub(crate) struct Timers {
    /// By then the peer's SETTINGS have to be there.
    handshake: Option<Instant>,
    received_at: Instant,
    /// When the socket took nothing for too long.
    write: Option<Instant>,
    write_timeout: Duration,
    /// Since when a keepalive PING waits for an answer.
    pinged_at: Option<Instant>,
    keepalive: Option<Keepalive>,
    idle_since: Option<Instant>,
    idle_max: Option<Duration>,
    /// When the connection is too old.
    age: Option<Instant>,
    /// When the second GOAWAY follows the first one, whether or not the peer has answered the PING.
    second_go_away: Option<Instant>,
    /// By when the last call has to have ended after GOAWAY.
    drained: Option<Instant>,
    /// When single streams are due.
    streams: HashMap<u32, Instant>,
    next_stream: Option<Instant>,
}

/// What the reading thread has to do when a timer is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// End the connection, for this reason.
    Close(&'static str),
    /// Send a PING.
    Ping,
    /// Say GOAWAY, and end when the last call has.
    Drain,
    /// Say the second GOAWAY.
    SecondGoAway,
    /// End these streams.
    Streams(Vec<u32>),
}

impl Timers {
    pub(super) fn new(now: Instant, config: &LinkConfig) -> Self {
        // Connections that began together should not end together: a tenth more or less.
        let jitter = 0.9 + fastrand::f64() * 0.2;
        Self {
            handshake: Some(now + config.handshake_timeout),
            received_at: now,
            write: None,
            write_timeout: config.write_timeout,
            pinged_at: None,
            keepalive: config.keepalive,
            idle_since: Some(now),
            idle_max: config.idle_max,
            age: config.age_max.map(|age| now + age.mul_f64(jitter)),
            second_go_away: None,
            drained: None,
            streams: HashMap::new(),
            next_stream: None,
        }
    }

    pub(super) fn ready(&mut self) {
        self.handshake = None;
    }

    pub(super) fn received(&mut self, now: Instant) {
        self.received_at = now;
        self.pinged_at = None;
    }

    pub(super) fn written(&mut self, now: Instant, flushed: Flushed) {
        if !flushed.is_blocked {
            self.write = None;
        } else if flushed.is_progress || self.write.is_none() {
            self.write = Some(now + self.write_timeout);
        }
    }

    pub(super) fn is_used(&mut self, is_used: bool, now: Instant) {
        match (is_used, self.idle_since) {
            (true, _) => self.idle_since = None,
            (false, None) => self.idle_since = Some(now),
            (false, Some(_)) => {}
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drained.is_some()
    }

    /// Sets when the stream is due, instead of what was set before.
    pub(crate) fn set_stream(&mut self, id: u32, at: Instant) {
        self.streams.insert(id, at);
        self.next_stream = Some(self.next_stream.map_or(at, |next| next.min(at)));
    }

    pub(crate) fn clear_stream(&mut self, id: u32) {
        self.streams.remove(&id);
    }

    /// The first thing that is due at `now`, each once.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_past(self.handshake) {
            return Some(Due::Close("the handshake took too long"));
        }
        if is_past(self.write) {
            return Some(Due::Close("the peer takes nothing"));
        }
        if is_past(self.drained) {
            return Some(Due::Close("the last calls took too long"));
        }
        if let (Some(keepalive), Some(pinged_at)) = (self.keepalive, self.pinged_at)
            && pinged_at + keepalive.timeout <= now
        {
            return Some(Due::Close("the peer does not answer"));
        }
        if self.pinged_at.is_none() && is_past(self.ping_at()) {
            self.pinged_at = Some(now);
            return Some(Due::Ping);
        }
        if self.drained.is_none() && (is_past(self.age) || is_past(self.idle_at())) {
            (self.age, self.idle_max) = (None, None);
            return Some(Due::Drain);
        }
        if is_past(self.second_go_away) {
            self.second_go_away = None;
            return Some(Due::SecondGoAway);
        }
        if is_past(self.next_stream) {
            return Some(Due::Streams(self.due_streams(now)));
        }
        None
    }

    fn due_streams(&mut self, now: Instant) -> Vec<u32> {
        let due: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in &due {
            self.streams.remove(id);
        }
        self.next_stream = self.streams.values().min().copied();
        due
    }

    fn ping_at(&self) -> Option<Instant> {
        // Before the handshake its own timer runs.
        let is_asked = |keepalive: &Keepalive| keepalive.without_calls || self.idle_since.is_none();
        let keepalive = self
            .keepalive
            .filter(is_asked)
            .filter(|_| self.handshake.is_none())?;
        Some(self.received_at + keepalive.interval)
    }

    fn idle_at(&self) -> Option<Instant> {
        Some(self.idle_since? + self.idle_max?)
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        let keepalive = match (self.pinged_at, self.keepalive) {
            (Some(pinged_at), Some(keepalive)) => Some(pinged_at + keepalive.timeout),
            _ => self.ping_at(),
        };
        let draining = if self.drained.is_some() {
            [self.drained, None]
        } else {
            [self.age, self.idle_at()]
        };
        let all = [
            self.handshake,
            self.write,
            keepalive,
            self.next_stream,
            self.second_go_away,
        ];
        all.into_iter().chain(draining).flatten().min()
    }
}

impl LinkState {
    pub(super) fn send_keepalive(&mut self) {
        self.h2.ping(KEEPALIVE_PING);
    }

    /// Says GOAWAY in two steps (RFC 9113, section 6.8).
    pub(super) fn start_draining(&mut self, now: Instant, timeout: Duration) {
        if self.timers.drained.is_none() {
            self.timers.drained = Some(now + timeout);
            self.timers.second_go_away = Some(now + PONG_WAIT);
            self.h2.announce_go_away();
            self.h2.ping(DRAIN_PING);
        }
    }

    pub(super) fn pong(&mut self, payload: [u8; 8]) {
        if payload == DRAIN_PING && self.timers.is_draining() {
            self.h2.go_away(ErrorCode::NO_ERROR, "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timers(now: Instant) -> Timers {
        let config = LinkConfig {
            limits: crate::h2::Limits::default(),
            message_bytes_max: 0,
            buffered_bytes_max: 0,
            unsent_bytes_max: 0,
            handshake_timeout: 10 * SECOND,
            write_timeout: 20 * SECOND,
            keepalive: Some(Keepalive {
                interval: 60 * SECOND,
                timeout: 5 * SECOND,
                without_calls: true,
            }),
            idle_max: Some(300 * SECOND),
            age_max: Some(3600 * SECOND),
            drain_timeout: 30 * SECOND,
        };
        Timers::new(now, &config)
    }

    #[test]
    fn a_peer_that_begins_slowly_or_reads_nothing_is_left() {
        let now = Instant::now();
        let mut timers = timers(now);
        assert_eq!(timers.due(now + 9 * SECOND), None);
        assert_eq!(
            timers.due(now + 10 * SECOND),
            Some(Due::Close("the handshake took too long"))
        );
        timers.ready();
        let blocked = Flushed {
            is_progress: false,
            is_blocked: true,
        };
        timers.written(now, blocked);
        timers.written(now + 19 * SECOND, blocked);
        assert_eq!(
            timers.due(now + 20 * SECOND),
            Some(Due::Close("the peer takes nothing"))
        );
        timers.written(
            now + 20 * SECOND,
            Flushed {
                is_progress: true,
                is_blocked: true,
            },
        );
        assert_eq!(timers.due(now + 21 * SECOND), None);
    }

    #[test]
    fn a_silent_peer_is_asked_once_and_then_left() {
        let now = Instant::now();
        let mut timers = timers(now);
        timers.ready();
        assert_eq!(timers.next(), Some(now + 60 * SECOND));
        assert_eq!(timers.due(now + 60 * SECOND), Some(Due::Ping));
        assert_eq!(timers.due(now + 61 * SECOND), None);
        assert_eq!(
            timers.due(now + 65 * SECOND),
            Some(Due::Close("the peer does not answer"))
        );
        timers.received(now + 64 * SECOND);
        assert_eq!(timers.due(now + 65 * SECOND), None);
    }

    #[test]
    fn an_idle_or_old_connection_says_goodbye_once() {
        let now = Instant::now();
        let mut timers = timers(now);
        timers.ready();
        timers.received(now + 299 * SECOND);
        assert_eq!(timers.due(now + 300 * SECOND), Some(Due::Drain));
        assert_eq!(timers.due(now + 301 * SECOND), None);
        timers.is_used(true, now);
        assert_eq!(timers.idle_since, None);
    }

    #[test]
    fn streams_are_due_one_by_one() {
        let now = Instant::now();
        let mut timers = timers(now);
        timers.ready();
        timers.set_stream(1, now + 2 * SECOND);
        timers.set_stream(3, now + SECOND);
        timers.set_stream(5, now + SECOND);
        timers.clear_stream(5);
        assert_eq!(timers.next(), Some(now + SECOND));
        assert_eq!(timers.due(now + SECOND), Some(Due::Streams(vec![3])));
        assert_eq!(timers.next(), Some(now + 2 * SECOND));
    }

    #[test]
    fn without_calls_a_peer_is_asked_only_if_it_agrees() {
        let now = Instant::now();
        let mut timers = timers(now);
        timers.ready();
        timers.keepalive = timers.keepalive.map(|keepalive| Keepalive {
            without_calls: false,
            ..keepalive
        });
        assert_eq!(timers.due(now + 60 * SECOND), None);
        timers.is_used(true, now + 61 * SECOND);
        assert_eq!(timers.due(now + 61 * SECOND), Some(Due::Ping));
    }
}
