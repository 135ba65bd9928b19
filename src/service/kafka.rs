//! Kafka as both programs use it.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, KafkaSecurity, KafkaSettings};
use crate::deadline::Deadline;
use crate::kafka::admin::{Admin, TopicSpec};
use crate::kafka::producer::{Compression, Producer, ProducerConfig};
use crate::kafka::{ClientConfig, Cluster, Error, Sasl, SaslMechanism, Security, Tls};
use crate::orders::adapters::kafka::{ClientMeter, ProducerMeter, Topics};
use crate::telemetry::metrics::Metrics;

/// What one check of Kafka's health may take.
const CHECK_BUDGET: Duration = Duration::from_secs(3);

/// How much later readiness may come because the producer prepares first.
const WARM_UP_BUDGET: Duration = Duration::from_secs(1);

/// The cluster and the topics of orders on it.
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
    /// Kafka as `settings` describe it, under the name `client_id` in the brokers' logs;
    /// every request moves `metrics`.
    /// Reads the CA certificates, if it shall be spoken to over TLS; does no other I/O.
    ///
    /// # Errors
    /// When they cannot be used.
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

    /// A producer, measured. Does not wait for a broker.
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

    /// A check for a [monitor](crate::health::Monitor): Kafka answers and the topics
    /// are there. Makes those that are missing, at the start and after each outage, and
    /// has `warm_up` prepare for them until the deadline at most, so that who waits for
    /// readiness finds it done; if it cannot, that is the first event's affair.
    pub fn health_check(
        self,
        mut warm_up: impl FnMut(Deadline) + Send,
    ) -> impl FnMut() -> Result<(), String> + Send {
        let mut topics_are_there = false;
        move || {
            let deadline = Deadline::after(CHECK_BUDGET);
            let outcome = match topics_are_there {
                true => self.cluster.ping(deadline),
                false => self.create_topics(deadline),
            };
            if !topics_are_there && outcome.is_ok() {
                warm_up(Deadline::after(WARM_UP_BUDGET).earlier_of(deadline));
            }
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
