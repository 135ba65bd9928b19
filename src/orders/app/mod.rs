//! Use cases, one per file: commands change something, queries do not. Depends on `domain` and
//! `ports` only.

pub mod commands;
mod delivery;
#[cfg(test)]
pub(crate) mod fakes;
pub mod housekeeping;
pub mod queries;
pub mod saga_sweeper;

pub use delivery::{ACKNOWLEDGED_MAX, Delivery, DeliveryMode, PUBLISH_BUDGET};
pub use housekeeping::Housekeeping;
pub use saga_sweeper::SagaSweeper;
