//! Logs, metrics and traces for programs on plain threads.
//!
//! The parts are independent, and the program's `main` sets each up once:
//!
//! - [`logging`]: one line per record on standard error, JSON or text.
//! - [`metrics`]: a registry that makes metrics and renders them on request in
//!   the Prometheus text format.
//! - [`tracing`]: OpenTelemetry spans for synchronous code, sent as OTLP over HTTP by the SDK's
//!   batch processor on one thread.
//! - [`semconv`]: the attribute names used on spans, in one place.
//!
//! Nothing here makes a request wait. A metric is an atomic addition; a finished span is moved into
//! a bounded queue, or dropped and counted.

#![forbid(unsafe_code)]

pub mod logging;
pub mod metrics;
pub mod semconv;
pub mod tracing;
