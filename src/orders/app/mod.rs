//! What can be done with orders, a file for each: commands change something,
//! queries do not. Knows `domain` and `ports`.

pub mod commands;
mod delivery;
mod housekeeping;
pub mod queries;

pub use delivery::{Delivery, DeliveryMode, PUBLISH_BUDGET};
pub use housekeeping::Housekeeping;
