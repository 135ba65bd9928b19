//! tbd's Kafka client.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tbd_deadline::Deadline;
use tbd_kafka::admin::TopicSpec;
use tbd_kafka::consumer::{Consumer, ConsumerConfig};
use tbd_kafka::producer::{Outcome, ProducerHooks, Record};
use tbd_kafka::{Admin, ClientConfig, Cluster, Error, Producer, ProducerConfig};

use crate::measure::{BULK, Case, Measured, Stopwatch, value, waiting_callers};

fn cluster(broker: &str) -> Cluster {
    Cluster::new(ClientConfig::new([broker]))
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(120))
}

/// The topics of a run.
pub struct Topics {
    produced: String,
    full_1: String,
    full_16: String,
}

impl Topics {
    pub fn of(&self, case: Case) -> &str {
        match case {
            Case::Produce1 | Case::Produce64 | Case::ProduceBulk => &self.produced,
            Case::Consume1 => &self.full_1,
            Case::Consume16 => &self.full_16,
        }
    }
}

/// Creates the topics, and fills those of the consumers.
pub fn prepare(broker: &str) -> Result<Topics, Error> {
    let cluster = cluster(broker);
    let name = |what: &str| format!("bench-{what}-{}", std::process::id());
    let topics = Topics {
        produced: name("produced"),
        full_1: name("full-1"),
        full_16: name("full-16"),
    };
    let specs = [
        (&topics.produced, 16),
        (&topics.full_1, 1),
        (&topics.full_16, 16),
    ];
    let specs = specs.map(|(name, partitions)| TopicSpec::new(name.clone(), partitions, 1));
    let created = Admin::new(cluster).create_topics(&specs, soon())?;
    tbd_kafka::admin::all(created)?;
    bulk(broker, &topics.full_1);
    bulk(broker, &topics.full_16);
    Ok(topics)
}

pub fn measure(case: Case, broker: &str, topic: &str) -> Measured {
    match case {
        Case::Produce1 | Case::Produce64 => {
            let config = ProducerConfig::default();
            let producer = Producer::start(cluster(broker), config, Arc::new(())).expect("start");
            let (topic, value): (Arc<str>, _) = (topic.into(), Bytes::from(value()));
            waiting_callers(case.callers(), || {
                let record = Record::new(Arc::clone(&topic), None, Some(value.clone()));
                let pending = producer.send(record, soon()).expect("room");
                pending.wait(soon()).expect("an acknowledgement");
            })
        }
        Case::ProduceBulk => bulk(broker, topic),
        Case::Consume1 | Case::Consume16 => consume(broker, topic),
    }
}

#[derive(Default)]
struct Latencies(Mutex<Vec<Duration>>);

impl ProducerHooks for Latencies {
    fn record_settled(&self, _: &str, latency: Duration, outcome: &Outcome) {
        outcome.as_ref().expect("an acknowledgement");
        self.0.lock().expect("no panic").push(latency);
    }
}

fn bulk(broker: &str, topic: &str) -> Measured {
    let latencies = Arc::new(Latencies::default());
    let hooks = Arc::clone(&latencies);
    let producer =
        Producer::start(cluster(broker), ProducerConfig::default(), hooks).expect("start");
    let (topic, value): (Arc<str>, _) = (topic.into(), Bytes::from(value()));
    let record = || Record::new(Arc::clone(&topic), None, Some(value.clone()));
    let first = producer.send(record(), soon()).expect("room");
    first.wait(soon()).expect("an acknowledgement");
    latencies.0.lock().expect("no panic").clear();
    let stopwatch = Stopwatch::start();
    for _ in 0..BULK {
        drop(producer.send(record(), soon()).expect("room"));
    }
    producer.flush(soon()).expect("acknowledgements");
    // Hooks may still run after the last record is settled.
    producer.close(soon()).expect("close");
    let latencies = std::mem::take(&mut *latencies.0.lock().expect("no panic"));
    stopwatch.stop(BULK, latencies)
}

fn consume(broker: &str, topic: &str) -> Measured {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let config = ConsumerConfig::new(format!("bench-{}", since.as_nanos()), [topic]);
    let mut consumer = Consumer::start(cluster(broker), config, Box::new(())).expect("start");
    let mut poll = || {
        let records = consumer.poll(soon()).expect("records");
        let bytes = records
            .iter()
            .filter_map(|one| one.value.as_ref())
            .map(|one| one.len());
        (records.len(), bytes.sum::<usize>())
    };
    let (first, _) = poll();
    let stopwatch = Stopwatch::start();
    let mut count = 0;
    while first + count < BULK {
        count += poll().0;
    }
    let measured = stopwatch.stop(count, Vec::new());
    consumer.close(soon()).expect("close");
    measured
}
