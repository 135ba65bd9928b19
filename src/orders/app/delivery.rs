//! How an order's event gets from the database to the event bus.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::orders::domain::OrderId;
use crate::orders::ports::{Acknowledgement, EventBus, Message, PublishError, WhenStored};
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

    /// Direct: lets whoever stores an order begin to publish its event, until `deadline` at most.
    pub(super) fn ahead(&self, bus: &Arc<dyn EventBus>, deadline: Deadline) -> Ahead {
        let begun = Arc::new(Mutex::new(None));
        let when_stored = (self.mode == DeliveryMode::Direct).then(|| -> WhenStored {
            let (bus, begun) = (Arc::clone(bus), Arc::clone(&begun));
            Arc::new(move |message: &Message| {
                let acknowledgement = bus.begin(message, within_budget(deadline));
                *begun.lock().unwrap_or_else(PoisonError::into_inner) = acknowledgement;
            })
        });
        Ahead { begun, when_stored }
    }

    /// Direct: publishes the message, unless that has `begun`, and waits for its acknowledgement,
    /// for [`PUBLISH_BUDGET`] and until `deadline` at most. Outbox: wakes the relay.
    ///
    /// # Errors
    /// [`PublishError`], in direct mode. The message stays in the outbox.
    pub(super) fn deliver(
        &self,
        bus: &dyn EventBus,
        message: Message,
        begun: Option<Box<dyn Acknowledgement>>,
        deadline: Deadline,
    ) -> Result<(), PublishError> {
        match self.mode {
            DeliveryMode::Outbox => {
                // A full channel holds the same token already.
                let _: Result<(), TrySendError<()>> = self.relay.try_send(());
                Ok(())
            }
            DeliveryMode::Direct => {
                let order_id = message.order_id;
                match begun {
                    Some(acknowledgement) => acknowledgement.wait(),
                    None => bus
                        .publish(&[message], within_budget(deadline))
                        .pop()
                        .unwrap_or_else(|| Err(PublishError::Unavailable("no answer".into()))),
                }?;
                // See ACKNOWLEDGED_MAX for why a full channel is no error.
                let _: Result<(), TrySendError<OrderId>> = self.acknowledged.try_send(order_id);
                Ok(())
            }
        }
    }
}

/// An event that may be under way before the thread of its request has woken. The events of orders
/// that share a commit leave together, in few requests, and sooner.
pub(super) struct Ahead {
    begun: Arc<Mutex<Option<Box<dyn Acknowledgement>>>>,
    /// For the submission; none in outbox mode.
    pub(super) when_stored: Option<WhenStored>,
}

impl Ahead {
    /// What is under way.
    pub(super) fn begun(&self) -> Option<Box<dyn Acknowledgement>> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.take()
    }
}

fn within_budget(deadline: Deadline) -> Deadline {
    deadline.earlier_of(Deadline::after(PUBLISH_BUDGET))
}

#[cfg(test)]
mod tests;
