//! tbd: tiny, but distributed. An order-processing system on plain threads.
//!
//! # Modules
//!
//! | Module | Contents | Depends on |
//! | --- | --- | --- |
//! | [`orders`] | the bounded context: domain, use cases, ports, adapters | see its page |
//! | [`auth`] | bearer tokens | no other module |
//! | [`metrics`] | every metric of both programs, in one table | no other module |
//! | [`config`] | every environment variable, typed | no other module |
//! | [`wiring`] | what both programs share: start, probes, stop | every module |
//!
//! The libraries below know nothing about orders:
//!
//! | Library | Contents |
//! | --- | --- |
//! | `crates/deadline` | deadlines, stop signals |
//! | `crates/grpc` | a gRPC server and client, which the programs do not use yet |
//! | `crates/http` | the HTTP server |
//! | `crates/kafka` | the Kafka client |
//! | `crates/postgres` | pool, shared statements, migrations |
//! | `crates/sockets` | sockets that a library keeps to itself |
//! | `crates/telemetry` | logs, metrics, traces |
//!
//! The programs (`src/bin/`) only wire modules together, start them, and stop them in order.
//!
//! # Threads
//!
//! | Thread | Number | Waits for | Ends |
//! | --- | --- | --- | --- |
//! | `main` | 1 | SIGTERM or SIGINT | last |
//! | tiny_http's own | 1 + 1 per connection | sockets | with the server; connections within their read time-out |
//! | `http-acceptor-N` | HTTP_ACCEPTORS | tiny_http's next request | `Server::shutdown` |
//! | `http-worker-N` | HTTP_WORKERS | the bounded queue; in a handler: database, Kafka | `Server::shutdown`, after the last request |
//! | `http-probe-N` | 2 | the probes' bounded queue | `Server::shutdown` |
//! | `http-linger` | 1 | unread bodies, 0.5 s each | `Server::shutdown` |
//! | `http-ping` | 1 | its next ping; the server's own answer | `Server::shutdown` |
//! | `http-self-check` | 1 | its next check | `Server::shutdown` |
//! | `database-connect-N` | 3 | the pool's next connection to make | with the pool |
//! | `database-watchdog` | 1 per pool, health check and run of migrations | the next limit of a statement | with its connections |
//! | `database-health`, `kafka-health` | 1 each | the next check, the answer | the stop signal |
//! | `kafka-lag` | 1 | the next measurement, the brokers | the stop signal |
//! | `migrations` | 1 in the api | the database; the migration lock | when the schema is up to date |
//! | `outbox-relay` | 1 in the api | new events, at most 1 s | the stop signal |
//! | `outbox-cleaner` | 1 in the api | acknowledged events | the stop signal |
//! | `idempotency-sweeper` | 1 in the api | the next minute | the stop signal |
//! | `kafka-producer` | 1 per producer | metadata that is needed; the brokers | `Producer::close` |
//! | `kafka-producer-N` | 1 per leader | records; the broker's answer | `Producer::close` |
//! | `order-consumer-N` | WORKER_CONCURRENCY in the worker | records; database; acknowledgements | the stop signal |
//! | `kafka-heartbeat-N` | 1 per consumer | the next heartbeat | `Consumer::close` |
//! | `OpenTelemetry.Traces.BatchProcessor` | 1 if traces are exported | spans; the collector | `Tracing::shutdown` |
//! | `second-signal`, `shutdown-watchdog` | while stopping | a second signal; 30 s | with the process |
//! | `shutdown-NAME` | 1 at a time while stopping | the threads that it stops | with them, or with the process once its share of the 30 s is spent |

#![forbid(unsafe_code)]

// Lets the unit tests share sources with the integration tests.
#[cfg(test)]
extern crate self as tbd;

pub mod auth;
pub mod config;
pub mod metrics;
pub mod orders;
pub mod wiring;
