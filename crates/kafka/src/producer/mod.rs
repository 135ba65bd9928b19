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
mod batch;
mod metadata_thread;
mod record;
mod sender;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kafka_protocol::messages::ApiKey;

pub use batch::{Compression, Identity, encode as encode_batch};
pub use record::{Certainty, Outcome, ProduceError, Record, RecordMetadata};

use super::cluster::Cluster;
use super::connection::Interrupter;
use super::error::Error;
use super::lock;
use accumulator::{Accumulator, Completion, Limits, Queued};
use record::{GaveUp, Slot};
use tbd_deadline::Deadline;

/// Settings of a producer. The defaults suit request threads that publish events of a few
/// kilobytes.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Topics whose leaders the producer finds and connects to at the start, not at the first
    /// record; [`Producer::warm_up`] waits for it.
    pub topics: Vec<String>,
    /// How batches are compressed; Kafka's `compression.type`.
    #[doc(alias = "compression.type")]
    pub compression: Compression,
    /// How long a record waits for others to share its batch although its leader is idle; Kafka's
    /// `linger.ms`.
    #[doc(alias = "linger.ms")]
    pub linger: Duration,
    /// Approximate size of the largest batch, in bytes before compression. By default brokers
    /// refuse more than 1 MiB. Kafka's `batch.size`.
    ///
    /// A larger record is a batch of its own. If [`compression`](Self::compression) is none, that
    /// batch is compressed with zstd, and so is a single record that a broker found too large.
    #[doc(alias = "batch.size")]
    pub batch_bytes: usize,
    /// The largest record, in bytes before compression; Kafka's `max.request.size`. Far below the
    /// request size of 100 MB at which brokers close the connection.
    #[doc(alias = "max.request.size")]
    pub record_bytes: usize,
    /// Approximate size of the largest request, in bytes before compression, unless one record is
    /// larger.
    pub request_bytes: usize,
    /// Approximate memory for unacknowledged records, in bytes; Kafka's `buffer.memory`. When it
    /// is full, `send` waits until the record's deadline.
    #[doc(alias = "buffer.memory")]
    pub buffer_bytes: usize,
    /// How many requests may be in flight on one connection, 1 to 5; Kafka's
    /// `max.in.flight.requests.per.connection`. The order is kept in any case. Brokers remember
    /// a producer's last five batches of a partition.
    #[doc(alias = "max.in.flight.requests.per.connection")]
    pub max_in_flight: usize,
    /// How long one produce request waits for its response before its connection is closed;
    /// Kafka's `request.timeout.ms`.
    #[doc(alias = "request.timeout.ms")]
    pub request_timeout: Duration,
    /// How long a batch of unknown outcome is retried. Its partition is blocked meanwhile, to keep
    /// the order. Kafka's `delivery.timeout.ms`; here each record also has its own deadline.
    #[doc(alias = "delivery.timeout.ms")]
    pub delivery_timeout: Duration,
    /// The pauses before each retry of a record that a broker refused for a transient reason; it
    /// fails after the last. Waiting for a new leader or for a connection does not count.
    pub refusal_pauses: [Duration; 3],
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            topics: Vec::new(),
            compression: Compression::None,
            linger: Duration::ZERO,
            batch_bytes: 900_000,
            record_bytes: 16 * 1024 * 1024,
            request_bytes: 4 * 1024 * 1024,
            buffer_bytes: 32 * 1024 * 1024,
            max_in_flight: 5,
            request_timeout: Duration::from_secs(10),
            delivery_timeout: Duration::from_secs(120),
            refusal_pauses: [
                Duration::from_millis(100),
                Duration::from_millis(500),
                Duration::from_secs(2),
            ],
        }
    }
}

/// Hooks that observe a producer. It calls them on its threads, without locks; they must return
/// quickly.
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
    hooks: Arc<dyn ProducerHooks>,
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
    interrupter: Mutex<Option<Interrupter>>,
}

impl Node {
    fn new(id: i32) -> Self {
        Self {
            id,
            wakeup: Condvar::new(),
            sleeps: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            interrupter: Mutex::new(None),
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
    /// [`Error::Resource`] when the thread cannot be started.
    pub fn start(
        cluster: Cluster,
        config: ProducerConfig,
        hooks: Arc<dyn ProducerHooks>,
    ) -> Result<Self, Error> {
        let limits = Limits {
            buffer_bytes: config.buffer_bytes,
            batch_bytes: config.batch_bytes,
            compression: config.compression,
            request_bytes: config.request_bytes,
            linger: config.linger,
            delivery_timeout: config.delivery_timeout,
            refusal_pauses: config.refusal_pauses,
        };
        let topics = config.topics.iter().map(|topic| Arc::from(topic.as_str()));
        let state = ProducerState {
            records: Accumulator::new(limits, topics),
            nodes: HashMap::new(),
            closing: false,
            stopping: false,
            warming: 0,
            is_hurried: false,
            last_error: None,
        };
        let shared = Arc::new(ProducerShared {
            cluster,
            config,
            hooks,
            state: Mutex::new(state),
            metadata_wakeup: Condvar::new(),
            progress: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        let metadata_thread = std::thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || metadata_thread::run(&for_thread))
            .map_err(|error| Error::Resource {
                reason: error.to_string(),
            })?;
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
    pub fn warm_up(&self, deadline: Deadline) -> Result<(), Error> {
        let shared = &self.shared;
        let mut state = shared.state();
        state.warming += 1;
        let mut has_hurried = false;
        let outcome = loop {
            if state.closing {
                break Err(Error::Closed);
            }
            let are_led = state.records.are_led(&shared.config.topics);
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

    /// Queues a record for delivery by `deadline`. Waits, at most until then, for room in the
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
        let mut state = shared.state();
        let index = loop {
            if state.closing {
                return Err(ProduceError::not_sent(Error::Closed));
            }
            let what = match state
                .records
                .place(&record, Instant::now())
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
                let outcome = Err(failed.clone());
                shared
                    .hooks
                    .record_settled(&record.topic, latency, &outcome);
                return Err(failed);
            }
            state = wait(&shared.progress, state, left);
        };
        Ok(self.queue(&mut state, index, record, deadline, started))
    }

    /// As [`send`](Self::send), but never waits: returns `None` and drops the record if `send`
    /// would wait or fail.
    pub fn try_send(&self, record: Record, deadline: Deadline) -> Option<Pending> {
        let mut state = self.shared.state();
        let fits = !state.closing
            && record.size() <= self.shared.config.record_bytes
            && state.records.has_room(record.weight());
        let now = Instant::now();
        let index = state.records.place(&record, now).ok().flatten()?;
        fits.then(|| self.queue(&mut state, index, record, deadline, now))
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
        let mut state = self.shared.state();
        state.records.flushing += 1;
        state.wake_all();
        while state.records.outstanding() > 0 {
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
        Ok(())
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
            let given_up = state.records.abort();
            state.wake_all();
            for node in state.nodes.values() {
                if let Some(interrupter) = lock(&node.interrupter).take() {
                    interrupter.interrupt();
                }
            }
            given_up
        };
        self.shared.metadata_wakeup.notify_all();
        self.shared.tell(given_up);
        if let Some(metadata_thread) = lock(&self.metadata_thread).take()
            && metadata_thread.join().is_err()
        {
            log::error!("the kafka producer's thread panicked");
        }
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
                self.shared
                    .hooks
                    .record_settled(&self.topic, latency, &outcome);
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
    fn timed_out(
        &self,
        state: &ProducerState,
        mut what: String,
        topics: &[impl AsRef<str>],
    ) -> Error {
        let concerns = |error: &&Error| match error {
            Error::Topic { topic, .. } => {
                topics.is_empty() || topics.iter().any(|one| one.as_ref() == &**topic)
            }
            _ => true,
        };
        let mut names = topics.iter().map(AsRef::as_ref);
        let refusal = names.find_map(|topic| self.topic_refusal(topic));
        if let Some(reason) = refusal.or(state.last_error.as_ref().filter(concerns).cloned()) {
            what = format!("{what} ({reason})");
        }
        Error::Timeout { what }
    }

    /// The error of the last metadata response for a topic, if it had one.
    fn topic_refusal(&self, topic: &str) -> Option<Error> {
        let code = self.cluster.topic_error(topic)?;
        Some(Error::Topic {
            topic: topic.into(),
            api: ApiKey::Metadata,
            code,
        })
    }

    /// Reports outcomes to owners and hooks. Never call it with a lock held.
    fn tell(&self, completions: Vec<Completion>) {
        if completions.is_empty() {
            return;
        }
        let now = Instant::now();
        for done in completions {
            let latency = now.saturating_duration_since(done.queued_at);
            if done.slot.complete(done.outcome.clone()) {
                self.hooks
                    .record_settled(&done.topic, latency, &done.outcome);
            }
        }
        self.progress.notify_all();
    }
}

impl ProducerState {
    /// Whether there is a connection to every leader.
    fn is_connected(&self) -> bool {
        let is_connected = |node: &Arc<Node>| node.connected.load(Ordering::Relaxed);
        let mut leaders = self.records.leader_nodes().into_iter();
        leaders.all(|leader| self.nodes.get(&leader).is_some_and(is_connected))
    }

    /// Why brokers do not admit the client, if the last error was that.
    fn refusal(&self) -> Option<Error> {
        let is_refusal =
            |error: &&Error| matches!(error, Error::Tls { .. } | Error::Authentication { .. });
        self.last_error.as_ref().filter(is_refusal).cloned()
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
