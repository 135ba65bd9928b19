//! The integration tests, in one binary: one line per module.

mod architecture;
mod auth;
mod cancel;
mod configuration;
mod containers;
mod create;
mod dashboards;
mod database;
mod dead_letters;
mod delivery;
mod dependencies;
mod dlq;
mod edge;
mod edges;
mod get;
mod http_limits;
mod http_server;
mod idempotency;
mod instances;
mod kafka_security;
mod list;
mod migrations;
mod openapi;
mod outages;
mod page;
mod plans;
mod ports;
mod recreated_topic;
mod rolling;
mod schema;
mod servers;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
mod tracing;
mod worker;
