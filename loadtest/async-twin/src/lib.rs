//! tbd's two programs, written once more as an async service is written today: axum on tokio's multi-thread runtime,
//! tokio-postgres behind deadpool, rdkafka. Everything that has nothing to do with waiting is tbd's own, used as a
//! library: configuration, domain, SQL, request and event formats, answers, metrics, logs, spans, migrations. So what a
//! comparison shows is the concurrency model and the libraries that come with it.
//!
//! | File | Stands beside tbd's |
//! | --- | --- |
//! | [`http`] | `tbd_http`, `orders::adapters::http` |
//! | [`store`] | `database`, `orders::adapters::postgres` |
//! | [`bus`] | `kafka::producer`, `orders::adapters::kafka` |
//! | [`delivery`] | `orders::app::{delivery, housekeeping}` |
//! | [`worker`] | `kafka::consumer`, `orders::app::commands::process_orders` |
//! | [`service`] | `service` |

#![forbid(unsafe_code)]

pub mod bus;
pub mod delivery;
pub mod http;
pub mod service;
pub mod store;
pub mod worker;
