//! Writes each record of one topic to another in capital letters, exactly once:
//! `transform <broker> <from> <to>`. Ends with the program's standard input.
//!
//! Start it as often as there are partitions; each needs another `TRANSACTIONAL_ID`.

use std::error::Error;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_kafka::consumer::{Isolation, OffsetReset};
use tbd_kafka::producer::{Record, TransactionError, TransactionalProducer};
use tbd_kafka::{ClientConfig, Cluster, Consumer, ConsumerConfig, ConsumerRecord, ProducerConfig};

fn within(seconds: u64) -> Deadline {
    Deadline::after(Duration::from_secs(seconds))
}

/// Writes the results and commits the offsets, both or neither.
fn transform(
    producer: &mut TransactionalProducer,
    consumer: &mut Consumer,
    records: &[ConsumerRecord],
    to: &str,
) -> Result<(), TransactionError> {
    let mut transaction = producer.begin(within(30))?;
    for record in records {
        let value = record.value.as_deref().unwrap_or_default();
        let value = String::from_utf8_lossy(value).to_uppercase();
        let result = Record::new(to, record.key.clone(), Some(value.into()));
        transaction.send(result, within(30))?;
    }
    transaction.send_offsets(&consumer.polled_offsets(), within(30))?;
    transaction.commit(within(30))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(broker), Some(from), Some(to)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: transform <broker> <from> <to>".into());
    };
    let cluster = Cluster::new(ClientConfig::new([broker]));
    // The id outlives the process: the next one with it ends this one's open transaction.
    let id = std::env::var("TRANSACTIONAL_ID").unwrap_or_else(|_| "transform-1".to_owned());
    let config = ProducerConfig::default();
    let mut producer = TransactionalProducer::start(cluster.clone(), id, config, Arc::new(()))?;
    producer.settle(within(60))?;

    let mut config = ConsumerConfig::new("transform", [from]);
    config.auto_offset_reset = OffsetReset::Earliest;
    config.isolation = Isolation::ReadCommitted;
    let mut consumer = Consumer::start(cluster, config, Box::new(()))?;
    let waker = consumer.waker();
    let input = std::thread::spawn(move || {
        // The end of the input is the signal to stop, an error too.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        waker.wake();
    });
    while !input.is_finished() {
        let records = match consumer.poll(within(1)) {
            Ok(records) => records,
            Err(error) if error.is_transient() => continue,
            Err(error) => return Err(error.into()),
        };
        if records.is_empty() {
            continue;
        }
        match transform(&mut producer, &mut consumer, &records, &to) {
            Ok(()) => println!("{} records", records.len()),
            Err(error) if error.is_transient() => {
                eprintln!("{error}");
                // Aborted, or committed although the answer was late. Then read on from there.
                producer.settle(within(60))?;
                consumer.rewind();
            }
            Err(error) => return Err(error.into()),
        }
    }
    consumer.close(within(10))?;
    producer.close(within(10))?;
    Ok(())
}
