//! Reading and replaying the dead letters of order.dlq. This joins no group and commits nothing: a
//! letter stays in the topic until Kafka's retention removes it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::orders::app::PUBLISH_BUDGET;
use crate::orders::ports::PublishError;
use tbd_deadline::Deadline;
use tbd_kafka::consumer::ConsumerRecord;
use tbd_kafka::{Cluster, Error, Reader};
use tbd_telemetry::tracing;

use super::KafkaEventBus;
use super::dead_letter::{
    ATTEMPTS, OFFSET, OMITTED, Original, PARTITION, REASON, TOPIC, replay, with_original,
};
use super::spans::trace_context;

/// Time limit of one read of the topic: an operator waits for it.
const READ_BUDGET: Duration = Duration::from_secs(10);

/// The topic of dead letters.
pub struct DeadLetters {
    cluster: Cluster,
    topic: Arc<str>,
}

/// A reader of dead letters, some at a time.
pub struct Letters(Reader);

/// A dead letter.
pub struct Letter(ConsumerRecord);

impl DeadLetters {
    /// The dead letters in `topic`. No I/O.
    pub fn new(cluster: Cluster, topic: Arc<str>) -> Self {
        Self { cluster, topic }
    }

    /// All letters up to the topic's present end. Waits 10 seconds at most.
    ///
    /// # Errors
    /// The topic cannot be read.
    pub fn all(&self) -> Result<Letters, Error> {
        Ok(self.letters((0..).zip(self.ranges()?)))
    }

    /// The letters at `positions` (partition, offset), each once. Skips positions without a
    /// letter. Waits 10 seconds at most.
    ///
    /// # Errors
    /// The topic cannot be read.
    pub fn at(&self, positions: &[(i32, i64)]) -> Result<Letters, Error> {
        let known = self.ranges()?;
        let is_there = |&(partition, offset): &(i32, i64)| {
            let range = usize::try_from(partition).ok().and_then(|p| known.get(p));
            range.is_some_and(|range| range.contains(&offset))
        };
        let wanted: BTreeSet<(i32, i64)> = positions.iter().copied().filter(is_there).collect();
        let single = |(partition, offset)| (partition, offset..offset + 1);
        Ok(self.letters(wanted.into_iter().map(single)))
    }

    /// `letter` with the key, value and headers of its original, if it
    /// [is incomplete](Letter::is_incomplete). Waits 10 seconds at most.
    ///
    /// # Errors
    /// The original is not available.
    pub fn complete(&self, letter: &Letter) -> Result<Letter, IncompleteError> {
        if !letter.is_incomplete() {
            return Ok(Letter(letter.0.clone()));
        }
        let original = Original::of(&letter.0).ok_or(IncompleteError::NoPlace)?;
        let range = (original.partition, original.offset..original.offset + 1);
        let mut reader = Reader::new(self.cluster.clone(), &*original.topic, [range]);
        let found = reader.read(Deadline::after(READ_BUDGET));
        let place = letter.origin();
        match found {
            Err(error) => Err(IncompleteError::Unreadable { place, error }),
            Ok(mut records) => match records.pop() {
                None => Err(IncompleteError::Gone { place }),
                Some(found) if !original.is(&found) => Err(IncompleteError::Replaced { place }),
                Some(found) => Ok(Letter(with_original(&letter.0, found))),
            },
        }
    }

    fn ranges(&self) -> Result<Vec<Range<i64>>, Error> {
        Reader::ranges(&self.cluster, &self.topic, Deadline::after(READ_BUDGET))
    }

    fn letters(&self, ranges: impl Iterator<Item = (i32, Range<i64>)>) -> Letters {
        Letters(Reader::new(
            self.cluster.clone(),
            Arc::clone(&self.topic),
            ranges,
        ))
    }
}

impl Letters {
    /// The next letters; none after the last one. Waits 10 seconds at most.
    ///
    /// # Errors
    /// The topic cannot be read.
    pub fn read(&mut self) -> Result<Vec<Letter>, Error> {
        let records = self.0.read(Deadline::after(READ_BUDGET))?;
        Ok(records.into_iter().map(Letter).collect())
    }
}

/// Why a letter without its value cannot be completed.
#[derive(Debug, thiserror::Error)]
pub enum IncompleteError {
    /// The headers that name the original are missing: another program wrote the letter.
    #[error("its value was omitted, and its headers do not name the original")]
    NoPlace,
    /// The original cannot be read at present.
    #[error("its value was omitted, and the original at {place} cannot be read: {error}")]
    Unreadable {
        /// Topic, partition and offset.
        place: String,
        /// Why.
        error: Error,
    },
    /// Retention has removed the original.
    #[error("its value was omitted, and the original at {place} is gone: retention has removed it")]
    Gone {
        /// Topic, partition and offset.
        place: String,
    },
    /// The topic was deleted and created again.
    #[error("its value was omitted, and the record at {place} is not the original")]
    Replaced {
        /// Topic, partition and offset.
        place: String,
    },
}

/// Why a letter was not replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Another program wrote the letter.
    #[error("it has no dlq-topic header, so its topic is unknown")]
    NoOrigin,
    /// The letter is incomplete, and its original is not available.
    #[error(transparent)]
    Incomplete(#[from] IncompleteError),
    /// The record may not have arrived.
    #[error(transparent)]
    NotPublished(#[from] PublishError),
}

/// Replays `letters` to their original topics, marked with `now`, each in its own trace. Returns
/// one result per letter, in order. Waits for the publish budget at most.
pub fn replay_letters(
    bus: &KafkaEventBus,
    letters: &[Letter],
    now: Timestamp,
) -> Vec<Result<(), ReplayError>> {
    let records: Vec<_> = letters
        .iter()
        .map(|letter| replay(&letter.0, now))
        .collect();
    let known = letters.iter().zip(&records).filter_map(|(letter, record)| {
        let cause = tracing::serialize(&trace_context(&letter.0));
        Some((record.clone()?, cause))
    });
    let known = known.collect::<Vec<_>>();
    let mut sent = match known.is_empty() {
        true => Vec::new(),
        false => bus.send(known, Deadline::after(PUBLISH_BUDGET)),
    }
    .into_iter();
    let mut answer = |record: &Option<_>| match record {
        None => Err(ReplayError::NoOrigin),
        Some(_) => Ok(sent
            .next()
            .unwrap_or_else(|| Err(PublishError::Unavailable("no answer".into())))?),
    };
    records.iter().map(&mut answer).collect()
}

impl Letter {
    /// Partition and offset in the topic of dead letters.
    pub fn position(&self) -> (i32, i64) {
        (self.0.partition, self.0.offset)
    }

    /// When it was written; `None` without a timestamp.
    pub fn written_at(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.0.timestamp_ms)
            .ok()
            .filter(|_| self.0.timestamp_ms >= 0)
    }

    /// The original record's key.
    pub fn key(&self) -> Option<&[u8]> {
        self.0.key.as_deref()
    }

    /// Whether the value, and perhaps key and headers, were omitted: the record was too large for
    /// a letter. [`DeadLetters::complete`] fetches them from the original.
    pub fn is_incomplete(&self) -> bool {
        self.0.header(OMITTED).is_some()
    }

    /// The original record's value. It contains personal data.
    pub fn value(&self) -> Option<&[u8]> {
        self.0.value.as_deref()
    }

    /// Every header, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let headers = self.0.headers.iter();
        headers.map(|(name, value)| (name.as_str(), value.as_deref()))
    }

    /// The topic of the original record.
    pub fn origin_topic(&self) -> Option<&str> {
        self.header(TOPIC)
    }

    /// The place of the original record, `topic partition:offset`; `?` for unknown parts.
    pub fn origin(&self) -> String {
        let part = |name| self.header(name).unwrap_or("?");
        format!("{} {}:{}", part(TOPIC), part(PARTITION), part(OFFSET))
    }

    /// Why the record became a dead letter.
    pub fn reason(&self) -> Option<&str> {
        self.header(REASON)
    }

    /// The number of attempts at processing.
    pub fn attempts(&self) -> Option<&str> {
        self.header(ATTEMPTS)
    }

    fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.0.header(name)?).ok()
    }
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Key, value and headers are the users' data.
        f.debug_tuple("Letter").field(&self.position()).finish()
    }
}
