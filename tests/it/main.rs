//! The integration tests, in one binary: one line per module.

mod kafka_consumer;
mod servers;
#[path = "../support/mod.rs"]
mod support;
