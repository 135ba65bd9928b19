//! How an order's event gets from the database to the event bus.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::orders::domain::OrderId;
use crate::orders::ports::{EventBus, Message, PublishError};
use tbd_deadline::Deadline;

/// All that publishing may take, retries included (the seed's table of time-outs).
pub const PUBLISH_BUDGET: Duration = Duration::from_secs(10);

/// Acknowledged events that wait for their outbox row to be removed. When the
/// cleaner falls behind, the rest is left to the relay, which publishes them
/// again: harmless, and bounded memory.
pub const ACKNOWLEDGED_MAX: usize = 10_000;

/// Who publishes an accepted order's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The request itself, before it is answered.
    Direct,
    /// The relay, soon after.
    Outbox,
}

/// Hands events over by the chosen mode. Clones share their channels.
#[derive(Clone)]
pub struct Delivery {
    mode: DeliveryMode,
    acknowledged: Sender<OrderId>,
    relay: Sender<()>,
}

/// The housekeeper's end of a [`Delivery`].
pub(super) struct DeliveryInbox {
    pub(super) mode: DeliveryMode,
    /// Orders whose event was acknowledged.
    pub(super) acknowledged: Receiver<OrderId>,
    /// A token when new events wait for the relay.
    pub(super) relay: Receiver<()>,
}

impl Delivery {
    pub(super) fn new(mode: DeliveryMode) -> (Self, DeliveryInbox) {
        let (acknowledged, acknowledged_inbox) = bounded(ACKNOWLEDGED_MAX);
        // One token is enough: the relay empties the outbox each time it wakes.
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

    /// Direct: publishes the message and waits for its acknowledgement, for [`PUBLISH_BUDGET`]
    /// and until `deadline` at most. Outbox: wakes the relay.
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
