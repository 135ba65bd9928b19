//! Queries: the use cases that only read orders.

mod get_order;
mod list_orders;

pub use get_order::GetOrder;
pub use list_orders::{ListOrders, Listed};
