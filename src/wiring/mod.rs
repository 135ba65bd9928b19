//! Wiring shared by both programs: start, probes, health checks and shutdown. Only this module and
//! the programs depend on every other module.

mod auth;
mod database;
mod dead_letters;
pub mod health;
mod healthcheck;
mod http;
mod http_observer;
mod kafka;
mod lifecycle;
mod probes;
mod shutdown;
mod topics;

pub use auth::{AuthError, token_check};
pub use database::{database_config, pool, start_migrations};
pub use dead_letters::dead_letters;
pub use healthcheck::healthcheck_command;
pub use http::{http_server, observers};
pub use kafka::Kafka;
pub use lifecycle::{Telemetry, load};
pub use probes::{Checks, instance, probes};
pub use shutdown::{
    ABORT_AFTER, EVENTS_SHARE, SHUTDOWN_BUDGET, SPANS_SHARE, Shutdown, ShutdownSignal,
    THREADS_SHARE, WORK_SHARE, join, stop_server,
};
