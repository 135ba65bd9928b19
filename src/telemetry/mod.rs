//! Logs, metrics and traces: what the program says about itself.
//!
//! The folder knows no orders' rules, only the names of what is counted. Each
//! part stands alone and is set up once, by the program's `main`:
//!
//! - [`logging`]: one line per record on standard error, JSON or text.
//! - [`metrics`]: every metric of both programs, in one registry, rendered on
//!   request in the Prometheus text format.
//! - [`tracing`]: OpenTelemetry spans for synchronous code, sent as OTLP over
//!   HTTP by one thread of its own (`otel-export`).
//! - [`semconv`]: the attribute names used on spans, in one place.
//!
//! Nothing here ever makes a request wait: a metric is an atomic addition, a
//! finished span is moved into a bounded queue or dropped and counted.

pub mod logging;
pub mod metrics;
pub mod semconv;
pub mod tracing;
