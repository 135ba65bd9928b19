//! A channel's settings: one for each limit and each timeout.

use std::time::Duration;

use super::retry::{RetryPolicy, RetryThrottling};
use crate::link::ConnectionConfig;

/// How a channel connects and calls.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChannelConfig {
    /// How each connection is kept.
    pub connection: ConnectionConfig,
    /// How long a call may take that names no deadline. Default: 30 s.
    pub call_timeout: Duration,
    /// How long TCP's part of connecting may take; `connection.handshake_timeout` follows. Default: 5 s.
    pub connect_timeout: Duration,
    /// The pauses between attempts to connect to one address.
    pub reconnect: Backoff,
    /// How often the addresses of the names are looked up again, at least. Default: 30 s.
    pub resolve_interval: Duration,
    /// Which failed calls are tried again. Default: only those that no server has seen.
    pub retry: Option<RetryPolicy>,
    /// When retries stop because too many calls fail. Default: ten tokens, a tenth for each success.
    pub retry_throttling: RetryThrottling,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            connection: ConnectionConfig::channel(),
            call_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            reconnect: Backoff::default(),
            resolve_interval: Duration::from_secs(30),
            retry: None,
            retry_throttling: RetryThrottling::default(),
        }
    }
}

/// Pauses that grow by a factor, each a fifth shorter or longer at random, so that clients do not come all at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// The first pause. Default: 200 ms.
    pub initial: Duration,
    /// The factor from one pause to the next. Default: 1.6.
    pub multiplier: f64,
    /// The longest pause. Default: 20 s.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(200),
            multiplier: 1.6,
            max: Duration::from_secs(20),
        }
    }
}

impl Backoff {
    /// The pause after so many failures, of which there is at least one.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let steps = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let factor = self.multiplier.max(1.0).powi(steps);
        let seconds = (self.initial.as_secs_f64() * factor).min(self.max.as_secs_f64());
        Duration::from_secs_f64(seconds * (0.8 + fastrand::f64() * 0.4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let backoff = Backoff {
            initial: Duration::from_secs(1),
            multiplier: 2.0,
            max: Duration::from_secs(10),
        };
        for (failures, expected) in [(1, 1.0), (2, 2.0), (4, 8.0), (5, 10.0), (u32::MAX, 10.0)] {
            let pause = backoff.pause(failures).as_secs_f64();
            assert!(
                (0.8 * expected..=1.2 * expected).contains(&pause),
                "{pause} after {failures}"
            );
        }
    }
}
