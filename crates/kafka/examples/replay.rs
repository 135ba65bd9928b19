//! Prints what a topic got in the last hour, without a group: `replay <broker> <topic>`.

use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tbd_kafka::consumer::StartAt;
use tbd_kafka::{Admin, ClientConfig, Cluster, Consumer, ConsumerConfig, Deadline, TopicPartition};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(broker), Some(topic)) = (arguments.next(), arguments.next()) else {
        return Err("usage: replay <broker> <topic>".into());
    };
    let cluster = Cluster::new(ClientConfig::new([broker]));
    let soon = || Deadline::after(Duration::from_secs(10));
    let ends = Admin::new(cluster.clone()).end_offsets(&topic, soon())?;
    let an_hour_ago = SystemTime::now().duration_since(UNIX_EPOCH)? - Duration::from_secs(3600);
    let start = StartAt::Timestamp(i64::try_from(an_hour_ago.as_millis())?);
    let partitions = (0..).zip(&ends).map(|(number, _)| {
        let partition = TopicPartition::new(topic.as_str(), number);
        (partition, start)
    });
    let config = ConsumerConfig::without_group();
    let mut consumer = Consumer::start_assigned(cluster, config, partitions, Box::new(()))?;
    let is_read = |consumer: &Consumer| {
        (0..).zip(&ends).all(|(number, end)| {
            let partition = TopicPartition::new(topic.as_str(), number);
            consumer.position(&partition) >= Some(*end)
        })
    };
    while !is_read(&consumer) {
        for record in consumer.poll(soon())? {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
            println!("{}@{}: {value}", record.topic_partition(), record.offset);
        }
    }
    consumer.close(soon())?;
    Ok(())
}
