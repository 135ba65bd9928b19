//! Events that are on their way before the request of their order asks for it.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::orders::domain::OrderId;
use tbd_deadline::{Deadline, lock};
use tbd_kafka::producer::Pending;
use tbd_telemetry::tracing::DetachedSpan;

/// More than this, and events whose request has given up are looked for.
const KEPT_MAX: usize = 1024;

/// A record that the producer has taken.
pub(super) struct Sending {
    pub(super) pending: Pending,
    pub(super) span: DetachedSpan,
}

/// By order, until the order's request takes it. A request that gave up leaves its own behind: it is
/// dropped some time after its deadline.
#[derive(Default)]
pub(super) struct Begun(Mutex<HashMap<OrderId, (Deadline, Sending)>>);

impl Begun {
    pub(super) fn put(&self, order_id: OrderId, sending: Sending, deadline: Deadline) {
        let mut begun = lock(&self.0);
        if begun.len() >= KEPT_MAX {
            begun.retain(|_, (deadline, _)| !deadline.is_past());
        }
        begun.insert(order_id, (deadline, sending));
    }

    pub(super) fn take(&self, order_id: OrderId) -> Option<Sending> {
        lock(&self.0).remove(&order_id).map(|(_, sending)| sending)
    }
}
