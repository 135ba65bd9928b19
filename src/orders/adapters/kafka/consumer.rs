//! The worker's consumer threads: poll, process the batch, announce, commit.
//!
//! Nothing is committed that was not done: an offset moves only over records
//! whose order has reached its end in the database and whose announcement is
//! acknowledged. When the database or Kafka is away, the batch is given back
//! ([`Consumer::rewind`]), and polled again after a pause.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::kafka::Cluster;
use crate::kafka::consumer::{Consumer, ConsumerConfig, ConsumerRecord};
use crate::orders::app::PUBLISH_BUDGET;
use crate::orders::app::commands::ProcessOrders;
use crate::stop::StopSignal;
use crate::telemetry::metrics::{KafkaMetrics, OrdersMetrics, WorkerMetrics};
use crate::telemetry::tracing::DetachedSpan;

use super::batch::{Batch, committable};
use super::meter::ConsumerMeter;
use super::{KafkaEventBus, dead_letter};

/// How long a poll waits for records; also how late a stop may be noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause after something was away.
const PAUSE: Duration = Duration::from_secs(1);
/// What committing offsets may take.
const COMMIT_BUDGET: Duration = Duration::from_secs(5);
/// What leaving the group may take.
const CLOSE_BUDGET: Duration = Duration::from_secs(5);

/// What the threads need besides the use case.
pub struct Settings {
    /// The cluster to consume from.
    pub cluster: Cluster,
    /// Group, topics, time-outs.
    pub consumer: ConsumerConfig,
    /// Where rebalances, assignments and commits are counted.
    pub metrics: KafkaMetrics,
    /// How many threads; each is a member of the group with its own connections.
    pub concurrency: usize,
}

/// Processes the events of new orders.
pub struct OrderConsumers {
    /// The use case.
    pub process: ProcessOrders,
    /// Where outcomes are announced.
    pub bus: Arc<KafkaEventBus>,
    /// Where dead letters are counted.
    pub orders: OrdersMetrics,
    /// Where busy threads are counted.
    pub worker: WorkerMetrics,
    /// Ends the threads.
    pub stop: StopSignal,
}

impl OrderConsumers {
    /// Starts the threads `order-consumer-N`; the caller joins them after giving the
    /// stop signal. Each then finishes the order it works on, commits what is done and
    /// leaves the group.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self, settings: Settings) -> io::Result<Vec<JoinHandle<()>>> {
        let (this, settings) = (Arc::new(self), Arc::new(settings));
        for reason in dead_letter::REASONS {
            this.orders.dead_lettered.with_label_values(&[reason]);
        }
        this.worker
            .threads
            .set(settings.concurrency.try_into().unwrap_or(i64::MAX));
        (0..settings.concurrency)
            .map(|number| {
                let (this, settings) = (Arc::clone(&this), Arc::clone(&settings));
                thread::Builder::new()
                    .name(format!("order-consumer-{number}"))
                    .spawn(move || this.run(&settings))
            })
            .collect()
    }

    fn run(&self, settings: &Settings) {
        while !self.stop.is_stopped() {
            // A panic is a mistake of ours; it must not cost the group a member for good.
            // The consumer it leaves behind is dropped, and its records come again.
            let ended = catch_unwind(AssertUnwindSafe(|| self.run_member(settings)));
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::error!("consumer: {error}"),
                Err(_) => log::error!("consumer thread recovered from a panic"),
            }
            self.stop.wait_for(PAUSE);
        }
    }

    /// One membership in the group, until the stop signal or an error that only a
    /// new membership mends.
    fn run_member(&self, settings: &Settings) -> Result<(), crate::kafka::Error> {
        let group = settings.consumer.group_id.clone();
        let meter = ConsumerMeter::new(settings.metrics.clone(), group);
        let hooks = Box::new(meter.clone());
        let mut consumer =
            Consumer::start(settings.cluster.clone(), settings.consumer.clone(), hooks)?;
        let ended = self.consume(&mut consumer, &meter);
        if let Err(error) = consumer.close(Deadline::after(CLOSE_BUDGET)) {
            log::warn!("left the group without telling it: {error}");
        }
        ended
    }

    fn consume(
        &self,
        consumer: &mut Consumer,
        meter: &ConsumerMeter,
    ) -> Result<(), crate::kafka::Error> {
        let mut away = false;
        while !self.stop.is_stopped() {
            match consumer.poll(Deadline::after(POLL_TIMEOUT)) {
                Ok(records) => {
                    away = false;
                    match records.is_empty() {
                        true => pass_over(consumer),
                        false => self.work(consumer, meter, &records),
                    }
                }
                Err(error) if error.is_transient() => {
                    if !std::mem::replace(&mut away, true) {
                        log::warn!("consumer: {error}; trying again until it works");
                    }
                    self.stop.wait_for(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn work(&self, consumer: &mut Consumer, meter: &ConsumerMeter, records: &[ConsumerRecord]) {
        meter.polled(&self.bus.topics().created, records.len());
        self.worker.threads_busy.inc();
        let done = self.process_batch(records, meter.group());
        self.worker.threads_busy.dec();
        let deadline = Deadline::after(COMMIT_BUDGET);
        let committed = match done.contains(&false) {
            true => consumer.commit(&committable(records, &done), deadline),
            // Behind the last record there may be a transaction's marker.
            false => consumer.commit_polled(deadline),
        };
        if let Err(error) = committed {
            // The records come again, to us or to the partition's new owner.
            log::warn!("offsets not committed: {error}");
            meter.commit_failed();
        }
        if done.contains(&false) && !self.stop.is_stopped() {
            consumer.rewind();
            // Stays a member, lets others rebalance, and takes nothing up meanwhile.
            if let Err(error) = consumer.idle(Deadline::after(PAUSE)) {
                log::debug!("consumer: {error}");
            }
        }
    }

    /// Works on the records together; for each, whether it is done with.
    fn process_batch(&self, records: &[ConsumerRecord], group: &str) -> Vec<bool> {
        let topics = self.bus.topics();
        let batch = Batch::read(records, topics, group);
        let handled = {
            let _entered = batch.span().map(DetachedSpan::enter);
            self.process.handle(&batch.ids(), &batch.chances())
        };
        let results = match handled {
            Ok(results) => results,
            Err(error) => return batch.not_processed(&error),
        };
        let (mut done, announcements) = batch.conclude(&results, topics, &self.orders);
        if !announcements.is_empty() {
            let (indices, records): (Vec<usize>, Vec<_>) = announcements
                .into_iter()
                .map(|it| (it.index, (it.record, it.cause)))
                .unzip();
            let results = self.bus.send(records, Deadline::after(PUBLISH_BUDGET));
            for (index, result) in indices.into_iter().zip(results) {
                done[index] &= batch.is_announced(index, result);
            }
        }
        done
    }
}

/// Commits where a poll without records has come to: behind the markers of transactions, which would count as lag for
/// ever. Asks Kafka only if there is something to commit.
fn pass_over(consumer: &mut Consumer) {
    if let Err(error) = consumer.commit_polled(Deadline::after(COMMIT_BUDGET)) {
        log::debug!("offsets not committed: {error}");
    }
}
