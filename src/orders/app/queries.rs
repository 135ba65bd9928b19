//! Queries: use cases that only read orders. To look up one order or its saga takes no rule of ours, so
//! adapters ask [`OrderReader`] and [`SagaStore`](crate::orders::ports::SagaStore) themselves.

use crate::orders::domain::Order;
use crate::orders::ports::{OrderReader, Page, StoreError};
use tbd_deadline::Deadline;

/// A page of orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The page's orders, newest first.
    pub orders: Vec<Order>,
    /// Whether there are older ones.
    pub has_more: bool,
}

/// The orders of `page`. Waits for the store until `deadline` at most.
///
/// # Errors
/// [`StoreError`].
pub fn list_orders(
    reader: &dyn OrderReader,
    page: &Page,
    deadline: Deadline,
) -> Result<Listed, StoreError> {
    // One more than asked for shows whether there are more, without a count.
    let probe = Page {
        limit: page.limit + 1,
        ..*page
    };
    let mut orders = reader.list(&probe, deadline)?;
    let has_more = orders.len() > page.limit as usize;
    orders.truncate(page.limit as usize);
    Ok(Listed { orders, has_more })
}
