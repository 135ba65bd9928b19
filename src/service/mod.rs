//! What both programs have in common: how they start, say how they are, and stop.
//! The only place, with the programs themselves, where every room is known.

mod database;
mod http;
mod dead_letters;
mod kafka;
mod lifecycle;
mod probes;

pub use database::{database_config, pool, start_migrations};
pub use http::http_server;
pub use dead_letters::dead_letters;
pub use kafka::Kafka;
pub use lifecycle::{SHUTDOWN_BUDGET, ShutdownSignal, Telemetry, join, load, watchdog};
pub use probes::{Checks, probes};
