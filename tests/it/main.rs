//! The integration tests, in one binary: one line per module.

mod kafka_consumer;
mod kafka_producer;
mod servers;
#[path = "../support/mod.rs"]
mod support;
