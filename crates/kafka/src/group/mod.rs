//! Membership of a consumer group, under the classic or the consumer protocol (KIP-848).
//!
//! | File | Content |
//! |---|---|
//! | `ladder` | what each error code means for a member, as a table |
//! | `machine` | the classic protocol's state machine: answers and the time in, next steps out; no I/O |
//! | `consumer_machine` | the consumer protocol's state machine |
//! | `member` | either of the two machines |
//! | `protocol` | wire format of subscriptions and assignments |
//! | `assignor` | the assignors range and cooperative-sticky |
//! | `heartbeat` | the thread that keeps a member alive while its owner works |
//! | `coordinator` | the requests to the group's coordinator |
//!
//! Lock order: there is one lock, the machine's. No thread holds it across I/O or a callback.

pub mod assignor;
pub mod consumer_machine;
pub mod coordinator;
pub mod heartbeat;
pub mod ladder;
pub mod machine;
pub mod member;
pub mod protocol;

use std::fmt;
use std::sync::Arc;

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Creates the name of a partition.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.topic, self.partition)
    }
}
