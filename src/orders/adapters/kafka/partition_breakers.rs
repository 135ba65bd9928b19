//! A circuit breaker for each partition of a topic.
//!
//! A partition may be away alone, for example while its broker is down and nobody else has a copy.
//! Each event for it waits for its whole time limit, and holds a thread of the pool or the relay
//! meanwhile. Without these breakers a few such partitions would hold up the events of all others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::orders::adapters::breaker::{Breaker, Limits, Permit};
use crate::orders::ports::{Message, PublishError};
use tbd_deadline::{Deadline, lock};
use tbd_kafka::producer::partition_for_key;
use tbd_telemetry::tracing::{self, SpanKind};

use super::bus::{KafkaEventBus, is_away};

/// Fewer failures and less time than for Kafka as a whole: each failure has cost a thread all of its
/// time limit, and a partition usually gets a leader within seconds.
const LIMITS: Limits = Limits {
    failures: 2,
    cool_down: Duration::from_secs(5),
};

/// How long a background thread waits for a partition that it probes.
const PROBE_BUDGET: Duration = Duration::from_secs(2);

/// Why a message was not sent.
const PARTITION_AWAY: &str = "the circuit breaker of its partition is open";

/// A topic and the number of a partition.
type Partition = (Arc<str>, i32);

/// The breakers of the partitions that have failed once.
#[derive(Default)]
pub(super) struct PartitionBreakers(Mutex<HashMap<Partition, Arc<Breaker>>>);

impl PartitionBreakers {
    /// Whether no partition has failed.
    fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    fn find(&self, partition: &Partition) -> Option<Arc<Breaker>> {
        lock(&self.0).get(partition).cloned()
    }

    fn of(&self, partition: Partition) -> Arc<Breaker> {
        let subject = format!("publishing to partition {} of {}", partition.1, partition.0);
        let new = || Arc::new(Breaker::with(subject, LIMITS));
        Arc::clone(lock(&self.0).entry(partition).or_insert_with(new))
    }

    /// Closes all of them: Kafka was away as a whole, and is back.
    fn forget(&self) {
        lock(&self.0).clear();
    }
}

impl KafkaEventBus {
    /// The partition that gets `message`, if it is known.
    fn partition(&self, message: &Message) -> Option<Partition> {
        let topic = self.topics.of(message.kind);
        let count = self.producer.partition_count(topic)?;
        let key = message.order_id.to_string();
        Some((Arc::clone(topic), partition_for_key(key.as_bytes(), count)))
    }

    /// The breaker of that partition, if it has failed once.
    pub(super) fn partition_breaker(&self, message: &Message) -> Option<Arc<Breaker>> {
        // Nearly always, so this costs nothing.
        if self.partitions.is_empty() {
            return None;
        }
        self.partitions.find(&self.partition(message)?)
    }

    /// Calls `send` for a request, unless a breaker is open, and counts its outcome.
    pub(super) fn guard(
        &self,
        message: &Message,
        deadline: Deadline,
        send: impl FnOnce() -> Result<(), PublishError>,
    ) -> Result<(), PublishError> {
        if let Some(breaker) = self.breaker.as_ref().filter(|it| !it.is_closed()) {
            let probed = breaker.guard(deadline, is_away, send);
            if matches!(probed, Some(Ok(()))) {
                self.partitions.forget();
            }
            return probed.unwrap_or_else(|| refused("the circuit breaker is open"));
        }
        // While Kafka may be away as a whole, the failures of the few partitions that there may be have to
        // reach its breaker.
        let is_well = self.breaker.as_ref().is_none_or(|it| it.is_well());
        let of_partition = self.partition_breaker(message).filter(|_| is_well);
        let Ok(probe) = admission(of_partition.as_deref(), deadline) else {
            return refused(PARTITION_AWAY);
        };
        let began = Instant::now();
        let result = send();
        self.count(message, &result, (began, deadline));
        if let Some(probe) = probe {
            probe.ended(is_answered(&result));
        }
        result
    }

    /// Counts the outcome of a request's publish, which had this time.
    pub(super) fn count(
        &self,
        message: &Message,
        result: &Result<(), PublishError>,
        time: (Instant, Deadline),
    ) {
        let breaker = self.breaker.iter();
        breaker.for_each(|it| it.count(is_answered(result), time.0, time.1));
        self.count_for_partition(message, result, time);
    }

    /// Counts the outcome of a publish that had from `began` until `deadline`, if there are breakers.
    fn count_for_partition(
        &self,
        message: &Message,
        result: &Result<(), PublishError>,
        (began, deadline): (Instant, Deadline),
    ) {
        let is_answered = is_answered(result);
        let breaker = match is_answered {
            true => self.partition_breaker(message),
            false if self.breaker.is_some() => {
                let partition = self.partition(message);
                partition.map(|it| self.partitions.of(it))
            }
            false => None,
        };
        let breaker = breaker.iter();
        breaker.for_each(|it| it.count(is_answered, began, deadline));
    }

    /// Publishes messages together, except those for partitions that are known to be away. Those that
    /// probe a partition come last and have less time, so that they hold up nothing else for long.
    pub(super) fn publish_admitted(
        &self,
        messages: &[Message],
        deadline: Deadline,
    ) -> Vec<Result<(), PublishError>> {
        let breakers: Vec<_> = messages
            .iter()
            .map(|message| self.partition_breaker(message))
            .collect();
        let away = Err(PublishError::Unavailable(PARTITION_AWAY.into()));
        let mut results = vec![away; messages.len()];
        let (mut sure, mut probing, mut probes) = (Vec::new(), Vec::new(), Vec::new());
        for (index, breaker) in breakers.iter().enumerate() {
            match admission(breaker.as_deref(), deadline) {
                Ok(None) => sure.push(index),
                Ok(Some(probe)) => {
                    probing.push(index);
                    probes.push(probe);
                }
                Err(Away) => {}
            }
        }
        self.publish_some(messages, &sure, deadline, &mut results);
        let soon = deadline.earlier_of(Deadline::after(PROBE_BUDGET));
        self.publish_some(messages, &probing, soon, &mut results);
        for (index, probe) in probing.into_iter().zip(probes) {
            probe.ended(is_answered(&results[index]));
        }
        results
    }

    fn publish_some(
        &self,
        messages: &[Message],
        chosen: &[usize],
        deadline: Deadline,
        results: &mut [Result<(), PublishError>],
    ) {
        let began = Instant::now();
        let records = chosen.iter().map(|index| {
            let message = &messages[*index];
            (self.topics.record(message), message.trace_context.clone())
        });
        let outcomes = self.send(records.collect(), deadline);
        for (&index, result) in chosen.iter().zip(outcomes) {
            self.count_for_partition(&messages[index], &result, (began, deadline));
            results[index] = result;
        }
    }
}

/// A partition is away, and somebody else probes it or will.
struct Away;

/// Whether a message for the partition of `breaker` may be sent, and the permit if it is a probe.
fn admission(breaker: Option<&Breaker>, deadline: Deadline) -> Result<Option<Permit<'_>>, Away> {
    match breaker {
        Some(breaker) if !breaker.is_closed() => match breaker.admit(Instant::now(), deadline) {
            Some(probe) => Ok(Some(probe)),
            None => Err(Away),
        },
        _ => Ok(None),
    }
}

/// Whether Kafka answered, be it with a refusal of this message.
fn is_answered(result: &Result<(), PublishError>) -> bool {
    !result.as_ref().err().is_some_and(is_away)
}

fn refused(reason: &str) -> Result<(), PublishError> {
    // The span shows readers of the trace that no message was sent.
    let step = tracing::span("publish", SpanKind::Internal, []);
    step.fail("circuit_open", reason);
    Err(PublishError::Unavailable(reason.into()))
}
