//! What can be done with orders, a file for each: commands change something,
//! queries do not. Knows `domain` and `ports`.

pub mod commands;
mod delivery;
#[cfg(test)]
pub(crate) mod fakes;
pub mod housekeeping;
#[cfg(test)]
#[path = "../../../tests/support/memory.rs"]
mod memory;
pub mod queries;

pub use delivery::{ACKNOWLEDGED_MAX, Delivery, DeliveryMode, PUBLISH_BUDGET};
pub use housekeeping::Housekeeping;
