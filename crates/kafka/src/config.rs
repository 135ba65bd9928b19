//! Client settings: broker addresses, time-outs, backoff.

use std::sync::Arc;
use std::time::Duration;

use super::error::ConfigError;
use super::in_flight::ClientHooks;
use super::security::Security;

/// Settings shared by all clients of one Kafka cluster.
///
/// The defaults are the Java client's, except where noted. Start from [`ClientConfig::new`], and set the
/// fields that shall differ.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Bootstrap addresses, each `host:port`. The cluster's metadata names the rest. Default
    /// `localhost:9092`.
    #[doc(alias = "bootstrap.servers")]
    pub brokers: Vec<String>,
    /// The name that brokers use in request logs and quotas. Default `tbd-kafka`.
    #[doc(alias = "client.id")]
    pub client_id: String,
    /// How connections are protected. Default: not at all (`PLAINTEXT`).
    #[doc(alias = "security.protocol")]
    pub security: Security,
    /// The time-out of one connection attempt, including TLS handshake, version negotiation and
    /// login. Default 3 s; Java's is 10 s.
    #[doc(alias = "socket.connection.setup.timeout.ms")]
    pub connect_timeout: Duration,
    /// The time-out of one request from a thread that has no deadline of its own (background
    /// threads). Default 30 s.
    #[doc(alias = "request.timeout.ms")]
    pub request_timeout: Duration,
    /// The pause after the first failed connection attempt; it doubles with each further failure.
    /// Default 50 ms.
    #[doc(alias = "reconnect.backoff.ms")]
    pub reconnect_backoff: Duration,
    /// The longest pause between connection attempts. Default 1 s.
    #[doc(alias = "reconnect.backoff.max.ms")]
    pub reconnect_backoff_max: Duration,
    /// How long a connection may be idle before the client closes it. Default 9 minutes; brokers
    /// close idle connections after ten.
    ///
    /// It applies to connections of a producer, and of a consumer to leaders. Other connections are
    /// rarely idle for so long; they are checked before they are used again.
    #[doc(alias = "connections.max.idle.ms")]
    pub connections_max_idle: Duration,
    /// The age at which metadata is requested again. Default 5 minutes.
    #[doc(alias = "metadata.max.age.ms")]
    pub metadata_max_age: Duration,
    /// Hooks that observe every request on every connection. Default: none.
    #[doc(alias = "metric.reporters")]
    pub hooks: Arc<dyn ClientHooks>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            brokers: vec!["localhost:9092".to_owned()],
            client_id: "tbd-kafka".to_owned(),
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

/// The longest time that a setting may name. Longer ones overflow the clock or the protocol.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(24 * 24 * 3600);

/// Checks that a time-out is neither zero nor without an end.
pub(crate) fn check_timeout(field: &'static str, value: Duration) -> Result<(), ConfigError> {
    let is_valid = value > Duration::ZERO && value <= DURATION_MAX;
    ConfigError::check(
        is_valid,
        field,
        format!("{value:?} is not above 0 and at most 24 days"),
    )
}

impl ClientConfig {
    /// The defaults for the cluster with these bootstrap addresses, each `host:port`.
    pub fn new(brokers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            brokers: brokers.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Checks every setting. Producers, consumers and all connections do so, too.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let field = "ClientConfig::brokers";
        ConfigError::check(!self.brokers.is_empty(), field, "there is no address")?;
        for address in &self.brokers {
            let reason = format!("{address:?} is not of the form host:port");
            ConfigError::check(is_address(address), field, reason)?;
        }
        check_timeout("ClientConfig::connect_timeout", self.connect_timeout)?;
        check_timeout("ClientConfig::request_timeout", self.request_timeout)?;
        check_timeout("ClientConfig::reconnect_backoff", self.reconnect_backoff)?;
        check_timeout(
            "ClientConfig::reconnect_backoff_max",
            self.reconnect_backoff_max,
        )?;
        check_timeout(
            "ClientConfig::connections_max_idle",
            self.connections_max_idle,
        )?;
        let field = "ClientConfig::metadata_max_age";
        ConfigError::check(
            self.metadata_max_age <= DURATION_MAX,
            field,
            "it is longer than 24 days",
        )
    }
}

fn is_address(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// The host in `host:port`; an IPv6 address without its brackets.
#[cfg(any(test, feature = "tls"))]
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// The pause after a number of failures: `first`, doubled with each failure, at most `max`.
pub(crate) fn doubled(first: Duration, max: Duration, failures: u32) -> Duration {
    first
        .saturating_mul(2u32.saturating_pow(failures.min(30)))
        .min(max)
}

/// Exponential backoff with a limit and ±20 % jitter, so that many clients do not return at the
/// same instant.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// A backoff that starts at `first` and never exceeds `max` (plus jitter).
    pub(crate) fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            failures: 0,
        }
    }

    /// The pause before the next attempt.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = doubled(self.first, self.max, self.failures);
        self.failures = self.failures.saturating_add(1);
        // 0.8 .. 1.2
        pause.mul_f64(0.8 + 0.4 * unit_random())
    }

    /// Forgets all failures: the next pause is the first one again.
    pub(crate) fn reset(&mut self) {
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
    fn the_host_is_the_part_before_the_port() {
        assert_eq!(host_of("kafka-1.example.com:9092"), "kafka-1.example.com");
        assert_eq!(host_of("[::1]:9092"), "::1");
    }

    #[test]
    fn a_malformed_address_is_refused_by_its_field() {
        for address in [
            "kafka",
            "kafka:",
            ":9092",
            "kafka:port",
            "kafka:99999",
            "ka fka:1",
        ] {
            let config = ClientConfig {
                brokers: vec![address.to_owned()],
                ..ClientConfig::default()
            };
            let error = config.check().unwrap_err();
            assert_eq!(error.field, "ClientConfig::brokers");
            assert!(error.reason.contains(address), "{error}");
        }
        assert_eq!(ClientConfig::default().check(), Ok(()));
    }

    #[test]
    fn a_time_out_without_an_end_is_refused_by_its_field() {
        let config = ClientConfig {
            request_timeout: Duration::MAX,
            ..ClientConfig::default()
        };
        assert_eq!(
            config.check().unwrap_err().field,
            "ClientConfig::request_timeout"
        );
    }

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
