//! Kafka's health check: a broker answers, and our topics exist.

use std::time::{Duration, Instant};

use super::Kafka;
use tbd_deadline::Deadline;
use tbd_kafka::Error;

/// Time limit of one health check of Kafka.
const CHECK_BUDGET: Duration = Duration::from_secs(3);

/// How long the producer's warm-up may delay readiness.
const WARM_UP_BUDGET: Duration = Duration::from_secs(1);

/// How long a deleted topic stays missing before it is created again: an operator may be about to
/// create it with other settings.
const GRACE: Duration = Duration::from_secs(10);

/// The pause between two attempts to create topics.
const CREATE_PERIOD: Duration = Duration::from_secs(2);

pub(super) struct TopicCheck<W> {
    kafka: Kafka,
    warm_up: W,
    /// Whether all topics have existed before.
    were_there: bool,
    /// Whether the producer has warmed up since the last outage.
    is_warm: bool,
    missing_since: Option<Instant>,
    next_attempt: Instant,
    /// Why the last attempt to create topics failed.
    last_refusal: Option<String>,
    last_warning: Option<String>,
}

impl<W: FnMut(Deadline)> TopicCheck<W> {
    pub(super) fn new(kafka: Kafka, warm_up: W) -> Self {
        Self {
            kafka,
            warm_up,
            were_there: false,
            is_warm: false,
            missing_since: None,
            next_attempt: Instant::now(),
            last_refusal: None,
            last_warning: None,
        }
    }

    /// Waits for the brokers, for three seconds at most.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let deadline = Deadline::after(CHECK_BUDGET);
        let outcome = self.find_missing(deadline).and_then(|missing| {
            if !missing.is_empty() {
                self.create(&missing, deadline)?;
            }
            if !self.is_warm {
                (self.warm_up)(Deadline::after(WARM_UP_BUDGET).earlier_of(deadline));
            }
            // Brokers learn of a new topic a moment after the controller's answer. One that existed
            // already may be about to disappear.
            match missing.is_empty() || self.find_missing(deadline)?.is_empty() {
                true => Ok(()),
                false => Err(absent(&missing)),
            }
        });
        if outcome.is_ok() {
            if self.missing_since.take().is_some() {
                log::info!("all kafka topics exist");
            }
            self.were_there = true;
            self.is_warm = true;
            self.last_warning = None;
        }
        outcome
    }

    /// Our topics that the cluster does not have.
    fn find_missing(&mut self, deadline: Deadline) -> Result<Vec<String>, String> {
        self.kafka.missing_topics(deadline).map_err(|error| {
            self.is_warm = false;
            let reason = refusal(&error);
            if error.missing_right().is_some() {
                self.warn(&reason);
            }
            reason
        })
    }

    /// Creates missing topics, unless it is too early.
    fn create(&mut self, missing: &[String], deadline: Deadline) -> Result<(), String> {
        let now = Instant::now();
        let since = *self.missing_since.get_or_insert(now);
        let absent = absent(missing);
        if self.were_there && now < since + GRACE {
            self.warn(&format!(
                "{absent}; it is created in {} s unless that happens before",
                GRACE.as_secs()
            ));
            return Err(absent);
        }
        if now < self.next_attempt {
            return Err(self.last_refusal.clone().unwrap_or(absent));
        }
        self.next_attempt = now + CREATE_PERIOD;
        match self.kafka.create_topics(missing, deadline) {
            Ok(()) => {
                log::info!("created missing kafka topics: {}", missing.join(", "));
                self.last_refusal = None;
                Ok(())
            }
            Err(error) => {
                let reason = format!("{absent}: {}", refusal(&error));
                self.warn(&reason);
                self.last_refusal = Some(reason.clone());
                Err(reason)
            }
        }
    }

    /// Logs a sentence once, until another one replaces it.
    fn warn(&mut self, sentence: &str) {
        if self.last_warning.as_deref() != Some(sentence) {
            log::warn!("{sentence}");
            self.last_warning = Some(sentence.to_owned());
        }
    }
}

fn absent(missing: &[String]) -> String {
    format!("kafka has no topic {}", missing.join(", "))
}

/// What a broker refused, and which permission would help, if one is missing.
fn refusal(error: &Error) -> String {
    match error.missing_right() {
        Some(right) => format!("{error}; allow this user the operation {right} on it"),
        None => error.to_string(),
    }
}
