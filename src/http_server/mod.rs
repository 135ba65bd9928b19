//! A bounded thread-pool HTTP server on tiny_http.

mod connections;
mod framing;
mod incoming;
mod observe;
mod problem;
mod request;
mod response;
mod router;
mod self_check;
mod serve;
mod server;
mod socket;
mod watch;

pub use problem::{FieldError, Problem, TYPE_PREFIX};
pub use request::Request;
pub use response::Response;
pub use router::{Handler, Router};
pub use server::{OnFatal, Server, ServerConfig, StartError, StillBusy};
