//! The HTTP API: routes, requests and responses.

pub mod conditional;
pub mod contract;
pub mod dto;
mod handlers;
mod page;
pub mod query;
mod saga;

pub use dto::{BodyError, parse_new_order};
pub use handlers::{Api, caller, routes};
pub use page::page;
pub use query::{ListQuery, cursor, parse as parse_list_query};
