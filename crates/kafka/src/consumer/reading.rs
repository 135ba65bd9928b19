//! What a consumer reads: its topics, their metadata, and the state of its partitions.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{ConsumerConfig, ConsumerHooks, MissingTopics, StartAt};
use super::fetch::DAMAGE_PAUSE;
use super::partitions::{Partition, Partitions, ReadReplica};
use super::transaction::Given;
use super::{RETRY_BACKOFF, STEP_MIN};
use crate::group::TopicPartition;
use crate::{ApiKey, Cluster, Error, ErrorCode};
use tbd_deadline::Deadline;

/// How often unknown or stale topics are checked.
const METADATA_CHECK: Duration = Duration::from_secs(1);
/// How long a topic or partition must be missing before the policy applies: a broker learns of a new topic late.
const MISSING_PATIENCE: Duration = Duration::from_secs(1);

/// What a hook panicked with.
type Panic = Box<dyn Any + Send>;

/// What the cluster does not have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Absent {
    Topic(Arc<str>),
    Partition(TopicPartition),
}

impl fmt::Display for Absent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(topic) => write!(out, "topic {topic}"),
            Self::Partition(name) => write!(out, "partition {name}"),
        }
    }
}

/// The part of a consumer that both its fetches and its membership work on.
pub(super) struct Reading {
    pub(super) cluster: Cluster,
    pub(super) config: ConsumerConfig,
    /// The consumer's name in logs.
    pub(super) name: String,
    pub(super) hooks: Box<dyn ConsumerHooks>,
    /// The first panic in a hook since the last poll.
    hook_panic: Option<Panic>,
    pub(super) partitions: Partitions,
    pub(super) given: Given,
    /// The topics subscribed to, or those of the partitions that the application assigned.
    pub(super) topics: Arc<[Arc<str>]>,
    /// When to ask the filter about the cluster's topics again.
    discover_at: Instant,
    /// What is missing: since when, and whether the log says so.
    missing: BTreeMap<Absent, (Instant, bool)>,
    metadata_wanted: bool,
    /// When to ask for metadata again, or to check their age.
    pub(super) metadata_not_before: Instant,
    /// Counts successful requests for metadata.
    pub(super) refreshes: u64,
    /// The last error, until something succeeds.
    pub(super) last_error: Option<Error>,
}

impl Reading {
    pub(super) fn new(
        cluster: Cluster,
        config: ConsumerConfig,
        hooks: Box<dyn ConsumerHooks>,
    ) -> Self {
        let now = Instant::now();
        Self {
            cluster,
            topics: config
                .topics
                .iter()
                .map(|topic| topic.as_str().into())
                .collect(),
            name: match config.group_id.as_str() {
                "" => "consumer without a group".to_owned(),
                group_id => format!("consumer group {group_id}"),
            },
            config,
            hooks,
            hook_panic: None,
            partitions: Partitions::new(),
            given: Given::default(),
            discover_at: now,
            missing: BTreeMap::new(),
            metadata_wanted: false,
            metadata_not_before: now,
            refreshes: 0,
            last_error: None,
        }
    }

    pub(super) fn assignment(&self) -> Vec<TopicPartition> {
        self.partitions.keys().cloned().collect()
    }

    /// Whether a partition that is read has no record to hand out.
    pub(super) fn has_starving_partition(&self) -> bool {
        let mut partitions = self.partitions.values();
        partitions.any(|partition| !partition.is_paused && partition.is_drained())
    }

    /// Reads exactly these partitions. Known ones keep their state.
    pub(super) fn assign(
        &mut self,
        wanted: BTreeMap<TopicPartition, StartAt>,
    ) -> Result<(), Error> {
        for (name, start) in &wanted {
            if let StartAt::Offset(offset) = start {
                Error::check_offset(name, *offset)?;
            }
        }
        let topics: BTreeSet<Arc<str>> = wanted.keys().map(|name| name.topic.clone()).collect();
        self.topics = topics.into_iter().collect();
        self.partitions.retain(|name, _| wanted.contains_key(name));
        for (name, start) in wanted {
            let known = self.partitions.entry(name);
            known.or_insert_with(|| Partition::starting(start));
        }
        self.want_metadata();
        Ok(())
    }

    /// Calls a hook. The membership must go on whatever it does, so a panic is kept until
    /// [`end_by_panic`](Self::end_by_panic).
    pub(super) fn call_hook(&mut self, hook: impl FnOnce(&dyn ConsumerHooks)) {
        let call = AssertUnwindSafe(|| hook(&*self.hooks));
        self.hook_called(std::panic::catch_unwind(call));
    }

    pub(super) fn hook_called(&mut self, result: Result<(), Panic>) {
        if let Err(panic) = result {
            self.hook_panic.get_or_insert(panic);
        }
    }

    /// Continues the panic of a hook on the application's thread.
    pub(super) fn end_by_panic(&mut self) {
        if let Some(panic) = self.hook_panic.take() {
            std::panic::resume_unwind(panic);
        }
    }

    /// The error to end a poll with, if there is one: at the deadline, or at once when no waiting
    /// helps.
    pub(super) fn take_error(&mut self, deadline: Deadline) -> Option<Error> {
        self.last_error
            .take_if(|error| deadline.is_past() || error.is_no_admission())
    }

    /// The deadline of one blocking exchange within a poll.
    pub(super) fn step_deadline(&self, deadline: Deadline) -> Deadline {
        let step = Deadline::at(deadline.instant().max(Deadline::after(STEP_MIN).instant()));
        step.earlier_of(Deadline::after(self.cluster.config().request_timeout))
    }

    /// Asks the filter about the cluster's topics if that is due. Returns true when the
    /// subscription has changed.
    pub(super) fn discover_topics(&mut self, deadline: Deadline) -> bool {
        let now = Instant::now();
        let Some(filter) = self
            .config
            .topic_filter
            .clone()
            .filter(|_| now >= self.discover_at)
        else {
            return false;
        };
        let all = match self.cluster.list_topics(self.step_deadline(deadline)) {
            Ok(all) => all,
            Err(error) => {
                self.discover_at = now + RETRY_BACKOFF;
                self.last_error = Some(error);
                return false;
            }
        };
        self.discover_at = now + self.cluster.config().metadata_max_age;
        let named = self.config.topics.iter().cloned();
        let picked = all.into_iter().filter(|topic| filter.is_wanted(topic));
        let topics: BTreeSet<Arc<str>> = named.chain(picked).map(Arc::from).collect();
        let topics: Arc<[Arc<str>]> = topics.into_iter().collect();
        let has_changed = topics != self.topics;
        self.topics = topics;
        has_changed
    }

    /// When to ask the filter again, if there is one.
    pub(super) fn discovery_due(&self) -> Option<Instant> {
        let filter = self.config.topic_filter.as_ref();
        filter.map(|_| self.discover_at)
    }

    /// Refreshes metadata when it was requested or is getting stale.
    ///
    /// # Errors
    /// A missing topic or partition, if the policy says so.
    pub(super) fn refresh_metadata(&mut self, deadline: Deadline) -> Result<(), Error> {
        let now = Instant::now();
        if now < self.metadata_not_before {
            return Ok(());
        }
        let step = self.step_deadline(deadline);
        let refreshed = if self.metadata_wanted {
            self.metadata_not_before = now + RETRY_BACKOFF;
            self.cluster.refresh(&self.topics, step)
        } else {
            self.metadata_not_before = now + METADATA_CHECK;
            self.cluster.refresh_stale(&self.topics, step)
        };
        match refreshed {
            Ok(()) => {
                self.metadata_wanted = false;
                self.refreshes += 1;
                self.check_missing(now)
            }
            Err(error) => {
                self.last_error = Some(error);
                Ok(())
            }
        }
    }

    fn check_missing(&mut self, now: Instant) -> Result<(), Error> {
        let absent = self.absent();
        self.missing.retain(|name, (_, is_logged)| {
            let is_absent = absent.contains_key(name);
            if *is_logged && !is_absent {
                log::info!("{}: {name} exists now", self.name);
            }
            is_absent
        });
        for (name, error) in absent {
            let (since, is_logged) = self.missing.entry(name).or_insert((now, false));
            if now.saturating_duration_since(*since) < MISSING_PATIENCE {
                continue;
            }
            match self.config.missing_topics {
                MissingTopics::Error => return Err(error),
                MissingTopics::Warn if !*is_logged => {
                    *is_logged = true;
                    log::warn!(
                        "{}: {error}; it reads nothing there until that changes",
                        self.name
                    );
                }
                MissingTopics::Warn | MissingTopics::Wait => {}
            }
        }
        Ok(())
    }

    /// The topics and partitions that the cluster does not have or does not show, as far as is known.
    fn absent(&self) -> BTreeMap<Absent, Error> {
        let topics = self.topics.iter().filter_map(|topic| {
            let code = self.cluster.topic_error(topic);
            let code = code.filter(|code| *code != ErrorCode::LeaderNotAvailable)?;
            let error = Error::refused_topic(ApiKey::Metadata, code, topic);
            Some((Absent::Topic(topic.clone()), error))
        });
        let partitions = self.partitions.keys().filter_map(|name| {
            let count = self.cluster.partitions(&name.topic)?;
            let code = ErrorCode::UnknownTopicOrPartition;
            let error = || Error::refused_partition(ApiKey::Metadata, code, name);
            let is_there = (0..count).contains(&name.partition);
            (!is_there).then(|| (Absent::Partition(name.clone()), error()))
        });
        topics.chain(partitions).collect()
    }

    pub(super) fn want_metadata(&mut self) {
        if !self.metadata_wanted {
            self.metadata_wanted = true;
            self.metadata_not_before = self.metadata_not_before.min(Instant::now() + RETRY_BACKOFF);
        }
    }

    /// When metadata will be requested, if it is wanted.
    pub(super) fn metadata_due(&self) -> Option<Instant> {
        self.metadata_wanted.then_some(self.metadata_not_before)
    }

    /// The node to ask about a partition next: its leader, or the replica that the leader has named.
    pub(super) fn node_to_ask(
        &self,
        partition: &Partition,
        leader: (i32, i32),
        now: Instant,
    ) -> i32 {
        let node = partition.node_to_ask(leader, now);
        // A replica may leave the cluster.
        let is_known = node == leader.0 || self.cluster.address(node).is_some();
        if is_known { node } else { leader.0 }
    }

    /// Whether `node` leads a partition, as far as this client knows. Without a leader now, it did
    /// when it was asked, unless it is a replica that was named.
    pub(super) fn is_leader(&self, name: &TopicPartition, node: i32) -> bool {
        if let Some((leader, _)) = self.cluster.leader(&name.topic, name.partition) {
            return leader == node;
        }
        let replica = self.partitions.get(name).and_then(|it| it.read_replica);
        replica.is_none_or(|replica| replica.node != node)
    }

    /// The leader of a partition names a replica to fetch from.
    pub(super) fn take_read_replica(&mut self, name: &TopicPartition, node: i32, asked: i32) {
        let leader = self.cluster.leader(&name.topic, name.partition);
        let Some((_, leader_epoch)) = leader.filter(|(leader, _)| *leader == asked) else {
            return;
        };
        let is_known = self.cluster.address(node).is_some();
        let now = Instant::now();
        // With a shorter time the leader would only ever name the replica.
        let max_age = self.cluster.config().metadata_max_age.max(METADATA_CHECK);
        if let Some(partition) = self.partitions.get_mut(name) {
            if is_known {
                partition.read_replica = Some(ReadReplica {
                    node,
                    leader_epoch,
                    until: now + max_age,
                });
            } else {
                partition.not_before = Some(now + RETRY_BACKOFF);
            }
        }
        match is_known {
            true => log::debug!("{}: {name} is fetched from node {node}", self.name),
            false => self.want_metadata(),
        }
    }

    /// Partitions that were fetched from this replica are fetched from their leaders again.
    pub(super) fn drop_read_replica(&mut self, node: i32) {
        for partition in self.partitions.values_mut() {
            partition.read_replica = partition.read_replica.filter(|it| it.node != node);
        }
    }

    /// The error with which a node refused something.
    pub(super) fn refused_by(&self, node: i32, error: Error) -> Error {
        error.of_broker(self.cluster.address(node).as_deref())
    }

    /// A node refused one partition. Most such errors are transient.
    pub(super) fn partition_refused(
        &mut self,
        name: &TopicPartition,
        node: i32,
        api: ApiKey,
        code: ErrorCode,
    ) -> Result<(), Error> {
        let error = self.refused_by(node, Error::refused_partition(api, code, name));
        let is_passing = code.is_retriable() || code == ErrorCode::UnknownServerError;
        let pause = match code {
            ErrorCode::UnknownServerError | ErrorCode::CorruptMessage => DAMAGE_PAUSE,
            _ if is_passing => RETRY_BACKOFF,
            _ => DAMAGE_PAUSE,
        };
        if let Some(partition) = self.partitions.get_mut(name) {
            partition.not_before = Some(Instant::now() + pause);
        }
        log::debug!("{}: {error}", self.name);
        if !is_passing {
            return Err(error);
        }
        self.want_metadata();
        self.last_error = Some(error.of_repeated());
        Ok(())
    }
}
