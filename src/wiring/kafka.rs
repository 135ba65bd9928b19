//! Kafka setup of both programs: cluster, topics, producer, health check.

use std::sync::Arc;

use super::topics::TopicCheck;
use crate::config::{self, KafkaSecurity, KafkaSettings};
use crate::metrics::Metrics;
use crate::orders::adapters::kafka::{ClientMeter, ProducerMeter, Topics};
use tbd_deadline::Deadline;
use tbd_kafka::admin::{Admin, TopicSpec};
use tbd_kafka::producer::{Compression, Producer, ProducerConfig};
use tbd_kafka::{ClientConfig, Cluster, Error, Sasl, SaslMechanism, Security, Tls};

/// The cluster and its topics for orders.
#[derive(Clone)]
pub struct Kafka {
    /// The cluster.
    pub cluster: Cluster,
    /// The topics.
    pub topics: Topics,
    partitions: i32,
    replication: i16,
    compression: Compression,
}

impl Kafka {
    /// A cluster client for `settings`. `client_id` is its name in the brokers' logs. Every request
    /// updates `metrics`. With TLS it reads the CA certificates; it does no other I/O.
    ///
    /// # Errors
    /// When the CA certificates cannot be used.
    pub fn new(
        settings: &KafkaSettings,
        client_id: &str,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        Ok(Self {
            cluster: Cluster::new(ClientConfig {
                brokers: settings.brokers.clone(),
                client_id: client_id.to_owned(),
                security: security(&settings.security)?,
                hooks: Arc::new(ClientMeter::new(metrics.kafka.clone())),
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
            compression: match settings.compression {
                config::Compression::None => Compression::None,
                config::Compression::Gzip => Compression::Gzip,
                config::Compression::Snappy => Compression::Snappy,
                config::Compression::Lz4 => Compression::Lz4,
                config::Compression::Zstd => Compression::Zstd,
            },
        })
    }

    /// A producer with metrics. Does not wait for a broker.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn producer(&self, metrics: &Metrics) -> Result<Producer, Error> {
        let config = ProducerConfig {
            topics: self.topics.all().map(str::to_owned).into(),
            compression: self.compression,
            ..ProducerConfig::default()
        };
        let hooks = Arc::new(ProducerMeter::new(metrics.kafka.clone(), &self.topics));
        Producer::start(self.cluster.clone(), config, hooks)
    }

    /// A check for a [monitor](crate::wiring::health::Monitor): Kafka answers and the topics
    /// exist. It creates missing topics: at the start at once, later after ten seconds, so that an
    /// operator can replace a topic. At the start and after each outage, `warm_up` prepares the
    /// producer until its deadline, so that the first event after readiness is fast.
    pub fn health_check(
        self,
        warm_up: impl FnMut(Deadline) + Send,
    ) -> impl FnMut() -> Result<(), String> + Send {
        let mut check = TopicCheck::new(self, warm_up);
        move || check.run()
    }

    /// Our topics that the cluster does not have.
    pub(super) fn missing_topics(&self, deadline: Deadline) -> Result<Vec<String>, Error> {
        Admin::new(self.cluster.clone()).missing_topics(&self.topics.all(), deadline)
    }

    pub(super) fn create_topics(&self, names: &[String], deadline: Deadline) -> Result<(), Error> {
        let specs: Vec<TopicSpec> = names
            .iter()
            .map(|name| TopicSpec {
                name: name.clone(),
                partitions: self.partitions,
                replication: self.replication,
            })
            .collect();
        Admin::new(self.cluster.clone()).create_topics(&specs, deadline)
    }
}

fn security(settings: &KafkaSecurity) -> Result<Security, Error> {
    let tls = settings.tls.as_ref().map(|tls| match &tls.ca_file {
        Some(path) => Tls::with_ca_file(path),
        None => Tls::with_system_roots(),
    });
    let sasl = settings.sasl.as_ref().map(|sasl| Sasl {
        mechanism: match sasl.mechanism {
            config::SaslMechanism::Plain => SaslMechanism::Plain,
            config::SaslMechanism::ScramSha256 => SaslMechanism::ScramSha256,
            config::SaslMechanism::ScramSha512 => SaslMechanism::ScramSha512,
        },
        username: sasl.username.clone(),
        password: sasl.password.expose().to_owned(),
    });
    Ok(Security {
        tls: tls.transpose()?,
        sasl,
    })
}
