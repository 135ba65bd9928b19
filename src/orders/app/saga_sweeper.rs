//! The saga sweeper of the worker: publishes the event of an order again if its saga is stalled.
//!
//! Normally the message of an order moves its saga, and Kafka delivers it until the saga has ended. A
//! topic that was deleted, or offsets that an operator moved, take the message away and leave the
//! saga with money and stock on hold. The sweeper does not move sagas itself: a new message takes the
//! one way that every saga takes, with its order's announcement at the end.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;

use crate::orders::domain::saga::{Participant, SagaState};
use crate::orders::domain::{Order, OrderEvent, Status};
use crate::orders::ports::{EventBus, Message, Meter, Participants, SagaStore, StoreError};
use tbd_deadline::{Deadline, StopSignal};

use super::PUBLISH_BUDGET;
use super::housekeeping::STORE_BUDGET;

/// How often the sweeper looks, and measures `sagas{state}`.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// A saga that has not changed for so long is stalled. While its participants answer, a saga in hand
/// changes within seconds.
pub const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Sagas that one statement leases.
pub const BATCH: u32 = 100;

/// The dependencies of the sweeper.
pub struct SagaSweeper {
    /// The store of sagas.
    pub sagas: Arc<dyn SagaStore>,
    /// While one of them is away, sagas are stalled for that reason.
    pub participants: Arc<dyn Participants>,
    /// Publishes the events.
    pub bus: Arc<dyn EventBus>,
    /// Reports the unfinished sagas.
    pub meter: Arc<dyn Meter>,
    /// Ends the thread.
    pub stop: StopSignal,
}

impl SagaSweeper {
    /// Starts the thread `saga-sweeper`. The caller gives the stop signal and joins it.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(self) -> io::Result<JoinHandle<()>> {
        let thread = thread::Builder::new().name("saga-sweeper".into());
        thread.spawn(move || {
            while !self.stop.wait_for(INTERVAL) {
                let swept = self.measure().and_then(|()| self.sweep(Timestamp::now()));
                if let Err(error) = swept {
                    log::debug!("saga sweeper: {error}; trying again until it works");
                }
            }
        })
    }

    fn measure(&self) -> Result<(), StoreError> {
        let counts = self.sagas.unfinished(Deadline::after(STORE_BUDGET))?;
        for state in SagaState::ALL.into_iter().filter(|state| !state.is_final()) {
            let found = counts.iter().find(|(counted, _)| *counted == state);
            self.meter
                .sagas(state, found.map_or(0, |(_, count)| *count));
        }
        Ok(())
    }

    /// Publishes the events of one batch of sagas that are stalled at `now`. An event that is not
    /// acknowledged is due again after another [`STALLED_AFTER`].
    fn sweep(&self, now: Timestamp) -> Result<(), StoreError> {
        let is_away = |it: &Participant| self.participants.is_reachable(*it).is_err();
        if Participant::ALL.iter().any(is_away) {
            return Ok(());
        }
        let since = now - STALLED_AFTER;
        let deadline = Deadline::after(STORE_BUDGET);
        let orders = self.sagas.lease_stalled(now, since, BATCH, deadline)?;
        if orders.is_empty() {
            return Ok(());
        }
        log::warn!(
            "{} sagas are stalled: publishing the events of their orders again",
            orders.len()
        );
        let messages: Vec<Message> = orders
            .into_iter()
            .map(|order| self.created(order))
            .collect();
        let results = self
            .bus
            .publish_all(&messages, Deadline::after(PUBLISH_BUDGET));
        for error in results.into_iter().filter_map(Result::err) {
            log::warn!("saga sweeper: {error}");
        }
        Ok(())
    }

    /// The event with which `order` began.
    fn created(&self, order: Order) -> Message {
        self.bus.encode(&OrderEvent::Created(Order {
            status: Status::Pending,
            updated_at: order.created_at,
            ..order
        }))
    }
}

#[cfg(test)]
mod tests;
