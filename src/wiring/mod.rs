//! Wiring shared by the programs: start, probes, health checks and shutdown. Only this module and
//! the programs depend on every other module.

mod auth;
mod background;
mod breaker;
mod database;
mod dead_letters;
mod grpc;
mod grpc_observer;
pub mod health;
mod healthcheck;
mod http;
mod http_observer;
mod kafka;
mod lifecycle;
mod probes;
mod saga;
mod shutdown;
mod topics;

pub use auth::token_check;
pub use background::{Background, migrator};
pub use breaker::breaker;
pub use database::{database_config, pool, read_pool};
pub use dead_letters::dead_letters;
pub use grpc::{GrpcServer, grpc_server, serve_grpc};
pub use grpc_observer::GrpcService;
pub use healthcheck::healthcheck_command;
pub use http::{http_server, observers};
pub use kafka::Kafka;
pub use lifecycle::{Telemetry, load};
pub use probes::{Checks, instance, probes};
pub use saga::{monitor_participants, participants};
pub use shutdown::{
    ABORT_AFTER, EVENTS_SHARE, SHUTDOWN_BUDGET, SPANS_SHARE, Shutdown, ShutdownSignal,
    THREADS_SHARE, WORK_SHARE, join, stop_servers,
};

/// Why a program does not start: a text for its operator.
pub type AnyError = Box<dyn std::error::Error>;
