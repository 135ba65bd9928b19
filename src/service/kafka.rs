//! Kafka as both programs use it.

use std::sync::Arc;
use std::time::Duration;

use crate::config::KafkaSettings;
use crate::deadline::Deadline;
use crate::kafka::admin::{Admin, TopicSpec};
use crate::kafka::producer::{Producer, ProducerConfig};
use crate::kafka::{ClientConfig, Cluster, Error};
use crate::orders::adapters::kafka::{ProducerMeter, Topics};
use crate::telemetry::metrics::Metrics;

/// What one check of Kafka's health may take.
const CHECK_BUDGET: Duration = Duration::from_secs(3);

/// The cluster and the topics of orders on it.
#[derive(Clone)]
pub struct Kafka {
    /// The cluster.
    pub cluster: Cluster,
    /// The topics.
    pub topics: Topics,
    partitions: i32,
    replication: i16,
}

impl Kafka {
    /// Kafka as `settings` describe it, under the name `client_id` in the brokers' logs.
    /// Does no I/O.
    pub fn new(settings: &KafkaSettings, client_id: &str) -> Self {
        Self {
            cluster: Cluster::new(ClientConfig {
                brokers: settings.brokers.clone(),
                client_id: client_id.to_owned(),
                ..ClientConfig::default()
            }),
            topics: Topics {
                created: settings.topic_order_created.as_str().into(),
                processed: settings.topic_order_processed.as_str().into(),
                failed: settings.topic_order_failed.as_str().into(),
                dlq: settings.topic_order_dlq.as_str().into(),
            },
            partitions: settings.topic_partitions,
            replication: settings.topic_replication,
        }
    }

    /// A producer, measured. Does not wait for a broker.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn producer(&self, metrics: &Metrics) -> Result<Producer, Error> {
        let config = ProducerConfig {
            topics: self.topics.all().map(str::to_owned).into(),
            ..ProducerConfig::default()
        };
        let hooks = Arc::new(ProducerMeter(metrics.kafka.clone()));
        Producer::start(self.cluster.clone(), config, hooks)
    }

    /// A check for a [monitor](crate::health::Monitor): Kafka answers and the topics
    /// are there. Makes those that are missing, at the start and after each outage.
    pub fn health_check(self) -> impl FnMut() -> Result<(), String> + Send {
        let mut topics_are_there = false;
        move || {
            let deadline = Deadline::after(CHECK_BUDGET);
            let outcome = match topics_are_there {
                true => self.cluster.ping(deadline),
                false => self.create_topics(deadline),
            };
            topics_are_there = outcome.is_ok();
            outcome.map_err(|error| error.to_string())
        }
    }

    fn create_topics(&self, deadline: Deadline) -> Result<(), Error> {
        let specs = self.topics.all().map(|name| TopicSpec {
            name: name.to_owned(),
            partitions: self.partitions,
            replication: self.replication,
        });
        Admin::new(self.cluster.clone()).create_topics(&specs, deadline)
    }
}
