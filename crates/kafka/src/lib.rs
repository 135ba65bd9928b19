//! A blocking Kafka client on plain threads.
//!
//! The crate `kafka-protocol` encodes and decodes messages. This crate moves bytes, waits, retries
//! and keeps state. It knows no orders, no metrics and no tracing: an application observes it
//! through hooks.
//!
//! # The parts
//!
//! | Part | Content |
//! | --- | --- |
//! | [`Cluster`], [`ClientConfig`], [`Security`] | the cluster's addresses, time-outs, TLS and login; cached metadata |
//! | [`producer`] | idempotent producer: one thread per leader; acknowledged, in order, once |
//! | [`TransactionalProducer`] | records and consumed offsets that take effect together or not at all |
//! | [`consumer`] | consumers in a group, or of assigned partitions: one thread polls, works and commits, another sends heartbeats |
//! | [`Reader`] | ranges of a topic, read outside any group |
//! | [`admin`] | topics, configurations, offsets, groups |
//! | [`Error`], [`ErrorCode`] | errors, whether a retry may help, the way out |
//! | [`ClientHooks`], [`ProducerHooks`](producer::ProducerHooks), [`ConsumerHooks`](consumer::ConsumerHooks) | observation, for metrics and tracing |
//!
//! It writes to the log facade [`log`](https://docs.rs/log) under the target `tbd_kafka`.
//!
//! # Guarantees
//!
//! - Every call takes a [`Deadline`] and returns by then, with two
//!   exceptions. Name resolution has the operating system's own time-outs. A consumer's poll reads
//!   a response to its end once it has begun.
//! - A failed connection is never used again.
//! - No lock is held during I/O.
//! - A panic in a hook ends no thread of the client. A thread that ends by a panic of its own fails
//!   everything that waits for it.
//! - A count in a broker's response ("two billion topics follow") never makes the client reserve
//!   memory for more than has arrived.
//!
//! # Limits
//!
//! The client does not support:
//!
//! - fetch sessions: a fetch names only partitions with room for another response, and those
//!   differ each time;
//! - automatic commits;
//! - systems other than Unix;
//! - requests that address topics by id, except Produce, Fetch and those of the consumer protocol.
//!
//! # From the Java client
//!
//! | Java | Here |
//! | --- | --- |
//! | `KafkaProducer`, `send(..).get()` | [`Producer`], [`Producer::publish`] |
//! | `KafkaConsumer`, `poll`, `commitSync`, `seek`, `position`, `pause` | [`Consumer`], [`Consumer::poll`], [`Consumer::commit`], [`Consumer::seek`], [`Consumer::position`], [`Consumer::pause`] |
//! | `ConsumerRebalanceListener` | [`ConsumerHooks`](consumer::ConsumerHooks) |
//! | `assign`, `subscribe(Pattern)` | [`Consumer::start_assigned`], [`TopicFilter`](consumer::TopicFilter) |
//! | `group.protocol` | [`GroupProtocol`](consumer::GroupProtocol) |
//! | `initTransactions`, `beginTransaction`, `sendOffsetsToTransaction` | [`TransactionalProducer::settle`], [`TransactionalProducer::begin`], [`Transaction::send_offsets`](producer::Transaction::send_offsets) |
//! | `isolation.level`, `client.rack` | [`ConsumerConfig::isolation`], [`ConsumerConfig::client_rack`] |
//! | `wakeup` | [`Waker`](consumer::Waker) |
//! | `AdminClient` | [`Admin`] |
//!
//! `DESIGN.md` in this crate's folder is for people who change this client.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

#[cfg(not(unix))]
compile_error!("tbd-kafka runs on Unix only: a consumer waits for its sockets with poll(2)");

pub mod admin;
mod batch;
mod cluster;
mod compression;
mod config;
mod connection;
pub mod consumer;
mod error;
mod error_code;
#[cfg(test)]
mod error_tables;
#[cfg(test)]
mod fake_broker;
mod group;
mod in_flight;
pub mod producer;
mod reader;
mod rustls_types;
mod sasl;
mod security;
mod spare;
mod topic_id;
mod transport;
mod wait;
mod wire;

pub use admin::Admin;
pub use cluster::Cluster;
pub use config::ClientConfig;
pub use consumer::{CommitError, Consumer, ConsumerConfig, ConsumerRecord};
pub use error::{ConfigError, Error};
pub use error_code::ErrorCode;
pub use group::{OffsetAndMetadata, TopicPartition};
pub use in_flight::ClientHooks;
pub use producer::{Producer, ProducerConfig, TransactionalProducer};
pub use reader::Reader;
#[cfg(feature = "tls")]
pub use security::Token;
pub use security::{Sasl, SaslMechanism, Security, Tls};
pub use tbd_deadline::Deadline;
pub use wire::ApiKey;

use tbd_deadline::lock;

/// For this repository's own tests, benchmarks and fuzzers. It may change in any release, and has
/// types of the crate `kafka-protocol` in its signatures.
#[doc(hidden)]
pub mod internals {
    pub use crate::batch::{next_batch, whole_batches};
    pub use crate::connection::Connection;
    pub use crate::group::coordinator::find as find_coordinator;
    pub use crate::group::protocol::{Subscription, decode_assignment};
    pub use crate::producer::batch::{Identity, Transactions, encode as encode_batch};
    #[cfg(feature = "scram")]
    pub use crate::sasl::try_scram;
    pub use crate::topic_id::{commit_metadata, from_commit_metadata};
    pub use crate::wire::{Request, topic_name, try_decode};

    /// The request with this number, and the oldest and newest version that the client supports.
    pub fn request(number: i16) -> Option<(crate::ApiKey, i16, i16)> {
        let api = crate::ApiKey::ALL
            .iter()
            .find(|api| api.number() == number)?;
        Some((*api, api.versions().min, api.versions().max))
    }
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
