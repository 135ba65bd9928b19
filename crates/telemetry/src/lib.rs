//! Logs, metrics and traces for programs on plain threads.
//!
//! The parts are independent, and the program's `main` sets each up once:
//!
//! - [`logging`]: one line per record on standard error, JSON or text.
//! - [`metrics`]: a registry that makes metrics and renders them on request in
//!   the Prometheus text format.
//! - [`tracing`]: OpenTelemetry spans for synchronous code, batched by the SDK on one thread.
//! - [`otlp`]: export of spans and metrics to a collector, over gRPC or HTTP.
//! - [`semconv`]: the attribute names used on spans, in one place.
//!
//! Nothing here makes a request wait. A metric is an atomic addition; a finished span is moved into
//! a bounded queue, or dropped and counted.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

pub mod logging;
pub mod metrics;
pub mod otlp;
pub mod semconv;
pub mod tracing;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
