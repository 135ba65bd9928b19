//! tbd's Kafka client.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tbd_deadline::Deadline;
use tbd_kafka::admin::TopicSpec;
use tbd_kafka::consumer::{Consumer, ConsumerConfig, ConsumerHooks};
use tbd_kafka::producer::{Outcome, ProducerHooks, Record};
use tbd_kafka::{
    Admin, ClientConfig, Cluster, Error, Producer, ProducerConfig, Tls, TopicPartition,
};

use crate::measure::{Job, MANY, Measured, Stopwatch, Task, VALUE_BYTES, value, waiting_callers};

fn cluster(job: &Job) -> Cluster {
    let mut config = ClientConfig::new([&job.broker]);
    config.security.tls = job
        .ca
        .as_ref()
        .map(|ca| Tls::with_ca_file(ca).expect("a CA"));
    Cluster::new(config)
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(120))
}

/// Creates the topic with so many partitions, and puts the records of `job` in, if it is to read them.
pub fn prepare(job: &Job, partitions: usize) -> Result<(), Error> {
    let count = i32::try_from(partitions).expect("few partitions");
    let spec = TopicSpec::new(job.topic.clone(), count, 1);
    tbd_kafka::admin::all(Admin::new(cluster(job)).create_topics(&[spec], soon())?)?;
    if job.task == Task::Consume {
        // Without a chosen partition, some of many might get nothing.
        bulk(job, (partitions == MANY).then_some(partitions));
    }
    Ok(())
}

pub fn measure(job: &Job) -> Measured {
    match job.task {
        Task::Wait => {
            let config = ProducerConfig::default();
            let producer = Producer::start(cluster(job), config, Arc::new(())).expect("start");
            let (topic, value): (Arc<str>, _) = (job.topic.as_str().into(), Bytes::from(value()));
            waiting_callers(job.count, || {
                let record = Record::new(Arc::clone(&topic), None, Some(value.clone()));
                let pending = producer.send(record, soon()).expect("room");
                pending.wait(soon()).expect("an acknowledgement");
            })
        }
        Task::Bulk => bulk(job, None),
        Task::Each => bulk(job, Some(job.count)),
        Task::Consume => consume(job),
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

/// With `partitions` it gives each of them a record in turn.
fn bulk(job: &Job, partitions: Option<usize>) -> Measured {
    let latencies = Arc::new(Latencies::default());
    let hooks = Arc::clone(&latencies);
    let producer = Producer::start(cluster(job), ProducerConfig::default(), hooks).expect("start");
    let (topic, value): (Arc<str>, _) = (job.topic.as_str().into(), Bytes::from(value()));
    let record = |index: usize| {
        let mut record = Record::new(Arc::clone(&topic), None, Some(value.clone()));
        record.partition = partitions.map(|count| (index % count) as i32);
        record
    };
    let first = producer.send(record(0), soon()).expect("room");
    first.wait(soon()).expect("an acknowledgement");
    latencies.0.lock().expect("no panic").clear();
    let stopwatch = Stopwatch::start();
    for index in 0..job.count {
        drop(producer.send(record(index), soon()).expect("room"));
    }
    producer.flush(soon()).expect("acknowledgements");
    // Hooks may still run after the last record is settled.
    producer.close(soon()).expect("close");
    let latencies = std::mem::take(&mut *latencies.0.lock().expect("no panic"));
    stopwatch.stop(job.count, latencies)
}

struct Assigned(Arc<OnceLock<Stopwatch>>);

impl ConsumerHooks for Assigned {
    fn assigned(&self, _: &[TopicPartition]) {
        self.0.get_or_init(Stopwatch::start);
    }
}

fn consume(job: &Job) -> Measured {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let config = ConsumerConfig::new(format!("bench-{}", since.as_nanos()), [&job.topic]);
    let stopwatch = Arc::new(OnceLock::new());
    let hooks = Box::new(Assigned(Arc::clone(&stopwatch)));
    let mut consumer = Consumer::start(cluster(job), config, hooks).expect("start");
    let (mut count, mut bytes) = (0, 0);
    while count < job.count {
        let records = consumer.poll(soon()).expect("records");
        count += records.len();
        let values = records.iter().filter_map(|one| one.value.as_ref());
        bytes += values.map(Bytes::len).sum::<usize>();
    }
    assert!(bytes >= count * VALUE_BYTES, "{bytes} bytes");
    let stopwatch = stopwatch.get().expect("partitions before records");
    let measured = stopwatch.stop(count, Vec::new());
    consumer.close(soon()).expect("close");
    measured
}
