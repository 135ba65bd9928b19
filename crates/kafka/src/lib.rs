//! A blocking Kafka client on plain threads.
//!
//! Built on the message codec `kafka-protocol`; everything that moves bytes,
//! waits, retries or remembers is here. It knows no orders, no metrics and no
//! tracing: whoever wants to watch gives it hooks.
//!
//! # The parts
//!
//! | File | Thought |
//! | --- | --- |
//! | `config` | where the brokers are and how long to wait for them |
//! | `error` | what can go wrong, and whether trying again may help |
//! | `wire` | frames, headers, the request versions we speak, hostile bytes |
//! | `security` | TLS and SASL as settings |
//! | `transport` | the bytes' way: a socket, in the clear or inside TLS, deadlines |
//! | `sasl` | what each SASL mechanism says, without I/O |
//! | `connection` | one broker: version negotiation, login, answers in order |
//! | `in_flight` | a connection's requests that wait for answers, and the hooks that hear of them |
//! | `cluster` | who leads which partition, and how to reach them |
//! | `topic_id` | topic ids in text, next to committed offsets |
//! | `partitioner` | which partition a key belongs to, as the Java client decides it |
//! | `admin` | make, list and delete topics, read offsets |
//! | `batch` | the record batches of a fetch answer, walked safely on any bytes |
//! | `group` | membership of a consumer group, by either protocol: heartbeats, assignors, every error's meaning |
//! | `consumer` | records in: one thread polls, works and commits, another keeps the membership |
//! | `reader` | ranges of a topic, read from outside any group |
//! | `producer` | records out: one thread per leader, acknowledged, in order, once |
//!
//! # What it promises
//!
//! - Every call takes a [`Deadline`](tbd_deadline::Deadline) and returns by then. The exceptions are the
//!   operating system's name resolution, which has time-outs of its own, and a
//!   consumer's poll, which reads an answer that has begun to its end.
//! - A connection that failed in any way is never used again.
//! - No lock is held while bytes move.
//! - A claim in a broker's answer ("two billion topics follow") never makes us
//!   reserve memory for more than has arrived.
//!
//! # What it does not do
//!
//! Client certificates, SASL mechanisms other than PLAIN and SCRAM; transactions (reading is always `read_uncommitted`); fetch sessions
//! (only partitions with room for another answer are asked for, others each time); fetching from followers;
//! automatic commits; requests that address topics by id, except Fetch and the
//! consumer protocol's.
//!
//! # Who comes from the Java client
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
