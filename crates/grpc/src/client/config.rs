//! A channel's settings: one for each limit and each timeout.

use std::time::Duration;

use super::retry::{RetryPolicy, RetryThrottling};
use crate::h2::Limits;
use crate::link::{Keepalive, LinkConfig};

/// How a channel connects and calls.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChannelConfig {
    /// How long a call may take that names no deadline. Default: 30 s.
    pub call_timeout: Duration,
    /// How long TCP's part of connecting may take. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long the server may take from then on to its SETTINGS, TLS included. Default: 10 s.
    pub handshake_timeout: Duration,
    /// The pauses between attempts to connect to one address.
    pub reconnect: Backoff,
    /// How often the addresses of the names are looked up again, at least. Default: 30 s.
    pub resolve_interval: Duration,
    /// Octets of a message, before and after decompression. Default: 4 MiB.
    pub message_bytes_max: usize,
    /// Octets of responses that may wait in memory on one connection; the call that goes beyond ends with
    /// RESOURCE_EXHAUSTED. Default: 64 MiB.
    pub buffered_bytes_max: usize,
    /// Octets of requests that may wait for one connection before callers wait. Default: 16 MiB.
    pub unsent_bytes_max: usize,
    /// How long a server may read nothing of what it is sent. Default: 20 s.
    pub write_timeout: Duration,
    /// PINGs to a silent server. Default: none. Servers of grpc-go allow one in five minutes unless configured otherwise,
    /// and end the connection of a client that sends more.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may be without calls. Default: 30 min.
    pub idle_max: Option<Duration>,
    /// How long running calls may take to end after the server's GOAWAY. Default: 5 min.
    pub drain_timeout: Duration,
    /// Which failed calls are tried again. Default: only those that no server has seen.
    pub retry: Option<RetryPolicy>,
    /// When retries stop because too many calls fail. Default: ten tokens, a tenth for each success.
    pub retry_throttling: RetryThrottling,
    /// Limits of each connection's HTTP/2.
    pub limits: Limits,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(10),
            reconnect: Backoff::default(),
            resolve_interval: Duration::from_secs(30),
            message_bytes_max: 4 * 1024 * 1024,
            buffered_bytes_max: 64 * 1024 * 1024,
            unsent_bytes_max: 16 * 1024 * 1024,
            write_timeout: Duration::from_secs(20),
            keepalive: None,
            idle_max: Some(Duration::from_secs(1800)),
            drain_timeout: Duration::from_secs(300),
            retry: None,
            retry_throttling: RetryThrottling::default(),
            limits: Limits::default(),
        }
    }
}

impl ChannelConfig {
    pub(super) fn link(&self) -> LinkConfig {
        LinkConfig {
            limits: self.limits.clone(),
            message_bytes_max: self.message_bytes_max,
            buffered_bytes_max: self.buffered_bytes_max,
            unsent_bytes_max: self.unsent_bytes_max,
            handshake_timeout: self.handshake_timeout,
            write_timeout: self.write_timeout,
            keepalive: self.keepalive,
            idle_max: self.idle_max,
            age_max: None,
            drain_timeout: self.drain_timeout,
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
        let factor = self
            .multiplier
            .max(1.0)
            .powi(i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX));
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
