//! librdkafka, through the crate `rdkafka`: its own threads, no async runtime.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Message};

use crate::measure::{Job, Measured, Stopwatch, Task, VALUE_BYTES, value, waiting_callers};

const PATIENCE: Duration = Duration::from_secs(120);

fn config(job: &Job) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &job.broker);
    if let Some(ca) = &job.ca {
        config
            .set("security.protocol", "ssl")
            .set("ssl.ca.location", ca.display().to_string());
    }
    config
}

/// Idempotent as tbd's producer is, and without linger where callers wait for their records.
fn producer_config(job: &Job, linger_ms: &str) -> ClientConfig {
    let mut config = config(job);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", linger_ms);
    config
}

pub fn measure(job: &Job) -> Measured {
    match job.task {
        Task::Wait => {
            let producer: ThreadedProducer<Wake> = producer_config(job, "0")
                .create_with_context(Wake)
                .expect("start");
            let value = value();
            waiting_callers(job.count, || {
                let (acknowledged, wait) = sync_channel(1);
                let opaque = Box::new(acknowledged);
                let record = BaseRecord::<(), [u8], _>::with_opaque_to(&job.topic, opaque);
                producer
                    .send(record.payload(&value))
                    .map_err(|(error, _)| error)
                    .expect("room");
                assert!(wait.recv().expect("an outcome"), "not acknowledged");
            })
        }
        Task::Bulk | Task::Each => bulk(job),
        Task::Consume => consume(job),
    }
}

/// Wakes the caller that waits for the record.
struct Wake;

impl ClientContext for Wake {}

impl ProducerContext for Wake {
    type DeliveryOpaque = Box<SyncSender<bool>>;

    fn delivery(&self, result: &DeliveryResult<'_>, caller: Self::DeliveryOpaque) {
        let _ = caller.send(result.is_ok());
    }
}

#[derive(Default)]
struct Latencies(Mutex<Vec<Duration>>);

impl ClientContext for Latencies {}

impl ProducerContext for Latencies {
    type DeliveryOpaque = Box<Instant>;

    fn delivery(&self, result: &DeliveryResult<'_>, handed_over: Self::DeliveryOpaque) {
        assert!(result.is_ok(), "not acknowledged");
        self.0.lock().expect("no panic").push(handed_over.elapsed());
    }
}

fn bulk(job: &Job) -> Measured {
    // Otherwise librdkafka's defaults.
    let producer: ThreadedProducer<Latencies> = producer_config(job, "5")
        .create_with_context(Latencies::default())
        .expect("start");
    let value = value();
    let send = |index: usize| {
        let handed_over = Box::new(Instant::now());
        let mut record = BaseRecord::<(), [u8], _>::with_opaque_to(&job.topic, handed_over);
        record = record.payload(&value);
        if job.task == Task::Each {
            record = record.partition(index as i32);
        }
        loop {
            match producer.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    record = again;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
    };
    send(0);
    producer.flush(PATIENCE).expect("an acknowledgement");
    producer.context().0.lock().expect("no panic").clear();
    let stopwatch = Stopwatch::start();
    for index in 0..job.count {
        send(index);
    }
    producer.flush(PATIENCE).expect("acknowledgements");
    let latencies = std::mem::take(&mut *producer.context().0.lock().expect("no panic"));
    stopwatch.stop(job.count, latencies)
}

#[derive(Default)]
struct Assigned(OnceLock<Stopwatch>);

impl ClientContext for Assigned {}

impl ConsumerContext for Assigned {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        self.0.get_or_init(Stopwatch::start);
    }
}

fn consume(job: &Job) -> Measured {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let consumer: BaseConsumer<Assigned> = config(job)
        .set("group.id", format!("bench-{}", since.as_nanos()))
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .create_with_context(Assigned::default())
        .expect("start");
    consumer.subscribe(&[&job.topic]).expect("subscribe");
    let mut bytes = 0;
    let mut poll = || {
        // It also returns nothing after another event, such as a rebalance.
        let give_up = Instant::now() + PATIENCE;
        let record = loop {
            match consumer.poll(PATIENCE) {
                Some(record) => break record.expect("a record"),
                None => assert!(Instant::now() < give_up, "no record"),
            }
        };
        bytes += record.payload().map_or(0, <[u8]>::len);
    };
    for _ in 0..job.count {
        poll();
    }
    assert!(bytes >= job.count * VALUE_BYTES, "{bytes} bytes");
    let stopwatch = consumer.context().0.get();
    stopwatch
        .expect("partitions before records")
        .stop(job.count, Vec::new())
}
