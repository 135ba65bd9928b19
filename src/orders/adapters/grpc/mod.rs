//! The gRPC API: `tbd.orders.v1.OrderService`, a mirror of the REST API.
//!
//! It shares the REST adapter's rules, errors and stored answers, so that a key means the same in
//! both. It is the one adapter that depends on another.

mod convert;
mod service;
mod status;

pub use service::{Guard, routes, values};
pub use status::{REQUEST_ID, complete, late, request_id, status};
