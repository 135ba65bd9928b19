//! tbd: tiny, but distributed. An order-processing system on plain threads.
//!
//! # Modules
//!
//! | Module | Contents | Depends on |
//! | --- | --- | --- |
//! | [`orders`] | the bounded context: domain, use cases, ports, adapters | see its page |
//! | [`participants`] | inventory and payments, the other services of the saga | see its page |
//! | [`auth`] | bearer tokens | no other module |
//! | [`metrics`] | every metric of the programs, in one table | no other module |
//! | [`proto`] | the messages and methods of the gRPC services, generated | no other module |
//! | [`config`] | every environment variable, typed | types of settings alone |
//! | [`wiring`] | what the programs share: start, probes, stop | every module |
//!
//! The libraries below know nothing about orders:
//!
//! | Library | Contents |
//! | --- | --- |
//! | `crates/deadline` | deadlines, stop signals |
//! | `crates/grpc`, `crates/grpc-build` | a gRPC server and client; code for it from `.proto` files |
//! | `crates/http` | the HTTP server |
//! | `crates/kafka` | the Kafka client |
//! | `crates/postgres` | pool, shared statements, migrations |
//! | `crates/telemetry` | logs, metrics, traces |
//! | `crates/tls` | certificates, keys and tokens in files that may change |
//! | `crates/testkit` | servers, programs and clients for tests; in no program |
//!
//! The programs (`src/bin/`) only wire modules together, start them, and stop them in order.
//!
//! # Threads
//!
//! | Thread | Number | Waits for | Ends |
//! | --- | --- | --- | --- |
//! | `main` | 1 | SIGTERM or SIGINT | last |
//! | tiny_http's own | 1 + 1 per connection | sockets | with the server; connections within their read time-out |
//! | `http-tls-accept`, `http-tls-N` | 1, and 1 per connection, with HTTP_TLS_CERT_FILE | sockets | `Server::shutdown`, after the last answer |
//! | `http-acceptor-N` | HTTP_ACCEPTORS | tiny_http's next request | `Server::shutdown` |
//! | `http-worker-N` | HTTP_WORKERS | the bounded queue of requests and gRPC calls; in a handler: database, Kafka | `Server::shutdown`, after the last request |
//! | `http-probe-N` | 2 | the probes' bounded queue | `Server::shutdown` |
//! | `http-linger` | 1 | unread bodies, 0.5 s each | `Server::shutdown` |
//! | `http-ping` | 1 | its next ping; the server's own answer | `Server::shutdown` |
//! | `http-self-check` | 1 | its next check | `Server::shutdown` |
//! | `grpc-acceptor` | 1 in a participant, and in the api unless API_GRPC_PORT=0 | gRPC connections | `GrpcServer::stop` |
//! | `grpc-conn-N` | 1 per gRPC connection, 1024 at most | its socket and timers | the connection's end; `GrpcServer::stop` |
//! | `grpc-own-stream` | 1 per open health watch or reflection call, 64 at most | a change, a request | its connection's end; GOAWAY |
//! | `grpc-health` | 1 with a gRPC server | its next look at readiness | the stop signal |
//! | `database-connect-N` | 3 per pool | the pool's next connection to make | with the pool |
//! | `database-health`, `kafka-health` | 1 each; a participant has no Kafka | the next check, the answer | the stop signal |
//! | `inventory-health`, `payments-health` | 1 each in a worker of sagas | the next check, the answer | the stop signal |
//! | `saga-sweeper` | 1 in a worker of sagas | the next look, every 5 s | the stop signal |
//! | `grpc-client-ADDRESS` | 1 per connection to a participant | its socket, its timers, callers | with the channel |
//! | `grpc-resolver` | at most 1 per participant | the system's resolver | the answer |
//! | `kafka-lag` | 1 in the api and in a worker | the next measurement, the brokers | the stop signal |
//! | `migrations` | 1 in the api and in a participant | the database; the migration lock | when the schema is up to date |
//! | `outbox-relay` | 1 in the api | new events, at most 1 s | the stop signal |
//! | `outbox-cleaner` | 1 in the api | acknowledged events | the stop signal |
//! | `idempotency-sweeper` | 1 in the api | the next minute | the stop signal |
//! | `kafka-producer` | 1 in the api and in a worker | metadata that is needed; the brokers | `Producer::close` |
//! | `kafka-producer-N` | 1 per leader | records; the broker's answer | `Producer::close` |
//! | `order-consumer-N` | WORKER_CONCURRENCY in the worker | records; database; acknowledgements | the stop signal |
//! | `kafka-heartbeat-N` | 1 per consumer | the next heartbeat | `Consumer::close` |
//! | `OpenTelemetry.Traces.BatchProcessor` | 1 if traces are exported | spans; the collector | `Tracing::shutdown` |
//! | `otlp-metrics` | 1 if metrics are exported | the next export; the collector | `MetricsExport::shutdown` |
//! | `grpc-client-ADDRESS`, `grpc-resolver` | 1 each if the collector speaks gRPC | its socket; the resolver | with both exports |
//! | `second-signal`, `shutdown-watchdog` | while stopping | a second signal; 30 s | with the process |
//! | `shutdown-NAME` | 1 at a time while stopping | the threads that it stops | with them, or with the process once its share of the 30 s is spent |

#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

pub mod auth;
pub mod config;
pub mod metrics;
pub mod orders;
pub mod participants;
pub mod proto;
pub mod wiring;
