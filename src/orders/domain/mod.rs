//! The domain: orders, their valid values, status transitions, events and sagas. No I/O, no clock, no
//! wire format.

mod events;
mod order;
pub mod saga;
mod status;
mod words;

pub use events::{EventKind, OrderEvent};
pub use order::{AmountCents, AmountError, CustomerEmail, EmailError, NotPending, Order, OrderId};
pub use saga::Saga;
pub use status::{Status, UnknownStatus};
pub(crate) use words::words;
