//! PostgreSQL for programs on plain threads: pool, prepared and shared statements, retry,
//! migrations.
//!
//! - [`Pool`] hands out [`PooledConnection`]s without a round trip, and fails early during an
//!   outage;
//! - [`Connection`] runs prepared [`Statement`]s (one round trip each) and transactions;
//! - [`DatabaseError`] says what the caller can do about a failure, and only [`retry()`] repeats
//!   work;
//! - [`Coalescer`] batches what many threads want to write at the same time;
//! - [`migrations`] brings the schema up to date, interchangeably with golang-migrate's CLI;
//! - each new session is checked: it must reach PostgreSQL itself instead of a pooler, and its
//!   server must be acceptable ([`TargetSessionAttrs`]);
//! - [`HealthCheck`] checks whether the database can be used, for a monitor thread.
//!
//! | thread | how many | waits for | ends |
//! |---|---|---|---|
//! | `database-connect-N` | 3 per pool | the pool's next task; a connection being made | with the pool's last clone |
//!
//! The driver (`postgres`) keeps a private single-threaded event loop inside each connection and
//! drives it from the calling thread; it starts no threads here. The transport that it gets (`tls`,
//! `limit`) encrypts, and ends calls to a server that has stopped answering.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

mod coalesce;
mod config;
mod connection;
mod connector;
mod error;
mod health;
mod hooks;
mod limit;
pub mod migrations;
mod pool;
mod retry;
mod tls;

pub use coalesce::{Answered, Coalescer, Job, NotDone};
pub use config::{DatabaseConfig, TargetSessionAttrs};
pub use connection::{Connection, Params, Statement, Transaction, column};
pub use error::DatabaseError;
pub use health::HealthCheck;
pub use hooks::{Hooks, NoHooks};
pub use pool::{Pool, PoolStatus, PooledConnection};
pub use postgres::Row;
pub use postgres::types;
pub use retry::retry;
pub use tbd_tls::{FileError, Identity, Roots};
pub use tls::{SslMode, Tls};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
