//! Events: what happened to an order.

use super::Order;

/// The kinds of events. Each has its own topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A new order was accepted.
    Created,
    /// An order was processed.
    Processed,
    /// Every attempt at processing an order failed.
    Failed,
}

/// An event, with the state of the order at that time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderEvent {
    /// A new order was accepted.
    Created(Order),
    /// An order was processed.
    Processed(Order),
    /// Every attempt at processing failed.
    Failed {
        /// The order, failed.
        order: Order,
        /// Why the last attempt failed.
        reason: String,
    },
}

impl OrderEvent {
    /// The kind of this event.
    pub fn kind(&self) -> EventKind {
        match self {
            OrderEvent::Created(_) => EventKind::Created,
            OrderEvent::Processed(_) => EventKind::Processed,
            OrderEvent::Failed { .. } => EventKind::Failed,
        }
    }

    /// The state of the order at the time of the event.
    pub fn order(&self) -> &Order {
        match self {
            OrderEvent::Created(order)
            | OrderEvent::Processed(order)
            | OrderEvent::Failed { order, .. } => order,
        }
    }
}
