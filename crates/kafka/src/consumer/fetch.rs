//! Fetch and ListOffsets requests: at most one in flight per leader, for positions first, then for
//! records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::{Duration, Instant};

use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{ApiKey, BrokerId, FetchRequest, ListOffsetsRequest};
use uuid::Uuid;

use super::partitions::{Lookup, Partition, ResetTo};
use super::positions::{earlier, list_offsets_request};
use super::{Consumer, ConsumerRecord, RETRY_BACKOFF, RETRY_BACKOFF_MAX};
use crate::config::Backoff;
use crate::connection::Sent;
use crate::group::TopicPartition;
use crate::group::coordinator::topic_name;
use crate::{Connection, Error};
use tbd_deadline::Deadline;

/// How often unknown or stale topics are checked.
const METADATA_CHECK: Duration = Duration::from_secs(1);
/// How long a leader may wait for records when some of its partitions were left out, because they
/// still hold records to hand out. The next fetch asks for those.
const SHORT_FETCH_WAIT: Duration = Duration::from_millis(20);
/// Pause before damaged or refused records are fetched again.
pub(super) const DAMAGE_PAUSE: Duration = Duration::from_secs(1);
/// First Fetch version that addresses topics by id.
pub(crate) const FETCH_BY_ID: i16 = 13;

/// The consumer's connection to one leader.
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

impl Consumer {
    /// Refreshes metadata when it was requested or is getting stale.
    pub(super) fn refresh_metadata(&mut self, deadline: Deadline) {
        let now = Instant::now();
        if now < self.metadata_not_before {
            return;
        }
        let topics = self.config.topics.clone();
        let step = self.step_deadline(deadline);
        let refreshed = if self.metadata_wanted {
            self.metadata_not_before = now + RETRY_BACKOFF;
            self.cluster.refresh(&topics, step)
        } else {
            self.metadata_not_before = now + METADATA_CHECK;
            self.cluster.refresh_stale(&topics, step)
        };
        match refreshed {
            Ok(()) => {
                self.metadata_wanted = false;
                self.check_led_counts();
            }
            Err(error) => self.last_error = Some(error),
        }
    }

    pub(super) fn want_metadata(&mut self) {
        if !self.metadata_wanted {
            self.metadata_wanted = true;
            self.metadata_not_before = self.metadata_not_before.min(Instant::now() + RETRY_BACKOFF);
        }
    }

    /// Hands out fetched records. Partitions take turns at being first.
    pub(super) fn take_records(&mut self) -> Result<Vec<ConsumerRecord>, Error> {
        let mut out = Vec::new();
        let mut failed = None;
        let count = self.partitions.len();
        if count == 0 {
            return Ok(out);
        }
        self.turn = (self.turn + 1) % count;
        let mut order: Vec<(&TopicPartition, &mut Partition)> =
            self.partitions.iter_mut().collect();
        order.rotate_left(self.turn);
        for (name, partition) in order {
            if partition.is_paused {
                continue;
            }
            let room = self.config.max_poll_records.max(1) - out.len();
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
                    log::error!("consumer group {}: {reason}", self.config.group_id);
                    failed = Some(reason);
                }
            }
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
    pub(super) fn send_fetches(&mut self, deadline: Deadline) -> Option<Instant> {
        let now = Instant::now();
        let max_idle = self.cluster.config().connections_max_idle;
        for leader in self.leaders.values_mut() {
            leader.reap(now, max_idle);
        }
        let mut look_again = None;
        let mut wanted: BTreeMap<i32, Vec<TopicPartition>> = BTreeMap::new();
        let mut left_out = BTreeSet::new();
        let mut is_leaderless = false;
        for (name, partition) in &self.partitions {
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
            match self.cluster.leader(&name.topic, name.partition) {
                Some((node, _)) if !partition.has_room() => {
                    left_out.insert(node);
                }
                Some((node, _)) => wanted.entry(node).or_default().push(name.clone()),
                None => is_leaderless = true,
            }
        }
        if is_leaderless {
            self.want_metadata();
        }
        if self.metadata_wanted {
            look_again = earlier(look_again, Some(self.metadata_not_before));
        }
        let leaders = wanted.keys().chain(&left_out).collect::<BTreeSet<_>>();
        if !wanted.is_empty() && !self.make_room(leaders.len()) {
            // Records must be handed out first.
            return look_again;
        }
        for (node, mut names) in wanted {
            let leader = self.leaders.entry(node).or_insert_with(|| Leader::new(now));
            if leader.pending.is_some() {
                continue;
            }
            if leader.not_before > now {
                look_again = earlier(look_again, Some(leader.not_before));
                continue;
            }
            let turn = self.turn % names.len();
            names.rotate_left(turn);
            let wait = match left_out.contains(&node) {
                true => SHORT_FETCH_WAIT.min(self.config.fetch_max_wait),
                false => self.config.fetch_max_wait,
            };
            if let Err(error) = self.ask_leader(node, &names, wait, deadline) {
                self.leader_failed(node, error);
                look_again = earlier(
                    look_again,
                    self.leaders.get(&node).map(|leader| leader.not_before),
                );
            }
        }
        look_again
    }

    /// Whether memory is left for one more answer from each of `leaders` leaders. Drops the data of
    /// paused partitions if it must, because it would block the others. Data of the others is freed
    /// by the next polls.
    fn make_room(&mut self, leaders: usize) -> bool {
        let limit = leaders * usize::try_from(self.config.fetch_max_bytes).unwrap_or(0);
        if self.held_bytes() <= limit {
            return true;
        }
        for partition in self.partitions.values_mut() {
            if partition.is_paused {
                partition.drop_fetched();
            }
        }
        self.held_bytes() <= limit
    }

    /// The memory of all answers that still hold records to hand out.
    pub(super) fn held_bytes(&mut self) -> usize {
        self.answers.retain(|answer| answer.strong_count() > 0);
        let held = self.answers.iter().filter_map(Weak::upgrade);
        held.map(|bytes| *bytes).sum()
    }

    fn ask_leader(
        &mut self,
        node: i32,
        names: &[TopicPartition],
        wait: Duration,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let step = self.step_deadline(deadline);
        let resets: BTreeMap<TopicPartition, Asked<ResetTo>> = names
            .iter()
            .filter_map(|name| {
                let partition = self.partitions.get(name)?;
                let Some(Lookup::Reset(what)) = partition.lookup else {
                    return None;
                };
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
            None => self.cluster.connect(node, step)?,
        };
        let request = match resets.is_empty() {
            true => self.send_fetch(&mut connection, names, wait, step)?,
            // Positions first. Partitions with a position wait one round trip.
            false => {
                let request = list_offsets_request(&resets);
                PendingRequest::Offsets(connection.send(&request, step)?, resets)
            }
        };
        let due = self.cluster.config().request_timeout + self.config.fetch_max_wait;
        if let Some(leader) = self.leaders.get_mut(&node) {
            leader.connection = Some(connection);
            leader.pending = Some(Pending {
                request,
                due: Deadline::after(due),
            });
        }
        Ok(())
    }

    /// Fetches by id if both leader and cluster support ids, so that no other topic of the same
    /// name is read (KIP-516).
    fn send_fetch(
        &mut self,
        connection: &mut Connection,
        names: &[TopicPartition],
        wait: Duration,
        step: Deadline,
    ) -> Result<PendingRequest, Error> {
        let version = connection.version_of(ApiKey::Fetch)?;
        let has_id = |name| {
            let partition: Option<&Partition> = self.partitions.get(name);
            partition.is_none_or(|partition| partition.topic_id.is_some())
        };
        let is_by_id = version >= FETCH_BY_ID && names.iter().all(has_id);
        let version = match is_by_id {
            true => version,
            false => version.min(FETCH_BY_ID - 1),
        };
        let (request, asked) = self.fetch_request(names, wait, version);
        for name in asked.keys() {
            if let Some(partition) = self.partitions.get_mut(name) {
                partition.id_verdict.asked(is_by_id);
            }
        }
        let sent = connection.send_at_most(&request, version, step)?;
        Ok(PendingRequest::Fetch(sent, asked))
    }

    fn fetch_request(
        &self,
        names: &[TopicPartition],
        wait: Duration,
        version: i16,
    ) -> (FetchRequest, BTreeMap<TopicPartition, Asked<i64>>) {
        let mut asked = BTreeMap::new();
        let mut topics: Vec<FetchTopic> = Vec::new();
        for name in names {
            let Some(partition) = self.partitions.get(name) else {
                continue;
            };
            let Some(what) = partition.fetch_position() else {
                continue;
            };
            let topic_id = partition.topic_id;
            asked.insert(name.clone(), Asked { what, topic_id });
            // With the known epoch, a deposed leader answers "fenced" instead of serving records
            // that may be gone (KIP-320).
            let epoch = self
                .cluster
                .leader(&name.topic, name.partition)
                .map_or(-1, |(_, epoch)| epoch);
            // After an unclean election has cut the log short, the leader answers where it diverges
            // from the records read (KIP-595, version 12).
            let last_epoch = if version < 12 {
                -1
            } else {
                partition.fetch_epoch()
            };
            let wanted = FetchPartition::default()
                .with_partition(name.partition)
                .with_current_leader_epoch(epoch)
                .with_fetch_offset(what)
                .with_last_fetched_epoch(last_epoch)
                .with_partition_max_bytes(self.config.max_partition_fetch_bytes);
            let id = topic_id.filter(|_| version >= FETCH_BY_ID);
            let id = id.unwrap_or_default();
            match topics
                .iter_mut()
                .find(|topic| *topic.topic.0 == *name.topic && topic.topic_id == id)
            {
                Some(topic) => topic.partitions.push(wanted),
                None => topics.push(
                    FetchTopic::default()
                        .with_topic(topic_name(&name.topic))
                        .with_topic_id(id)
                        .with_partitions(vec![wanted]),
                ),
            }
        }
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(wait_ms)
            .with_min_bytes(1)
            .with_max_bytes(self.config.fetch_max_bytes)
            // No fetch session (KIP-227). A session avoids naming unchanged partitions, but each
            // fetch names only partitions with room for another answer, and those differ each time.
            .with_session_id(0)
            .with_session_epoch(-1)
            .with_topics(topics);
        (request, asked)
    }

    /// Receives a leader's answer if it has begun to arrive. Gives up an overdue one.
    pub(super) fn leader_answer(&mut self, node: i32, is_ready: bool) -> Result<(), Error> {
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
            Deadline::after(self.cluster.config().request_timeout)
        } else {
            pending.due
        };
        let taken = match pending.request {
            PendingRequest::Fetch(sent, asked) => connection
                .receive(sent, read_by)
                .map(|answer| self.fetched(answer, &asked)),
            PendingRequest::Offsets(sent, resets) => connection
                .receive(sent, read_by)
                .map(|answer| self.offsets_listed(&answer, &resets)),
        };
        match taken {
            Ok(result) => {
                if let Some(leader) = self.leaders.get_mut(&node) {
                    leader.backoff.reset();
                }
                result
            }
            Err(error) => {
                self.leader_failed(node, error);
                Ok(())
            }
        }
    }

    fn leader_failed(&mut self, node: i32, error: Error) {
        log::debug!(
            "consumer group {}: leader {node}: {error}",
            self.config.group_id
        );
        if let Some(leader) = self.leaders.get_mut(&node) {
            leader.fail();
        }
        // An unreachable leader may have been replaced.
        self.want_metadata();
        self.last_error = Some(error);
    }
}
