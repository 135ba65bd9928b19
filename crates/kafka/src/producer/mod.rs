//! Idempotent producer: records are acknowledged by all in-sync replicas, in order, once.
//!
//! # Threads
//!
//! | Thread | Waits for | Ends |
//! | --- | --- | --- |
//! | the caller's | room in the buffer; its record's outcome | - |
//! | `kafka-producer-<node>` (sender), one per leader | records; the broker's response | [`Producer::close`] |
//! | `kafka-producer` (metadata) | unknown leaders, a missing producer id, overdue records | [`Producer::close`] |
//!
//! While a request is in flight, records for its leader gather, and the next request takes them
//! all. So a lone record leaves at once, and many records leave in large batches, without any
//! tuning. A full batch does not wait for the response: up to [`ProducerConfig::max_in_flight`]
//! requests are in flight on one connection.
//!
//! # Guarantees
//!
//! - Records of one partition (and so of one key) are written in the order of their `send` calls,
//!   unless one of them fails.
//! - The producer is idempotent: it retries a batch whose response is lost, and the broker
//!   recognises the repetition. An acknowledged record is in the topic once.
//! - A failed record says whether it may be in the topic ([`Certainty`]).
//! - When a topic is deleted and created again, waiting records are partitioned again; each key
//!   keeps its order. A missing topic keeps only its own records waiting.
//! - Memory is bounded: when the buffer is full, `send` waits, at most until the record's deadline.
//!
//! # Locks
//!
//! `ProducerShared::state` first, then the cluster's metadata or a record's slot. No lock is held
//! during I/O or while hooks run.

mod accumulator;
pub(crate) mod batch;
mod metadata_thread;
mod partitioner;
mod record;
mod sender;
mod slot;
mod transaction;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use crate::compression::Compression;
pub use partitioner::{Partitioner, partition_for_key};
pub use record::{
    Certainty, Outcome, ProduceError, Record, RecordMetadata, TrySendError, TrySendReason,
};

pub use transaction::{Ended, Transaction, TransactionError, TransactionalProducer};

use super::ApiKey;
use super::cluster::Cluster;
use super::config::{DURATION_MAX, check_timeout};
use super::connection::Interrupts;
use super::error::{ConfigError, Error};
use super::in_flight::guarded;
use super::lock;
use accumulator::{Accumulator, Completion, Limits, Queued};
use slot::{GaveUp, Slot};
use tbd_deadline::Deadline;

/// Settings of a producer. The defaults suit request threads that publish events of a few
/// kilobytes. Start from [`ProducerConfig::default`], and set the fields that shall differ.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProducerConfig {
    /// Topics whose leaders the producer finds and connects to at the start, not at the first
    /// record; [`Producer::warm_up`] waits for it. Default: none.
    pub topics: Vec<String>,
    /// The rule for the partition of a record that names none. Default: Java's, by the key's hash;
    /// without a key, one partition after another is filled (KIP-794).
    #[doc(alias = "partitioner.class")]
    pub partitioner: Partitioner,
    /// How batches are compressed. Default: not at all.
    #[doc(alias = "compression.type")]
    pub compression: Compression,
    /// How long a record waits for others to share its batch although its leader is idle. Default
    /// zero; Java's is 5 ms.
    #[doc(alias = "linger.ms")]
    pub linger: Duration,
    /// Approximate size of the largest batch, in bytes before compression. Default 900,000 (Java:
    /// 16,384), because brokers refuse more than 1 MiB by default.
    ///
    /// A larger record is a batch of its own. If [`compression`](Self::compression) is none, that
    /// batch is compressed with the best codec there is, and so is a single record that a broker
    /// found too large.
    #[doc(alias = "batch.size")]
    pub batch_bytes: usize,
    /// The largest record, in bytes before compression. Default 16 MiB (Java: 1 MiB), far below the
    /// request size of 100 MB at which brokers close the connection.
    #[doc(alias = "max.request.size")]
    pub record_bytes: usize,
    /// Approximate size of the largest request, in bytes before compression, unless one record is
    /// larger. Default 4 MiB.
    pub request_bytes: usize,
    /// Approximate memory for unacknowledged records, in bytes. Default 32 MiB. When it is full,
    /// `send` waits until the record's deadline.
    #[doc(alias = "buffer.memory")]
    pub buffer_bytes: usize,
    /// How many requests may be in flight on one connection, 1 to 5. Default 5. The order is kept
    /// in any case. Brokers remember a producer's last five batches of a partition.
    #[doc(alias = "max.in.flight.requests.per.connection")]
    pub max_in_flight: usize,
    /// How long one produce request waits for its response before its connection is closed.
    /// Default 10 s; Java's is 30 s.
    #[doc(alias = "request.timeout.ms")]
    pub request_timeout: Duration,
    /// The longest time from `send` to a record's outcome. Default 2 minutes. Each record also has
    /// its own deadline. A batch of unknown outcome is retried for so long, since its oldest record
    /// was sent, and blocks its partition meanwhile, to keep the order. A request in flight is waited
    /// for, which may add `request_timeout`.
    #[doc(alias = "delivery.timeout.ms")]
    pub delivery_timeout: Duration,
    /// How long a transaction of a [`TransactionalProducer`] may last. The cluster then aborts it
    /// and fences the producer. Readers of committed records wait for an open transaction. Default
    /// one minute; brokers limit it by `transaction.max.timeout.ms`.
    #[doc(alias = "transaction.timeout.ms")]
    pub transaction_timeout: Duration,
    /// The pauses before each retry of a record that a broker refused for a transient reason; it
    /// fails after the last. Waiting for a new leader or for a connection does not count. Default
    /// 100 ms, 500 ms and 2 s; Java retries until `delivery.timeout.ms`.
    #[doc(alias = "retry.backoff.ms")]
    pub refusal_pauses: [Duration; 3],
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            topics: Vec::new(),
            partitioner: Partitioner::default(),
            compression: Compression::None,
            linger: Duration::ZERO,
            batch_bytes: 900_000,
            record_bytes: 16 * 1024 * 1024,
            request_bytes: 4 * 1024 * 1024,
            buffer_bytes: 32 * 1024 * 1024,
            max_in_flight: 5,
            request_timeout: Duration::from_secs(10),
            delivery_timeout: Duration::from_secs(120),
            transaction_timeout: Duration::from_secs(60),
            refusal_pauses: [
                Duration::from_millis(100),
                Duration::from_millis(500),
                Duration::from_secs(2),
            ],
        }
    }
}

impl ProducerConfig {
    /// Checks every setting, as [`Producer::start`] does.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (at_least_1, too_long) = ("it must be at least 1", "it is longer than 24 days");
        for (field, value) in [
            ("ProducerConfig::batch_bytes", self.batch_bytes),
            ("ProducerConfig::record_bytes", self.record_bytes),
            ("ProducerConfig::request_bytes", self.request_bytes),
            ("ProducerConfig::buffer_bytes", self.buffer_bytes),
        ] {
            ConfigError::check(value >= 1, field, at_least_1)?;
        }
        ConfigError::check(
            (1..=5).contains(&self.max_in_flight),
            "ProducerConfig::max_in_flight",
            format!("{} is not between 1 and 5", self.max_in_flight),
        )?;
        ConfigError::check(
            self.compression.is_built_in(),
            "ProducerConfig::compression",
            format!("this build of tbd-kafka has no {:?}", self.compression),
        )?;
        check_timeout("ProducerConfig::request_timeout", self.request_timeout)?;
        check_timeout("ProducerConfig::delivery_timeout", self.delivery_timeout)?;
        let field = "ProducerConfig::transaction_timeout";
        check_timeout(field, self.transaction_timeout)?;
        let field = "ProducerConfig::linger";
        ConfigError::check(self.linger <= DURATION_MAX, field, too_long)?;
        let are_short = self.refusal_pauses.iter().all(|it| *it <= DURATION_MAX);
        ConfigError::check(are_short, "ProducerConfig::refusal_pauses", too_long)
    }
}

/// Hooks that observe a producer. It calls them on its threads, without locks; they must return
/// quickly. A panic in a hook is logged.
pub trait ProducerHooks: Send + Sync {
    /// A record's outcome is certain, `latency` after its `send` call.
    fn record_settled(&self, topic: &str, latency: Duration, outcome: &Outcome) {
        let _ = (topic, latency, outcome);
    }

    /// `records` records that were sent before are about to be sent again.
    fn records_repeated(&self, topic: &str, records: usize) {
        let _ = (topic, records);
    }

    /// A produce request to `node` ended: it had `records` records in `bytes` bytes.
    fn request_ended(&self, node: i32, records: usize, bytes: usize, result: Result<(), &Error>) {
        let _ = (node, records, bytes, result);
    }
}

/// No hooks.
impl ProducerHooks for () {}

/// A running producer. Any number of threads may share it; see the module's documentation.
///
/// Dropping it without [`Producer::close`] gives up unacknowledged records.
///
/// ```no_run
/// use std::sync::Arc;
/// use std::time::Duration;
/// use tbd_kafka::producer::Record;
/// use tbd_kafka::{ClientConfig, Cluster, Deadline, Producer, ProducerConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = Cluster::new(ClientConfig::new(["localhost:9092"]));
/// let mut config = ProducerConfig::default();
/// config.linger = Duration::from_millis(5);
/// let producer = Producer::start(cluster, config, Arc::new(()))?;
/// let soon = Deadline::after(Duration::from_secs(10));
/// let records = ["a", "b"].map(|key| Record::new("letters", Some(key.into()), Some("v".into())));
/// for outcome in producer.publish(records.into(), soon) {
///     println!("{:?}", outcome?.offset);
/// }
/// producer.close(soon)?;
/// # Ok(())
/// # }
/// ```
#[doc(alias = "KafkaProducer")]
pub struct Producer {
    shared: Arc<ProducerShared>,
    metadata_thread: Mutex<Option<JoinHandle<()>>>,
}

/// A record whose outcome is pending.
#[must_use = "only `wait` returns the outcome"]
pub struct Pending {
    shared: Arc<ProducerShared>,
    slot: Arc<Slot>,
    topic: Arc<str>,
    queued_at: Instant,
}

struct ProducerShared {
    cluster: Cluster,
    config: ProducerConfig,
    transactional_id: Option<String>,
    hooks: Arc<dyn ProducerHooks>,
    /// Interrupts the metadata thread's I/O.
    interrupts: Arc<Interrupts>,
    state: Mutex<ProducerState>,
    /// Wakes the metadata thread.
    metadata_wakeup: Condvar,
    /// Wakes callers: room in the buffer, news about a topic, all sent.
    progress: Condvar,
}

struct ProducerState {
    records: Accumulator,
    nodes: HashMap<i32, Arc<Node>>,
    /// No new records are taken.
    closing: bool,
    /// Threads must end.
    stopping: bool,
    /// Whether a broker answered the last request for metadata.
    is_reached: bool,
    /// A thread has panicked.
    failed: Option<Error>,
    /// How many callers of [`Producer::warm_up`] wait.
    warming: usize,
    /// A caller has just started to wait: the metadata thread cuts its pause short.
    is_hurried: bool,
    /// The latest error, to explain time-outs. Cleared by success.
    last_error: Option<Error>,
}

/// One sender thread, as other threads see it.
struct Node {
    id: i32,
    /// Wakes the thread; used with `ProducerShared::state`.
    wakeup: Condvar,
    /// Whether the thread sleeps and nobody has woken it yet; changed only under
    /// `ProducerShared::state`. It saves a system call: waking nobody costs one too.
    sleeps: AtomicBool,
    /// Whether a connection is open, as far as is known; changed only under
    /// `ProducerShared::state`.
    connected: AtomicBool,
    /// Interrupts the thread's I/O.
    interrupts: Arc<Interrupts>,
}

impl Node {
    fn new(id: i32) -> Self {
        Self {
            id,
            wakeup: Condvar::new(),
            sleeps: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            interrupts: Arc::default(),
        }
    }

    /// Wakes the node's thread if it sleeps. Call it only with `ProducerShared::state` locked.
    fn wake(&self) {
        if self.sleeps.swap(false, Ordering::Relaxed) {
            self.wakeup.notify_one();
        }
    }

    /// Sleeps until [`Node::wake`], at most for `at_most`.
    fn sleep<'a>(
        &self,
        guard: MutexGuard<'a, ProducerState>,
        at_most: Duration,
    ) -> MutexGuard<'a, ProducerState> {
        self.sleeps.store(true, Ordering::Relaxed);
        let guard = wait(&self.wakeup, guard, at_most);
        self.sleeps.store(false, Ordering::Relaxed);
        guard
    }
}

impl Producer {
    /// Starts a producer. Does no I/O, and succeeds while the cluster is unreachable.
    ///
    /// # Errors
    /// [`Error::Config`] when a setting is out of its range; [`Error::Resource`] when the thread
    /// cannot be started.
    pub fn start(
        cluster: Cluster,
        config: ProducerConfig,
        hooks: Arc<dyn ProducerHooks>,
    ) -> Result<Self, Error> {
        Self::start_for(cluster, config, None, hooks)
    }

    fn start_for(
        cluster: Cluster,
        config: ProducerConfig,
        transactional_id: Option<String>,
        hooks: Arc<dyn ProducerHooks>,
    ) -> Result<Self, Error> {
        config.check()?;
        cluster.config().check()?;
        let limits = Limits {
            partitioner: config.partitioner.clone(),
            buffer_bytes: config.buffer_bytes,
            batch_bytes: config.batch_bytes,
            compression: config.compression,
            request_bytes: config.request_bytes,
            linger: config.linger,
            delivery_timeout: config.delivery_timeout,
            refusal_pauses: config.refusal_pauses,
            is_transactional: transactional_id.is_some(),
        };
        let topics = config.topics.iter().map(|topic| Arc::from(topic.as_str()));
        let state = ProducerState {
            records: Accumulator::new(limits, topics),
            nodes: HashMap::new(),
            closing: false,
            stopping: false,
            is_reached: false,
            failed: None,
            warming: 0,
            is_hurried: false,
            last_error: None,
        };
        let shared = Arc::new(ProducerShared {
            cluster,
            config,
            transactional_id,
            hooks,
            interrupts: Arc::default(),
            state: Mutex::new(state),
            metadata_wakeup: Condvar::new(),
            progress: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        let metadata_thread = std::thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || metadata_thread::run(&for_thread))
            .map_err(|error| Error::resource(&error))?;
        Ok(Self {
            shared,
            metadata_thread: Mutex::new(Some(metadata_thread)),
        })
    }

    /// Waits, at most until `deadline`, until records for [`ProducerConfig::topics`] can leave at
    /// once: all partitions have leaders, the leaders are connected, and there is a producer id.
    /// A producer starts this work by itself.
    ///
    /// A caller that waits here makes the first record as fast as the next ones, at the start or
    /// after an outage. A caller that has just created the topics makes the producer look for them
    /// at once. Java's `partitionsFor`, called for each topic, does about half of this.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the reason; [`Error::Closed`]; [`Error::Tls`] and
    /// [`Error::Authentication`] without waiting. The producer continues to try.
    #[doc(alias = "partitionsFor")]
    pub fn warm_up(&self, deadline: Deadline) -> Result<(), Error> {
        let shared = &self.shared;
        let mut state = shared.state();
        state.warming += 1;
        let mut has_hurried = false;
        let outcome = loop {
            if let Err(error) = state.check_open() {
                break Err(error);
            }
            let are_led = state.is_reached && state.records.are_led(&shared.config.topics);
            if are_led && !state.records.needs_identity() && state.is_connected() {
                break Ok(());
            }
            if let Some(refusal) = state.refusal() {
                break Err(refusal);
            }
            let left = deadline.remaining();
            if left.is_zero() {
                let what = "the kafka producer to be ready".to_owned();
                break Err(shared.timed_out(&state, what, &shared.config.topics));
            }
            // The caller has a reason to expect success now.
            state.is_hurried |= !has_hurried;
            has_hurried = true;
            if !are_led {
                state.records.doubt_leaders();
            }
            shared.metadata_wakeup.notify_one();
            state.wake_all();
            state = wait(&shared.progress, state, left);
        };
        state.warming -= 1;
        outcome
    }

    /// Queues a record for delivery by `deadline`, or by [`ProducerConfig::delivery_timeout`] from
    /// now if that is earlier. Waits, at most until then, for room in the
    /// buffer, and for the partitions of a topic that is not known yet.
    ///
    /// A record that has not been sent by `deadline` will not be sent. The producer still retries a
    /// record that has been sent; see [`Pending::wait`].
    ///
    /// # Errors
    /// Always [`Certainty::NotSent`].
    pub fn send(&self, record: Record, deadline: Deadline) -> Result<Pending, ProduceError> {
        let shared = &self.shared;
        let weight = record.weight();
        let (bytes, limit) = (record.size(), shared.config.record_bytes);
        if bytes > limit {
            let too_large = Error::RecordTooLarge { bytes, limit };
            return Err(ProduceError::not_sent(too_large));
        }
        let started = Instant::now();
        let timeout = shared.config.delivery_timeout;
        let deadline = deadline.earlier_of(Deadline::after_instant(started, timeout));
        let mut now = started;
        let mut state = shared.state();
        let index = loop {
            state.check_open().map_err(ProduceError::not_sent)?;
            let what = match state
                .records
                .place(&record, now)
                .map_err(ProduceError::not_sent)?
            {
                Some(index) if state.records.has_room(weight) => break index,
                Some(_) => "room in the kafka producer's buffer",
                None => {
                    // Only a new password or certificate helps.
                    if let Some(refusal) = state.refusal() {
                        return Err(ProduceError::not_sent(refusal));
                    }
                    shared.metadata_wakeup.notify_one();
                    "the kafka topic's partitions"
                }
            };
            let left = deadline.remaining();
            if left.is_zero() {
                let what = format!("{what} for {}", record.topic);
                let error = shared.timed_out(&state, what, &[&*record.topic]);
                drop(state);
                let failed = ProduceError::not_sent(error);
                let latency = started.elapsed();
                shared.settled(&record.topic, latency, &Err(failed.clone()));
                return Err(failed);
            }
            state = wait(&shared.progress, state, left);
            now = Instant::now();
        };
        Ok(self.queue(&mut state, index, record, deadline, started))
    }

    /// As [`send`](Self::send), but never waits.
    ///
    /// # Errors
    /// The record, and why `send` would wait or fail.
    pub fn try_send(&self, record: Record, deadline: Deadline) -> Result<Pending, TrySendError> {
        let shared = &self.shared;
        let now = Instant::now();
        let timeout = shared.config.delivery_timeout;
        let deadline = deadline.earlier_of(Deadline::after_instant(now, timeout));
        let mut state = shared.state();
        let (bytes, limit) = (record.size(), shared.config.record_bytes);
        let placed = match state.check_open() {
            Ok(()) if bytes > limit => Err(Error::RecordTooLarge { bytes, limit }),
            Ok(()) => state.records.place(&record, now),
            Err(error) => Err(error),
        };
        let reason = match placed {
            Ok(Some(index)) if state.records.has_room(record.weight()) => {
                return Ok(self.queue(&mut state, index, record, deadline, now));
            }
            Ok(Some(_)) => TrySendReason::BufferFull,
            Ok(None) => {
                shared.metadata_wakeup.notify_one();
                TrySendReason::UnknownTopic
            }
            Err(error) => TrySendReason::Failed(error),
        };
        Err(TrySendError {
            record: Box::new(record),
            reason,
        })
    }

    fn queue(
        &self,
        state: &mut ProducerState,
        index: usize,
        record: Record,
        deadline: Deadline,
        started: Instant,
    ) -> Pending {
        let shared = &self.shared;
        let pending = Pending {
            shared: Arc::clone(shared),
            slot: Arc::default(),
            topic: Arc::clone(&record.topic),
            queued_at: started,
        };
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
        let queued = Queued::new(
            record,
            timestamp_ms,
            Arc::clone(&pending.slot),
            deadline,
            started,
        );
        let leader = state.records.push(index, queued);
        match leader.and_then(|leader| state.nodes.get(&leader)) {
            Some(node) if !state.records.needs_identity() => node.wake(),
            _ => shared.metadata_wakeup.notify_one(),
        }
        pending
    }

    /// The number of a topic's partitions, if this producer knows it: from its configuration's topics
    /// on, and from the first record for another one. Does not block.
    #[doc(alias = "partitionsFor")]
    pub fn partition_count(&self, topic: &str) -> Option<i32> {
        self.shared.state().records.partition_count(topic)
    }

    /// Sends the records and waits for all outcomes, at most until `deadline`. The outcomes are in
    /// the order of the records.
    pub fn publish(&self, records: Vec<Record>, deadline: Deadline) -> Vec<Outcome> {
        let pending: Vec<Result<Pending, ProduceError>> = records
            .into_iter()
            .map(|record| self.send(record, deadline))
            .collect();
        pending
            .into_iter()
            .map(|pending| pending.and_then(|pending| pending.wait(deadline)))
            .collect()
    }

    /// Waits, at most until `deadline`, until no record is pending, including records that other
    /// threads send meanwhile.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn flush(&self, deadline: Deadline) -> Result<(), Error> {
        self.flush_unless(deadline, |_| false)
    }

    /// As [`Producer::flush`], until `is_over` at most.
    fn flush_unless(
        &self,
        deadline: Deadline,
        is_over: impl Fn(&Accumulator) -> bool,
    ) -> Result<(), Error> {
        let mut state = self.shared.state();
        state.records.flushing += 1;
        state.wake_all();
        while state.records.outstanding() > 0 && state.failed.is_none() && !is_over(&state.records)
        {
            let left = deadline.remaining();
            if left.is_zero() {
                state.records.flushing -= 1;
                let count = state.records.outstanding();
                let what = format!("kafka to take {count} records");
                return Err(self.shared.timed_out(&state, what, &[] as &[&str]));
            }
            state = wait(&self.shared.progress, state, left);
        }
        state.records.flushing -= 1;
        state.failed.clone().map_or(Ok(()), Err)
    }

    /// Takes no more records, delivers pending ones until `deadline`, gives up the rest, and joins
    /// all threads. This may end shortly after the deadline; while the cluster is unreachable, up
    /// to three seconds after it, because a connection attempt is not interrupted. A second call
    /// does nothing.
    ///
    /// # Errors
    /// [`Error::Timeout`] when records were given up; each owner gets its record's error.
    pub fn close(&self, deadline: Deadline) -> Result<(), Error> {
        self.shared.state().closing = true;
        // Wakes callers that wait for room: there will be none.
        self.shared.progress.notify_all();
        let flushed = self.flush(deadline);
        self.stop();
        flushed
    }

    fn stop(&self) {
        let given_up = {
            let mut state = self.shared.state();
            state.closing = true;
            state.stopping = true;
            let given_up = state.records.abort(&Error::Closed);
            state.wake_all();
            for node in state.nodes.values() {
                node.interrupts.interrupt();
            }
            given_up
        };
        self.shared.interrupts.interrupt();
        self.shared.metadata_wakeup.notify_all();
        self.shared.tell(given_up);
        // The thread catches its panics.
        let thread = lock(&self.metadata_thread).take();
        thread.map(JoinHandle::join);
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Pending {
    /// Waits for the record's outcome, at most until `deadline`.
    ///
    /// # Errors
    /// At the deadline a record that has not been sent is withdrawn ([`Certainty::NotSent`]). The
    /// outcome of a record that has been sent stays unknown ([`Certainty::MaybeSent`]).
    pub fn wait(self, deadline: Deadline) -> Outcome {
        let gave_up = match self.slot.wait(deadline) {
            Ok(outcome) => return outcome,
            Err(gave_up) => gave_up,
        };
        let what = format!("kafka to acknowledge a record for {}", self.topic);
        let shared = &self.shared;
        let error = shared.timed_out(&shared.state(), what, &[&*self.topic]);
        match gave_up {
            GaveUp::Withdrawn => {
                let outcome = Err(ProduceError::not_sent(error));
                let latency = self.queued_at.elapsed();
                self.shared.settled(&self.topic, latency, &outcome);
                outcome
            }
            GaveUp::Sent => Err(ProduceError::maybe_sent(error)),
        }
    }
}

impl ProducerShared {
    fn state(&self) -> MutexGuard<'_, ProducerState> {
        lock(&self.state)
    }

    /// A time-out that concerns these `topics` (none: all), with its reason if that is known.
    fn timed_out(&self, state: &ProducerState, what: String, topics: &[impl AsRef<str>]) -> Error {
        let concerns = |error: &&Error| match error {
            Error::Refused {
                topic: Some(topic), ..
            } => topics.is_empty() || topics.iter().any(|one| one.as_ref() == &**topic),
            _ => true,
        };
        let mut names = topics.iter().map(AsRef::as_ref);
        let refusal = names.find_map(|topic| self.topic_refusal(topic));
        let last_error = state.last_error.as_ref().filter(concerns);
        Error::Timeout {
            what,
            cause: refusal.or(last_error.cloned()).map(Box::new),
        }
    }

    /// The error of the last metadata response for a topic, if it had one.
    fn topic_refusal(&self, topic: &str) -> Option<Error> {
        let code = self.cluster.topic_error(topic)?;
        Some(Error::refused_topic(ApiKey::Metadata, code, topic))
    }

    fn settled(&self, topic: &str, latency: Duration, outcome: &Outcome) {
        guarded("ProducerHooks::record_settled", || {
            self.hooks.record_settled(topic, latency, outcome);
        });
    }

    /// Runs a thread's work. If it panics, everything that waits for the producer fails.
    fn run_thread(&self, name: &str, work: impl FnOnce()) {
        if std::panic::catch_unwind(AssertUnwindSafe(work)).is_ok() {
            return;
        }
        let thread = name.to_owned();
        log::error!("the kafka producer's thread {thread} has panicked");
        let given_up = {
            let mut state = self.state();
            state.failed = Some(Error::Panicked { thread });
            state.wake_all();
            state.records.abort(&Error::Closed)
        };
        self.metadata_wakeup.notify_all();
        self.tell(given_up);
        self.progress.notify_all();
    }

    /// Reports outcomes to owners and hooks. Never call it with a lock held.
    fn tell(&self, completions: impl IntoIterator<Item = Completion>) {
        let mut completions = completions.into_iter().peekable();
        if completions.peek().is_none() {
            return;
        }
        let now = Instant::now();
        for done in completions {
            let latency = now.saturating_duration_since(done.queued_at);
            if done.slot.complete(&done.outcome) {
                self.settled(&done.topic, latency, &done.outcome);
            }
        }
        self.progress.notify_all();
    }
}

impl ProducerState {
    /// Fails when the producer takes no records any more.
    fn check_open(&self) -> Result<(), Error> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.closing => Err(Error::Closed),
            None => Ok(()),
        }
    }

    /// Whether there is a connection to every leader.
    fn is_connected(&self) -> bool {
        let is_connected = |node: &Arc<Node>| node.connected.load(Ordering::Relaxed);
        let mut leaders = self.records.leader_nodes().into_iter();
        leaders.all(|leader| self.nodes.get(&leader).is_some_and(is_connected))
    }

    /// Why brokers do not admit the client, if the last error was that.
    fn refusal(&self) -> Option<Error> {
        let last_error = self.last_error.as_ref();
        last_error.filter(|it| it.is_no_admission()).cloned()
    }

    fn wake_all(&self) {
        for node in self.nodes.values() {
            node.wake();
        }
    }
}

fn wait<'a>(
    condvar: &Condvar,
    guard: MutexGuard<'a, ProducerState>,
    at_most: Duration,
) -> MutexGuard<'a, ProducerState> {
    match condvar.wait_timeout(guard, at_most) {
        Ok((guard, _)) => guard,
        Err(poisoned) => poisoned.into_inner().0,
    }
}

/// Milliseconds since 1970; 0 if the clock is before that.
fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
