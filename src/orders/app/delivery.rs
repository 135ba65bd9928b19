//! Delivery of an order's event from the database to the event bus, direct or by the relay.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::orders::domain::OrderId;
use crate::orders::ports::{EventBus, Message, PublishError};
use tbd_deadline::Deadline;

/// Time limit of one publish, retries included.
pub const PUBLISH_BUDGET: Duration = Duration::from_secs(10);

/// Limit of acknowledged events whose outbox rows are not removed yet. If the cleaner falls
/// behind, the relay handles the rest: it publishes them again, which is harmless and keeps
/// memory bounded.
pub const ACKNOWLEDGED_MAX: usize = 10_000;

/// The publisher of an accepted order's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The request itself, before its answer.
    Direct,
    /// The relay, soon after.
    Outbox,
}

/// Delivers events in the chosen mode. Clones share their channels.
#[derive(Clone)]
pub struct Delivery {
    mode: DeliveryMode,
    acknowledged: Sender<OrderId>,
    relay: Sender<()>,
}

/// The housekeeping's end of a [`Delivery`].
pub(super) struct DeliveryInbox {
    pub(super) mode: DeliveryMode,
    /// Orders whose event was acknowledged.
    pub(super) acknowledged: Receiver<OrderId>,
    /// Holds a token when new events are pending for the relay.
    pub(super) relay: Receiver<()>,
}

impl Delivery {
    pub(super) fn new(mode: DeliveryMode) -> (Self, DeliveryInbox) {
        let (acknowledged, acknowledged_inbox) = bounded(ACKNOWLEDGED_MAX);
        // One token is enough: the relay drains the outbox each time it wakes.
        let (relay, relay_inbox) = bounded(1);
        let delivery = Self {
            mode,
            acknowledged,
            relay,
        };
        let inbox = DeliveryInbox {
            mode,
            acknowledged: acknowledged_inbox,
            relay: relay_inbox,
        };
        (delivery, inbox)
    }

    /// In direct mode, publishes the message and waits for its acknowledgement, for
    /// [`PUBLISH_BUDGET`] and until `deadline` at most. In outbox mode, wakes the relay.
    ///
    /// # Errors
    /// [`PublishError`], in direct mode. The message stays in the outbox.
    pub(super) fn deliver(
        &self,
        bus: &dyn EventBus,
        message: &Message,
        deadline: Deadline,
    ) -> Result<(), PublishError> {
        match self.mode {
            DeliveryMode::Outbox => {
                // A full channel holds the same token already.
                let _: Result<(), TrySendError<()>> = self.relay.try_send(());
            }
            DeliveryMode::Direct => {
                let budget = Deadline::after(PUBLISH_BUDGET);
                bus.publish(message, deadline.earlier_of(budget))?;
                // See ACKNOWLEDGED_MAX for why a full channel is no error.
                let _: Result<(), TrySendError<OrderId>> =
                    self.acknowledged.try_send(message.order_id);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
