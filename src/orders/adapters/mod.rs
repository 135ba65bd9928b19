//! The application's neighbours: HTTP drives it; PostgreSQL, Kafka and the
//! metrics are driven by it. Adapters do not know each other.

pub mod http;
pub mod kafka;
mod metrics;
pub mod postgres;
mod simulated_step;
mod wire;

pub use metrics::PrometheusMeter;
pub use simulated_step::SimulatedStep;
