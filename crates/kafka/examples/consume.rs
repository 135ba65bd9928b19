//! Reads a topic in a group until the input ends (Ctrl-D), at least once:
//! `consume <broker> <group> <topic>`.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tbd_kafka::consumer::{ConsumerHooks, Rebalance};
use tbd_kafka::{ClientConfig, Cluster, Consumer, ConsumerConfig, Deadline, TopicPartition};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

/// Commits before a partition goes to another member, so that it repeats nothing.
struct CommitFirst;

impl ConsumerHooks for CommitFirst {
    fn revoking(&self, rebalance: &mut Rebalance<'_>, _: &[TopicPartition]) {
        if let Err(error) = rebalance.commit_polled(soon()) {
            eprintln!("not committed: {error}");
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(broker), Some(group), Some(topic)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: consume <broker> <group> <topic>".into());
    };
    let cluster = Cluster::new(ClientConfig::new([broker]));
    let config = ConsumerConfig::new(group, [topic]);
    let mut consumer = Consumer::start(cluster, config, Box::new(CommitFirst))?;

    let is_over = Arc::new(AtomicBool::new(false));
    let (waker, flag) = (consumer.waker(), is_over.clone());
    let input = std::thread::spawn(move || {
        // An error of the input ends it, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        flag.store(true, Ordering::SeqCst);
        waker.wake();
    });
    while !is_over.load(Ordering::SeqCst) {
        let records = match consumer.poll(soon()) {
            Ok(records) => records,
            Err(error) if error.is_transient() => {
                eprintln!("{error}; trying again");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for record in &records {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
            println!("{}@{}: {value}", record.topic_partition(), record.offset);
        }
        if let Err(error) = consumer.commit_polled(soon()) {
            eprintln!("{error}; the next poll repeats the commit, or the records");
        }
    }
    consumer.close(soon())?;
    // The input has ended.
    input.join().map_err(|_| "the input's thread panicked")?;
    Ok(())
}
