//! Cached cluster metadata: partition leaders and broker addresses.
//!
//! The metadata is a cache that any thread may read at any time. Its lock guards memory only:
//! while one thread asks for metadata, only threads that ask too wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::ApiKey;
use crate::ErrorCode;
use kafka_protocol::messages::MetadataRequest;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{MetadataResponse, MetadataResponseTopic};
use uuid::Uuid;

use super::config::ClientConfig;
use super::connection::{Connection, Interrupts};
use super::error::Error;
use super::lock;
use super::wire::{host_port, topic_name};
use tbd_deadline::Deadline;

/// The leader epoch if the broker sent none.
const NO_EPOCH: i32 = -1;

/// How long a missing topic is known at least after a client last asked about it.
const MISSING_LIFETIME: Duration = Duration::from_secs(60);

/// A handle on one Kafka cluster: its configuration and its cached metadata. Clones share both.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
    /// Closes the connections that are made through this handle.
    interrupts: Option<Arc<Interrupts>>,
}

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    metadata: Mutex<Metadata>,
    /// The connection of the last metadata request. Taken out while in use.
    idle_connection: Mutex<Option<Connection>>,
}

#[derive(Debug, Default)]
struct Metadata {
    nodes: BTreeMap<i32, String>,
    /// The racks of those nodes that have one.
    racks: BTreeMap<i32, Arc<str>>,
    controller: Option<i32>,
    topics: HashMap<String, Topic>,
}

#[derive(Debug)]
struct Topic {
    id: Uuid,
    /// By partition number, without gaps.
    partitions: Vec<Leader>,
    /// The nodes that have a replica, by partition number.
    replicas: Vec<Vec<i32>>,
    /// The error of the last metadata response, if it had one for this topic.
    error: Option<ErrorCode>,
    refreshed: Instant,
}

/// Who leads a partition, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leader {
    /// `None` during an election.
    node: Option<i32>,
    epoch: i32,
}

impl Cluster {
    /// A cluster without metadata: only the configured addresses are known. No I/O. A wrong setting
    /// is an [`Error::Config`] of the clients that start with it, and of every call that connects.
    pub fn new(config: ClientConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                metadata: Mutex::default(),
                idle_connection: Mutex::new(None),
            }),
            interrupts: None,
        }
    }

    /// A handle for a thread that `interrupts` can stop.
    pub(crate) fn interruptible(&self, interrupts: &Arc<Interrupts>) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            interrupts: Some(Arc::clone(interrupts)),
        }
    }

    /// The settings of this handle.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// Asks the cluster about `topics` (none: only about its nodes), waiting at
    /// most until `deadline`. Never creates a topic.
    ///
    /// A missing topic is no error here: call [`Cluster::topic_error`] or [`Cluster::partitions`]
    /// afterwards.
    ///
    /// # Errors
    /// When no broker answered.
    pub fn refresh<T: AsRef<str>>(&self, topics: &[T], deadline: Deadline) -> Result<(), Error> {
        let names: BTreeSet<&str> = topics.iter().map(AsRef::as_ref).collect();
        let names: Vec<&str> = names.into_iter().collect();
        self.describe(&names, deadline).map(drop)
    }

    /// As [`Cluster::refresh`], but only for those `topics` whose metadata is missing, an error, or
    /// older than the configured maximum age. Does not wait when all are fresh.
    ///
    /// # Errors
    /// As [`Cluster::refresh`].
    pub(crate) fn refresh_stale<T: AsRef<str>>(
        &self,
        topics: &[T],
        deadline: Deadline,
    ) -> Result<(), Error> {
        let max_age = self.inner.config.metadata_max_age;
        let stale: Vec<&str> = {
            let metadata = self.metadata();
            let fresh = |name: &str| {
                metadata.topics.get(name).is_some_and(|topic| {
                    topic.error.is_none() && topic.refreshed.elapsed() < max_age
                })
            };
            topics
                .iter()
                .map(AsRef::as_ref)
                .filter(|name| !fresh(name))
                .collect()
        };
        if stale.is_empty() {
            return Ok(());
        }
        self.refresh(&stale, deadline)
    }

    /// The names of all topics of the cluster, without internal ones. Waits at most until
    /// `deadline`.
    ///
    /// # Errors
    /// When no broker answered.
    pub(crate) fn list_topics(&self, deadline: Deadline) -> Result<Vec<String>, Error> {
        let response = self.exchange(&metadata_request(None), deadline)?;
        Ok(response
            .topics
            .iter()
            .filter(|topic| !topic.is_internal)
            .filter_map(|topic| topic.name.as_ref().map(|name| name.to_string()))
            .collect())
    }

    /// As [`Cluster::refresh`], for the whole answer. Without topics, only about the nodes.
    pub(crate) fn describe(
        &self,
        topics: &[&str],
        deadline: Deadline,
    ) -> Result<MetadataResponse, Error> {
        let response = self.exchange(&metadata_request(Some(topics)), deadline)?;
        // Every client asks about its topics more often.
        let age = self.inner.config.metadata_max_age.saturating_mul(2);
        let mut metadata = self.metadata();
        metadata.take_in(&response);
        metadata.forget_missing(age.max(MISSING_LIFETIME));
        Ok(response)
    }

    /// The leader's node id and epoch (-1 when the broker sent none), or `None` when the partition
    /// is unknown or has no leader now. Does not wait.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<(i32, i32)> {
        let index = usize::try_from(partition).ok()?;
        let metadata = self.metadata();
        let leader = metadata.topics.get(topic)?.partitions.get(index)?;
        leader.node.map(|node| (node, leader.epoch))
    }

    /// As [`Cluster::leader`], for all partitions of a topic in their order.
    pub(crate) fn leaders(&self, topic: &str) -> Vec<Option<(i32, i32)>> {
        let metadata = self.metadata();
        let partitions = metadata.topics.get(topic).map(|topic| &topic.partitions);
        let leaders = partitions.into_iter().flatten();
        leaders
            .map(|leader| leader.node.map(|node| (node, leader.epoch)))
            .collect()
    }

    /// How many partitions `topic` has, or `None` while that is unknown. Does not wait.
    pub fn partitions(&self, topic: &str) -> Option<i32> {
        let metadata = self.metadata();
        let count = metadata.topics.get(topic)?.partitions.len();
        i32::try_from(count).ok().filter(|count| *count > 0)
    }

    /// The racks that have a replica, for each partition of a topic in their order.
    pub(crate) fn replica_racks(&self, topic: &str) -> Vec<BTreeSet<Arc<str>>> {
        let metadata = self.metadata();
        let replicas = metadata.topics.get(topic).map(|topic| &topic.replicas);
        let racks_of = |nodes: &Vec<i32>| {
            let racks = nodes.iter().filter_map(|node| metadata.racks.get(node));
            racks.cloned().collect()
        };
        replicas.into_iter().flatten().map(racks_of).collect()
    }

    /// The name of the topic with that id, if its metadata was requested before. Does not wait.
    pub(crate) fn topic_of(&self, id: Uuid) -> Option<Arc<str>> {
        let metadata = self.metadata();
        let mut topics = metadata.topics.iter();
        let found = topics.find(|(_, topic)| topic.id == id && !id.is_nil());
        found.map(|(name, _)| name.as_str().into())
    }

    /// The id of the topic that has this name now, as far as is known. A topic that was deleted
    /// and created again has another id. `None` when the topic is unknown or the broker sends no
    /// ids. Does not wait.
    pub fn topic_id(&self, topic: &str) -> Option<Uuid> {
        let metadata = self.metadata();
        let id = metadata.topics.get(topic)?.id;
        (!id.is_nil()).then_some(id)
    }

    /// The error of the last metadata response for `topic`, if it had one. Does not wait.
    pub fn topic_error(&self, topic: &str) -> Option<ErrorCode> {
        self.metadata().topics.get(topic)?.error
    }

    /// Records a partition's leader that a broker named in a response other than Metadata. An epoch
    /// that is not newer than the known one is ignored.
    pub(crate) fn observe_leader(&self, topic: &str, partition: i32, node: i32, epoch: i32) {
        let Ok(index) = usize::try_from(partition) else {
            return;
        };
        let mut metadata = self.metadata();
        // A node without a known address cannot be dialled yet.
        if !metadata.nodes.contains_key(&node) {
            return;
        }
        if let Some(leader) = metadata
            .topics
            .get_mut(topic)
            .and_then(|topic| topic.partitions.get_mut(index))
            && epoch > leader.epoch
        {
            *leader = Leader {
                node: Some(node),
                epoch,
            };
        }
    }

    /// The address of a node, if metadata has named it.
    #[doc(hidden)] // for this repository's own tests
    pub fn address(&self, node: i32) -> Option<String> {
        self.metadata().nodes.get(&node).cloned()
    }

    /// Opens a new connection to a node, waiting at most until `deadline`.
    ///
    /// # Errors
    /// [`Error::UnknownNode`] when no metadata has named it; otherwise as
    /// [`Connection::open`].
    #[doc(hidden)] // for this repository's own tests
    pub fn connect(&self, node: i32, deadline: Deadline) -> Result<Connection, Error> {
        let address = self.address(node).ok_or(Error::UnknownNode { node })?;
        self.open(&address, deadline)
    }

    /// Opens a new connection to `address`, waiting at most until `deadline`.
    ///
    /// # Errors
    /// [`Error::Config`]; otherwise as [`Connection::open`].
    pub(crate) fn open(&self, address: &str, deadline: Deadline) -> Result<Connection, Error> {
        let config = &self.inner.config;
        config.check()?;
        Connection::open_for(self.interrupts.as_deref(), address, config, deadline)
    }

    /// Opens a new connection to the first broker that answers. Tries all known nodes and all
    /// configured addresses once each, in turn. Waits at most until `deadline`, and gives each
    /// address only its share of the time.
    ///
    /// # Errors
    /// The last attempt's.
    #[doc(hidden)] // for this repository's own tests
    pub fn connect_any(&self, deadline: Deadline) -> Result<Connection, Error> {
        let connected = self.ask_any(deadline, |_, _| Ok(()));
        connected.map(|(connection, ())| connection)
    }

    /// As [`Cluster::connect_any`], for the first broker that answers `ask`.
    fn ask_any<T>(
        &self,
        deadline: Deadline,
        ask: impl Fn(&mut Connection, Deadline) -> Result<T, Error>,
    ) -> Result<(Connection, T), Error> {
        let candidates = self.candidates();
        let mut last = Error::Unreachable {
            address: "any".to_owned(),
            reason: "no broker address is configured".to_owned(),
        };
        for (index, address) in candidates.iter().enumerate() {
            let untried = u32::try_from(candidates.len() - index).unwrap_or(u32::MAX);
            let left = deadline.remaining();
            if left.is_zero() {
                break;
            }
            let share = deadline.earlier_of(Deadline::after(left / untried));
            let answer = self.open(address, share).and_then(|mut connection| {
                ask(&mut connection, share).map(|answer| (connection, answer))
            });
            match answer {
                Err(error) if !wants_bootstrap(&error) => last = error,
                answer => return answer,
            }
        }
        Err(last)
    }

    /// The controller's node id in the last metadata response.
    pub(crate) fn controller(&self) -> Option<i32> {
        self.metadata().controller
    }

    /// Checks the cluster's health, waiting at most until `deadline`: a broker must answer and know
    /// a controller.
    ///
    /// # Errors
    /// When no broker answered, or the one that answered knows no controller.
    pub fn ping(&self, deadline: Deadline) -> Result<(), Error> {
        self.describe(&[], deadline)?;
        match self.controller() {
            Some(_) => Ok(()),
            None => Err(Error::refused(
                ApiKey::Metadata,
                ErrorCode::BrokerNotAvailable,
            )),
        }
    }

    /// One metadata exchange. A broker may answer that the client shall forget all brokers but the
    /// configured ones, and begin again (KIP-1102).
    fn exchange(
        &self,
        request: &MetadataRequest,
        deadline: Deadline,
    ) -> Result<MetadataResponse, Error> {
        match self.try_exchange(request, deadline) {
            Err(error) if wants_bootstrap(&error) => {
                log::info!("kafka: {error}; asking the configured addresses");
                self.metadata().forget_nodes();
                self.try_exchange(request, deadline)
            }
            answer => answer,
        }
    }

    /// One metadata exchange, on the idle connection or a new one. An idle connection that fails is
    /// replaced once: the broker may have closed it, and a second metadata request does no harm.
    fn try_exchange(
        &self,
        request: &MetadataRequest,
        deadline: Deadline,
    ) -> Result<MetadataResponse, Error> {
        let ask = |connection: &mut Connection, deadline| {
            let response = connection.call(request, deadline)?;
            // No code of the whole answer keeps the client from asking again.
            let checked = connection.check(ApiKey::Metadata, response.error_code);
            checked.map_err(Error::of_repeated).map(|()| response)
        };
        let idle_connection = lock(&self.inner.idle_connection).take();
        if let Some(mut connection) = idle_connection
            && connection.is_usable()
        {
            if let Some(interrupts) = &self.interrupts {
                connection.watched_by(interrupts)?;
            }
            // If this broker hangs, there must be time to ask another.
            let left = deadline.remaining();
            let half = deadline.earlier_of(Deadline::after(left / 2));
            match ask(&mut connection, half) {
                Ok(response) => {
                    *lock(&self.inner.idle_connection) = Some(connection);
                    return Ok(response);
                }
                Err(error) if wants_bootstrap(&error) => return Err(error),
                Err(_) => {}
            }
        }
        let (connection, response) = self.ask_any(deadline, ask)?;
        *lock(&self.inner.idle_connection) = Some(connection);
        Ok(response)
    }

    /// All addresses to try: known nodes in turn from a random one, then the configured addresses.
    /// After a move of the cluster, only the configured ones may work (KIP-899).
    fn candidates(&self) -> Vec<String> {
        let mut candidates: Vec<String> = self.metadata().nodes.values().cloned().collect();
        if !candidates.is_empty() {
            let start = getrandom::u32().unwrap_or(0) as usize % candidates.len();
            candidates.rotate_left(start);
        }
        for broker in &self.inner.config.brokers {
            if !candidates.contains(broker) {
                candidates.push(broker.clone());
            }
        }
        candidates
    }

    fn metadata(&self) -> MutexGuard<'_, Metadata> {
        lock(&self.inner.metadata)
    }
}

/// Whether a broker has answered REBOOTSTRAP_REQUIRED.
fn wants_bootstrap(error: &Error) -> bool {
    error.code() == Some(ErrorCode::RebootstrapRequired)
}

/// `None` asks about all topics.
fn metadata_request(topics: Option<&[&str]>) -> MetadataRequest {
    let named = |name: &&str| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
    MetadataRequest::default()
        .with_topics(topics.map(|topics| topics.iter().map(named).collect()))
        .with_allow_auto_topic_creation(false)
}

impl Metadata {
    fn forget_nodes(&mut self) {
        self.nodes.clear();
        self.controller = None;
    }

    fn take_in(&mut self, response: &MetadataResponse) {
        if !response.brokers.is_empty() {
            self.nodes = response
                .brokers
                .iter()
                .map(|broker| (broker.node_id.0, host_port(&broker.host, broker.port)))
                .collect();
            let racked = response.brokers.iter().filter_map(|broker| {
                let rack = broker.rack.as_deref()?;
                Some((broker.node_id.0, Arc::from(rack)))
            });
            self.racks = racked.collect();
        }
        self.controller = Some(response.controller_id.0).filter(|id| *id >= 0);
        for topic in &response.topics {
            if let Some(name) = &topic.name {
                self.take_in_topic(name, topic);
            }
        }
    }

    /// Forgets missing topics that no client has asked about for so long.
    fn forget_missing(&mut self, age: Duration) {
        self.topics.retain(|_, topic| {
            let is_missing = topic.error == Some(ErrorCode::UnknownTopicOrPartition);
            !is_missing || topic.refreshed.elapsed() < age
        });
    }

    fn take_in_topic(&mut self, name: &str, news: &MetadataResponseTopic) {
        let error = ErrorCode::from_code(news.error_code);
        let known = self.topics.entry(name.to_owned()).or_insert_with(|| Topic {
            id: news.topic_id,
            partitions: Vec::new(),
            replicas: Vec::new(),
            error: None,
            refreshed: Instant::now(),
        });
        known.refreshed = Instant::now();
        known.error = error;
        if news.partitions.is_empty() {
            // A broker that does not know the topic yet answers "unknown topic". The known leaders
            // are kept: a wrong leader refuses requests.
            return;
        }
        // A topic that was deleted and created again starts its epochs again.
        let same_topic = known.id == news.topic_id;
        known.id = news.topic_id;
        let highest = news
            .partitions
            .iter()
            .map(|partition| partition.partition_index);
        let count = usize::try_from(highest.max().unwrap_or(-1) + 1)
            .unwrap_or(0)
            // A false partition number must not become a huge allocation.
            .min(news.partitions.len());
        let nobody = Leader {
            node: None,
            epoch: NO_EPOCH,
        };
        let mut partitions = vec![nobody; count];
        known.replicas = vec![Vec::new(); count];
        for news in &news.partitions {
            let Some(index) = usize::try_from(news.partition_index)
                .ok()
                .filter(|index| *index < count)
            else {
                continue;
            };
            partitions[index] = Leader {
                node: Some(news.leader_id.0).filter(|node| *node >= 0),
                epoch: news.leader_epoch,
            };
            let replicas = news.replica_nodes.iter().map(|node| node.0);
            known.replicas[index] = replicas.collect();
        }
        if same_topic {
            for (new, old) in partitions.iter_mut().zip(&known.partitions) {
                // A broker that lags behind may still name the leader before last.
                if new.epoch != NO_EPOCH && old.epoch > new.epoch {
                    *new = *old;
                }
            }
        }
        known.partitions = partitions;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::fake_broker::{FakeBroker, Incoming, Reply};
    use kafka_protocol::messages::BrokerId;
    use kafka_protocol::messages::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition,
    };
    use kafka_protocol::protocol::StrBytes;

    fn answer(topic_id: u128, error: i16, leaders: &[(i32, i32)]) -> MetadataResponse {
        let partitions = leaders.iter().zip(0..).map(|(&(node, epoch), index)| {
            MetadataResponsePartition::default()
                .with_partition_index(index)
                .with_leader_id(BrokerId(node))
                .with_leader_epoch(epoch)
        });
        let topic = MetadataResponseTopic::default()
            .with_name(Some(topic_name("t")))
            .with_topic_id(Uuid::from_u128(topic_id))
            .with_error_code(error)
            .with_partitions(partitions.collect());
        let broker = |id| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_static_str("::1"))
                .with_port(9000 + id)
        };
        MetadataResponse::default()
            .with_brokers(vec![broker(1), broker(2), broker(3)])
            .with_controller_id(BrokerId(1))
            .with_topics(vec![topic])
    }

    fn cluster_after(answers: &[MetadataResponse]) -> Cluster {
        let cluster = Cluster::new(ClientConfig::default());
        for answer in answers {
            cluster.metadata().take_in(answer);
        }
        cluster
    }

    #[test]
    fn a_missing_topic_that_nobody_asks_about_is_forgotten() {
        let unknown = ErrorCode::UnknownTopicOrPartition.code();
        for (error, is_kept) in [(0, true), (unknown, false)] {
            let cluster = cluster_after(&[answer(1, 0, &[(2, 3)]), answer(1, error, &[])]);
            cluster.metadata().forget_missing(MISSING_LIFETIME);
            assert!(cluster.partitions("t").is_some());
            cluster.metadata().forget_missing(Duration::ZERO);
            assert_eq!(cluster.partitions("t").is_some(), is_kept);
        }
    }

    #[test]
    fn the_higher_leader_epoch_wins_over_stale_metadata() {
        let cluster = cluster_after(&[
            answer(7, 0, &[(1, 5), (2, 5)]),
            answer(7, 0, &[(3, 4), (3, 6)]),
        ]);
        assert_eq!(cluster.leader("t", 0), Some((1, 5)));
        assert_eq!(cluster.leader("t", 1), Some((3, 6)));
    }

    #[test]
    fn a_topic_created_again_starts_its_epochs_again() {
        let cluster = cluster_after(&[answer(7, 0, &[(1, 5)]), answer(8, 0, &[(2, 0)])]);
        assert_eq!(cluster.leader("t", 0), Some((2, 0)));
        assert_eq!(cluster.topic_id("t"), Some(Uuid::from_u128(8)));
    }

    #[test]
    fn a_topic_has_an_id_only_if_the_broker_sends_one() {
        let cluster = cluster_after(&[answer(0, 0, &[(1, 5)])]);
        assert_eq!(cluster.topic_id("t"), None);
        assert_eq!(cluster.topic_id("unknown"), None);
    }

    #[test]
    fn a_briefly_unknown_topic_keeps_its_leaders() {
        let cluster = cluster_after(&[answer(7, 0, &[(1, 5)]), answer(0, 3, &[])]);
        assert_eq!(cluster.leader("t", 0), Some((1, 5)));
        assert_eq!(
            cluster.topic_error("t"),
            Some(ErrorCode::UnknownTopicOrPartition)
        );
    }

    #[test]
    fn a_partition_between_two_leaders_has_none() {
        let cluster = cluster_after(&[answer(7, 0, &[(-1, 5)])]);
        assert_eq!(cluster.leader("t", 0), None);
        assert_eq!(cluster.partitions("t"), Some(1));
        assert_eq!(cluster.leader("t", 1), None);
        assert_eq!(cluster.leader("t", -1), None);
    }

    #[test]
    fn a_hint_counts_only_when_it_is_newer_and_the_node_is_known() {
        let cluster = cluster_after(&[answer(7, 0, &[(1, 5)])]);
        cluster.observe_leader("t", 0, 2, 4);
        cluster.observe_leader("t", 0, 99, 9);
        assert_eq!(cluster.leader("t", 0), Some((1, 5)));
        cluster.observe_leader("t", 0, 2, 6);
        assert_eq!(cluster.leader("t", 0), Some((2, 6)));
    }

    fn in_ms(ms: u64) -> Deadline {
        Deadline::after(Duration::from_millis(ms))
    }

    /// A broker that answers requests for metadata as `metadata` says; it gets the number of the
    /// request, from 0. With `true` it closes the connection afterwards.
    fn broker(
        metadata: impl Fn(&Incoming, usize) -> (MetadataResponse, bool) + Send + Sync + 'static,
    ) -> FakeBroker {
        let count = AtomicUsize::new(0);
        FakeBroker::start(move |incoming, _| match incoming.api {
            ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
            _ => {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (answer, closes) = metadata(incoming, number);
                match closes {
                    true => Reply::BytesThenClose(incoming.frame(&answer)),
                    false => incoming.answer(&answer),
                }
            }
        })
    }

    fn cluster_of(broker: &FakeBroker) -> Cluster {
        Cluster::new(ClientConfig::new([broker.address()]))
    }

    #[test]
    fn a_broker_can_make_the_client_begin_again_at_the_configured_addresses() {
        let refusal = || {
            let code = ErrorCode::RebootstrapRequired.code();
            (MetadataResponse::default().with_error_code(code), false)
        };
        let strayed = broker(move |_, _| refusal());
        let [first, second, third] = [strayed.address(), "[::1]:1".into(), "[::1]:2".into()]
            .map(|address| address.parse::<SocketAddr>().unwrap());
        let configured = broker(move |incoming, number| match number {
            0 => (incoming.metadata(first, 1), true),
            1 => (incoming.metadata(second, 1), false),
            // On the connection of the last request.
            2 => refusal(),
            _ => (incoming.metadata(third, 1), false),
        });
        let cluster = cluster_of(&configured);
        for expected in [first, second, third] {
            cluster.refresh(&["t"], in_ms(10_000)).unwrap();
            assert_eq!(cluster.address(1), Some(expected.to_string()));
        }
        // A configured broker that goes on so is asked again later.
        let cluster = cluster_of(&strayed);
        let error = cluster.refresh(&["t"], in_ms(10_000)).unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert_eq!(error.code(), Some(ErrorCode::RebootstrapRequired));
    }

    #[test]
    fn while_all_known_nodes_are_silent_the_configured_addresses_answer() {
        let silent = FakeBroker::start(|incoming, _| match incoming.api {
            ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
            _ => Reply::Silence,
        });
        let known: SocketAddr = silent.address().parse().unwrap();
        let moved: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let configured = broker(move |incoming, number| match number {
            0 => (incoming.metadata(known, 1), true),
            _ => (incoming.metadata(moved, 1), false),
        });
        let cluster = cluster_of(&configured);
        cluster.refresh(&["t"], in_ms(10_000)).unwrap();
        assert_eq!(cluster.address(1), Some(known.to_string()));
        cluster.refresh(&["t"], in_ms(1000)).unwrap();
        assert_eq!(cluster.address(1), Some(moved.to_string()));
    }

    #[test]
    fn a_partition_is_in_the_racks_of_its_replicas() {
        let mut answer = answer(7, 0, &[(1, 5), (2, 5)]);
        for (broker, rack) in answer.brokers.iter_mut().zip(["a", "b"]) {
            broker.rack = Some(StrBytes::from_static_str(rack));
        }
        let nodes = |nodes: &[i32]| nodes.iter().copied().map(BrokerId).collect();
        answer.topics[0].partitions[0].replica_nodes = nodes(&[2, 1]);
        answer.topics[0].partitions[1].replica_nodes = nodes(&[3, 2, 9]);
        let cluster = cluster_after(&[answer]);
        let racks = cluster.replica_racks("t");
        let racks: Vec<Vec<&str>> = racks
            .iter()
            .map(|racks| racks.iter().map(|rack| &**rack).collect())
            .collect();
        assert_eq!(racks, [vec!["a", "b"], vec!["b"]]);
        assert!(cluster.replica_racks("unknown").is_empty());
    }

    #[test]
    fn known_nodes_are_tried_before_the_configured_addresses() {
        let cluster = cluster_after(&[answer(7, 0, &[(1, 5)])]);
        let candidates = cluster.candidates();
        assert_eq!(candidates.len(), 4);
        assert_eq!(candidates[3], "localhost:9092");
        assert!(candidates.contains(&"[::1]:9001".to_owned()));
    }
}
