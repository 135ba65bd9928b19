//! tbd: tiny, but distributed.

#![forbid(unsafe_code)]

pub mod config;
pub mod database;
pub mod deadline;
pub mod health;
pub mod http_server;
pub mod kafka;
pub mod orders;
pub mod service;
pub mod stop;
pub mod telemetry;
