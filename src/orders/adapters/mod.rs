//! Adapters: HTTP, gRPC and the Kafka consumers call the use cases; these call PostgreSQL, Kafka, the
//! participants of sagas and the metrics.
//!
//! Adapters do not depend on each other, with two exceptions: gRPC shares the rules of HTTP, which it
//! mirrors; Kafka, the standby and the participants of sagas share the circuit breaker.

mod breaker;
pub mod grpc;
pub mod http;
pub mod kafka;
#[cfg(any(test, feature = "memory-store"))]
pub mod memory;
mod metrics;
mod participants;
pub mod postgres;
mod simulated_step;
mod wire;

pub use breaker::{Breaker, BreakerState, Permit};
pub use metrics::PrometheusMeter;
pub use participants::{GrpcParticipants, Service, TokenSource, channel_config};
pub use simulated_step::SimulatedStep;
