//! A blocking Kafka client on plain threads.
//!
//! The crate `kafka-protocol` encodes and decodes messages. This crate moves bytes, waits, retries
//! and keeps state. It knows no orders, no metrics and no tracing: an application observes it
//! through hooks.
//!
//! # The parts
//!
//! | Module | Content |
//! | --- | --- |
//! | `config` | broker addresses and time-outs |
//! | `error` | errors, and whether a retry may help |
//! | `wire` | frames, headers, supported request versions, limits for hostile bytes |
//! | `security` | settings of TLS and SASL |
//! | `transport` | a socket with deadlines, plain or TLS |
//! | `sasl` | the messages of each SASL mechanism, without I/O |
//! | `connection` | one broker: version negotiation, login, responses in order |
//! | `in_flight` | a connection's requests in flight, and the hooks that observe them |
//! | `cluster` | cached metadata: leaders and addresses |
//! | `topic_id` | topic ids as text, in the metadata of committed offsets |
//! | `partitioner` | the partition of a key, as the Java client computes it |
//! | `admin` | creates, lists and deletes topics, reads offsets |
//! | `batch` | the record batches of a fetch response, decoded safely from any bytes |
//! | `group` | membership of a consumer group, by either protocol: heartbeats, assignors, error codes |
//! | `consumer` | consumer in a group: one thread polls, works and commits, another sends heartbeats |
//! | `reader` | ranges of a topic, read outside any group |
//! | `producer` | idempotent producer: one thread per leader; acknowledged, in order, once |
//!
//! # Guarantees
//!
//! - Every call takes a [`Deadline`](tbd_deadline::Deadline) and returns by then, with two
//!   exceptions. Name resolution has the operating system's own time-outs. A consumer's poll reads
//!   a response to its end once it has begun.
//! - A failed connection is never used again.
//! - No lock is held during I/O.
//! - A count in a broker's response ("two billion topics follow") never makes the client reserve
//!   memory for more than has arrived.
//!
//! # Limits
//!
//! The client does not support:
//!
//! - client certificates, and SASL mechanisms other than PLAIN and SCRAM;
//! - transactions: reading is always `read_uncommitted`;
//! - fetch sessions: a fetch names only partitions with room for another response, and those
//!   differ each time;
//! - fetching from followers;
//! - automatic commits;
//! - requests that address topics by id, except Produce, Fetch and those of the consumer protocol.
//!
//! # From the Java client
//!
//! | Java | Here |
//! | --- | --- |
//! | `KafkaProducer`, `send(..).get()` | [`Producer`], [`Producer::publish`] |
//! | `KafkaConsumer`, `poll`, `commitSync`, `seek`, `position`, `pause` | [`Consumer`], [`Consumer::poll`], [`Consumer::commit`], [`Consumer::seek`], [`Consumer::position`], [`Consumer::pause`] |
//! | `ConsumerRebalanceListener` | [`ConsumerHooks`](consumer::ConsumerHooks) |
//! | `group.protocol` | [`GroupProtocol`](consumer::GroupProtocol) |
//! | `wakeup` | [`Waker`](consumer::Waker) |
//! | `AdminClient` | [`Admin`] |
//!
//! `DESIGN.md` in this crate's folder is for people who change this client.

#![forbid(unsafe_code)]

pub mod admin;
pub mod batch;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod consumer;
pub mod error;
#[cfg(test)]
mod fake_broker;
pub mod group;
mod in_flight;
pub mod partitioner;
pub mod producer;
pub mod reader;
mod sasl;
pub mod security;
mod topic_id;
mod transport;
pub mod wire;

pub use admin::Admin;
pub use cluster::Cluster;
pub use config::{Backoff, ClientConfig};
pub use connection::Connection;
pub use consumer::{CommitError, Consumer, ConsumerConfig, ConsumerRecord};
pub use error::Error;
pub use group::TopicPartition;
pub use in_flight::ClientHooks;
pub use kafka_protocol::messages::ApiKey;
pub use producer::{Producer, ProducerConfig};
pub use reader::Reader;
pub use security::{Sasl, SaslMechanism, Security, Tls};

use tbd_deadline::lock;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
