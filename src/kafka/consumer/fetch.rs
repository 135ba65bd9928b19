//! Fetching: one request per leader on its way, positions looked up first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    ApiKey, BrokerId, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse,
    OffsetFetchResponse,
};

use super::partitions::{AnswerBytes, Lookup, Partition, ResetTo};
use super::{Consumer, ConsumerRecord, OffsetReset, RETRY_BACKOFF, RETRY_BACKOFF_MAX};
use crate::deadline::Deadline;
use crate::kafka::config::Backoff;
use crate::kafka::connection::Sent;
use crate::kafka::group::TopicPartition;
use crate::kafka::group::coordinator::topic_name;
use crate::kafka::group::ladder::Reaction;
use crate::kafka::group::machine::{Failure, Identity};
use crate::kafka::{Connection, Error};

/// How often topics that are unknown or long not asked about are looked at.
const METADATA_CHECK: Duration = Duration::from_secs(1);
/// How long a leader may wait for records while others of its partitions have some
/// here that were not handed out: those are asked for again next time.
const SHORT_FETCH_WAIT: Duration = Duration::from_millis(20);
/// Damaged or refused records are asked for again after this long.
const DAMAGE_PAUSE: Duration = Duration::from_secs(1);

/// The consumer's line to one leader.
#[derive(Debug)]
pub(super) struct Leader {
    connection: Option<Connection>,
    pending: Option<Pending>,
    backoff: Backoff,
    not_before: Instant,
}

#[derive(Debug)]
struct Pending {
    request: PendingRequest,
    /// What was asked for which partitions: their positions, or where to reset to.
    due: Deadline,
}

#[derive(Debug)]
enum PendingRequest {
    Fetch(Sent<FetchRequest>, BTreeMap<TopicPartition, i64>),
    Offsets(Sent<ListOffsetsRequest>, BTreeMap<TopicPartition, ResetTo>),
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

    /// The connection whose answer is waited for.
    pub fn awaited(&self) -> Option<&Connection> {
        self.pending.as_ref().and(self.connection.as_ref())
    }

    /// Closes a connection over which nothing has gone for so long: it leads nothing of
    /// ours any more.
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

/// The earlier of two moments, where `None` is never.
fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

impl Consumer {
    /// Sees to it that positions become known: committed offsets are asked of
    /// the coordinator, resets of the leaders. Returns when to look again.
    pub(super) fn advance_positions(
        &mut self,
        deadline: Deadline,
    ) -> Result<Option<Instant>, Error> {
        self.refresh_metadata(deadline);
        let now = Instant::now();
        let mut look_again = None;
        let mut unknown = Vec::new();
        for (name, partition) in &self.partitions {
            if partition.lookup == Some(Lookup::Committed) {
                match partition.not_before.filter(|&until| until > now) {
                    Some(until) => look_again = earlier(look_again, Some(until)),
                    None => unknown.push(name.clone()),
                }
            }
        }
        if !unknown.is_empty() && !self.coordinator.is_busy() {
            self.ask_committed(&unknown, deadline);
        }
        Ok(look_again)
    }

    /// The coordinator told what is committed.
    pub(super) fn committed_answer(
        &mut self,
        answer: &OffsetFetchResponse,
        identity: &Identity,
    ) -> Result<(), Error> {
        let refused = |code| Error::Broker {
            api: ApiKey::OffsetFetch,
            code,
        };
        if let Some(code) = ResponseError::try_from_code(answer.error_code) {
            return self.committed_refused(code, identity);
        }
        for topic in &answer.topics {
            for told in &topic.partitions {
                if let Some(code) = ResponseError::try_from_code(told.error_code) {
                    self.committed_refused(code, identity)?;
                    continue;
                }
                let name = TopicPartition::new(&*topic.name.0, told.partition_index);
                let Some(partition) = self.partitions.get_mut(&name) else {
                    continue;
                };
                if partition.lookup != Some(Lookup::Committed) {
                    continue;
                }
                if told.committed_offset >= 0 {
                    partition.start_committed(told.committed_offset, told.committed_leader_epoch);
                } else {
                    // Nothing committed yet.
                    let to = reset_to(self.config.auto_offset_reset)
                        .ok_or_else(|| refused(ResponseError::OffsetOutOfRange))?;
                    partition.reset(to);
                }
            }
        }
        // A partition the answer passed over is asked about again, but not at once.
        let later = Instant::now() + RETRY_BACKOFF;
        for partition in self.partitions.values_mut() {
            if partition.lookup == Some(Lookup::Committed) {
                partition.not_before = Some(later);
            }
        }
        Ok(())
    }

    fn committed_refused(&mut self, code: ResponseError, identity: &Identity) -> Result<(), Error> {
        let verdict = self.shared.machine().offset_fetch_failed(
            identity,
            Failure::Code(code),
            Instant::now(),
        );
        let error = Error::Broker {
            api: ApiKey::OffsetFetch,
            code,
        };
        if verdict == Reaction::Report {
            return Err(error);
        }
        self.trouble = Some(error);
        Ok(())
    }

    /// Metadata when somebody asked for it, or when it is getting old.
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
            Err(error) => self.trouble = Some(error),
        }
    }

    pub(super) fn want_metadata(&mut self) {
        if !self.metadata_wanted {
            self.metadata_wanted = true;
            self.metadata_not_before = self.metadata_not_before.min(Instant::now() + RETRY_BACKOFF);
        }
    }

    /// What is fetched already, the partitions taking turns at being first.
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
                    // Asked for again, in case it was damaged on the way.
                    partition.not_before = Some(Instant::now() + DAMAGE_PAUSE);
                    let reason = format!("{name} at offset {:?}: {error}", partition.position());
                    log::error!("consumer group {}: {reason}", self.config.group_id);
                    failed = Some(reason);
                }
            }
        }
        match failed {
            // The records of the others are not held up by it.
            Some(reason) if out.is_empty() => Err(Error::Protocol {
                address: "the log".to_owned(),
                reason,
            }),
            _ => Ok(out),
        }
    }

    /// Asks every leader with nothing on its way for what is wanted of it.
    /// Returns when to look again for those that have to wait.
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
            // Where a paused one begins may be found out all the same.
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
            // There is something to hand out first.
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

    /// Whether what is here leaves room for one more answer from each of so many
    /// leaders. What paused partitions hold gives way, or they would keep the others
    /// from being read; what the others hold goes with the next polls.
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

    /// The memory of all answers of which something is not handed out yet.
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
        let resets: BTreeMap<TopicPartition, ResetTo> = names
            .iter()
            .filter_map(|name| match self.partitions.get(name)?.lookup {
                Some(Lookup::Reset(to)) => Some((name.clone(), to)),
                _ => None,
            })
            .collect();
        let fetch = resets.is_empty().then(|| self.fetch_request(names, wait));
        let Some(leader) = self.leaders.get_mut(&node) else {
            return Ok(());
        };
        if leader
            .connection
            .as_mut()
            .is_some_and(|connection| !connection.is_usable())
        {
            leader.connection = None;
        }
        let connection = match leader.connection.take() {
            Some(connection) => leader.connection.insert(connection),
            None => leader.connection.insert(self.cluster.connect(node, step)?),
        };
        let request = match fetch {
            Some((mut request, positions)) => {
                // Asking whether the log still has what was read came with version 12.
                if connection.version_of(ApiKey::Fetch)? < 12 {
                    let topics = request.topics.iter_mut();
                    for partition in topics.flat_map(|topic| &mut topic.partitions) {
                        partition.last_fetched_epoch = -1;
                    }
                }
                PendingRequest::Fetch(connection.send(&request, step)?, positions)
            }
            // Positions first; what is known waits one round trip.
            None => PendingRequest::Offsets(
                connection.send(&list_offsets_request(&resets), step)?,
                resets,
            ),
        };
        let due = self.cluster.config().request_timeout + self.config.fetch_max_wait;
        leader.pending = Some(Pending {
            request,
            due: Deadline::after(due),
        });
        Ok(())
    }

    fn fetch_request(
        &self,
        names: &[TopicPartition],
        wait: Duration,
    ) -> (FetchRequest, BTreeMap<TopicPartition, i64>) {
        let mut positions = BTreeMap::new();
        let mut topics: Vec<FetchTopic> = Vec::new();
        for name in names {
            let Some((position, last_epoch)) = self
                .partitions
                .get(name)
                .and_then(|partition| Some((partition.fetch_position()?, partition.fetch_epoch())))
            else {
                continue;
            };
            positions.insert(name.clone(), position);
            // With the epoch we believe in, a deposed leader answers "fenced"
            // instead of serving records that may be gone (KIP-320).
            let epoch = self
                .cluster
                .leader(&name.topic, name.partition)
                .map_or(-1, |(_, epoch)| epoch);
            let partition = FetchPartition::default()
                .with_partition(name.partition)
                .with_current_leader_epoch(epoch)
                .with_fetch_offset(position)
                // The leader answers where its log parted from what we have read, if
                // an unclean election has cut it short (KIP-595).
                .with_last_fetched_epoch(last_epoch)
                .with_partition_max_bytes(self.config.max_partition_fetch_bytes);
            match topics
                .iter_mut()
                .find(|topic| *topic.topic.0 == *name.topic)
            {
                Some(topic) => topic.partitions.push(partition),
                None => topics.push(
                    FetchTopic::default()
                        .with_topic(topic_name(&name.topic))
                        .with_partitions(vec![partition]),
                ),
            }
        }
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(wait_ms)
            .with_min_bytes(1)
            .with_max_bytes(self.config.fetch_max_bytes)
            // No fetch session (KIP-227): it would save naming the partitions that have
            // not changed, but only those with room for another answer are asked for,
            // which are others each time.
            .with_session_id(0)
            .with_session_epoch(-1)
            .with_topics(topics);
        (request, positions)
    }

    /// Takes in a leader's answer if it has begun to arrive, and gives up on
    /// one that is overdue.
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
        // What has begun to arrive gets the time to arrive whole.
        let read_by = if is_ready {
            Deadline::after(self.cluster.config().request_timeout)
        } else {
            pending.due
        };
        let taken = match pending.request {
            PendingRequest::Fetch(sent, positions) => connection
                .receive(sent, read_by)
                .map(|answer| self.fetched(answer, &positions)),
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
        // A leader that cannot be reached may not be one any more.
        self.want_metadata();
        self.trouble = Some(error);
    }

    fn fetched(
        &mut self,
        answer: FetchResponse,
        positions: &BTreeMap<TopicPartition, i64>,
    ) -> Result<(), Error> {
        if let Err(error) = Error::check(ApiKey::Fetch, answer.error_code) {
            let later = Some(Instant::now() + RETRY_BACKOFF);
            for name in positions.keys() {
                if let Some(partition) = self.partitions.get_mut(name) {
                    partition.not_before = later;
                }
            }
            self.trouble = Some(error);
            return Ok(());
        }
        let told = answer.responses.iter().flat_map(|topic| &topic.partitions);
        let bytes = told.map(|told| told.records.as_ref().map_or(0, Bytes::len));
        let memory = AnswerBytes::new(bytes.sum());
        self.answers.push(Arc::downgrade(&memory));
        let mut result = Ok(());
        let mut is_trouble = false;
        for topic in answer.responses {
            for told in topic.partitions {
                let name = TopicPartition::new(&*topic.topic.0, told.partition_index);
                // Only what was asked for, and only as long as it is ours.
                let Some(&asked) = positions.get(&name) else {
                    continue;
                };
                let Some(partition) = self.partitions.get_mut(&name) else {
                    continue;
                };
                match ResponseError::try_from_code(told.error_code) {
                    None if told.diverging_epoch.end_offset >= 0 => {
                        let end = told.diverging_epoch.end_offset;
                        if partition.fetch_position() == Some(asked)
                            && let Some(position) = partition.position()
                            && end < position
                        {
                            log::warn!(
                                "consumer group {}: the log of {name} was cut short, {position} is beyond {end}",
                                self.config.group_id
                            );
                            if self.config.auto_offset_reset == OffsetReset::Error {
                                partition.not_before = Some(Instant::now() + DAMAGE_PAUSE);
                                result = Error::check(
                                    ApiKey::Fetch,
                                    ResponseError::OffsetOutOfRange.code(),
                                );
                                continue;
                            }
                        }
                        // From where the logs parted on, everything is new.
                        partition.diverged(asked, end);
                    }
                    None => {
                        partition.not_before = None;
                        if told.high_watermark >= 0 {
                            partition.high_watermark = Some(told.high_watermark);
                        }
                        let records = told.records.unwrap_or_default();
                        partition.fetched(asked, records, &memory);
                    }
                    Some(ResponseError::OffsetOutOfRange) => {
                        // Unless the position has moved since, which makes it stale news.
                        if partition.position() == Some(asked) {
                            match reset_to(self.config.auto_offset_reset) {
                                Some(to) => {
                                    log::warn!(
                                        "consumer group {}: {name} has no offset {asked}, resetting",
                                        self.config.group_id
                                    );
                                    partition.reset(to);
                                }
                                None => {
                                    partition.not_before = Some(Instant::now() + DAMAGE_PAUSE);
                                    result = Error::check(ApiKey::Fetch, told.error_code);
                                }
                            }
                        } else if partition.fetch_position() == Some(asked) {
                            // What was fetched before may still be handed out.
                            partition.not_before = Some(Instant::now() + RETRY_BACKOFF);
                        }
                    }
                    Some(code) => {
                        is_trouble = true;
                        let leader = &told.current_leader;
                        self.cluster.observe_leader(
                            &name.topic,
                            name.partition,
                            leader.leader_id.0,
                            leader.leader_epoch,
                        );
                        if let Err(error) = self.partition_refused(&name, ApiKey::Fetch, code) {
                            result = Err(error);
                        }
                    }
                }
            }
        }
        if !is_trouble && result.is_ok() {
            self.trouble = None;
        }
        result
    }

    /// A leader refused one partition: most reasons pass.
    fn partition_refused(
        &mut self,
        name: &TopicPartition,
        api: ApiKey,
        code: ResponseError,
    ) -> Result<(), Error> {
        let error = Error::Broker { api, code };
        let is_passing = code.is_retriable() || code == ResponseError::UnknownServerError;
        let pause = match code {
            ResponseError::UnknownServerError | ResponseError::CorruptMessage => DAMAGE_PAUSE,
            _ => RETRY_BACKOFF,
        };
        if let Some(partition) = self.partitions.get_mut(name) {
            partition.not_before =
                Some(Instant::now() + if is_passing { pause } else { DAMAGE_PAUSE });
        }
        log::debug!("consumer group {}: {name}: {error}", self.config.group_id);
        if !is_passing {
            return Err(error);
        }
        self.want_metadata();
        self.trouble = Some(error);
        Ok(())
    }

    fn offsets_listed(
        &mut self,
        answer: &ListOffsetsResponse,
        resets: &BTreeMap<TopicPartition, ResetTo>,
    ) -> Result<(), Error> {
        let mut result = Ok(());
        for topic in &answer.topics {
            for told in &topic.partitions {
                let name = TopicPartition::new(&*topic.name.0, told.partition_index);
                let Some(&asked) = resets.get(&name) else {
                    continue;
                };
                if let Some(code) = ResponseError::try_from_code(told.error_code) {
                    if let Err(error) = self.partition_refused(&name, ApiKey::ListOffsets, code) {
                        result = Err(error);
                    }
                    continue;
                }
                if let Some(partition) = self.partitions.get_mut(&name)
                    && partition.lookup == Some(Lookup::Reset(asked))
                {
                    partition.start_at(told.offset.max(0));
                }
            }
        }
        // Partitions the answer passed over are asked about again, but not at once.
        let later = Some(Instant::now() + RETRY_BACKOFF);
        for (name, &asked) in resets {
            if let Some(partition) = self.partitions.get_mut(name)
                && partition.lookup == Some(Lookup::Reset(asked))
            {
                partition.not_before = partition.not_before.max(later);
            }
        }
        result
    }
}

fn reset_to(policy: OffsetReset) -> Option<ResetTo> {
    match policy {
        OffsetReset::Earliest => Some(ResetTo::Earliest),
        OffsetReset::Latest => Some(ResetTo::Latest),
        OffsetReset::Error => None,
    }
}

fn list_offsets_request(resets: &BTreeMap<TopicPartition, ResetTo>) -> ListOffsetsRequest {
    let mut topics: BTreeMap<&str, Vec<ListOffsetsPartition>> = BTreeMap::new();
    for (name, to) in resets {
        let timestamp = match to {
            ResetTo::Earliest => -2,
            ResetTo::Latest => -1,
        };
        topics.entry(&name.topic).or_default().push(
            ListOffsetsPartition::default()
                .with_partition_index(name.partition)
                .with_timestamp(timestamp),
        );
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        ListOffsetsTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(partitions)
    });
    ListOffsetsRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_topics(topics.collect())
}
