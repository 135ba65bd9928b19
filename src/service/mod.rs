//! What both programs have in common: how they start, say how they are, and stop.
//! The only place, with the programs themselves, where every room is known.

mod database;
mod healthcheck;
mod kafka;
mod lifecycle;
mod probes;

pub use database::{database_config, pool, start_migrations};
pub use healthcheck::healthcheck;
pub use kafka::Kafka;
pub use lifecycle::{SHUTDOWN_BUDGET, Telemetry, exit_self_check, load, shutdown_signal, watchdog};
pub use probes::{Checks, probes};
