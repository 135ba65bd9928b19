//! Event delivery from the database to Kafka, and the api's background work: tbd's rules and constants
//! (`tbd::orders::app`), on tasks.

use std::sync::Arc;
use std::time::Duration;

use tbd::metrics::Metrics;
use tbd::orders::adapters::Breaker;
use tbd::orders::adapters::PrometheusMeter;
use tbd::orders::app::housekeeping::{
    BACKLOG_INTERVAL, CLEAN_BATCH, CLEAN_GATHER, DIRECT_MIN_AGE, RELAY_BATCH, RELAY_INTERVAL,
    STORE_BUDGET, SWEEP_BATCH, SWEEP_INTERVAL, warn_unpublished,
};
use tbd::orders::app::{ACKNOWLEDGED_MAX, DeliveryMode, PUBLISH_BUDGET};
use tbd::orders::domain::OrderId;
use tbd::orders::ports::{Message, Meter, PublishError, StoreError};
use tbd::wiring;
use tbd_deadline::Deadline;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::bus::Bus;
use crate::store::Store;

/// Delivers events in the chosen mode.
pub struct Delivery {
    mode: DeliveryMode,
    bus: Arc<Bus>,
    breaker: Arc<Breaker>,
    meter: Arc<PrometheusMeter>,
    acknowledged: mpsc::Sender<OrderId>,
    wake: Arc<Notify>,
}

/// The tasks' shared state.
struct Housekeeper {
    store: Store,
    bus: Arc<Bus>,
    meter: Arc<PrometheusMeter>,
    wake: Arc<Notify>,
    stop: watch::Receiver<bool>,
}

impl Delivery {
    /// The delivery, and the tasks that publish its leftovers until `stop` is true.
    pub fn start(
        mode: DeliveryMode,
        store: Store,
        bus: Arc<Bus>,
        metrics: &Metrics,
        stop: watch::Receiver<bool>,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let breaker = wiring::breaker("publishing", "kafka-publish", metrics);
        let meter = Arc::new(PrometheusMeter::new(metrics.orders.clone()));
        let (acknowledged, inbox) = mpsc::channel(ACKNOWLEDGED_MAX);
        let wake = Arc::new(Notify::new());
        let housekeeper = || Housekeeper {
            store: store.clone(),
            bus: Arc::clone(&bus),
            meter: Arc::clone(&meter),
            wake: Arc::clone(&wake),
            stop: stop.clone(),
        };
        let min_age = match mode {
            DeliveryMode::Direct => DIRECT_MIN_AGE,
            DeliveryMode::Outbox => Duration::ZERO,
        };
        let tasks = vec![
            tokio::spawn(housekeeper().relay(min_age)),
            tokio::spawn(housekeeper().clean(inbox)),
            tokio::spawn(housekeeper().sweep()),
        ];
        (
            Self {
                mode,
                bus,
                breaker,
                meter,
                acknowledged,
                wake,
            },
            tasks,
        )
    }

    /// The bus behind it.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Where orders are counted.
    pub fn meter(&self) -> &PrometheusMeter {
        &self.meter
    }

    /// Direct: publishes and waits for the acknowledgement. Outbox: wakes the relay.
    ///
    /// # Errors
    /// [`PublishError`], in direct mode. The message stays in the outbox.
    pub async fn deliver(&self, message: Message, deadline: Deadline) -> Result<(), PublishError> {
        match self.mode {
            DeliveryMode::Outbox => self.wake.notify_one(),
            DeliveryMode::Direct => {
                let deadline = deadline.earlier_of(Deadline::after(PUBLISH_BUDGET));
                self.bus
                    .publish_guarded(&self.breaker, &message, deadline)
                    .await?;
                // The relay publishes an event that finds no place; a repetition is harmless.
                let _ = self.acknowledged.try_send(message.order_id);
            }
        }
        Ok(())
    }
}

impl Housekeeper {
    /// Waits `pause`; whether to stop.
    async fn stopped_after(&mut self, pause: Duration) -> bool {
        timeout(pause, self.stop.wait_for(|stop| *stop))
            .await
            .is_ok()
    }

    async fn relay(mut self, min_age: Duration) {
        let mut measured: Option<Instant> = None;
        while !*self.stop.borrow() {
            let more = match self.relay_once(min_age).await {
                Ok((taken, removed)) => taken == RELAY_BATCH as usize && removed == taken,
                Err(error) => {
                    log::debug!("outbox relay: {error}; trying again until it works");
                    false
                }
            };
            if measured.is_none_or(|at| at.elapsed() >= BACKLOG_INTERVAL) {
                measured = Some(Instant::now());
                if let Ok(backlog) = self.store.backlog(Deadline::after(STORE_BUDGET)).await {
                    self.meter.outbox_backlog(backlog);
                }
            }
            if !more {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep(RELAY_INTERVAL) => {}
                    _ = self.stop.wait_for(|stop| *stop) => {}
                }
            }
        }
    }

    /// Publishes one batch; the numbers of events taken and published.
    async fn relay_once(&self, min_age: Duration) -> Result<(usize, usize), StoreError> {
        let publish = |messages: Vec<Message>| async move {
            let results = self
                .bus
                .publish(&messages, Deadline::after(PUBLISH_BUDGET))
                .await;
            let sent = results.iter().zip(&messages);
            sent.filter(|(result, _)| result.is_ok())
                .map(|(_, message)| message.order_id)
                .collect()
        };
        let (taken, removed) = self
            .store
            .relay(RELAY_BATCH, min_age, STORE_BUDGET, publish)
            .await?;
        self.meter.events_relayed(removed);
        warn_unpublished(taken, removed);
        Ok((taken, removed))
    }

    async fn clean(mut self, mut inbox: mpsc::Receiver<OrderId>) {
        loop {
            let first = tokio::select! {
                first = inbox.recv() => first,
                _ = self.stop.wait_for(|stop| *stop) => inbox.try_recv().ok(),
            };
            let Some(first) = first else { return };
            let gather = Instant::now() + CLEAN_GATHER;
            let mut order_ids = vec![first];
            while order_ids.len() < CLEAN_BATCH
                && let Ok(Some(order_id)) = timeout_at(gather, inbox.recv()).await
            {
                order_ids.push(order_id);
            }
            if let Err(error) = self
                .store
                .remove(&order_ids, Deadline::after(STORE_BUDGET))
                .await
            {
                log::warn!(
                    "outbox cleaner: {} rows stay for the relay: {error}",
                    order_ids.len()
                );
            }
        }
    }

    async fn sweep(mut self) {
        while !self.stopped_after(SWEEP_INTERVAL).await {
            loop {
                match self
                    .store
                    .sweep(SWEEP_BATCH, Deadline::after(STORE_BUDGET))
                    .await
                {
                    Ok(swept) => {
                        self.meter.keys_swept(swept);
                        if swept < u64::from(SWEEP_BATCH) {
                            break;
                        }
                    }
                    Err(error) => {
                        log::warn!("idempotency sweeper: {error}");
                        break;
                    }
                }
            }
        }
    }
}
