//! Events in flight before their requests call `publish`.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use crate::orders::domain::OrderId;
use tbd_deadline::{Deadline, lock};
use tbd_kafka::producer::Pending;
use tbd_telemetry::tracing::DetachedSpan;

/// From this size on, every insert first drops the events of requests that gave up.
const KEPT_MAX: usize = 1024;

/// A record that the producer has accepted.
pub(super) struct Sending {
    pub(super) pending: Pending,
    pub(super) span: DetachedSpan,
    pub(super) began: Instant,
}

/// Records by order, until the order's request takes its own. A request that gave up leaves its
/// record here; a later insert drops it after its deadline.
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
