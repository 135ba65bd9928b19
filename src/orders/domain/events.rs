//! What happened to an order, for whoever listens.

use super::Order;

/// The kinds of event; each has a topic of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A new order was accepted.
    Created,
    /// An order was processed.
    Processed,
    /// Every attempt at processing an order failed.
    Failed,
}

/// Something that happened to an order, with the order as it then stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderEvent {
    /// A new order was accepted.
    Created(Order),
    /// An order was processed.
    Processed(Order),
    /// Every attempt at processing failed; `reason` is the last one's.
    Failed {
        /// The order, failed.
        order: Order,
        /// Why the last attempt failed.
        reason: String,
    },
}

impl OrderEvent {
    /// Which kind of event this is.
    pub fn kind(&self) -> EventKind {
        match self {
            OrderEvent::Created(_) => EventKind::Created,
            OrderEvent::Processed(_) => EventKind::Processed,
            OrderEvent::Failed { .. } => EventKind::Failed,
        }
    }

    /// The order as it stood when it happened.
    pub fn order(&self) -> &Order {
        match self {
            OrderEvent::Created(order)
            | OrderEvent::Processed(order)
            | OrderEvent::Failed { order, .. } => order,
        }
    }
}
