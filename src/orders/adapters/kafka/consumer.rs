//! The worker's consumer threads: poll, process, announce, commit.
//!
//! A thread works in rounds: it polls, makes one attempt at each order that is due, announces the
//! results and commits. A failed order stays in hand until its next attempt, while the thread
//! continues with other orders. So the thread polls every few seconds, however long the work in
//! hand takes.
//!
//! An offset moves only past records whose order has a final status in the database and whose
//! announcement is acknowledged. While the database, Kafka or a participant is unavailable, the records
//! in hand wait, the thread polls no more of them, and the membership continues.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::metrics::{KafkaMetrics, WorkerMetrics};
use crate::orders::app::PUBLISH_BUDGET;
use crate::orders::app::commands::Workflow;
use tbd_deadline::{Deadline, StopSignal};
use tbd_kafka::Cluster;
use tbd_kafka::consumer::{Consumer, ConsumerConfig, ConsumerRecord};
use tbd_telemetry::tracing::DetachedSpan;

use super::announcement_health::AnnouncementHealth;
use super::batch::Batch;
use super::meter::ConsumerMeter;
use super::{KafkaEventBus, dead_letter};

/// How long a poll waits for records; also the delay before a thread notices a stop.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// Time for the attempts of one round. An attempt in progress is finished.
const ROUND: Duration = Duration::from_secs(1);
/// The pause after Kafka was unavailable, and before a new membership.
const PAUSE: Duration = Duration::from_secs(1);
/// Time limit of a commit of offsets.
const COMMIT_BUDGET: Duration = Duration::from_secs(5);
/// Time limit of leaving the group.
const CLOSE_BUDGET: Duration = Duration::from_secs(5);

/// The consumers of new orders' events.
pub struct OrderConsumers {
    /// The cluster to consume from.
    pub cluster: Cluster,
    /// Group, topics, time-outs.
    pub config: ConsumerConfig,
    /// Number of threads. Each is a member of the group with its own connections.
    pub concurrency: usize,
    /// The use case.
    pub workflow: Box<dyn Workflow>,
    /// Publishes announcements and dead letters.
    pub bus: Arc<KafkaEventBus>,
    /// Counts rebalances, assignments and commits.
    pub metrics: KafkaMetrics,
    /// Counts busy threads, waiting announcements and dead letters.
    pub worker: WorkerMetrics,
    /// Receives the threads' reports of waiting announcements.
    pub announcement_health: AnnouncementHealth,
    /// Ends the threads.
    pub stop: StopSignal,
}

impl OrderConsumers {
    /// Starts the threads `order-consumer-N`. The caller gives the stop signal and joins them.
    /// Each thread then finishes its current order, commits what is done and leaves the group.
    /// Another member receives the orders that wait for their next attempt.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(self) -> io::Result<Vec<JoinHandle<()>>> {
        for reason in dead_letter::REASONS {
            self.worker.dead_lettered.with_label_values(&[reason]);
        }
        for topic in self.bus.topics().all() {
            let waiting = &self.worker.announcements_waiting;
            waiting.with_label_values(&[topic]);
        }
        let threads = self.concurrency.try_into().unwrap_or(i64::MAX);
        self.worker.threads.set(threads);
        let this = Arc::new(self);
        (0..this.concurrency)
            .map(|number| {
                let this = Arc::clone(&this);
                thread::Builder::new()
                    .name(format!("order-consumer-{number}"))
                    .spawn(move || this.run(number))
            })
            .collect()
    }

    fn run(&self, number: usize) {
        while !self.stop.is_stopped() {
            // A panic is a bug of ours, but the group must not lose a member because of it. The
            // consumer is dropped, and its records are delivered again.
            let ended = catch_unwind(AssertUnwindSafe(|| self.run_member(number)));
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::error!("consumer: {error}"),
                Err(_) => log::error!("consumer thread recovered from a panic"),
            }
            self.stop.wait_for(PAUSE);
        }
    }

    /// One membership in the group, until the stop signal or an error that only a new membership
    /// resolves.
    fn run_member(&self, number: usize) -> Result<(), tbd_kafka::Error> {
        let group = self.config.group_id.clone();
        let meter = ConsumerMeter::new(self.metrics.clone(), group);
        let hooks = Box::new(meter.clone());
        let mut consumer = Consumer::start(self.cluster.clone(), self.config.clone(), hooks)?;
        let ended = self.consume(number, &mut consumer, &meter);
        if let Err(error) = consumer.close(Deadline::after(CLOSE_BUDGET)) {
            log::warn!("cannot leave the group; it notices after the session time-out: {error}");
        }
        ended
    }

    fn consume(
        &self,
        number: usize,
        consumer: &mut Consumer,
        meter: &ConsumerMeter,
    ) -> Result<(), tbd_kafka::Error> {
        let topics = self.bus.topics().clone();
        let mut batch = Batch::new(topics, meter.group(), self.worker.clone());
        let mut away = false;
        while !self.stop.is_stopped() {
            let polled = poll(consumer, &batch);
            batch.keep(&consumer.assignment());
            match polled {
                Ok(records) => {
                    away = false;
                    if !records.is_empty() {
                        meter.polled(&self.bus.topics().created, records.len());
                        batch.add(records);
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
            if batch.is_empty() {
                pass_over(consumer);
            } else {
                self.work(consumer, meter, &mut batch);
            }
            self.announcement_health.report(number, batch.trouble());
        }
        Ok(())
    }

    /// One round: attempts, announcements, the commit. It is short, so that the member polls again
    /// long before the group evicts it.
    fn work(&self, consumer: &mut Consumer, meter: &ConsumerMeter, batch: &mut Batch) {
        self.worker.threads_busy.inc();
        self.process(batch);
        self.announce(batch);
        self.worker.threads_busy.dec();
        let offsets = batch.take_finished();
        let deadline = Deadline::after(COMMIT_BUDGET);
        let committed = match batch.is_empty() {
            // A transaction marker may follow the last record.
            true => consumer.commit_polled(deadline),
            false => consumer.commit(&offsets, deadline),
        };
        if let Err(error) = committed {
            // A later commit includes these offsets, or the records are delivered again.
            log::warn!("offsets not committed: {error}");
            meter.commit_failed();
        }
    }

    fn process(&self, batch: &mut Batch) {
        let now = Instant::now();
        let due = batch.due(now);
        if due.tasks.is_empty() {
            return;
        }
        let handled = {
            let _entered = due.span.map(DetachedSpan::enter);
            let until = Deadline::after_instant(now, ROUND);
            self.workflow.handle(&due.tasks, &due.replays, until)
        };
        match handled {
            Ok(results) => batch.conclude(&results, Instant::now()),
            Err(error) => batch.postpone(&error, now),
        }
    }

    fn announce(&self, batch: &mut Batch) {
        let announcements = batch.announcements(Instant::now());
        if announcements.is_empty() {
            return;
        }
        let (places, records): (Vec<_>, Vec<_>) = announcements
            .into_iter()
            .map(|it| (it.place, (it.record, it.cause)))
            .unzip();
        let results = self.bus.send(records, Deadline::after(PUBLISH_BUDGET));
        batch.announced(places.into_iter().zip(results).collect(), Instant::now());
    }
}

/// Polls for records if there is room for more, and waits for them until something in hand is due.
/// Without room, only keeps the membership alive and takes part in rebalances.
fn poll(consumer: &mut Consumer, batch: &Batch) -> Result<Vec<ConsumerRecord>, tbd_kafka::Error> {
    let now = Instant::now();
    let mut until = Deadline::after_instant(now, POLL_TIMEOUT);
    if let Some(due) = batch.next_due(now) {
        until = until.earlier_of(Deadline::at(due));
    }
    if batch.has_room(now) {
        consumer.poll(until)
    } else {
        consumer.idle(until).map(|()| Vec::new())
    }
}

/// Commits the position after a poll without records: past transaction markers, which would count
/// as lag for ever. Sends a request only if the position has changed.
fn pass_over(consumer: &mut Consumer) {
    if let Err(error) = consumer.commit_polled(Deadline::after(COMMIT_BUDGET)) {
        log::debug!("offsets not committed: {error}");
    }
}
