//! The integration tests, in one binary: one line per module.

mod architecture;
mod cancel;
mod configuration;
mod create;
mod dead_letters;
mod delivery;
mod edges;
mod get;
mod idempotency;
mod list;
mod outages;
mod schema;
mod servers;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
mod tracing;
mod worker;
