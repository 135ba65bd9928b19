//! Adapters of the participants: gRPC for commands, HTTP for audits, PostgreSQL for the ledger.

pub mod grpc;
pub mod http;
pub mod identity;
pub mod migrations;
pub mod postgres;
mod statements;
