//! The integration tests, in one binary: one line per module.

mod database;
mod migrations;
mod servers;
#[path = "../support/mod.rs"]
mod support;
mod kafka_producer;
mod kafka_producer;
mod servers;
#[path = "../support/mod.rs"]
mod support;
