//! The worker on rdkafka's stream consumer: WORKER_CONCURRENCY tasks, each a member of the group. A task
//! processes all ready records as one batch, by tbd's rules
//! (`tbd::orders::app::commands::ProcessOrders`): one statement takes the orders up, one completes them,
//! then they are announced together and the offsets committed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::StreamExt;
use opentelemetry::trace::FutureExt as _;
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tbd::config::WorkerConfig;
use tbd::metrics::{KafkaMetrics, Metrics};
use tbd::orders::adapters::PrometheusMeter;
use tbd::orders::adapters::kafka::Batch;
use tbd::orders::adapters::kafka::dead_letter::REASONS;
use tbd::orders::app::PUBLISH_BUDGET;
use tbd::orders::app::commands::process_orders::{PROCESSING_LIMIT, STORE_BUDGET, ended};
use tbd::orders::app::commands::{Processed, Task};
use tbd::orders::domain::{Order, OrderId};
use tbd::orders::ports::{Claimed, Failure, Meter, Outcome, Replay, StepError, StoreError};
use tbd_deadline::Deadline;
use tbd_kafka::TopicPartition;
use tbd_kafka::consumer::ConsumerRecord;
use tbd_telemetry::tracing::{Context, DetachedSpan};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};
use uuid::Uuid;

use crate::bus::Bus;
use crate::store::Store;

const PAUSE: Duration = Duration::from_secs(1);
/// Between two commits of the same offsets in a rebalance.
const COMMIT_PAUSE: Duration = Duration::from_millis(50);
const BATCH_TIME: Duration = Duration::from_secs(1);
const BATCH_MAX: usize = 500;

/// State that the tasks share.
pub struct Worker {
    /// Orders.
    pub store: Store,
    /// Announcements.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
    /// Counters of orders.
    pub meter: PrometheusMeter,
    /// Settings.
    pub config: WorkerConfig,
    /// True once the tasks must end.
    pub stop: watch::Receiver<bool>,
    /// True once a running step must be aborted.
    pub abort: watch::Receiver<bool>,
}

/// Counts rebalances.
struct Counted {
    metrics: KafkaMetrics,
    group: String,
}

impl ClientContext for Counted {}

impl ConsumerContext for Counted {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        self.metrics
            .rebalances
            .with_label_values(&[&self.group])
            .inc();
    }
}

impl Worker {
    /// Starts the tasks.
    ///
    /// # Errors
    /// librdkafka's, over its settings.
    pub fn start(self) -> Result<Vec<JoinHandle<()>>, KafkaError> {
        let this = Arc::new(self);
        let concurrency = this.config.concurrency;
        this.metrics
            .worker
            .threads
            .set(i64::try_from(concurrency).unwrap_or(i64::MAX));
        for reason in REASONS {
            let dead_lettered = &this.metrics.worker.dead_lettered;
            dead_lettered.with_label_values(&[reason]);
        }
        (0..concurrency)
            .map(|_| {
                let consumer = this.consumer()?;
                Ok(tokio::spawn(Arc::clone(&this).consume(consumer)))
            })
            .collect()
    }

    fn consumer(&self) -> Result<StreamConsumer<Counted>, KafkaError> {
        let kafka = &self.config.kafka;
        let session = self.config.session_timeout.as_millis();
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", kafka.brokers.join(","))
            .set("client.id", "tbd-worker")
            .set("group.id", &kafka.consumer_group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.to_string())
            .set("heartbeat.interval.ms", (session / 3).to_string())
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "500")
            // A few batches ahead. librdkafka's default, 100,000 records of each partition, only costs memory here.
            // Also by default, it checks a full queue again only after a second.
            .set("queued.min.messages", "2000")
            .set("fetch.queue.backoff.ms", "10")
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", "5000")
            .set("allow.auto.create.topics", "false");
        let context = Counted {
            metrics: self.metrics.kafka.clone(),
            group: kafka.consumer_group.clone(),
        };
        let consumer = StreamConsumer::from_config_and_context(&config, context)?;
        consumer.subscribe(&[&kafka.topic_order_created])?;
        Ok(consumer)
    }

    /// The loop of one member.
    async fn consume(self: Arc<Self>, consumer: StreamConsumer<Counted>) {
        let each = self.config.processing_time.as_nanos().max(1);
        let most = usize::try_from(BATCH_TIME.as_nanos() / each)
            .unwrap_or(BATCH_MAX)
            .clamp(1, BATCH_MAX);
        let mut stop = self.stop.clone();
        let mut batches = consumer.stream().ready_chunks(most);
        while !*stop.borrow() {
            let batch = tokio::select! {
                batch = batches.next() => batch,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            if let Some(batch) = batch {
                let messages: Vec<BorrowedMessage<'_>> =
                    batch.into_iter().filter_map(Result::ok).collect();
                if messages.is_empty() {
                    sleep(PAUSE).await;
                } else {
                    self.work(&consumer, &messages).await;
                }
            }
        }
        drop(batches);
        // Leaves the group. librdkafka blocks on the broker, so not on a thread of the runtime.
        let _ = tokio::task::spawn_blocking(move || drop(consumer)).await;
    }

    /// tbd's rounds, except that a task takes up no more while it has messages in hand.
    async fn work(&self, consumer: &StreamConsumer<Counted>, messages: &[BorrowedMessage<'_>]) {
        let topic = self.config.kafka.topic_order_created.as_str();
        let count = u64::try_from(messages.len()).unwrap_or(u64::MAX);
        self.metrics
            .kafka
            .consumer_records
            .with_label_values(&[topic])
            .inc_by(count);
        let group = self.config.kafka.consumer_group.as_str();
        let worker = self.metrics.worker.clone();
        let mut batch = Batch::new(self.bus.topics.clone(), group, worker);
        batch.add(messages.iter().map(record).collect());
        while !batch.is_empty() && batch.is_flowing() && !*self.stop.borrow() {
            if let Some(due) = batch.next_due(Instant::now()) {
                sleep_until(due.into()).await;
            }
            self.metrics.worker.threads_busy.inc();
            self.process(&mut batch).await;
            self.announce(&mut batch).await;
            self.metrics.worker.threads_busy.dec();
            self.commit(consumer, &batch.take_finished()).await;
        }
        if !batch.is_empty() && !*self.stop.borrow() {
            let unfinished = batch.unfinished();
            let unfinished = positions(
                unfinished
                    .iter()
                    .map(|((topic, at), next)| (&**topic, *at, *next)),
            );
            let rewound =
                tokio::task::block_in_place(|| consumer.seek_partitions(unfinished, PAUSE));
            if let Err(error) = rewound {
                log::debug!("rewinding: {error}");
            }
            sleep(PAUSE).await;
        }
    }

    /// Commits offsets. A commit that a rebalance has overtaken is repeated in the new generation, before the next poll
    /// gives partitions back: otherwise their next owner, or nobody, would commit these records.
    async fn commit(&self, consumer: &StreamConsumer<Counted>, offsets: &[(TopicPartition, i64)]) {
        let offsets = positions(
            offsets
                .iter()
                .map(|(at, next)| (&*at.topic, at.partition, *next)),
        );
        if offsets.count() == 0 {
            return;
        }
        let until = Deadline::after(self.config.session_timeout);
        let commit = || tokio::task::block_in_place(|| consumer.commit(&offsets, CommitMode::Sync));
        let mut committed = commit();
        while committed.as_ref().is_err_and(is_overtaken) && !until.is_past() {
            sleep(COMMIT_PAUSE).await;
            committed = commit();
        }
        if let Err(error) = committed {
            log::warn!("offsets not committed: {error}");
            let group = self.config.kafka.consumer_group.as_str();
            self.metrics
                .kafka
                .commit_failures
                .with_label_values(&[group])
                .inc();
        }
    }

    async fn process(&self, batch: &mut Batch) {
        let now = Instant::now();
        let (tasks, replays, parent) = {
            let due = batch.due(now);
            let parent = due.span.map_or_else(Context::new, DetachedSpan::context);
            (due.tasks, due.replays, parent)
        };
        if tasks.is_empty() {
            return;
        }
        match self.handle(&tasks, &replays).with_context(parent).await {
            Ok(results) => batch.conclude(&results, Instant::now()),
            Err(error) => batch.postpone(&error, now),
        }
    }

    async fn announce(&self, batch: &mut Batch) {
        let published = batch
            .announcements(Instant::now())
            .into_iter()
            .map(async |it| {
                let deadline = Deadline::after(PUBLISH_BUDGET);
                let sent = self
                    .bus
                    .send(it.record, it.cause.as_deref(), deadline)
                    .await;
                (it.place, sent)
            });
        batch.announced(join_all(published).await, Instant::now());
    }

    /// tbd's `ProcessOrders::handle`.
    async fn handle(
        &self,
        tasks: &[Task],
        replays: &[Replay],
    ) -> Result<HashMap<OrderId, Processed>, StoreError> {
        if !replays.is_empty() {
            self.store
                .retry_failed(replays, Deadline::after(STORE_BUDGET))
                .await?;
        }
        let ids: Vec<OrderId> = tasks.iter().map(|task| task.id).collect();
        let claimed = self
            .store
            .claim(&ids, Deadline::after(STORE_BUDGET))
            .await?;
        let mut claimed: HashMap<OrderId, Claimed> = claimed
            .into_iter()
            .map(|claimed| (claimed.order.id, claimed))
            .collect();
        let mut results = HashMap::with_capacity(tasks.len());
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        let until = Deadline::after(BATCH_TIME);
        for (number, task) in tasks.iter().enumerate() {
            if *self.stop.borrow() || (number > 0 && until.is_past()) {
                break;
            }
            let Some(claimed) = claimed.remove(&task.id) else {
                results.insert(task.id, Processed::Unknown);
                continue;
            };
            if let Some((outcome, processed)) = ended(&claimed, self.config.max_attempts) {
                self.meter.order_processed(outcome);
                results.insert(task.id, processed);
                continue;
            }
            let attempts = task.failed_attempts + 1;
            match self.attempt().await {
                Ok(()) => done.push(task.id),
                Err(StepError::Stopped) => break,
                Err(error) if attempts < self.config.max_attempts => {
                    log::info!(order_id:% = task.id, attempt = attempts; "processing failed, trying again: {error}");
                    let failed_attempts = attempts;
                    results.insert(task.id, Processed::Retry { failed_attempts });
                }
                Err(error) => failed.push((task.id, error.to_string(), attempts)),
            }
        }
        self.complete(&done, &mut results).await?;
        self.fail(failed, &mut results).await?;
        Ok(results)
    }

    async fn complete(
        &self,
        done: &[OrderId],
        results: &mut HashMap<OrderId, Processed>,
    ) -> Result<(), StoreError> {
        if done.is_empty() {
            return Ok(());
        }
        let deadline = Deadline::after(STORE_BUDGET);
        for order in self.store.complete(done, deadline).await? {
            self.meter.order_processed(Outcome::Completed);
            let delay = order.updated_at.duration_since(order.created_at);
            self.meter.order_completed_after(delay.unsigned_abs());
            results.insert(order.id, Processed::Completed(order));
        }
        Ok(())
    }

    async fn fail(
        &self,
        failed: Vec<(OrderId, String, u32)>,
        results: &mut HashMap<OrderId, Processed>,
    ) -> Result<(), StoreError> {
        if failed.is_empty() {
            return Ok(());
        }
        let failures: Vec<Failure> = failed
            .iter()
            .map(|(id, reason, _)| Failure {
                id: *id,
                reason: reason.clone(),
            })
            .collect();
        let deadline = Deadline::after(STORE_BUDGET);
        let moved = self.store.fail(&failures, deadline).await?;
        let mut moved: HashMap<OrderId, Order> =
            moved.into_iter().map(|order| (order.id, order)).collect();
        for (id, reason, attempts) in failed {
            if let Some(order) = moved.remove(&id) {
                self.meter.order_processed(Outcome::Failed);
                let failed = Processed::Failed {
                    order,
                    reason,
                    attempts,
                };
                results.insert(id, failed);
            }
        }
        Ok(())
    }

    async fn attempt(&self) -> Result<(), StepError> {
        let began = Instant::now();
        let step = timeout(PROCESSING_LIMIT, self.step())
            .await
            .unwrap_or(Err(StepError::TimedOut));
        self.meter.step_ended(began.elapsed());
        step
    }

    /// tbd's `SimulatedStep`.
    async fn step(&self) -> Result<(), StepError> {
        if !self.config.processing_time.is_zero() {
            let mut abort = self.abort.clone();
            tokio::select! {
                () = sleep(self.config.processing_time) => {}
                _ = abort.wait_for(|abort| *abort) => return Err(StepError::Stopped),
            }
        }
        let dice = || f64::from(Uuid::new_v4().as_fields().0) / 2_f64.powi(32);
        let rate = self.config.processing_failure_rate;
        match rate > 0.0 && dice() < rate {
            true => Err(StepError::Failed("simulated failure".into())),
            false => Ok(()),
        }
    }
}

/// Whether a rebalance caused the error. A broker answers a connection's requests in order, so a commit behind a
/// JoinGroup arrives with the generation that the JoinGroup has just ended.
fn is_overtaken(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::IllegalGeneration | RDKafkaErrorCode::RebalanceInProgress)
    )
}

/// The message in the form of tbd's client.
fn record(message: &BorrowedMessage<'_>) -> ConsumerRecord {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers
            .iter()
            .map(|header| {
                (
                    header.key.to_owned(),
                    header.value.map(Bytes::copy_from_slice),
                )
            })
            .collect()
    });
    let (topic, partition) = (message.topic(), message.partition());
    let mut record = ConsumerRecord::new(topic, partition, message.offset());
    record.timestamp_ms = message.timestamp().to_millis().unwrap_or(-1);
    record.key = message.key().map(Bytes::copy_from_slice);
    record.value = message.payload().map(Bytes::copy_from_slice);
    record.headers = headers;
    record
}

/// Offsets in rdkafka's form.
fn positions<'a>(offsets: impl Iterator<Item = (&'a str, i32, i64)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition, offset) in offsets {
        // Fails only for negative offsets.
        let _ = list.add_partition_offset(topic, partition, Offset::Offset(offset));
    }
    list
}
