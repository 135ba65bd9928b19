//! Listing orders, newest first.

use std::sync::Arc;

use crate::orders::domain::Order;
use crate::orders::ports::{OrderReader, Page, StoreError};
use tbd_deadline::Deadline;

/// Lists orders.
pub struct ListOrders {
    reader: Arc<dyn OrderReader>,
}

/// A page of orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The page's orders, newest first.
    pub orders: Vec<Order>,
    /// Whether there are older ones.
    pub has_more: bool,
}

impl ListOrders {
    /// The query on `reader`.
    pub fn new(reader: Arc<dyn OrderReader>) -> Self {
        Self { reader }
    }

    /// The orders of `page`. Waits for the store until `deadline` at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn handle(&self, page: &Page, deadline: Deadline) -> Result<Listed, StoreError> {
        // One more than asked for shows whether there are more, without a count.
        let probe = Page {
            limit: page.limit + 1,
            ..*page
        };
        let mut orders = self.reader.list(&probe, deadline)?;
        let has_more = orders.len() > page.limit as usize;
        orders.truncate(page.limit as usize);
        Ok(Listed { orders, has_more })
    }
}
