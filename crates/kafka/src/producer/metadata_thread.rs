//! The producer's metadata thread.
//!
//! It finds the leaders, requests a producer id, and starts a sender for each new leader. It also
//! fails overdue records.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::ApiKey;
use kafka_protocol::messages::{InitProducerIdRequest, ProducerId};

use super::batch::Identity;
use super::{Node, ProducerShared, ProducerState, sender, wait};
use crate::cluster::Cluster;
use crate::config::Backoff;
use crate::error::Error;
use tbd_deadline::Deadline;

/// The period of metadata requests while a leader is missing. An election takes most of a publish
/// budget; finding its result should take little of it.
const ELECTION_PERIOD: Duration = Duration::from_millis(100);

/// The longest period of metadata requests while a topic is missing.
const MISSING_PERIOD: Duration = Duration::from_millis(250);

/// How often overdue records are looked for at least, while records are pending.
const SWEEP_PERIOD: Duration = Duration::from_millis(500);

/// The time-out of one request to the cluster.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);

/// Works until the producer stops, then joins the senders.
pub(super) fn run(shared: &Arc<ProducerShared>) {
    let config = shared.cluster.config();
    let mut metadata_thread = MetadataThread {
        shared,
        cluster: shared.cluster.interruptible(&shared.interrupts),
        senders: Vec::new(),
        backoff: Backoff::new(config.reconnect_backoff, config.reconnect_backoff_max),
        asked: Instant::now(),
        not_before: Instant::now(),
    };
    shared.run_thread("kafka-producer", || {
        while metadata_thread.wait_for_work() {
            metadata_thread.run_once();
        }
    });
    for sender in metadata_thread.senders {
        // The thread catches its panics.
        let _ = sender.join();
    }
}

struct MetadataThread<'a> {
    shared: &'a Arc<ProducerShared>,
    cluster: Cluster,
    senders: Vec<JoinHandle<()>>,
    backoff: Backoff,
    /// When the last metadata request was made.
    asked: Instant,
    /// No request before this moment, unless a caller warms up.
    not_before: Instant,
}

impl MetadataThread<'_> {
    /// Waits until there is something to find out; false when the thread must end.
    fn wait_for_work(&self) -> bool {
        loop {
            let overdue = {
                let mut state = self.shared.state();
                if state.stopping {
                    return false;
                }
                let now = Instant::now();
                let due = self.due(&state);
                if state.is_hurried || due <= now {
                    return true;
                }
                let overdue = state.records.next_overdue().unwrap_or(due);
                let pause = match state.records.outstanding() {
                    0 => due - now,
                    _ => SWEEP_PERIOD.min(due.min(overdue).saturating_duration_since(now)),
                };
                state = wait(&self.shared.metadata_wakeup, state, pause);
                state.records.sweep(Instant::now())
            };
            self.shared.tell(overdue);
        }
    }

    /// When to ask the cluster next. A missing topic delays no other topic.
    fn due(&self, state: &ProducerState) -> Instant {
        let records = &state.records;
        let due = if records.needs_leaders() || records.needs_identity() {
            self.not_before
        } else if records.has_unknown_topic() {
            self.asked + MISSING_PERIOD
        } else {
            self.asked + self.shared.cluster.config().metadata_max_age
        };
        due.max(self.not_before)
    }

    fn run_once(&mut self) {
        self.shared.state().is_hurried = false;
        let result = self.find_leaders().and_then(|()| self.find_identity());
        let mut failed = Vec::new();
        let mut state = self.shared.state();
        let pause = match result {
            Ok(()) => {
                self.backoff.reset();
                if state.refusal().is_some() {
                    state.last_error = None;
                }
                match state.records.needs_leaders() || state.records.needs_identity() {
                    true => ELECTION_PERIOD,
                    false => Duration::ZERO,
                }
            }
            Err(error) => {
                log::debug!("kafka producer: {error}");
                // No broker admits the client.
                if error.is_no_admission() {
                    failed = state.records.fail_queued(None, &error);
                }
                state.last_error = Some(error);
                self.shared.progress.notify_all();
                self.backoff.next_pause()
            }
        };
        self.not_before = Instant::now() + pause;
        failed.extend(state.records.sweep(Instant::now()));
        drop(state);
        self.shared.tell(failed);
    }

    fn find_leaders(&mut self) -> Result<(), Error> {
        let topics = {
            let mut state = self.shared.state();
            let records = &state.records;
            let is_old = self.asked.elapsed() >= self.shared.cluster.config().metadata_max_age;
            let needs_none = !records.needs_leaders() && !records.has_unknown_topic();
            if !is_old && needs_none && state.is_reached {
                return Ok(());
            }
            state.records.topics_to_ask(Instant::now())
        };
        self.asked = Instant::now();
        let refreshed = self
            .cluster
            .refresh(&topics, Deadline::after(QUESTION_TIMEOUT));
        let (leaders, failed) = {
            let mut state = self.shared.state();
            state.is_reached = refreshed.is_ok();
            if refreshed.is_err() {
                state.records.doubt_leaders();
            }
            let failed = state.records.learn(&self.shared.cluster);
            state.wake_all();
            (state.records.leader_nodes(), failed)
        };
        self.shared.progress.notify_all();
        self.shared.tell(failed);
        for topic in &topics {
            if let Some(refusal) = self.shared.topic_refusal(topic) {
                log::debug!("kafka producer: {refusal}");
            }
        }
        let mut started = Ok(());
        for node in leaders {
            // A thread that cannot be started must not keep records from other leaders.
            started = started.and(self.ensure_sender(node));
        }
        refreshed.and(started)
    }

    fn ensure_sender(&mut self, id: i32) -> Result<(), Error> {
        let node = {
            let mut state = self.shared.state();
            if state.stopping || state.nodes.contains_key(&id) {
                return Ok(());
            }
            let node = Arc::new(Node::new(id));
            state.nodes.insert(id, Arc::clone(&node));
            node
        };
        let shared = Arc::clone(self.shared);
        let spawned = std::thread::Builder::new()
            .name(format!("kafka-producer-{id}"))
            .spawn(move || sender::run(&shared, &node));
        match spawned {
            Ok(handle) => {
                self.senders.push(handle);
                Ok(())
            }
            Err(error) => {
                let mut state = self.shared.state();
                state.nodes.remove(&id);
                state.records.doubt_leaders();
                Err(Error::resource(&error))
            }
        }
    }

    fn find_identity(&self) -> Result<(), Error> {
        if !self.shared.state().records.needs_identity() {
            return Ok(());
        }
        let deadline = Deadline::after(QUESTION_TIMEOUT);
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(i32::MAX)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let mut connection = self.cluster.connect_any(deadline)?;
        let response = connection.call(&request, deadline)?;
        connection.check(ApiKey::InitProducerId, response.error_code)?;
        let mut state = self.shared.state();
        let identity = Identity::idempotent(response.producer_id.0, response.producer_epoch);
        state.records.set_identity(identity);
        state.wake_all();
        drop(state);
        self.shared.progress.notify_all();
        Ok(())
    }
}
