//! Orders as the business speaks of them: values that cannot be wrong, and
//! transitions that can refuse. No I/O, no clock, no wire format.

mod events;
mod order;
mod status;

pub use events::{EventKind, OrderEvent};
pub use order::{AmountCents, AmountError, CustomerEmail, EmailError, NotPending, Order, OrderId};
pub use status::{Status, UnknownStatus};
