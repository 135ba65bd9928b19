//! Adapters: HTTP calls the use cases; the use cases call PostgreSQL, Kafka and the metrics.
//! Adapters do not depend on each other.

pub mod http;
pub mod kafka;
mod metrics;
pub mod postgres;
mod simulated_step;
mod wire;

pub use metrics::PrometheusMeter;
pub use simulated_step::SimulatedStep;
