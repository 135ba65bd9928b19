//! Kafka setup of api and worker: cluster, topics, producer, health check.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::topics::TopicCheck;
use crate::config::{KafkaSasl, KafkaSecurity, KafkaSettings};
use crate::metrics::Metrics;
use crate::orders::adapters::kafka::{ClientMeter, ProducerMeter, Topics, watch_lag};
use tbd_deadline::{Deadline, StopSignal};
use tbd_kafka::admin::{Admin, TopicSpec};
use tbd_kafka::producer::{Compression, Producer, ProducerConfig};
use tbd_kafka::{ClientConfig, Cluster, Error, Sasl, Security, Tls};

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
    consumer_group: String,
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
        let mut config = ClientConfig::new(&settings.brokers);
        config.client_id = client_id.to_owned();
        config.security = security(&settings.security)?;
        config.hooks = Arc::new(ClientMeter::new(metrics.kafka.clone()));
        Ok(Self {
            cluster: Cluster::new(config),
            topics: Topics {
                created: settings.topic_order_created.as_str().into(),
                processed: settings.topic_order_processed.as_str().into(),
                failed: settings.topic_order_failed.as_str().into(),
                dlq: settings.topic_order_dlq.as_str().into(),
            },
            partitions: settings.topic_partitions,
            replication: settings.topic_replication,
            compression: settings.compression,
            consumer_group: settings.consumer_group.clone(),
        })
    }

    /// A producer with metrics. Does not wait for a broker.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn producer(&self, metrics: &Metrics) -> Result<Producer, Error> {
        let mut config = ProducerConfig::default();
        config.topics = self.topics.all().map(str::to_owned).into();
        config.compression = self.compression;
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

    /// Starts the thread `kafka-lag`, as [`watch_lag`] says: the lag of the workers behind created orders.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn watch_lag(&self, metrics: &Metrics, stop: StopSignal) -> io::Result<JoinHandle<()>> {
        watch_lag(
            self.cluster.clone(),
            self.consumer_group.clone(),
            self.topics.created.to_string(),
            metrics.kafka.clone(),
            stop,
        )
    }

    /// Our topics that the cluster does not have.
    pub(super) fn missing_topics(&self, deadline: Deadline) -> Result<Vec<String>, Error> {
        Admin::new(self.cluster.clone()).missing_topics(&self.topics.all(), deadline)
    }

    pub(super) fn create_topics(&self, names: &[String], deadline: Deadline) -> Result<(), Error> {
        let specs: Vec<TopicSpec> = names
            .iter()
            .map(|name| TopicSpec::new(name.clone(), self.partitions, self.replication))
            .collect();
        let created = Admin::new(self.cluster.clone()).create_topics(&specs, deadline)?;
        created.into_values().collect()
    }
}

fn security(settings: &KafkaSecurity) -> Result<Security, Error> {
    let tls = settings.tls.as_ref().map(|tls| {
        let identity = tls.identity.as_ref();
        let identity = identity.map(|it| (&*it.certificate, &*it.key));
        Tls::from_files(tls.ca_file.as_deref(), identity)
    });
    let sasl = settings.sasl.as_ref().map(|sasl| match sasl {
        KafkaSasl::Password {
            mechanism,
            username,
            password,
        } => Ok(Sasl::Password {
            mechanism: *mechanism,
            username: username.clone(),
            password: password.expose().to_owned(),
        }),
        KafkaSasl::TokenFile(path) => Sasl::with_token_file(path),
    });
    Ok(Security {
        tls: tls.transpose()?,
        sasl: sasl.transpose()?,
    })
}
