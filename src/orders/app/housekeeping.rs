//! What each api does beside its requests: relay left-over events, remove
//! acknowledged ones, sweep expired keys. Safe with many instances at once.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::orders::domain::OrderId;
use crate::orders::ports::{EventBus, IdempotencyStore, Message, Meter, Outbox, StoreError};
use tbd_deadline::Deadline;
use tbd_deadline::StopSignal;

use super::delivery::DeliveryInbox;
use super::{Delivery, DeliveryMode, PUBLISH_BUDGET};

/// Rows that one relay holds at a time: enough to fill a broker's batch, few
/// enough that they are published well within [`PUBLISH_BUDGET`].
pub const RELAY_BATCH: u32 = 500;

/// How often the relay looks for events that nobody told it of.
pub const RELAY_INTERVAL: Duration = Duration::from_secs(1);

/// Failures in a row after which the relay complains.
const FAILURES_TOLD: u32 = 5;

/// In direct mode an event belongs to its request until the publish budget is
/// spent; only then is it left over. The margin covers the commit before it.
pub const DIRECT_MIN_AGE: Duration = Duration::from_secs(PUBLISH_BUDGET.as_secs() + 2);

/// Acknowledged rows are removed together, this many at most, ...
pub const CLEAN_BATCH: usize = 1000;

/// ... after waiting this long for company: one commit instead of many, and
/// nobody waits for it.
pub const CLEAN_GATHER: Duration = Duration::from_millis(100);

/// "Swept about once a minute" (the contract).
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Small, so that a sweep never holds locks for long.
pub const SWEEP_BATCH: u32 = 500;

/// How often the backlog is measured.
pub const BACKLOG_INTERVAL: Duration = Duration::from_secs(5);

/// What one call to the store may take here: more than a statement may, so that none is cut short for it.
pub const STORE_BUDGET: Duration = Duration::from_secs(10);

/// Everything the housekeeping needs.
pub struct Housekeeping {
    /// Where events wait.
    pub outbox: Arc<dyn Outbox>,
    /// Where keys expire.
    pub keys: Arc<dyn IdempotencyStore>,
    /// Where events go.
    pub bus: Arc<dyn EventBus>,
    /// Where the backlog is reported.
    pub meter: Arc<dyn Meter>,
    /// Ends the threads.
    pub stop: StopSignal,
}

impl Housekeeping {
    /// Starts the threads `outbox-relay`, `outbox-cleaner` and
    /// `idempotency-sweeper`; the caller joins them after giving the stop signal.
    /// Also returns the [`Delivery`] whose left-overs they handle: whoever uses it ends first.
    ///
    /// # Errors
    /// When a thread cannot be started.
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
        while !self.stop.is_stopped() {
            let may_be_more = match self.relay_once(min_age) {
                Ok((taken, removed)) => {
                    failures = 0;
                    // A full batch that went through.
                    taken == RELAY_BATCH as usize && removed == taken
                }
                Err(error) => {
                    failures += 1;
                    // At the start the schema is not there yet, and an outage is said once.
                    let level = match failures {
                        FAILURES_TOLD => log::Level::Warn,
                        _ => log::Level::Debug,
                    };
                    log::log!(level, "outbox relay: {error}; trying again until it works");
                    false
                }
            };
            // Also while it catches up: that is when the backlog is worth knowing.
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
            match inbox.relay.recv_timeout(RELAY_INTERVAL) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Publishes one batch; the number of events taken, and of these published.
    fn relay_once(&self, min_age: Duration) -> Result<(usize, usize), StoreError> {
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
        let (taken, removed) = self
            .outbox
            .relay(RELAY_BATCH, min_age, deadline, &mut publish)?;
        relayed(taken, removed, &*self.meter);
        Ok((taken, removed))
    }

    fn cleaner_loop(&self, inbox: &DeliveryInbox) {
        loop {
            match inbox.acknowledged.recv_timeout(RELAY_INTERVAL) {
                Ok(first) => self.clean_once(first, inbox),
                Err(RecvTimeoutError::Timeout) if !self.stop.is_stopped() => {}
                // Stopped and empty: what was acknowledged is removed.
                Err(_) => return,
            }
        }
    }

    fn clean_once(&self, first: OrderId, inbox: &DeliveryInbox) {
        // Not a wake-up for each: they gather in the channel meanwhile.
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

    /// Deletes expired keys in small batches until there are none; their number.
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

/// Counts what a relay has published of what it took, and complains of what it has not.
pub fn relayed(taken: usize, published: usize, meter: &dyn Meter) {
    meter.events_relayed(published);
    if published < taken {
        log::warn!(
            "outbox relay: {} of {taken} events not published, they stay",
            taken - published
        );
    }
}

#[cfg(test)]
mod tests;
