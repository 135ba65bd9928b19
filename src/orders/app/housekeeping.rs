//! Housekeeping threads of the api: the outbox relay, the outbox cleaner and the sweeper of
//! expired idempotency keys. Every instance runs them; they do not interfere.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::orders::domain::OrderId;
use crate::orders::ports::{
    EventBus, IdempotencyStore, Message, Meter, Outbox, Relayed, StoreError,
};
use tbd_deadline::{Deadline, StopSignal};

use super::delivery::DeliveryInbox;
use super::{Delivery, DeliveryMode, PUBLISH_BUDGET};

/// Rows that one relay locks at a time: enough to fill a broker's batch, few enough to publish
/// well within [`PUBLISH_BUDGET`].
pub const RELAY_BATCH: u32 = 500;

/// Batches in a row without an acknowledgement after which the relay pauses: the bus is away, or
/// thousands of events are for a part of it that is.
const FRUITLESS_MAX: u32 = 20;

/// After this time the relay begins at the oldest event again.
const RESTART: Duration = Duration::from_secs(60);

/// The relay's warnings come no more often than this.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// How often the relay reads the outbox without a wake-up: other instances cannot wake it.
pub const RELAY_INTERVAL: Duration = Duration::from_secs(1);

/// Consecutive failures after which the relay logs a warning.
const FAILURES_BEFORE_WARNING: u32 = 5;

/// In direct mode an event belongs to its request until the publish budget is spent; after that
/// the relay may take it. The margin of 2 s covers the commit before the publish.
pub const DIRECT_MIN_AGE: Duration = Duration::from_secs(PUBLISH_BUDGET.as_secs() + 2);

/// Acknowledged rows that one statement removes at most.
pub const CLEAN_BATCH: usize = 1000;

/// How long the cleaner waits for more rows: one commit replaces many, and no request waits
/// for it.
pub const CLEAN_GATHER: Duration = Duration::from_millis(100);

/// How often expired keys are swept. Expired keys are ignored anyway, so this is not urgent.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Keys that one statement deletes: few, so that a sweep never holds locks for long.
pub const SWEEP_BATCH: u32 = 500;

/// How often the backlog is measured.
pub const BACKLOG_INTERVAL: Duration = Duration::from_secs(5);

/// Time limit of one call to the store. Longer than a statement's own limit, so it never cuts a
/// statement short.
pub const STORE_BUDGET: Duration = Duration::from_secs(10);

/// The dependencies of the housekeeping threads.
pub struct Housekeeping {
    /// The store of pending events.
    pub outbox: Arc<dyn Outbox>,
    /// The store of idempotency keys.
    pub keys: Arc<dyn IdempotencyStore>,
    /// Publishes the events.
    pub bus: Arc<dyn EventBus>,
    /// Counts relayed events and swept keys, and reports the backlog.
    pub meter: Arc<dyn Meter>,
    /// Ends the threads.
    pub stop: StopSignal,
}

impl Housekeeping {
    /// Starts the threads `outbox-relay`, `outbox-cleaner` and `idempotency-sweeper`. The caller
    /// gives the stop signal and joins them. Also returns the [`Delivery`] that feeds them: stop
    /// its users before these threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(self, mode: DeliveryMode) -> io::Result<(Delivery, Vec<JoinHandle<()>>)> {
        let (delivery, inbox) = Delivery::new(mode);
        let this = Arc::new(self);
        let inbox = Arc::new(inbox);
        let spawn = |name: &str, body: fn(&Housekeeping, &DeliveryInbox)| {
            let (this, inbox) = (Arc::clone(&this), Arc::clone(&inbox));
            thread::Builder::new()
                .name(name.into())
                .spawn(move || body(&this, &inbox))
        };
        let threads = vec![
            spawn("outbox-relay", Housekeeping::relay_loop)?,
            spawn("outbox-cleaner", Housekeeping::cleaner_loop)?,
            spawn("idempotency-sweeper", Housekeeping::sweeper_loop)?,
        ];
        Ok((delivery, threads))
    }

    fn relay_loop(&self, inbox: &DeliveryInbox) {
        let min_age = match inbox.mode {
            DeliveryMode::Direct => DIRECT_MIN_AGE,
            DeliveryMode::Outbox => Duration::ZERO,
        };
        let mut measured: Option<Instant> = None;
        let mut failures = 0;
        let mut round = RelayRound::default();
        while !self.stop.is_stopped() {
            let may_be_more = match self.relay_once(round.after, min_age) {
                Ok(relayed) => {
                    failures = 0;
                    round.add(relayed)
                }
                Err(error) => {
                    failures += 1;
                    // Before the migrations the first calls fail, so a few failures are normal.
                    // An outage is logged once.
                    let level = match failures {
                        FAILURES_BEFORE_WARNING => log::Level::Warn,
                        _ => log::Level::Debug,
                    };
                    log::log!(level, "outbox relay: {error}; trying again until it works");
                    false
                }
            };
            // Also while the relay catches up: then the backlog matters most.
            if measured.is_none_or(|at| at.elapsed() >= BACKLOG_INTERVAL) {
                measured = Some(Instant::now());
                match self.outbox.backlog(Deadline::after(STORE_BUDGET)) {
                    Ok(backlog) => self.meter.outbox_backlog(backlog),
                    Err(error) => log::debug!("outbox backlog: {error}"),
                }
            }
            if may_be_more {
                continue;
            }
            let is_fruitless = round.is_fruitless();
            round.pause();
            if is_fruitless {
                // The bus is away, and answers at once. Each new event would wake the relay only to lock
                // the same rows again.
                self.stop.wait_for(RELAY_INTERVAL);
                continue;
            }
            match inbox.relay.recv_timeout(RELAY_INTERVAL) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Publishes one batch of the events behind `after`.
    fn relay_once(&self, after: Option<OrderId>, min_age: Duration) -> Result<Relayed, StoreError> {
        let mut publish = |messages: &[Message]| -> Vec<bool> {
            self.bus
                .publish_all(messages, Deadline::after(PUBLISH_BUDGET))
                .into_iter()
                .zip(messages)
                .map(|(result, message)| match result {
                    Ok(()) => true,
                    Err(error) => {
                        log::debug!(order_id:% = message.order_id; "relay: {error}");
                        false
                    }
                })
                .collect()
        };
        let deadline = Deadline::after(STORE_BUDGET);
        let batch = self
            .outbox
            .relay(after, RELAY_BATCH, min_age, deadline, &mut publish)?;
        self.meter.events_relayed(batch.removed);
        Ok(batch)
    }

    fn cleaner_loop(&self, inbox: &DeliveryInbox) {
        loop {
            match inbox.acknowledged.recv_timeout(RELAY_INTERVAL) {
                Ok(first) => self.clean_once(first, inbox),
                Err(RecvTimeoutError::Timeout) if !self.stop.is_stopped() => {}
                // Stopped, and the channel is empty: every acknowledged row is removed.
                Err(_) => return,
            }
        }
    }

    fn clean_once(&self, first: OrderId, inbox: &DeliveryInbox) {
        // One wake-up for many rows: they collect in the channel meanwhile.
        if inbox.acknowledged.len() < CLEAN_BATCH {
            self.stop.wait_for(CLEAN_GATHER);
        }
        let mut order_ids = vec![first];
        order_ids.extend(inbox.acknowledged.try_iter().take(CLEAN_BATCH - 1));
        if let Err(error) = self
            .outbox
            .remove(&order_ids, Deadline::after(STORE_BUDGET))
        {
            log::warn!(
                "outbox cleaner: {} rows stay for the relay: {error}",
                order_ids.len()
            );
        }
    }

    fn sweeper_loop(&self, _: &DeliveryInbox) {
        while !self.stop.wait_for(SWEEP_INTERVAL) {
            match self.sweep_once() {
                Ok(0) => {}
                Ok(swept) => log::info!("{swept} expired idempotency keys swept"),
                Err(error) => log::warn!("idempotency sweeper: {error}"),
            }
        }
    }

    /// Deletes expired keys in small batches until there are none. Returns their number.
    fn sweep_once(&self) -> Result<u64, StoreError> {
        let mut swept = 0;
        while !self.stop.is_stopped() {
            let batch = self
                .keys
                .sweep(SWEEP_BATCH, Deadline::after(STORE_BUDGET))?;
            self.meter.keys_swept(batch);
            swept += batch;
            if batch < u64::from(SWEEP_BATCH) {
                break;
            }
        }
        Ok(swept)
    }
}

/// The relay's way through the outbox, from one pause to the next.
#[derive(Default)]
struct RelayRound {
    /// Events up to here were tried.
    after: Option<OrderId>,
    /// When it last began at the oldest event.
    began: Option<Instant>,
    /// Batches since the last acknowledgement.
    fruitless: u32,
    taken: usize,
    removed: usize,
    warned: Option<Instant>,
}

impl RelayRound {
    /// Adds a batch. Returns whether the next one follows at once.
    fn add(&mut self, batch: Relayed) -> bool {
        self.taken += batch.taken;
        self.removed += batch.removed;
        self.fruitless = match batch.removed {
            0 => self.fruitless + 1,
            _ => 0,
        };
        let is_full = batch.taken == RELAY_BATCH as usize;
        let began = *self.began.get_or_insert_with(Instant::now);
        if !is_full || began.elapsed() >= RESTART {
            (self.after, self.began) = (None, None);
        } else if batch.removed < batch.taken {
            // What cannot be published must not hold up what is behind it. It is tried again once the
            // end is reached, which a relay that lags behind may never do.
            self.after = batch.last;
        }
        is_full && self.fruitless < FRUITLESS_MAX
    }

    /// Whether nothing was acknowledged of what was taken since the last pause.
    fn is_fruitless(&self) -> bool {
        self.taken > 0 && self.removed == 0
    }

    fn pause(&mut self) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            warn_unpublished(self.taken, self.removed);
            self.warned = (self.removed < self.taken).then(Instant::now);
        }
        (self.fruitless, self.taken, self.removed) = (0, 0, 0);
    }
}

/// Warns if some of the events that were `taken` are not `published`.
pub fn warn_unpublished(taken: usize, published: usize) {
    if published < taken {
        log::warn!(
            "outbox relay: {} of {taken} events not published; they stay in the outbox",
            taken - published
        );
    }
}

#[cfg(test)]
mod tests;
