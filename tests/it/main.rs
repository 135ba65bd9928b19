//! The integration tests, in one binary: one line per module.

mod architecture;
mod cancel;
mod configuration;
mod containers;
mod create;
mod database;
mod dead_letters;
mod delivery;
mod edges;
mod get;
mod http_server;
mod idempotency;
mod kafka_consumer;
mod kafka_producer;
mod list;
mod migrations;
mod outages;
mod plans;
mod schema;
mod servers;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
mod tracing;
mod worker;
