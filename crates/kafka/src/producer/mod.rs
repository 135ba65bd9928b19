//! Records out: acknowledged by all in-sync replicas, in order, once.
//!
//! # Threads
//!
//! | Thread | Waits for | Ends |
//! | --- | --- | --- |
//! | the caller's | room in the buffer; its record's outcome | - |
//! | `kafka-producer-<node>`, one per leading broker | records; the broker's answer | [`Producer::close`] |
//! | `kafka-producer` | something to find out: leaders, a producer id, overdue records | [`Producer::close`] |
//!
//! While a leader's answer is awaited, records for it gather, and the next request
//! takes them all. So a lone record leaves at once, and a flood travels in large
//! batches, without any tuning. What fills a batch does not wait for the answer: up to
//! [`ProducerConfig::max_in_flight`] requests are under way on one connection.
//!
//! # Guarantees
//!
//! - Records of one partition (so: of one key) are written in the order they were
//!   handed over, unless one of them fails.
//! - The producer is idempotent: a batch whose answer got lost is sent again and
//!   recognised by the broker. A record acknowledged once is in the topic once.
//! - A failed record says whether it may be in the topic ([`Certainty`]).
//! - When a topic is deleted and created again, what waits is partitioned again, each key
//!   in its order. A topic that is missing keeps only its own records waiting.
//! - Memory is bounded: when the buffer is full, handing over waits, at most until
//!   the record's deadline.
//!
//! # Locks
//!
//! `Shared::state` first, then the cluster's picture or a record's slot; no lock
//! is held while bytes move or hooks run.

mod accumulator;
mod batch;
mod keeper;
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

/// How a producer works. The defaults suit events of some kilobytes published by
/// request threads.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Topics whose leaders are found out, and connected to, at the start instead of at
    /// the first record; [`Producer::warm_up`] waits for it.
    pub topics: Vec<String>,
    /// How batches are compressed; Kafka's `compression.type`.
    #[doc(alias = "compression.type")]
    pub compression: Compression,
    /// How long a record waits for company although its leader is idle; Kafka's
    /// `linger.ms`.
    #[doc(alias = "linger.ms")]
    pub linger: Duration,
    /// About the largest batch, in bytes before compression. Brokers refuse more
    /// than 1 MiB unless told otherwise. Kafka's `batch.size`.
    ///
    /// A larger record is a batch of its own. That batch is compressed with zstd if
    /// [`compression`](Self::compression) is none, and so is one record that a broker
    /// has found too large.
    #[doc(alias = "batch.size")]
    pub batch_bytes: usize,
    /// The largest record, in bytes before compression; Kafka's `max.request.size`.
    /// Far below the 100 MB of a request at which brokers close the connection.
    #[doc(alias = "max.request.size")]
    pub record_bytes: usize,
    /// About the largest request, in bytes before compression, unless one record has
    /// more.
    pub request_bytes: usize,
    /// About the memory that unacknowledged records may take, in bytes; Kafka's
    /// `buffer.memory`. Who wants more waits, until the record's deadline.
    #[doc(alias = "buffer.memory")]
    pub buffer_bytes: usize,
    /// How many requests may wait for answers on one connection, 1 to 5; Kafka's
    /// `max.in.flight.requests.per.connection`. The order is kept in any case; brokers
    /// remember a producer's last five batches of a partition.
    #[doc(alias = "max.in.flight.requests.per.connection")]
    pub max_in_flight: usize,
    /// How long one produce request may go without an answer before its
    /// connection is given up; Kafka's `request.timeout.ms`.
    #[doc(alias = "request.timeout.ms")]
    pub request_timeout: Duration,
    /// How long a batch that may have been written is kept and repeated in the
    /// hope for an answer. Its partition is blocked meanwhile, to keep the order. Kafka's
    /// `delivery.timeout.ms`, though a record has a deadline of its own, too.
    #[doc(alias = "delivery.timeout.ms")]
    pub delivery_timeout: Duration,
    /// The pauses before a record is offered again that a broker refused for a
    /// passing reason; after the last it fails. Waiting for a new leader or for a
    /// connection does not count.
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

/// What a producer tells its owner. Called on the producer's threads, without
/// locks held; must return quickly.
pub trait ProducerHooks: Send + Sync {
    /// A record's outcome is certain, `latency` after it was handed over.
    fn record_settled(&self, topic: &str, latency: Duration, outcome: &Outcome) {
        let _ = (topic, latency, outcome);
    }

    /// So many records, which were sent before, are about to be sent again.
    fn records_repeated(&self, topic: &str, records: usize) {
        let _ = (topic, records);
    }

    /// A produce request ended: `records` in `bytes` sent to `node`.
    fn request_ended(&self, node: i32, records: usize, bytes: usize, result: Result<(), &Error>) {
        let _ = (node, records, bytes, result);
    }
}

/// No hooks.
impl ProducerHooks for () {}

/// A running producer. Shared by any number of threads; see the module's page.
///
/// Dropping it without [`Producer::close`] gives up what is not acknowledged yet.
pub struct Producer {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// A record on its way.
#[must_use = "the outcome is known only to who waits for it"]
pub struct Pending {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    topic: Arc<str>,
    queued_at: Instant,
}

struct Shared {
    cluster: Cluster,
    config: ProducerConfig,
    hooks: Arc<dyn ProducerHooks>,
    state: Mutex<State>,
    /// Wakes the keeper.
    errand: Condvar,
    /// Wakes callers: room in the buffer, news about a topic, all sent.
    progress: Condvar,
}

struct State {
    records: Accumulator,
    nodes: HashMap<i32, Arc<Node>>,
    /// No new records.
    closing: bool,
    /// Threads are to end.
    stopping: bool,
    /// Callers of [`Producer::warm_up`] that wait.
    warming: usize,
    /// One of them has just come: the keeper does not finish its pause.
    is_hurried: bool,
    /// What stands in the way at present, to explain time-outs.
    trouble: Option<Error>,
}

/// One leading broker's thread, seen from outside.
struct Node {
    id: i32,
    /// Wakes the thread; goes with `Shared::state`.
    wake: Condvar,
    /// Whether the thread sleeps and nobody has woken it yet; changed under
    /// `Shared::state` only. To wake nobody costs a call of the system, too.
    sleeps: AtomicBool,
    /// Whether a connection is open, as far as is known; changed under `Shared::state` only.
    connected: AtomicBool,
    /// Breaks off what the thread may be waiting for.
    interrupter: Mutex<Option<Interrupter>>,
}

impl Node {
    fn new(id: i32) -> Self {
        Self {
            id,
            wake: Condvar::new(),
            sleeps: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            interrupter: Mutex::new(None),
        }
    }

    /// Wakes the node's thread if it sleeps. Only with `Shared::state` locked.
    fn rouse(&self) {
        if self.sleeps.swap(false, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// Sleeps until roused, at most for `at_most`.
    fn sleep<'a>(&self, guard: MutexGuard<'a, State>, at_most: Duration) -> MutexGuard<'a, State> {
        self.sleeps.store(true, Ordering::Relaxed);
        let guard = wait(&self.wake, guard, at_most);
        self.sleeps.store(false, Ordering::Relaxed);
        guard
    }
}

impl Producer {
    /// Starts a producer. Does no I/O and works with the cluster away.
    ///
    /// # Errors
    /// [`Error::Resource`] when no thread can be started.
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
        let state = State {
            records: Accumulator::new(limits, topics),
            nodes: HashMap::new(),
            closing: false,
            stopping: false,
            warming: 0,
            is_hurried: false,
            trouble: None,
        };
        let shared = Arc::new(Shared {
            cluster,
            config,
            hooks,
            state: Mutex::new(state),
            errand: Condvar::new(),
            progress: Condvar::new(),
        });
        let for_keeper = Arc::clone(&shared);
        let keeper = std::thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || keeper::run(&for_keeper))
            .map_err(|error| Error::Resource {
                reason: error.to_string(),
            })?;
        Ok(Self {
            shared,
            keeper: Mutex::new(Some(keeper)),
        })
    }

    /// Waits, at most until `deadline`, until records for [`ProducerConfig::topics`] can
    /// leave at once: their partitions all have leaders, those are connected to, and
    /// there is a producer id. A producer begins with that by itself. This is for who
    /// wants the first record to be as fast as those that follow, at the start or after
    /// an outage, and for who has just made the topics: they are looked for at once.
    /// In Java `partitionsFor`, for each topic, goes about half of the way.
    ///
    /// # Errors
    /// [`Error::Timeout`], which says what stands in the way; [`Error::Closed`]; at once
    /// [`Error::Tls`] and [`Error::Authentication`]. The producer goes on trying.
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
            // The caller has reason to think that it works now.
            state.is_hurried |= !has_hurried;
            has_hurried = true;
            if !are_led {
                state.records.doubt_leaders();
            }
            shared.errand.notify_one();
            state.wake_all();
            state = wait(&shared.progress, state, left);
        };
        state.warming -= 1;
        outcome
    }

    /// Hands a record over, to be delivered by `deadline`. Waits, at most until
    /// then, for room in the buffer and, for a topic never heard of, for its
    /// partitions to be known.
    ///
    /// A record that has not left by `deadline` never will. One that has is
    /// pursued further; see [`Pending::wait`].
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
                    // Not before a password or a certificate is set right.
                    if let Some(refusal) = state.refusal() {
                        return Err(ProduceError::not_sent(refusal));
                    }
                    shared.errand.notify_one();
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

    /// As [`send`](Self::send), but waits for nothing: `None`, and the record is forgotten, where
    /// that would wait or fail.
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
        state: &mut State,
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
            Some(node) if !state.records.needs_identity() => node.rouse(),
            _ => shared.errand.notify_one(),
        }
        pending
    }

    /// Hands records over together and waits for all outcomes, at most until
    /// `deadline`. The outcomes are in the order of the records.
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

    /// Waits, at most until `deadline`, until nothing is on its way: neither what
    /// was handed over before nor what other threads hand over meanwhile.
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

    /// Takes no more records, delivers what it has until `deadline`, gives up the
    /// rest, ends all threads and waits for them. That takes a moment beyond the
    /// deadline at most; while the cluster is away, up to three seconds, because an
    /// attempt to reach it is not broken off. Closing twice does nothing.
    ///
    /// # Errors
    /// [`Error::Timeout`] when records were given up; each told its owner.
    pub fn close(&self, deadline: Deadline) -> Result<(), Error> {
        self.shared.state().closing = true;
        // Callers that wait for room learn that there will be none.
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
        self.shared.errand.notify_all();
        self.shared.tell(given_up);
        if let Some(keeper) = lock(&self.keeper).take()
            && keeper.join().is_err()
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
    /// Giving up before the record left takes it back
    /// ([`Certainty::NotSent`]); giving up later leaves it to its fate
    /// ([`Certainty::MaybeSent`]).
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

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A time-out of what concerns these `topics` (none: all), with what stood in the way,
    /// if that is known.
    fn timed_out(&self, state: &State, mut what: String, topics: &[impl AsRef<str>]) -> Error {
        let concerns = |error: &&Error| match error {
            Error::Topic { topic, .. } => {
                topics.is_empty() || topics.iter().any(|one| one.as_ref() == &**topic)
            }
            _ => true,
        };
        let mut names = topics.iter().map(AsRef::as_ref);
        let refusal = names.find_map(|topic| self.topic_refusal(topic));
        if let Some(reason) = refusal.or(state.trouble.as_ref().filter(concerns).cloned()) {
            what = format!("{what} ({reason})");
        }
        Error::Timeout { what }
    }

    /// Why the cluster could not say who leads a topic, if that is so.
    fn topic_refusal(&self, topic: &str) -> Option<Error> {
        let code = self.cluster.topic_error(topic)?;
        Some(Error::Topic {
            topic: topic.into(),
            api: ApiKey::Metadata,
            code,
        })
    }

    /// Tells owners and hooks; never called with a lock held.
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

impl State {
    /// Whether there is a connection to every leader.
    fn is_connected(&self) -> bool {
        let is_connected = |node: &Arc<Node>| node.connected.load(Ordering::Relaxed);
        let mut leaders = self.records.leader_nodes().into_iter();
        leaders.all(|leader| self.nodes.get(&leader).is_some_and(is_connected))
    }

    /// Why brokers do not let us in, if that is the trouble.
    fn refusal(&self) -> Option<Error> {
        let is_refusal =
            |error: &&Error| matches!(error, Error::Tls { .. } | Error::Authentication { .. });
        self.trouble.as_ref().filter(is_refusal).cloned()
    }

    fn wake_all(&self) {
        for node in self.nodes.values() {
            node.rouse();
        }
    }
}

fn wait<'a>(
    condvar: &Condvar,
    guard: MutexGuard<'a, State>,
    at_most: Duration,
) -> MutexGuard<'a, State> {
    match condvar.wait_timeout(guard, at_most) {
        Ok((guard, _)) => guard,
        Err(poisoned) => poisoned.into_inner().0,
    }
}

/// Milliseconds since 1970; 0 with a clock set before.
fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
