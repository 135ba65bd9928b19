//! The integration tests, in one binary: one line per module.

mod database;
mod http_server;
mod kafka_consumer;
mod kafka_producer;
mod migrations;
mod servers;
#[path = "../support/mod.rs"]
mod support;
