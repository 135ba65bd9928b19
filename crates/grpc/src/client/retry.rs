//! Which failed calls are tried again, and when: the rules of gRPC's service configuration (proposal A6).

use std::time::Duration;

use super::config::Backoff;
use crate::code::Code;
use crate::status::Status;

/// The retry policy of a method, as a service configuration has it.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// How often a call is tried in all. Default: 4.
    pub attempts_max: u32,
    /// The pauses between attempts. Default: 100 ms, doubled each time, at most 2 s.
    pub backoff: Backoff,
    /// The codes after which a call is tried again. Default: UNAVAILABLE.
    pub codes: Vec<Code>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 4,
            backoff: Backoff {
                initial: Duration::from_millis(100),
                multiplier: 2.0,
                max: Duration::from_secs(2),
            },
            codes: vec![Code::Unavailable],
        }
    }
}

/// Keeps retries from making an outage worse: each failure takes a token, each success returns a part of one, and with half
/// of them gone nothing is retried.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryThrottling {
    /// The most tokens. Default: 10.
    pub tokens_max: f64,
    /// What a success returns. Default: 0.1.
    pub token_ratio: f64,
}

impl Default for RetryThrottling {
    fn default() -> Self {
        Self {
            tokens_max: 10.0,
            token_ratio: 0.1,
        }
    }
}

/// The tokens of one channel.
#[derive(Debug)]
pub(super) struct Throttle {
    config: RetryThrottling,
    tokens: f64,
}

impl Throttle {
    pub(super) fn new(config: RetryThrottling) -> Self {
        Self {
            tokens: config.tokens_max,
            config,
        }
    }

    pub(super) fn succeeded(&mut self) {
        self.tokens = (self.tokens + self.config.token_ratio).min(self.config.tokens_max);
    }

    /// Counts a failure; whether a retry is allowed after it.
    pub(super) fn failed(&mut self) -> bool {
        self.tokens = (self.tokens - 1.0).max(0.0);
        self.tokens > self.config.tokens_max / 2.0
    }
}

/// One call's attempts.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// Attempts that a server may have seen, and that failed.
    failed: u32,
    /// Attempts that no server has seen.
    unseen: u32,
}

/// Attempts that no server has seen are repeated without a pause, but not for ever.
const UNSEEN_MAX: u32 = 5;

impl Attempts {
    /// What `grpc-previous-rpc-attempts` says.
    pub(super) fn previous(&self) -> u32 {
        self.failed
    }

    /// Whether an attempt that no server has seen is repeated.
    pub(super) fn after_unseen(&mut self) -> bool {
        self.unseen += 1;
        self.unseen <= UNSEEN_MAX
    }

    /// The pause before the next attempt; None when `status` is the end. `is_early` says that no response has begun.
    pub(super) fn after(
        &mut self,
        status: &Status,
        is_early: bool,
        policy: Option<&RetryPolicy>,
        throttle: &mut Throttle,
    ) -> Option<Duration> {
        let policy = policy.filter(|policy| policy.codes.contains(&status.code()))?;
        self.failed += 1;
        if !throttle.failed() || !is_early || self.failed >= policy.attempts_max {
            return None;
        }
        match status.pushback_text() {
            None => Some(policy.backoff.pause(self.failed)),
            // What is no number of milliseconds forbids a retry.
            Some(text) => text.parse().ok().map(Duration::from_millis),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle() -> Throttle {
        Throttle::new(RetryThrottling::default())
    }

    fn unavailable() -> Status {
        Status::new(Code::Unavailable, "")
    }

    #[test]
    fn a_call_is_tried_as_often_as_the_policy_says() {
        let (policy, mut throttle) = (
            RetryPolicy {
                attempts_max: 3,
                ..RetryPolicy::default()
            },
            throttle(),
        );
        let mut attempts = Attempts::default();
        assert!(
            attempts
                .after(&unavailable(), true, Some(&policy), &mut throttle)
                .is_some()
        );
        assert!(
            attempts
                .after(&unavailable(), true, Some(&policy), &mut throttle)
                .is_some()
        );
        assert_eq!(attempts.previous(), 2);
        assert_eq!(
            attempts.after(&unavailable(), true, Some(&policy), &mut throttle),
            None
        );
    }

    #[test]
    fn other_codes_and_begun_responses_are_the_end() {
        let (policy, mut throttle) = (RetryPolicy::default(), throttle());
        let mut attempts = Attempts::default();
        let internal = Status::new(Code::Internal, "");
        assert_eq!(
            attempts.after(&internal, true, Some(&policy), &mut throttle),
            None
        );
        assert_eq!(
            attempts.after(&unavailable(), false, Some(&policy), &mut throttle),
            None
        );
        assert_eq!(
            attempts.after(&unavailable(), true, None, &mut throttle),
            None
        );
    }

    #[test]
    fn the_server_says_when_or_never() {
        let (policy, mut throttle) = (RetryPolicy::default(), throttle());
        let mut after = |value: &str| {
            let status = unavailable().with_pushback(value);
            Attempts::default().after(&status, true, Some(&policy), &mut throttle)
        };
        assert_eq!(after("7"), Some(Duration::from_millis(7)));
        assert_eq!(after("-1"), None);
        assert_eq!(after("x"), None);
    }

    #[test]
    fn with_half_of_the_tokens_gone_nothing_is_retried() {
        let mut throttle = throttle();
        assert!((0..4).all(|_| throttle.failed()));
        assert!(!throttle.failed());
        (0..11).for_each(|_| throttle.succeeded());
        assert!(throttle.failed());
    }

    #[test]
    fn unseen_attempts_end_as_well() {
        let mut attempts = Attempts::default();
        assert_eq!((0..10).filter(|_| attempts.after_unseen()).count(), 5);
        assert_eq!(attempts.previous(), 0);
    }
}
