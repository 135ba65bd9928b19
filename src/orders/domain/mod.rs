//! The domain: orders, their valid values, status transitions and events. No I/O, no clock, no
//! wire format.

mod events;
mod order;
mod status;

pub use events::{EventKind, OrderEvent};
pub use order::{AmountCents, AmountError, CustomerEmail, EmailError, NotPending, Order, OrderId};
pub use status::{Status, UnknownStatus};
