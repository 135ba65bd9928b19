//! The producer's sender thread: all produce requests to one leader.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::ErrorCode;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TransactionalId};
use uuid::Uuid;

use super::accumulator::{Answer, OutgoingBatch, Ready};
use super::batch::{Transactions, encode};
use super::{Node, ProducerShared};
use crate::cluster::Cluster;
use crate::config::Backoff;
use crate::connection::{Connection, Sent};
use crate::error::Error;
use crate::in_flight::guarded;
use crate::spare::Spares;
use crate::wire::{millis, text, topic_name};
use tbd_deadline::Deadline;

/// The longest sleep without a look at the queues.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// A connection that was idle for longer is checked before use: brokers close idle connections
/// after minutes, proxies sooner.
const IDLE_SUSPECT: Duration = Duration::from_secs(5);

/// The first version of Produce that names topics by id. So a batch for a deleted topic cannot be
/// written to another topic of the same name.
const BY_ID_FROM: i16 = 13;

/// The first version of Produce that adds its partitions to the producer's transaction.
const IMPLICIT_FROM: i16 = 12;

/// All in-sync replicas acknowledge.
const ACKS_ALL: i16 = -1;

/// Works until the producer stops.
pub(super) fn run(shared: &ProducerShared, node: &Node) {
    let config = shared.cluster.config();
    let mut sender = Sender {
        shared,
        node,
        cluster: shared.cluster.interruptible(&node.interrupts),
        connection: None,
        in_flight: VecDeque::new(),
        spares: Spares::default(),
        backoff: Backoff::new(config.reconnect_backoff, config.reconnect_backoff_max),
    };
    shared.run_thread(&format!("kafka-producer-{}", node.id), || {
        // Before the first record, which then need not wait for the connection.
        sender.connect();
        while sender.wait_for_work() {
            sender.run_once();
        }
    });
    // After a panic, answers may be outstanding.
    sender.give_up_in_flight(&Error::Closed);
}

struct Sender<'a> {
    shared: &'a ProducerShared,
    node: &'a Node,
    cluster: Cluster,
    connection: Option<Connection>,
    /// Requests in flight on the connection, the oldest first.
    in_flight: VecDeque<InFlight>,
    /// Memory for the next batches.
    spares: Spares,
    backoff: Backoff,
}

struct InFlight {
    sent: Sent<ProduceRequest>,
    batches: Vec<OutgoingBatch>,
    deadline: Deadline,
    size: Size,
}

/// The size of a request, for the hooks.
#[derive(Clone, Copy)]
struct Size {
    records: usize,
    bytes: usize,
}

impl Size {
    fn of(batches: &[OutgoingBatch]) -> Self {
        let encoded = batches.iter().filter_map(|batch| batch.encoded.as_ref());
        Self {
            records: batches.iter().map(|batch| batch.records.len()).sum(),
            bytes: encoded.map(bytes::Bytes::len).sum(),
        }
    }
}

impl Sender<'_> {
    /// Waits until there is something to send or to receive; false when the thread must end.
    fn wait_for_work(&mut self) -> bool {
        if !self.in_flight.is_empty() {
            return true;
        }
        self.spares.trim();
        let max_idle = self.shared.cluster.config().connections_max_idle;
        let mut state = self.shared.state();
        loop {
            if state.stopping {
                return false;
            }
            if state.warming > 0 && self.connection.is_none() {
                return true;
            }
            let now = Instant::now();
            let idle_for = |connection: &Connection| connection.last_used().elapsed();
            let idle = self.connection.as_ref().map(idle_for);
            let muted = self.connection.as_ref().map(Connection::muted_for);
            let pause = match state.records.ready(self.node.id, now, false) {
                Ready::Now => match muted.filter(|pause| !pause.is_zero()) {
                    Some(pause) => pause,
                    None => return true,
                },
                Ready::At(moment) => moment.saturating_duration_since(now),
                Ready::Idle => match idle {
                    Some(idle) if idle >= max_idle => {
                        self.node.connected.store(false, Ordering::Relaxed);
                        self.connection = None;
                        continue;
                    }
                    Some(idle) => IDLE_WAIT.min(max_idle - idle),
                    None => IDLE_WAIT,
                },
            };
            state = self.node.sleep(state, pause);
        }
    }

    /// Sends a request if there is one to send, otherwise receives the oldest response. Connects
    /// and logs in first: until a record is cut into a batch it can be withdrawn, and is not sent.
    fn run_once(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return self.connect();
        };
        let is_idle = self.in_flight.is_empty() && connection.last_used().elapsed() > IDLE_SUSPECT;
        if is_idle && !connection.is_usable() {
            return self.connect();
        }
        let timeout = self.shared.cluster.config().connect_timeout;
        if let Err(error) = connection.log_in_again(Deadline::after(timeout)) {
            return self.lost(error);
        }
        let batches = self.cut(&connection);
        let result = match batches.is_empty() {
            false => self.send(&mut connection, batches),
            true => self.receive(&mut connection),
        };
        match result {
            Ok(()) => self.connection = Some(connection),
            Err(error) => self.lost(error),
        }
    }

    /// Cuts the batches for the next request. While requests are in flight, only full batches.
    fn cut(&self, connection: &Connection) -> Vec<OutgoingBatch> {
        let ahead = !self.in_flight.is_empty();
        let limit = self.shared.config.max_in_flight;
        let is_full = self.in_flight.len() >= limit;
        if ahead && (is_full || connection.must_log_in() || !connection.muted_for().is_zero()) {
            return Vec::new();
        }
        let (batches, expired) = {
            let mut state = self.shared.state();
            state.records.cut(self.node.id, Instant::now(), ahead)
        };
        self.shared.tell(expired);
        batches
    }

    fn connect(&mut self) {
        let config = self.shared.cluster.config();
        let deadline = Deadline::after(config.connect_timeout);
        match self.cluster.connect(self.node.id, deadline) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.backoff.reset();
                let state = self.shared.state();
                self.node.connected.store(true, Ordering::Relaxed);
                drop(state);
                self.shared.progress.notify_all();
            }
            Err(error) => {
                log::debug!("kafka node {}: {error}", self.node.id);
                let mut state = self.shared.state();
                self.node.connected.store(false, Ordering::Relaxed);
                let failed = match error.is_transient() {
                    true => Vec::new(),
                    false => state.records.fail_queued(Some(self.node.id), &error),
                };
                state.last_error = Some(error);
                state.records.doubt_leaders();
                self.shared.metadata_wakeup.notify_one();
                drop(state);
                self.shared.tell(failed);
                let mut state = self.shared.state();
                let until = Deadline::after(self.backoff.next_pause());
                while !state.stopping && !until.is_past() {
                    state = self.node.sleep(state, until.remaining());
                }
            }
        }
    }

    /// Sends one produce request. An error means a lost connection.
    fn send(
        &mut self,
        connection: &mut Connection,
        batches: Vec<OutgoingBatch>,
    ) -> Result<(), Error> {
        for batch in &batches {
            let repeated = batch.repeated();
            if repeated > 0 {
                guarded("ProducerHooks::records_repeated", || {
                    self.shared.hooks.records_repeated(&batch.topic, repeated);
                });
            }
        }
        let (batches, impossible) = self.encode(batches);
        self.settle(impossible);
        if batches.is_empty() {
            return Ok(());
        }
        let timeout = self.shared.config.request_timeout;
        let deadline = Deadline::after(timeout);
        let size = Size::of(&batches);
        let version_max = newest_version(&batches);
        let transactional_id = self.shared.transactional_id.as_deref();
        let request = request(&batches, timeout, transactional_id);
        match connection.send_without_login(&request, version_max, deadline) {
            Ok(sent) => {
                self.in_flight.push_back(InFlight {
                    sent,
                    batches,
                    deadline,
                    size,
                });
                Ok(())
            }
            // The request was not sent and never can be.
            Err(error @ (Error::UnsupportedVersion { .. } | Error::Encode { .. })) => {
                self.ended(size, Err(&error));
                self.shared.state().last_error = Some(error.clone());
                let answer = Answer::Impossible(error);
                self.settle(batches.into_iter().map(|batch| (batch, answer.clone())));
                Ok(())
            }
            Err(error) => {
                // Earlier requests are settled first; their outcome is unknown too.
                self.give_up_in_flight(&error);
                self.unknown(batches, size, &error);
                Err(error)
            }
        }
    }

    /// Receives the response to the oldest request. An error means a lost connection.
    fn receive(&mut self, connection: &mut Connection) -> Result<(), Error> {
        let Some(oldest) = self.in_flight.pop_front() else {
            return Ok(());
        };
        let by_id = oldest.sent.version() >= BY_ID_FROM;
        match connection.receive(oldest.sent, oldest.deadline) {
            Ok(response) => {
                self.ended(oldest.size, Ok(()));
                let muted = connection.muted_for();
                if !muted.is_zero() {
                    // The broker reads the next request in flight only then.
                    let deadline = Deadline::after(muted + self.shared.config.request_timeout);
                    let in_flight = self.in_flight.iter_mut();
                    in_flight.for_each(|request| request.deadline = deadline);
                }
                let broker = connection.address();
                self.settle(self.answers(oldest.batches, &response, by_id, broker));
                Ok(())
            }
            Err(error) => {
                self.unknown(oldest.batches, oldest.size, &error);
                self.give_up_in_flight(&error);
                Err(error)
            }
        }
    }

    fn give_up_in_flight(&mut self, error: &Error) {
        for request in std::mem::take(&mut self.in_flight) {
            self.unknown(request.batches, request.size, error);
        }
    }

    fn unknown(&self, batches: Vec<OutgoingBatch>, size: Size, error: &Error) {
        self.ended(size, Err(error));
        let answer = Answer::Unknown(error.clone());
        self.settle(batches.into_iter().map(|batch| (batch, answer.clone())));
    }

    fn ended(&self, size: Size, result: Result<(), &Error>) {
        let hooks = &self.shared.hooks;
        guarded("ProducerHooks::request_ended", || {
            hooks.request_ended(self.node.id, size.records, size.bytes, result);
        });
    }

    fn lost(&self, error: Error) {
        log::debug!("kafka node {}: {error}", self.node.id);
        let mut state = self.shared.state();
        self.node.connected.store(false, Ordering::Relaxed);
        state.last_error = Some(error);
    }

    /// Encodes batches that are not encoded yet. The second value is the batches that cannot be
    /// encoded.
    fn encode(
        &mut self,
        batches: Vec<OutgoingBatch>,
    ) -> (Vec<OutgoingBatch>, Vec<(OutgoingBatch, Answer)>) {
        let mut ready = Vec::with_capacity(batches.len());
        let mut impossible = Vec::new();
        for mut batch in batches {
            if batch.encoded.is_none() {
                let bytes = batch.records.iter().map(|queued| queued.size).sum();
                let records = batch
                    .records
                    .iter()
                    .map(|queued| (&queued.record, queued.timestamp_ms));
                let encoded = encode(
                    self.spares.take(bytes),
                    records,
                    batch.compression,
                    batch.identity,
                    batch.base_sequence,
                );
                match encoded {
                    Ok(bytes) => {
                        self.spares.keep(&bytes);
                        batch.encoded = Some(bytes);
                    }
                    Err(reason) => {
                        let answer = Answer::Impossible(Error::InvalidRecord { reason });
                        impossible.push((batch, answer));
                        continue;
                    }
                }
            }
            ready.push(batch);
        }
        (ready, impossible)
    }

    /// Finds each batch's answer in the response.
    fn answers(
        &self,
        batches: Vec<OutgoingBatch>,
        response: &ProduceResponse,
        by_id: bool,
        broker: &str,
    ) -> Vec<(OutgoingBatch, Answer)> {
        let mut found: HashMap<(Uuid, &str, i32), &PartitionProduceResponse> = HashMap::new();
        for topic in &response.responses {
            for partition in &topic.partition_responses {
                let key = answer_key(by_id, topic.topic_id, &topic.name, partition.index);
                found.insert(key, partition);
            }
        }
        batches
            .into_iter()
            .map(|mut batch| {
                let key = answer_key(by_id, batch.topic_id, &batch.topic, batch.partition);
                let answer = match found.get(&key) {
                    Some(partition) => self.answer(&batch, partition),
                    None => Answer::Unknown(Error::Protocol {
                        address: format!("node {}", self.node.id),
                        reason: "no answer for a partition that was sent".to_owned(),
                    }),
                };
                if let Answer::Refused(_) = answer {
                    batch.broker = Some(broker.into());
                }
                (batch, answer)
            })
            .collect()
    }

    fn answer(&self, batch: &OutgoingBatch, partition: &PartitionProduceResponse) -> Answer {
        let Some(code) = ErrorCode::from_code(partition.error_code) else {
            return Answer::Written(Some(partition.base_offset).filter(|offset| *offset >= 0));
        };
        log::debug!(
            "kafka node {} refused {}/{}: {code} {}",
            self.node.id,
            batch.topic,
            batch.partition,
            partition.error_message.as_deref().unwrap_or_default(),
        );
        let hint = &partition.current_leader;
        if hint.leader_id.0 >= 0 {
            self.shared.cluster.observe_leader(
                &batch.topic,
                batch.partition,
                hint.leader_id.0,
                hint.leader_epoch,
            );
        }
        Answer::Refused(code)
    }

    fn settle(&self, answers: impl IntoIterator<Item = (OutgoingBatch, Answer)>) {
        let mut completions = Vec::new();
        {
            let mut state = self.shared.state();
            let now = Instant::now();
            let mut last_error = None;
            let mut written = false;
            for (batch, answer) in answers {
                match &answer {
                    Answer::Written(_) => written = true,
                    Answer::Refused(code) => {
                        last_error = Some(batch.refusal(*code));
                    }
                    _ => {}
                }
                let leader = state.records.leader_of(&batch);
                completions.push(state.records.settle(batch, answer, now));
                // A new leader's sender has waited for this answer.
                let elsewhere = leader.filter(|leader| *leader != self.node.id);
                if let Some(node) = elsewhere.and_then(|leader| state.nodes.get(&leader)) {
                    node.wake();
                }
            }
            if last_error.is_some() || written {
                state.last_error = last_error;
            }
            if state.records.needs_leaders() || state.records.needs_identity() {
                self.shared.metadata_wakeup.notify_one();
            }
        }
        self.shared.tell(completions.into_iter().flatten());
    }
}

/// The key of a partition's answer: a response names topics by id or by name, never by both.
fn answer_key(by_id: bool, id: Uuid, name: &str, partition: i32) -> (Uuid, &str, i32) {
    match by_id {
        true => (id, "", partition),
        false => (Uuid::nil(), name, partition),
    }
}

/// The newest version of a request with these batches. One request names all topics by id or none.
fn newest_version(batches: &[OutgoingBatch]) -> i16 {
    let is_explicit = |batch: &OutgoingBatch| batch.identity.transactions == Transactions::Explicit;
    match batches.iter().any(|batch| batch.topic_id.is_nil()) {
        _ if batches.iter().any(is_explicit) => IMPLICIT_FROM - 1,
        true => BY_ID_FROM - 1,
        false => i16::MAX,
    }
}

fn request(
    batches: &[OutgoingBatch],
    timeout: Duration,
    transactional_id: Option<&str>,
) -> ProduceRequest {
    let mut by_topic: HashMap<(&Arc<str>, Uuid), Vec<PartitionProduceData>> = HashMap::new();
    for batch in batches {
        let topic = (&batch.topic, batch.topic_id);
        by_topic.entry(topic).or_default().push(
            PartitionProduceData::default()
                .with_index(batch.partition)
                .with_records(batch.encoded.clone()),
        );
    }
    let topics = by_topic.into_iter().map(|((topic, id), partitions)| {
        TopicProduceData::default()
            .with_name(topic_name(topic))
            .with_topic_id(id)
            .with_partition_data(partitions)
    });
    // The broker stops waiting for its replicas before the client stops waiting for the broker: any
    // response is better than none.
    ProduceRequest::default()
        .with_transactional_id(transactional_id.map(|id| TransactionalId(text(id))))
        .with_acks(ACKS_ALL)
        .with_timeout_ms(millis(timeout * 3 / 4))
        .with_topic_data(topics.collect())
}
