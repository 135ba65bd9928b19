//! Fetch and ListOffsets requests: at most one in flight per node, for positions first, then for
//! records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest, ListOffsetsRequest};
use uuid::Uuid;

use super::partitions::{AnswerBytes, Lookup, Partition, ResetTo};
use super::positions::{earlier, list_offsets_request};
use super::reading::Reading;
use super::{ConsumerRecord, Isolation, RETRY_BACKOFF, RETRY_BACKOFF_MAX};
use crate::config::Backoff;
use crate::connection::{Connection, Sent};
use crate::group::TopicPartition;
use crate::wire::{millis, text, topic_name};
use crate::{ApiKey, Error};
use tbd_deadline::Deadline;

/// How long a leader may wait for records when some of its partitions were left out, because they
/// still hold records to hand out. The next fetch asks for those.
const SHORT_FETCH_WAIT: Duration = Duration::from_millis(20);
/// Pause before damaged or refused records are fetched again.
pub(super) const DAMAGE_PAUSE: Duration = Duration::from_secs(1);
/// First Fetch version with the consumer's rack.
const FETCH_FROM_RACK: i16 = 11;
/// First Fetch version that addresses topics by id.
const FETCH_BY_ID: i16 = 13;

/// The consumer's connection to one leader, or to a replica that a leader has named.
#[derive(Debug)]
pub(super) struct Leader {
    connection: Option<Connection>,
    pending: Option<Pending>,
    backoff: Backoff,
    not_before: Instant,
}

#[derive(Debug)]
struct Pending {
    /// The request, and for each partition the position or reset that it asks for.
    request: PendingRequest,
    due: Deadline,
}

#[derive(Debug)]
enum PendingRequest {
    Fetch(Sent<FetchRequest>, BTreeMap<TopicPartition, Asked<i64>>),
    Offsets(
        Sent<ListOffsetsRequest>,
        BTreeMap<TopicPartition, Asked<ResetTo>>,
    ),
}

/// What was asked for a partition, and of which topic. The answer is stale if the partition belongs
/// to another topic by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked<T> {
    pub what: T,
    pub topic_id: Option<Uuid>,
}

impl Leader {
    fn new(now: Instant) -> Self {
        Self {
            connection: None,
            pending: None,
            backoff: Backoff::new(RETRY_BACKOFF, RETRY_BACKOFF_MAX),
            not_before: now,
        }
    }

    /// The connection, if an answer is pending on it.
    pub(super) fn awaited(&self) -> Option<&Connection> {
        self.pending.as_ref().and(self.connection.as_ref())
    }

    /// Closes a connection that was idle for `max_idle`: its node leads none of the consumer's
    /// partitions any more.
    fn reap(&mut self, now: Instant, max_idle: Duration) {
        let is_idle = |connection: &Connection| now - connection.last_used() >= max_idle;
        if self.pending.is_none() && self.connection.as_ref().is_some_and(is_idle) {
            self.connection = None;
        }
    }

    fn fail(&mut self) {
        self.connection = None;
        self.pending = None;
        self.not_before = Instant::now() + self.backoff.next_pause();
    }
}

/// A consumer's connections to leaders, and the memory of fetched records.
#[derive(Debug, Default)]
pub(super) struct Fetcher {
    leaders: BTreeMap<i32, Leader>,
    /// The answers that still hold records to hand out.
    answers: Vec<Weak<usize>>,
    /// The partition that is first in the next round, so that none starves.
    turn: usize,
}

/// How much memory is left for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// One more answer from each leader.
    Answers,
    /// One small answer from each leader, for partitions that have no record to hand out. So a
    /// seek does not wait until the records of all other partitions are handed out.
    Drained,
    None,
}

impl Fetcher {
    /// The connections on which answers are pending, with their nodes.
    pub(super) fn awaited(&self) -> impl Iterator<Item = (i32, &Connection)> {
        let leaders = self.leaders.iter();
        leaders.filter_map(|(node, leader)| Some((*node, leader.awaited()?)))
    }

    /// When the first of the pending answers is overdue.
    pub(super) fn answer_due(&self) -> Option<Deadline> {
        let leaders = self.leaders.values();
        leaders
            .filter_map(|leader| Some(leader.pending.as_ref()?.due))
            .min()
    }

    /// Counts the memory of an answer until its last record is handed out.
    pub(super) fn track(&mut self, bytes: usize) -> AnswerBytes {
        let answer = AnswerBytes::new(bytes);
        self.answers.push(Arc::downgrade(&answer));
        answer
    }

    /// Hands out fetched records. Partitions take turns at being first.
    pub(super) fn take_records(
        &mut self,
        reading: &mut Reading,
    ) -> Result<Vec<ConsumerRecord>, Error> {
        let mut out = Vec::new();
        let mut failed = None;
        let count = reading.partitions.len();
        if count == 0 {
            return Ok(out);
        }
        self.turn = (self.turn + 1) % count;
        let mut order: Vec<(&TopicPartition, &mut Partition)> =
            reading.partitions.iter_mut().collect();
        order.rotate_left(self.turn);
        for (name, partition) in order {
            if partition.is_paused {
                continue;
            }
            let room = reading.config.max_poll_records - out.len();
            if room == 0 {
                break;
            }
            match partition.hand_out(name, room, &mut out) {
                Ok(true) => {}
                Ok(false) => partition.not_before = Some(Instant::now() + RETRY_BACKOFF),
                Err(error) => {
                    // The fetch is repeated, in case the data was damaged in transit.
                    partition.not_before = Some(Instant::now() + DAMAGE_PAUSE);
                    let reason = format!("{name} at offset {:?}: {error}", partition.position());
                    failed = Some(reason);
                }
            }
        }
        if let Some(reason) = &failed {
            log::error!("{}: {reason}", reading.name);
        }
        match failed {
            // One failed partition does not delay the records of the others.
            Some(reason) if out.is_empty() => Err(Error::Protocol {
                address: "the log".to_owned(),
                reason,
            }),
            _ => Ok(out),
        }
    }

    /// Sends a fetch to every leader without a request in flight. Returns when to look again for
    /// leaders and partitions that back off.
    pub(super) fn send_fetches(
        &mut self,
        reading: &mut Reading,
        deadline: Deadline,
    ) -> Option<Instant> {
        let now = Instant::now();
        let max_idle = reading.cluster.config().connections_max_idle;
        for leader in self.leaders.values_mut() {
            leader.reap(now, max_idle);
        }
        let mut look_again = None;
        let mut wanted: BTreeMap<i32, Vec<TopicPartition>> = BTreeMap::new();
        let mut nodes = BTreeSet::new();
        let mut left_out = BTreeSet::new();
        let mut is_leaderless = false;
        // This runs for each poll and each partition, so the metadata are read once for each topic.
        let mut topic: &str = "";
        let mut leaders_of_topic = Vec::new();
        for (name, partition) in &reading.partitions {
            if partition.lookup == Some(Lookup::Committed) {
                continue;
            }
            // A paused partition may still look up its position.
            if partition.is_paused && partition.lookup.is_none() {
                continue;
            }
            if let Some(until) = partition.not_before.filter(|&until| until > now) {
                look_again = earlier(look_again, Some(until));
                continue;
            }
            if topic != &*name.topic {
                topic = &name.topic;
                leaders_of_topic = reading.cluster.leaders(topic);
            }
            let index = usize::try_from(name.partition).ok();
            let Some(leader) = index.and_then(|index| *leaders_of_topic.get(index)?) else {
                is_leaderless = true;
                continue;
            };
            let node = reading.node_to_ask(partition, leader, now);
            nodes.insert(node);
            if partition.lookup.is_none() && !partition.has_room() {
                left_out.insert(node);
            } else if !self.is_asked(node) {
                wanted.entry(node).or_default().push(name.clone());
            }
        }
        if is_leaderless {
            reading.want_metadata();
        }
        look_again = earlier(look_again, reading.metadata_due());
        if wanted.is_empty() {
            return look_again;
        }
        let room = self.make_room(reading, nodes.len());
        for (node, mut names) in wanted {
            let may_ask = |partition: &Partition| match room {
                _ if partition.lookup.is_some() => true,
                Room::Answers => true,
                Room::Drained => partition.is_drained(),
                // Records must be handed out first.
                Room::None => false,
            };
            names.retain(|name| reading.partitions.get(name).is_some_and(may_ask));
            if names.is_empty() {
                continue;
            }
            let leader = self.leaders.entry(node).or_insert_with(|| Leader::new(now));
            if leader.not_before > now {
                look_again = earlier(look_again, Some(leader.not_before));
                continue;
            }
            let turn = self.turn % names.len();
            names.rotate_left(turn);
            let config = &reading.config;
            let is_partial = left_out.contains(&node) || room != Room::Answers;
            let limits = FetchLimits {
                isolation: config.isolation,
                wait: match is_partial {
                    true => SHORT_FETCH_WAIT.min(config.fetch_max_wait),
                    false => config.fetch_max_wait,
                },
                bytes: match room {
                    Room::Answers => config.fetch_max_bytes,
                    _ => config.max_partition_fetch_bytes.min(config.fetch_max_bytes),
                },
            };
            if let Err(error) = self.ask_leader(reading, node, &names, limits, deadline) {
                self.leader_failed(reading, node, error);
                let leader = self.leaders.get(&node);
                look_again = earlier(look_again, leader.map(|leader| leader.not_before));
            }
        }
        look_again
    }

    /// Whether a request to the node is in flight.
    fn is_asked(&self, node: i32) -> bool {
        let leader = self.leaders.get(&node);
        leader.is_some_and(|leader| leader.pending.is_some())
    }

    /// The memory left for answers of `leaders` leaders. Drops the data of paused partitions if
    /// memory is short, because it would block the others. Data of the others is freed by the next
    /// polls.
    fn make_room(&mut self, reading: &mut Reading, leaders: usize) -> Room {
        let bytes = |setting: i32| leaders * usize::try_from(setting).unwrap_or(0);
        let limit = bytes(reading.config.fetch_max_bytes);
        if self.held_bytes() <= limit {
            return Room::Answers;
        }
        for partition in reading.partitions.values_mut() {
            if partition.is_paused {
                partition.drop_fetched();
            }
        }
        match self.held_bytes() {
            held if held <= limit => Room::Answers,
            // The last answers may have reached twice the limit.
            held if held <= 2 * limit + bytes(reading.config.max_partition_fetch_bytes) => {
                Room::Drained
            }
            _ => Room::None,
        }
    }

    /// The memory of all answers that still hold records to hand out.
    pub(super) fn held_bytes(&mut self) -> usize {
        self.answers.retain(|answer| answer.strong_count() > 0);
        let held = self.answers.iter().filter_map(Weak::upgrade);
        held.map(|bytes| *bytes).sum()
    }

    fn ask_leader(
        &mut self,
        reading: &mut Reading,
        node: i32,
        names: &[TopicPartition],
        limits: FetchLimits,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let step = reading.step_deadline(deadline);
        let resets: BTreeMap<TopicPartition, Asked<ResetTo>> = names
            .iter()
            .filter_map(|name| {
                let partition = reading.partitions.get(name)?;
                let what = partition.wanted_place()?;
                let topic_id = partition.topic_id;
                Some((name.clone(), Asked { what, topic_id }))
            })
            .collect();
        let Some(leader) = self.leaders.get_mut(&node) else {
            return Ok(());
        };
        let open = leader.connection.as_mut();
        if open.is_some_and(|connection| !connection.is_usable()) {
            leader.connection = None;
        }
        let mut connection = match leader.connection.take() {
            Some(connection) => connection,
            None => reading.cluster.connect(node, step)?,
        };
        let request = match resets.is_empty() {
            true => send_fetch(reading, (node, &mut connection), names, limits, step)?,
            // Positions first. Partitions with a position wait one round trip.
            false => {
                let times = resets
                    .iter()
                    .map(|(name, asked)| (name, asked.what.number()));
                let request = list_offsets_request(times, reading.config.isolation);
                PendingRequest::Offsets(connection.send(&request, step)?, resets)
            }
        };
        let due = reading.cluster.config().request_timeout + reading.config.fetch_max_wait;
        if let Some(leader) = self.leaders.get_mut(&node) {
            leader.connection = Some(connection);
            leader.pending = Some(Pending {
                request,
                due: Deadline::after(due),
            });
        }
        Ok(())
    }

    /// Receives a leader's answer if it has begun to arrive. Gives up an overdue one.
    pub(super) fn leader_answer(
        &mut self,
        reading: &mut Reading,
        node: i32,
        is_ready: bool,
    ) -> Result<(), Error> {
        let Some(leader) = self.leaders.get_mut(&node) else {
            return Ok(());
        };
        let is_overdue = leader
            .pending
            .as_ref()
            .is_some_and(|pending| pending.due.is_past());
        if !is_ready && !is_overdue {
            return Ok(());
        }
        let (Some(pending), Some(connection)) = (leader.pending.take(), leader.connection.as_mut())
        else {
            return Ok(());
        };
        // An answer that has begun to arrive gets time to arrive completely.
        let read_by = if is_ready {
            Deadline::after(reading.cluster.config().request_timeout)
        } else {
            pending.due
        };
        let taken = match pending.request {
            PendingRequest::Fetch(sent, asked) => connection
                .receive(sent, read_by)
                .map(|answer| self.fetched(reading, node, answer, &asked)),
            PendingRequest::Offsets(sent, resets) => connection
                .receive(sent, read_by)
                .map(|answer| reading.offsets_listed(node, &answer, &resets)),
        };
        match taken {
            Ok(result) => {
                if let Some(leader) = self.leaders.get_mut(&node) {
                    leader.backoff.reset();
                    let muted = leader.connection.as_ref().map(Connection::muted_for);
                    leader.not_before = Instant::now() + muted.unwrap_or_default();
                }
                result
            }
            Err(error) => {
                self.leader_failed(reading, node, error);
                Ok(())
            }
        }
    }

    fn leader_failed(&mut self, reading: &mut Reading, node: i32, error: Error) {
        log::debug!("{}: leader {node}: {error}", reading.name);
        if let Some(leader) = self.leaders.get_mut(&node) {
            leader.fail();
        }
        reading.drop_read_replica(node);
        // An unreachable leader may have been replaced.
        reading.want_metadata();
        reading.last_error = Some(error);
    }
}

/// Fetches by id if both leader and cluster support ids, so that no other topic of the same name is
/// read (KIP-516).
fn send_fetch(
    reading: &mut Reading,
    (node, connection): (i32, &mut Connection),
    names: &[TopicPartition],
    limits: FetchLimits,
    step: Deadline,
) -> Result<PendingRequest, Error> {
    let version = connection.version_of(ApiKey::Fetch)?;
    let partitions = &mut reading.partitions;
    let has_id = |name| {
        let partition: Option<&Partition> = partitions.get(name);
        partition.is_none_or(|partition| partition.topic_id.is_some())
    };
    let is_by_id = version >= FETCH_BY_ID && names.iter().all(has_id);
    let version = match is_by_id {
        true => version,
        false => version.min(FETCH_BY_ID - 1),
    };
    let mut asked = BTreeMap::new();
    let mut wanted = Vec::new();
    for name in names {
        let Some(partition) = partitions.get_mut(name) else {
            continue;
        };
        let Some(what) = partition.fetch_position() else {
            continue;
        };
        partition.id_verdict.asked(is_by_id);
        let topic_id = partition.topic_id;
        asked.insert(name.clone(), Asked { what, topic_id });
        // With the known epoch, a deposed leader answers "fenced" instead of serving records that
        // may be gone (KIP-320).
        let leader = reading.cluster.leader(&name.topic, name.partition);
        // After an unclean election has cut the log short, the leader answers where it diverges
        // from the records read (KIP-595, version 12).
        // A replica cannot tell that from records that it does not have yet.
        let last_epoch = match leader {
            Some((leader, _)) if version >= 12 && leader == node => partition.fetch_epoch(),
            _ => -1,
        };
        let fetch = FetchPartition::default()
            .with_partition(name.partition)
            .with_current_leader_epoch(leader.map_or(-1, |(_, epoch)| epoch))
            .with_fetch_offset(what)
            .with_last_fetched_epoch(last_epoch)
            .with_partition_max_bytes(reading.config.max_partition_fetch_bytes);
        wanted.push((&*name.topic, topic_id.filter(|_| is_by_id), fetch));
    }
    let mut request = fetch_request(wanted, limits);
    if let Some(rack) = reading.config.client_rack.as_deref()
        && version >= FETCH_FROM_RACK
    {
        request.rack_id = text(rack);
    }
    let sent = connection.send_at_most(&request, version, step)?;
    Ok(PendingRequest::Fetch(sent, asked))
}

/// The limits of one fetch.
#[derive(Clone, Copy, Debug)]
struct FetchLimits {
    isolation: Isolation,
    /// How long the broker may wait for records.
    wait: Duration,
    /// The most bytes of the answer.
    bytes: i32,
}

/// A Fetch request for partitions, each with its topic's name and id.
fn fetch_request<'a>(
    wanted: impl IntoIterator<Item = (&'a str, Option<Uuid>, FetchPartition)>,
    limits: FetchLimits,
) -> FetchRequest {
    let mut topics: Vec<FetchTopic> = Vec::new();
    for (name, id, partition) in wanted {
        let id = id.unwrap_or_default();
        let is_same = |topic: &&mut FetchTopic| *topic.topic.0 == *name && topic.topic_id == id;
        match topics.iter_mut().find(is_same) {
            Some(topic) => topic.partitions.push(partition),
            None => topics.push(
                FetchTopic::default()
                    .with_topic(topic_name(name))
                    .with_topic_id(id)
                    .with_partitions(vec![partition]),
            ),
        }
    }
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(millis(limits.wait))
        .with_min_bytes(1)
        .with_max_bytes(limits.bytes)
        .with_isolation_level(limits.isolation.level())
        // No fetch session (KIP-227); DESIGN.md says what one would save.
        .with_session_id(0)
        .with_session_epoch(-1)
        .with_topics(topics)
}
