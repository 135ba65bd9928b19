//! Topics and the cluster: create, delete, describe.

use std::collections::BTreeMap;

use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest};
use uuid::Uuid;

use super::{Admin, Results, broker_timeout, some_id};
use crate::wire::{host_port, text, topic_name};
use crate::{ApiKey, Error, ErrorCode};
use tbd_deadline::Deadline;

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// The number of partitions; -1 for the brokers' default.
    pub partitions: i32,
    /// The number of replicas of each partition; -1 for the brokers' default.
    pub replication: i16,
    /// Settings that differ from the brokers' defaults, for example `cleanup.policy`.
    pub configs: BTreeMap<String, String>,
}

impl TopicSpec {
    /// A topic with the brokers' default settings.
    pub fn new(name: impl Into<String>, partitions: i32, replication: i16) -> Self {
        Self {
            name: name.into(),
            partitions,
            replication,
            configs: BTreeMap::new(),
        }
    }
}

/// A topic of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// Its id; `None` from brokers that send none.
    pub id: Option<Uuid>,
    /// Whether it is Kafka's own, as `__consumer_offsets` is.
    pub is_internal: bool,
    /// Its partitions by number.
    pub partitions: Vec<PartitionDescription>,
}

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionDescription {
    /// Its number, from 0.
    pub partition: i32,
    /// The leader's node id; `None` during an election.
    pub leader: Option<i32>,
    /// The leader's epoch; -1 when unknown.
    pub leader_epoch: i32,
    /// The node ids of its replicas.
    pub replicas: Vec<i32>,
    /// The node ids of the replicas that have all of it.
    pub in_sync: Vec<i32>,
}

/// The cluster and its brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterDescription {
    /// The cluster's id.
    pub id: Option<String>,
    /// The controller's node id. In a KRaft cluster, any broker that forwards to it.
    pub controller: Option<i32>,
    /// The brokers.
    pub brokers: Vec<BrokerDescription>,
}

/// A broker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerDescription {
    /// Its node id.
    pub node: i32,
    /// Its `host:port`.
    pub address: String,
    /// Its rack, if it has one.
    pub rack: Option<String>,
}

impl Admin {
    /// Creates the missing ones of these topics. An existing topic is left unchanged, even if its
    /// partition count differs.
    ///
    /// # Errors
    /// When no controller answered in time.
    pub fn create_topics(
        &self,
        topics: &[TopicSpec],
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Result<(), Error>>, Error> {
        let specs = topics.iter().map(|topic| {
            let configs = topic.configs.iter().map(|(name, value)| {
                CreatableTopicConfig::default()
                    .with_name(text(name))
                    .with_value(Some(text(value)))
            });
            CreatableTopic::default()
                .with_name(topic_name(&topic.name))
                .with_num_partitions(topic.partitions)
                .with_replication_factor(topic.replication)
                .with_configs(configs.collect())
        });
        let request = CreateTopicsRequest::default().with_topics(specs.collect());
        self.repeat_each(deadline, || {
            let request = request.clone().with_timeout_ms(broker_timeout(deadline));
            let response = self.ask_controller(&request, deadline)?;
            let codes = response
                .topics
                .iter()
                .map(|it| (&*it.name.0, it.error_code));
            let exists = Some(ErrorCode::TopicAlreadyExists);
            Ok(results(ApiKey::CreateTopics, codes, exists))
        })
    }

    /// Deletes these topics. One that does not exist counts as deleted.
    ///
    /// # Errors
    /// When no controller answered in time.
    pub fn delete_topics<T: AsRef<str>>(
        &self,
        topics: &[T],
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Result<(), Error>>, Error> {
        let names = topics.iter().map(|name| topic_name(name.as_ref()));
        let request = DeleteTopicsRequest::default().with_topic_names(names.collect());
        self.repeat_each(deadline, || {
            let request = request.clone().with_timeout_ms(broker_timeout(deadline));
            let response = self.ask_controller(&request, deadline)?;
            let codes = response.responses.iter().filter_map(|it| {
                let name = it.name.as_ref()?;
                Some((&*name.0, it.error_code))
            });
            let is_gone = Some(ErrorCode::UnknownTopicOrPartition);
            Ok(results(ApiKey::DeleteTopics, codes, is_gone))
        })
    }

    /// Raises a topic's number of partitions to `count`. Records with a key may then go to another
    /// partition than before.
    ///
    /// # Errors
    /// When the topic does not exist or has as many already, or no controller answered in time.
    pub fn create_partitions(
        &self,
        topic: &str,
        count: i32,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let wanted = CreatePartitionsTopic::default()
            .with_name(topic_name(topic))
            .with_count(count)
            .with_assignments(None);
        let request = CreatePartitionsRequest::default().with_topics(vec![wanted]);
        let mut attempts = 0;
        self.repeat(deadline, || {
            // An earlier attempt may have succeeded although its answer was lost or an error.
            attempts += 1;
            if attempts > 1 {
                self.cluster.refresh(&[topic], deadline)?;
                if self.known_partitions(topic).ok() == Some(count) {
                    return Ok(());
                }
            }
            let request = request.clone().with_timeout_ms(broker_timeout(deadline));
            let response = self.ask_controller(&request, deadline)?;
            let codes = response
                .results
                .iter()
                .map(|it| (&*it.name.0, it.error_code));
            let results = results(ApiKey::CreatePartitions, codes, None);
            results.into_values().collect()
        })
    }

    /// Returns those of `topics` that the cluster does not have. Asks once, without retries.
    ///
    /// # Errors
    /// When no broker answered, or the one that did sees no controller. Otherwise the error of the
    /// first topic that it refused to describe.
    pub fn missing_topics<T: AsRef<str>>(
        &self,
        topics: &[T],
        deadline: Deadline,
    ) -> Result<Vec<String>, Error> {
        self.cluster.refresh(topics, deadline)?;
        if self.cluster.controller().is_none() {
            return Err(Error::refused(
                ApiKey::Metadata,
                ErrorCode::BrokerNotAvailable,
            ));
        }
        let mut missing = Vec::new();
        for topic in topics.iter().map(AsRef::as_ref) {
            match self.cluster.topic_error(topic) {
                None => {}
                Some(ErrorCode::UnknownTopicOrPartition) => missing.push(topic.to_owned()),
                Some(code) => return Err(Error::refused_topic(ApiKey::Metadata, code, topic)),
            }
        }
        Ok(missing)
    }

    /// Returns the names of all topics except Kafka's internal ones.
    ///
    /// # Errors
    /// When no broker answered in time.
    pub fn list_topics(&self, deadline: Deadline) -> Result<Vec<String>, Error> {
        self.repeat(deadline, || self.cluster.list_topics(deadline))
    }

    /// Describes topics: their partitions, leaders and replicas. Asks once about each, so a topic
    /// that was just created may be unknown.
    ///
    /// # Errors
    /// When no broker answered in time.
    pub fn describe_topics<T: AsRef<str>>(
        &self,
        topics: &[T],
        deadline: Deadline,
    ) -> Result<BTreeMap<String, Result<TopicDescription, Error>>, Error> {
        let names: Vec<&str> = topics.iter().map(AsRef::as_ref).collect();
        let response = self.repeat(deadline, || self.cluster.describe(&names, deadline))?;
        let described = response.topics.iter().filter_map(|topic| {
            let name = topic.name.as_ref()?.to_string();
            let result = match ErrorCode::from_code(topic.error_code) {
                None => Ok(description(topic)),
                Some(code) => Err(Error::refused_topic(ApiKey::Metadata, code, &name)),
            };
            Some((name, result))
        });
        Ok(described.collect())
    }

    /// Describes the cluster and its brokers.
    ///
    /// # Errors
    /// When no broker answered in time.
    pub fn describe_cluster(&self, deadline: Deadline) -> Result<ClusterDescription, Error> {
        let response = self.repeat(deadline, || self.cluster.describe(&[], deadline))?;
        let brokers = response.brokers.iter().map(|broker| BrokerDescription {
            node: broker.node_id.0,
            address: host_port(&broker.host, broker.port),
            rack: broker.rack.as_ref().map(ToString::to_string),
        });
        Ok(ClusterDescription {
            id: response.cluster_id.as_ref().map(ToString::to_string),
            controller: Some(response.controller_id.0).filter(|node| *node >= 0),
            brokers: brokers.collect(),
        })
    }

    /// Returns the current number of partitions of `topic`.
    ///
    /// # Errors
    /// [`Error::Refused`] when it does not exist.
    pub fn partition_count(&self, topic: &str, deadline: Deadline) -> Result<i32, Error> {
        self.repeat(deadline, || {
            self.cluster.refresh(&[topic], deadline)?;
            self.known_partitions(topic)
        })
    }

    pub(super) fn known_partitions(&self, topic: &str) -> Result<i32, Error> {
        let code = self.cluster.topic_error(topic);
        match (self.cluster.partitions(topic), code) {
            (Some(count), None) => Ok(count),
            (_, code) => {
                let code = code.unwrap_or(ErrorCode::UnknownTopicOrPartition);
                Err(Error::refused_topic(ApiKey::Metadata, code, topic))
            }
        }
    }
}

/// Each topic's result; the code `harmless` counts as success.
fn results<'a>(
    api: ApiKey,
    codes: impl Iterator<Item = (&'a str, i16)>,
    harmless: Option<ErrorCode>,
) -> Results<String, ()> {
    codes
        .map(|(topic, code)| {
            let code = ErrorCode::from_code(code).filter(|code| Some(*code) != harmless);
            let refused = |code| Err(Error::refused_topic(api, code, topic));
            (topic.to_owned(), code.map_or(Ok(()), refused))
        })
        .collect()
}

fn description(topic: &MetadataResponseTopic) -> TopicDescription {
    let partitions = topic.partitions.iter().map(|it| PartitionDescription {
        partition: it.partition_index,
        leader: Some(it.leader_id.0).filter(|node| *node >= 0),
        leader_epoch: it.leader_epoch,
        replicas: it.replica_nodes.iter().map(|node| node.0).collect(),
        in_sync: it.isr_nodes.iter().map(|node| node.0).collect(),
    });
    let mut partitions: Vec<PartitionDescription> = partitions.collect();
    partitions.sort_by_key(|it| it.partition);
    TopicDescription {
        id: some_id(topic.topic_id),
        is_internal: topic.is_internal,
        partitions,
    }
}
