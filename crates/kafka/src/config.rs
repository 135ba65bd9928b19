//! Where the brokers are and how long to wait for them.

use std::sync::Arc;
use std::time::Duration;

use super::in_flight::ClientHooks;
use super::security::Security;

/// Settings shared by everything that talks to one Kafka cluster.
///
/// The defaults are the Java client's, except where noted.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Addresses to start from, each `host:port`. The cluster names the rest.
    pub brokers: Vec<String>,
    /// The name brokers write in their request logs and quotas.
    pub client_id: String,
    /// How connections are protected.
    pub security: Security,
    /// The longest one connection may take to be made, TLS handshake, version
    /// negotiation and login included.
    pub connect_timeout: Duration,
    /// The longest to wait for one answer, for owners that have no deadline of
    /// their own (background threads).
    pub request_timeout: Duration,
    /// The pause after a first failed connection attempt; it doubles from there.
    pub reconnect_backoff: Duration,
    /// The longest pause between connection attempts.
    pub reconnect_backoff_max: Duration,
    /// A connection of a producer, or of a consumer to a leader, that is idle for longer is
    /// closed, before brokers close it (they do after ten minutes); Kafka's
    /// `connections.max.idle.ms`. The others are hardly idle for so long, and looked at
    /// before they are used again.
    pub connections_max_idle: Duration,
    /// How old the picture of the cluster may become before it is asked for again.
    pub metadata_max_age: Duration,
    /// Told of every request on every connection.
    pub hooks: Arc<dyn ClientHooks>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            brokers: vec!["localhost:9092".to_owned()],
            client_id: "tbd".to_owned(),
            security: Security::default(),
            // Java allows 10 s per attempt. A broker on the way up refuses or
            // answers at once; one that swallows packets must leave time to
            // try another within a 10 s publish budget.
            connect_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(30),
            reconnect_backoff: Duration::from_millis(50),
            reconnect_backoff_max: Duration::from_secs(1),
            connections_max_idle: Duration::from_secs(540),
            metadata_max_age: Duration::from_secs(300),
            hooks: Arc::new(()),
        }
    }
}

/// A pause that doubles with every failure, up to a limit, with a fifth of
/// chance in it so that many clients do not come back at the same instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// A backoff that starts at `first` and never exceeds `max` (plus chance).
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            failures: 0,
        }
    }

    /// The pause before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        let doubled = self
            .first
            .saturating_mul(2u32.saturating_pow(self.failures.min(30)))
            .min(self.max);
        self.failures = self.failures.saturating_add(1);
        // 0.8 .. 1.2
        doubled.mul_f64(0.8 + 0.4 * unit_random())
    }

    /// Forgets all failures: the next pause is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A number in `0.0..1.0`. Without a source of randomness it is the middle:
/// the jitter is a courtesy, not a need.
pub(super) fn unit_random() -> f64 {
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_start_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let within = |pause: Duration, ms: u64| {
            let base = Duration::from_millis(ms);
            pause >= base.mul_f64(0.79) && pause <= base.mul_f64(1.21)
        };
        assert!(within(backoff.next_pause(), 100));
        assert!(within(backoff.next_pause(), 200));
        assert!(within(backoff.next_pause(), 350));
        assert!(within(backoff.next_pause(), 350));
        backoff.reset();
        assert!(within(backoff.next_pause(), 100));
    }
}
