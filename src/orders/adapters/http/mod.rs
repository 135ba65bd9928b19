//! The HTTP API: routes, what is read from requests, what is answered.

mod conditional;
mod dto;
mod handlers;
mod page;
mod query;

pub use handlers::{Api, routes};
pub use page::page;
