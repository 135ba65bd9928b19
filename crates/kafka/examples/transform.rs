//! Writes each record of one topic to another in capital letters, exactly once:
//! `transform <broker> <from> <to>`. Ends with the program's standard input.
//!
//! Start it as often as there are partitions; each needs another `TRANSACTIONAL_ID`.

use std::time::Duration;

use tbd_kafka::producer::{Record, TransactionError};
use tbd_kafka::{Consumer, ConsumerRecord, Deadline, TransactionalProducer};

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

fn step(
    producer: &mut TransactionalProducer,
    consumer: &mut Consumer,
    to: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let records = match consumer.poll(within(1)) {
        Ok(records) => records,
        Err(error) if error.is_transient() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if records.is_empty() {
        return Ok(());
    }
    match transform(producer, consumer, &records, to) {
        Ok(()) => Ok(()),
        Err(error) if error.is_transient() => {
            producer.settle(within(60))?; // committed or aborted: the consumer learns it
            consumer.rewind(); // to the last commit
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    use tbd_kafka::consumer::Isolation;
    use tbd_kafka::{ClientConfig, Cluster, ConsumerConfig, ProducerConfig};

    let mut arguments = std::env::args().skip(1);
    let (Some(broker), Some(from), Some(to)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: transform <broker> <from> <to>".into());
    };
    let cluster = Cluster::new(ClientConfig::new([broker]));
    // The id outlives the process: the next one with it ends this one's open transaction.
    let id = std::env::var("TRANSACTIONAL_ID").unwrap_or_else(|_| "transform-1".to_owned());
    let (config, hooks) = (ProducerConfig::default(), std::sync::Arc::new(()));
    let mut producer = TransactionalProducer::start(cluster.clone(), id, config, hooks)?;
    producer.settle(within(60))?;

    let mut config = ConsumerConfig::new("transform", [from]);
    config.isolation = Isolation::ReadCommitted;
    let mut consumer = Consumer::start(cluster, config, Box::new(()))?;
    let waker = consumer.waker();
    let input = std::thread::spawn(move || {
        // The end of the input is the signal to stop, an error too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        waker.wake();
    });
    while !input.is_finished() {
        step(&mut producer, &mut consumer, &to)?;
    }
    consumer.close(within(10))?;
    producer.close(within(10))?;
    Ok(())
}
