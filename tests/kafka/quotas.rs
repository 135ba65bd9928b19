//! Clients whose quota a real Kafka enforces. It answers at once, and then reads nothing from the
//! connection for a while (KIP-219).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tbd_deadline::Deadline;
use tbd_kafka::producer::{ProducerHooks, Record};
use tbd_kafka::{
    ApiKey, ClientConfig, ClientHooks, Cluster, Consumer, ConsumerConfig, Producer, ProducerConfig,
    TopicPartition,
};

use crate::client::{cluster, read_topic, soon, topic};
use crate::consumer::poll_until;
use crate::support;

const RECORDS: usize = 20;
const RECORD_BYTES: usize = 40_000;
/// The broker counts over ten seconds, so it throttles the clients for about four.
const BYTES_A_SECOND: usize = RECORDS * RECORD_BYTES / 14;
/// Shorter than the broker throttles.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// Counts what has failed.
#[derive(Debug, Default)]
struct Failures(AtomicUsize);

impl ProducerHooks for Failures {
    fn request_ended(
        &self,
        _node: i32,
        _records: usize,
        _bytes: usize,
        result: Result<(), &tbd_kafka::Error>,
    ) {
        self.0
            .fetch_add(usize::from(result.is_err()), Ordering::SeqCst);
    }
}

impl ClientHooks for Failures {
    fn request_ended(&self, _: ApiKey, latency: Option<Duration>) {
        self.0
            .fetch_add(usize::from(latency.is_none()), Ordering::SeqCst);
    }
}

/// A cluster whose clients have this quota. A broker that knows a topic created afterwards knows the
/// quota, too.
fn limited(quota: &'static str, hooks: &Arc<Failures>) -> Cluster {
    let client_id = support::unique("limited");
    support::topic::limit(&support::kafka(), &client_id, quota, BYTES_A_SECOND);
    let mut config = ClientConfig::new(vec![support::kafka()]);
    config.client_id = client_id;
    config.request_timeout = REQUEST_TIMEOUT;
    config.hooks = Arc::clone(hooks) as Arc<dyn ClientHooks>;
    Cluster::new(config)
}

/// A record fills a batch, so several are in flight. All in one batch would exceed the quota of ten seconds, and the
/// broker would never send them.
fn one_by_one() -> ProducerConfig {
    let mut config = ProducerConfig::default();
    config.batch_bytes = RECORD_BYTES / 2;
    config
}

fn publish(producer: &Producer, topic: &str) {
    let pending: Vec<_> = (0..RECORDS)
        .map(|_| {
            let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
                .take(RECORD_BYTES)
                .collect();
            let record = Record::new(topic, Some("k".into()), Some(noise.into()));
            producer.send(record, soon()).unwrap()
        })
        .collect();
    for one in pending {
        one.wait(soon()).unwrap();
    }
}

#[test]
fn a_producer_above_its_quota_waits_and_no_request_of_it_times_out() {
    let failures = Arc::new(Failures::default());
    let cluster = limited("producer_byte_rate", &failures);
    let topic = topic(&cluster, 1);
    let mut config = one_by_one();
    config.request_timeout = REQUEST_TIMEOUT;
    let hooks = Arc::clone(&failures) as Arc<dyn ProducerHooks>;
    let producer = Producer::start(cluster.clone(), config, hooks).unwrap();
    let started = Instant::now();
    publish(&producer, &topic);
    assert!(started.elapsed() > 2 * REQUEST_TIMEOUT, "it was throttled");
    assert_eq!(failures.0.load(Ordering::SeqCst), 0);
    producer.close(soon()).unwrap();
    assert_eq!(read_topic(&cluster, &topic)[&0].len(), RECORDS);
}

#[test]
fn a_consumer_above_its_quota_waits_and_no_request_of_it_times_out() {
    let failures = Arc::new(Failures::default());
    let limited = limited("consumer_byte_rate", &failures);
    let topic = topic(&cluster(), 1);
    let producer = Producer::start(cluster(), one_by_one(), Arc::new(())).unwrap();
    publish(&producer, &topic);
    producer.close(soon()).unwrap();
    let mut config = ConsumerConfig::without_group();
    config.max_partition_fetch_bytes = i32::try_from(RECORD_BYTES).unwrap();
    let partition = TopicPartition::new(topic.as_str(), 0);
    let start = (partition, tbd_kafka::consumer::StartAt::Beginning);
    let mut consumer = Consumer::start_assigned(limited, config, [start], Box::new(())).unwrap();
    let started = Instant::now();
    let records = poll_until(&mut consumer, |_, records| records.len() == RECORDS);
    assert_eq!(records.len(), RECORDS);
    assert!(started.elapsed() > 2 * REQUEST_TIMEOUT, "it was throttled");
    assert_eq!(failures.0.load(Ordering::SeqCst), 0);
    consumer
        .close(Deadline::after(Duration::from_secs(5)))
        .unwrap();
}
