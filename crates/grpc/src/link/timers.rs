//! A connection's timers, as points in time. The reading thread asks what is due.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{ConnectionConfig, Exchange, Keepalive, LinkState};
use crate::h2::ErrorCode;

/// The payload of the PING that follows the first GOAWAY: its answer shows that the peer has read that.
const DRAIN_PING: [u8; 8] = *b"drain...";
/// How long that answer is waited for.
const PONG_WAIT: Duration = Duration::from_secs(1);
/// The payload of a keepalive PING.
pub(super) const KEEPALIVE_PING: [u8; 8] = *b"alive?..";

/// How much of the output the socket took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    All,
    Part,
    Nothing,
}

/// When what is due.
#[derive(Debug)]
pub(crate) struct Timers {
    /// By then the peer's SETTINGS have to be there.
    handshake: Option<Instant>,
    /// Since when nothing was received, or when the reading thread last saw that nobody is to be asked.
    quiet_since: Instant,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// End the connection, for this reason.
    Close(&'static str),
    /// Send a PING.
    Ping,
    /// Say GOAWAY, and end when the last call has.
    Drain,
    /// Say the second GOAWAY.
    SecondGoAway,
    /// End the streams of [`Timers::due_streams`].
    Streams,
}

impl Timers {
    pub(super) fn new(now: Instant, config: &ConnectionConfig) -> Self {
        // Connections that began together should not end together: a tenth more or less.
        let jitter = 0.9 + fastrand::f64() * 0.2;
        Self {
            handshake: Some(now + config.handshake_timeout),
            quiet_since: now,
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
        self.quiet_since = now;
        self.pinged_at = None;
    }

    pub(super) fn written(&mut self, now: Instant, flushed: Flushed) {
        match flushed {
            Flushed::All => self.write = None,
            Flushed::Nothing if self.write.is_some() => {}
            Flushed::Part | Flushed::Nothing => self.write = Some(now + self.write_timeout),
        }
    }

    pub(super) fn is_used(&mut self, is_used: bool, now: Instant) {
        self.idle_since = match is_used {
            true => None,
            false => self.idle_since.or(Some(now)),
        };
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
        let all = self.all().into_iter();
        let mut all = all.filter(|(at, _)| at.is_some_and(|at| at <= now));
        let (_, mut due) = all.next()?;
        if due == Due::Ping {
            // A call does not wake the reading thread. So it looks after each interval whether there is one.
            self.quiet_since = now;
            if self.idle_since.is_none() || self.keepalive.is_some_and(|it| it.without_calls) {
                self.pinged_at = Some(now);
                return Some(due);
            }
            (_, due) = all.next()?;
        }
        match due {
            Due::Drain => (self.age, self.idle_max) = (None, None),
            Due::SecondGoAway => self.second_go_away = None,
            Due::Close(_) | Due::Ping | Due::Streams => {}
        }
        Some(due)
    }

    /// What is set, the most urgent first.
    fn all(&self) -> [(Option<Instant>, Due); 9] {
        let (since, pinged) = (self.quiet_since, self.pinged_at);
        // Before the handshake its own timer runs.
        let keepalive = self.keepalive.filter(|_| self.handshake.is_none());
        let ping = keepalive.filter(|_| pinged.is_none());
        let is_open = self.drained.is_none();
        let idle = self.idle_since.zip(self.idle_max);
        [
            (self.handshake, Due::Close("the handshake took too long")),
            (self.write, Due::Close("the peer takes nothing")),
            (self.drained, Due::Close("the last calls took too long")),
            (
                pinged.zip(keepalive).map(|(at, it)| at + it.timeout),
                Due::Close("the peer does not answer"),
            ),
            (ping.map(|it| since + it.interval), Due::Ping),
            (self.age.filter(|_| is_open), Due::Drain),
            (
                idle.filter(|_| is_open).map(|(since, max)| since + max),
                Due::Drain,
            ),
            (self.second_go_away, Due::SecondGoAway),
            (self.next_stream, Due::Streams),
        ]
    }

    #[cfg(test)]
    pub(crate) fn streams(&self) -> &HashMap<u32, Instant> {
        &self.streams
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.all().into_iter().filter_map(|(at, _)| at).min()
    }

    /// Takes the streams that are due at `now`.
    pub(super) fn due_streams(&mut self, now: Instant) -> Vec<u32> {
        let due = self.streams.extract_if(|_, at| *at <= now);
        let due = due.map(|(id, _)| id).collect();
        self.next_stream = self.streams.values().min().copied();
        due
    }
}

impl LinkState {
    /// Says GOAWAY in two steps (RFC 9113, section 6.8).
    pub(super) fn start_draining(&mut self, now: Instant, timeout: Duration) {
        if self.timers.drained.is_none() {
            self.timers.drained = Some(now + timeout);
            self.timers.second_go_away = Some(now + PONG_WAIT);
            self.h2.announce_go_away();
            self.h2.ping(DRAIN_PING);
            self.exchanges.values_mut().for_each(Exchange::notify);
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
        let config = ConnectionConfig {
            keepalive: Some(Keepalive {
                interval: 60 * SECOND,
                timeout: 5 * SECOND,
                without_calls: true,
            }),
            idle_max: Some(300 * SECOND),
            age_max: Some(3600 * SECOND),
            ..ConnectionConfig::server()
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
        timers.written(now, Flushed::Nothing);
        timers.written(now + 19 * SECOND, Flushed::Nothing);
        assert_eq!(
            timers.due(now + 20 * SECOND),
            Some(Due::Close("the peer takes nothing"))
        );
        timers.written(now + 20 * SECOND, Flushed::Part);
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
        assert_eq!(timers.due(now + SECOND), Some(Due::Streams));
        assert_eq!(timers.due_streams(now + SECOND), [3]);
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
        assert_eq!(timers.next(), Some(now + 120 * SECOND), "it looks again");
        timers.is_used(true, now + 61 * SECOND);
        assert_eq!(timers.due(now + 120 * SECOND), Some(Due::Ping));
    }
}
