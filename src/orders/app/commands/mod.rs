//! Commands: the use cases that change orders.

mod cancel_order;
mod create_order;
pub mod process_orders;
mod run_sagas;

pub use cancel_order::{CancelError, CancelOrder};
pub use create_order::{
    Accepted, CreateError, CreateOrder, NewOrder, interpret_outcome, request_fingerprint,
};
pub use process_orders::{ProcessOrders, Processed, Task, Workflow};
pub use run_sagas::RunSagas;
