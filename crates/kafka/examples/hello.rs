//! Writes a record, reads it in a group at least once, and stops cleanly: `hello <broker>`. The topic
//! `greetings` must exist.

use std::sync::Arc;
use std::time::Duration;

use tbd_kafka::producer::Record;
use tbd_kafka::{
    ClientConfig, Cluster, Consumer, ConsumerConfig, Deadline, Producer, ProducerConfig,
};

fn within(seconds: u64) -> Deadline {
    Deadline::after(Duration::from_secs(seconds))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = std::env::args()
        .nth(1)
        .unwrap_or("localhost:9092".to_owned());
    let cluster = Cluster::new(ClientConfig::new([broker]));

    let producer = Producer::start(cluster.clone(), ProducerConfig::default(), Arc::new(()))?;
    let record = Record::new("greetings", Some("key".into()), Some("hello".into()));
    let written = producer.send(record, within(10))?.wait(within(10))?;
    println!(
        "written to partition {} at {:?}",
        written.partition, written.offset
    );
    producer.close(within(5))?;

    let config = ConsumerConfig::new("greeters", ["greetings"]);
    let mut consumer = Consumer::start(cluster, config, Box::new(()))?;
    let records = consumer.poll(within(20))?;
    for record in &records {
        println!(
            "{}-{} at {}: {:?}",
            record.topic, record.partition, record.offset, record.value
        );
    }
    consumer.commit_polled(within(5))?; // after the work: at least once
    consumer.close(within(5))?;
    Ok(())
}
