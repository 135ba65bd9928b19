//! The async twin: tbd's two programs as a typical async service, with axum on tokio's multi-thread
//! runtime, tonic, tokio-postgres behind deadpool, and rdkafka. All code without waiting is tbd's own, used as a
//! library: configuration, domain, SQL, request and event formats, answers, metrics, logs, spans,
//! migrations. A comparison therefore shows the concurrency model and its libraries.
//!
//! | File | Counterpart in tbd |
//! | --- | --- |
//! | [`http`] | `tbd_http`, `orders::adapters::http` |
//! | [`grpc`] | `tbd_grpc`, `orders::adapters::grpc` |
//! | [`store`] | `database`, `orders::adapters::postgres` |
//! | [`bus`] | `kafka::producer`, `orders::adapters::kafka` |
//! | [`delivery`] | `orders::app::{delivery, housekeeping}` |
//! | [`worker`] | `kafka::consumer`, `orders::app::commands::process_orders` |
//! | [`service`] | `service` |

#![forbid(unsafe_code)]

pub mod bus;
pub mod delivery;
pub mod grpc;
pub mod http;
pub mod service;
pub mod store;
pub mod worker;
