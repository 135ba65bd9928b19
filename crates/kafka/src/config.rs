//! Client settings: broker addresses, time-outs, backoff.

use std::sync::Arc;
use std::time::Duration;

use super::in_flight::ClientHooks;
use super::security::Security;

/// Settings shared by all clients of one Kafka cluster.
///
/// The defaults are the Java client's, except where noted.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Bootstrap addresses, each `host:port`. The cluster's metadata names the rest.
    pub brokers: Vec<String>,
    /// The name that brokers use in request logs and quotas.
    pub client_id: String,
    /// How connections are protected.
    pub security: Security,
    /// The time-out of one connection attempt, including TLS handshake, version negotiation and
    /// login.
    pub connect_timeout: Duration,
    /// The time-out of one request from a thread that has no deadline of its own (background
    /// threads).
    pub request_timeout: Duration,
    /// The pause after the first failed connection attempt; it doubles with each further failure.
    pub reconnect_backoff: Duration,
    /// The longest pause between connection attempts.
    pub reconnect_backoff_max: Duration,
    /// How long a connection may be idle before the client closes it; Kafka's
    /// `connections.max.idle.ms`. Brokers close idle connections after ten minutes.
    ///
    /// It applies to connections of a producer, and of a consumer to leaders. Other connections are
    /// rarely idle for so long; they are checked before they are used again.
    pub connections_max_idle: Duration,
    /// The age at which metadata is requested again.
    pub metadata_max_age: Duration,
    /// Hooks that observe every request on every connection.
    pub hooks: Arc<dyn ClientHooks>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            brokers: vec!["localhost:9092".to_owned()],
            client_id: "tbd".to_owned(),
            security: Security::default(),
            // Java allows 10 s per attempt. A broker that starts up refuses or answers at once. If
            // a broker drops packets, a publish budget of 10 s must leave time to try another.
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

/// Exponential backoff with a limit and ±20 % jitter, so that many clients do not return at the
/// same instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// A backoff that starts at `first` and never exceeds `max` (plus jitter).
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

/// A random number in `0.0..=1.0`, or 0.5 without a source of randomness: jitter is not essential.
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
