//! Queries: the use cases that only read orders.

mod get_order;
mod get_saga;
mod list_orders;

pub use get_order::GetOrder;
pub use get_saga::GetSaga;
pub use list_orders::{ListOrders, Listed};
