//! The worker on rdkafka's stream consumer: WORKER_CONCURRENCY tasks, each a member of the group. What a task finds ready
//! it works on as one batch, by tbd's rules (`tbd::orders::app::commands::ProcessOrders`): orders taken up by one
//! statement, completed by one, announced together, then the offsets committed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::StreamExt;
use opentelemetry::trace::TraceContextExt;
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer,
};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::{ClientConfig, Offset, Statistics, TopicPartitionList};
use tbd::config::WorkerConfig;
use tbd::deadline::Deadline;
use tbd::kafka::consumer::ConsumerRecord;
use tbd::kafka::producer::Record;
use tbd::orders::adapters::kafka::dead_letter::{Reason, dead_letter, replayed_at};
use tbd::orders::adapters::kafka::events::created_order;
use tbd::orders::app::commands::Processed;
use tbd::orders::domain::{Order, OrderEvent, OrderId, Status};
use tbd::orders::ports::{Outcome, PublishError, SecondChance, Started, StepError, StoreError};
use tbd::telemetry::metrics::{KafkaMetrics, Metrics};
use tbd::telemetry::semconv;
use tbd::telemetry::tracing::{self, Context, DetachedSpan, KeyValue, SpanKind};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::bus::{Bus, PUBLISH_BUDGET};
use crate::store::Store;

const PAUSE: Duration = Duration::from_secs(1);
const STORE_BUDGET: Duration = Duration::from_secs(10);
const PROCESSING_LIMIT: Duration = Duration::from_secs(60);
const BACKOFF: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
];
const BATCH_TIME: Duration = Duration::from_secs(1);
const BATCH_MAX: usize = 500;
const LAG_INTERVAL_MS: &str = "1000";

/// What the tasks share.
pub struct Worker {
    /// Orders.
    pub store: Store,
    /// Announcements.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
    /// Settings.
    pub config: WorkerConfig,
    /// True once the tasks shall end.
    pub stop: watch::Receiver<bool>,
}

/// Counts rebalances, reports the lag.
struct Counted {
    metrics: KafkaMetrics,
    group: String,
}

impl ClientContext for Counted {
    fn stats(&self, statistics: Statistics) {
        for topic in statistics.topics.values() {
            // Partition -1 is librdkafka's own.
            for partition in topic
                .partitions
                .values()
                .filter(|p| p.partition >= 0 && p.consumer_lag >= 0)
            {
                let labels = [&*topic.topic, &partition.partition.to_string(), &self.group];
                self.metrics
                    .consumer_lag
                    .with_label_values(&labels)
                    .set(partition.consumer_lag);
            }
        }
    }
}

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
        (0..concurrency)
            .map(|_| {
                let consumer = this.consumer()?;
                Ok(tokio::spawn(Arc::clone(&this).consume(consumer)))
            })
            .collect()
    }

    fn consumer(&self) -> Result<StreamConsumer<Counted>, KafkaError> {
        let kafka = &self.config.kafka;
        let session = kafka.session_timeout.as_millis();
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
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", "5000")
            .set("statistics.interval.ms", LAG_INTERVAL_MS)
            .set("allow.auto.create.topics", "false");
        let context = Counted {
            metrics: self.metrics.kafka.clone(),
            group: kafka.consumer_group.clone(),
        };
        let consumer = StreamConsumer::from_config_and_context(&config, context)?;
        consumer.subscribe(&[&kafka.topic_order_created])?;
        Ok(consumer)
    }

    /// One member's life.
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
        // Leaves the group; librdkafka waits for the broker, so not on a thread that others need.
        let _ = tokio::task::spawn_blocking(move || drop(consumer)).await;
    }

    async fn work(&self, consumer: &StreamConsumer<Counted>, messages: &[BorrowedMessage<'_>]) {
        let records: Vec<ConsumerRecord> = messages.iter().map(record).collect();
        let topic = self.config.kafka.topic_order_created.as_str();
        let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
        self.metrics
            .kafka
            .consumer_records
            .with_label_values(&[topic])
            .inc_by(count);
        self.metrics.worker.threads_busy.inc();
        let done = self.process_batch(&records).await;
        self.metrics.worker.threads_busy.dec();
        let (offsets, undone) = committable(&records, &done);
        if offsets.count() > 0 {
            let committed =
                tokio::task::block_in_place(|| consumer.commit(&offsets, CommitMode::Sync));
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
        if undone.count() > 0 && !*self.stop.borrow() {
            let rewound = tokio::task::block_in_place(|| consumer.seek_partitions(undone, PAUSE));
            if let Err(error) = rewound {
                log::debug!("rewinding: {error}");
            }
            sleep(PAUSE).await;
        }
    }

    /// Works on the records together; for each, whether it is done with.
    async fn process_batch(&self, records: &[ConsumerRecord]) -> Vec<bool> {
        let event_type = &*self.bus.topics.created;
        let orders: Vec<Result<OrderId, String>> = records
            .iter()
            .map(|record| created_order(record.value.as_deref(), event_type))
            .collect();
        let spans: Vec<DetachedSpan> = records.iter().map(process_span).collect();
        let mut seen = HashSet::new();
        let ids: Vec<OrderId> = orders
            .iter()
            .filter_map(|order| order.as_ref().ok().copied())
            .filter(|id| seen.insert(*id))
            .collect();
        let chances: Vec<SecondChance> = records
            .iter()
            .zip(&orders)
            .filter_map(|(record, order)| {
                Some(SecondChance {
                    id: *order.as_ref().ok()?,
                    replayed_at: replayed_at(record)?,
                })
            })
            .collect();
        let parent = spans
            .first()
            .map_or_else(Context::new, DetachedSpan::context);
        let handled =
            opentelemetry::trace::FutureExt::with_context(self.handle(&ids, &chances), parent)
                .await;
        let results = match handled {
            Ok(results) => results,
            Err(error) => {
                log::warn!("{} orders not processed, trying again: {error}", ids.len());
                spans
                    .iter()
                    .for_each(|span| span.fail("store", &error.to_string()));
                return vec![false; records.len()];
            }
        };
        let mut done = Vec::with_capacity(records.len());
        let mut sends = Vec::new();
        for (index, (record, order)) in records.iter().zip(&orders).enumerate() {
            let _entered = spans[index].enter();
            let conclusion = self.conclude(record, order, &results);
            done.push(conclusion.is_some());
            for announcement in conclusion.into_iter().flatten() {
                let cause = spans[index].context();
                let deadline = Deadline::after(PUBLISH_BUDGET);
                sends.push(
                    async move { (index, self.bus.send(announcement, cause, deadline).await) },
                );
            }
        }
        for (index, result) in join_all(sends).await {
            match result {
                Ok(()) => {}
                Err(PublishError::Unavailable(reason)) => {
                    log::warn!("not announced, trying again: {reason}");
                    spans[index].fail("publish", &reason);
                    done[index] = false;
                }
                Err(PublishError::Refused(reason)) => {
                    log::error!("kafka refuses the announcement, passing over it: {reason}");
                    spans[index].fail("publish", &reason);
                }
            }
        }
        done
    }

    fn conclude(
        &self,
        record: &ConsumerRecord,
        order: &Result<OrderId, String>,
        results: &HashMap<OrderId, Processed>,
    ) -> Option<Vec<Record>> {
        let announcement = |event: &OrderEvent| self.bus.record(&self.bus.encode(event));
        let id = match order {
            Ok(id) => id,
            Err(why) => return Some(vec![self.give_up(record, "undecodable", why, 0)]),
        };
        match results.get(id)? {
            Processed::Interrupted => None,
            Processed::Completed(order) => {
                log::info!(order_id:% = id; "order completed");
                Some(vec![announcement(&OrderEvent::Processed(order.clone()))])
            }
            Processed::Canceled => Some(Vec::new()),
            Processed::Unknown => Some(vec![self.give_up(
                record,
                "unknown_order",
                "there is no such order",
                0,
            )]),
            Processed::Failed {
                order,
                reason,
                attempts,
            } => {
                log::warn!(order_id:% = id, attempts = attempts; "order failed: {reason}");
                let failed = OrderEvent::Failed {
                    order: order.clone(),
                    reason: reason.clone(),
                };
                Some(vec![
                    announcement(&failed),
                    self.give_up(record, "failed", reason, *attempts),
                ])
            }
        }
    }

    fn give_up(&self, record: &ConsumerRecord, kind: &str, why: &str, attempts: u32) -> Record {
        self.metrics
            .orders
            .dead_lettered
            .with_label_values(&[kind])
            .inc();
        let reason = Reason {
            text: why.to_owned(),
            attempts,
        };
        dead_letter(&self.bus.topics.dlq, record, &reason)
    }

    /// tbd's `ProcessOrders::handle`.
    async fn handle(
        &self,
        ids: &[OrderId],
        chances: &[SecondChance],
    ) -> Result<HashMap<OrderId, Processed>, StoreError> {
        if !chances.is_empty() {
            self.store
                .retry_failed(chances, Deadline::after(STORE_BUDGET))
                .await?;
        }
        let started = self
            .store
            .start_processing(ids, Deadline::after(STORE_BUDGET))
            .await?;
        let mut started: HashMap<OrderId, Started> = started
            .into_iter()
            .map(|started| (started.order.id, started))
            .collect();
        let mut results = HashMap::with_capacity(ids.len());
        let (mut done, mut failed, mut stopped) = (Vec::new(), Vec::new(), false);
        for &id in ids {
            let result = match started.remove(&id) {
                _ if stopped => Processed::Interrupted,
                None => Processed::Unknown,
                Some(started) => match self.attempt(&started.order).await {
                    None => self.ended(started),
                    Some(attempted) => {
                        match attempted {
                            Ok(()) => done.push(id),
                            Err((StepError::Stopped, _)) => stopped = true,
                            Err((error, attempts)) => {
                                failed.push((id, error.to_string(), attempts))
                            }
                        }
                        Processed::Interrupted
                    }
                },
            };
            results.insert(id, result);
        }
        if !done.is_empty() {
            for order in self
                .store
                .complete(&done, Deadline::after(STORE_BUDGET))
                .await?
            {
                self.processed(Outcome::Completed);
                results.insert(order.id, Processed::Completed(order));
            }
        }
        for (id, reason, attempts) in failed {
            if let Some(order) = self
                .store
                .fail(id, &reason, Deadline::after(STORE_BUDGET))
                .await?
            {
                self.processed(Outcome::Failed);
                results.insert(
                    id,
                    Processed::Failed {
                        order,
                        reason,
                        attempts,
                    },
                );
            }
        }
        Ok(results)
    }

    fn processed(&self, outcome: Outcome) {
        self.metrics
            .orders
            .processed
            .with_label_values(&[outcome.as_str()])
            .inc();
    }

    fn ended(&self, started: Started) -> Processed {
        let Started {
            order,
            failure_reason,
        } = started;
        let (outcome, processed) = match order.status {
            Status::Canceled => (Outcome::Canceled, Processed::Canceled),
            Status::Failed => {
                let reason = failure_reason.unwrap_or_else(|| "unknown".into());
                let attempts = self.config.max_attempts;
                (
                    Outcome::Duplicate,
                    Processed::Failed {
                        order,
                        reason,
                        attempts,
                    },
                )
            }
            _ => (Outcome::Duplicate, Processed::Completed(order)),
        };
        self.processed(outcome);
        processed
    }

    async fn attempt(&self, order: &Order) -> Option<Result<(), (StepError, u32)>> {
        if !matches!(order.status, Status::Pending | Status::Processing) {
            return None;
        }
        let mut attempt = 1;
        loop {
            if *self.stop.borrow() {
                return Some(Err((StepError::Stopped, attempt - 1)));
            }
            let step = timeout(PROCESSING_LIMIT, self.step())
                .await
                .unwrap_or(Err(StepError::TimedOut));
            let error = match step {
                Ok(()) => return Some(Ok(())),
                Err(error) => error,
            };
            if attempt >= self.config.max_attempts {
                return Some(Err((error, attempt)));
            }
            log::info!(order_id:% = order.id, attempt = attempt; "processing failed, trying again: {error}");
            sleep(BACKOFF[(attempt as usize - 1).min(BACKOFF.len() - 1)]).await;
            attempt += 1;
        }
    }

    /// tbd's `SimulatedStep`.
    async fn step(&self) -> Result<(), StepError> {
        if !self.config.processing_time.is_zero() {
            sleep(self.config.processing_time).await;
        }
        let dice = f64::from(Uuid::new_v4().as_fields().0) / 2_f64.powi(32);
        match dice < self.config.processing_failure_rate {
            true => Err(StepError::Failed("simulated failure".into())),
            false => Ok(()),
        }
    }
}

/// The message as tbd's client hands it out.
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
    ConsumerRecord {
        topic: message.topic().into(),
        partition: message.partition(),
        offset: message.offset(),
        leader_epoch: -1,
        timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers,
    }
}

fn process_span(record: &ConsumerRecord) -> DetachedSpan {
    let traceparent = record
        .header("traceparent")
        .and_then(|value| std::str::from_utf8(value).ok());
    let parent = tracing::extract(traceparent, None);
    let sent = parent.span().span_context().clone();
    let links = if sent.is_valid() {
        vec![sent]
    } else {
        Vec::new()
    };
    tracing::detached_span_in(
        &parent,
        format!("process {}", record.topic),
        SpanKind::Consumer,
        || {
            [
                KeyValue::new(semconv::MESSAGING_SYSTEM, semconv::KAFKA),
                KeyValue::new(semconv::MESSAGING_OPERATION_NAME, "process"),
                KeyValue::new(semconv::MESSAGING_OPERATION_TYPE, "process"),
                KeyValue::new(
                    semconv::MESSAGING_DESTINATION_NAME,
                    record.topic.to_string(),
                ),
                KeyValue::new(
                    semconv::MESSAGING_DESTINATION_PARTITION_ID,
                    record.partition.to_string(),
                ),
                KeyValue::new(semconv::MESSAGING_KAFKA_OFFSET, record.offset),
            ]
        },
        links,
    )
}

/// For each partition the offset up to which everything is done, and the first that is not.
fn committable(
    records: &[ConsumerRecord],
    done: &[bool],
) -> (TopicPartitionList, TopicPartitionList) {
    let mut partitions: BTreeMap<(&str, i32), (Option<i64>, Option<i64>)> = BTreeMap::new();
    for (record, done) in records.iter().zip(done) {
        let (next, undone) = partitions
            .entry((&record.topic, record.partition))
            .or_default();
        match (done, &undone) {
            (true, None) => *next = Some(record.offset + 1),
            (false, None) => *undone = Some(record.offset),
            _ => {}
        }
    }
    let (mut offsets, mut rewind) = (TopicPartitionList::new(), TopicPartitionList::new());
    for ((topic, partition), (next, undone)) in partitions {
        for (list, offset) in [(&mut offsets, next), (&mut rewind, undone)] {
            if let Some(offset) = offset {
                // Fails for offsets below zero only.
                let _ = list.add_partition_offset(topic, partition, Offset::Offset(offset));
            }
        }
    }
    (offsets, rewind)
}
