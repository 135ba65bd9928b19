//! Reads a topic in a group until the input ends (Ctrl-D), at least once, and counts records for
//! Prometheus: `consume <broker> <group> <topic>`.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_kafka::consumer::{ConsumerHooks, Rebalance};
use tbd_kafka::{
    ApiKey, ClientConfig, ClientHooks, Cluster, Consumer, ConsumerConfig, TopicPartition,
};

/// Counters that a `/metrics` page may print.
#[derive(Debug, Default)]
struct Metrics {
    requests: AtomicU64,
    lost_requests: AtomicU64,
    records: AtomicU64,
}

impl Metrics {
    fn print(&self) {
        for (name, counter) in [
            ("kafka_requests_total", &self.requests),
            ("kafka_requests_lost_total", &self.lost_requests),
            ("kafka_consumer_records_total", &self.records),
        ] {
            println!(
                "# TYPE {name} counter\n{name} {}",
                counter.load(Ordering::Relaxed)
            );
        }
    }
}

impl ClientHooks for Metrics {
    fn request_ended(&self, _: ApiKey, latency: Option<Duration>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if latency.is_none() {
            self.lost_requests.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Commits before a partition goes to another member, so that it repeats nothing.
struct CommitFirst;

impl ConsumerHooks for CommitFirst {
    fn revoking(&self, rebalance: &mut Rebalance<'_>, _: &[TopicPartition]) {
        if let Err(error) = rebalance.commit_polled(Deadline::after(Duration::from_secs(5))) {
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
    let metrics = Arc::new(Metrics::default());
    let mut config = ClientConfig::new([broker]);
    config.hooks = metrics.clone();
    let cluster = Cluster::new(config);
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
    let soon = || Deadline::after(Duration::from_secs(5));
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
            println!(
                "{}@{}: {:?}",
                record.topic_partition(),
                record.offset,
                record.value
            );
        }
        let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
        metrics.records.fetch_add(count, Ordering::Relaxed);
        if let Err(error) = consumer.commit_polled(soon()) {
            eprintln!("{error}; the next poll repeats the commit, or the records");
        }
    }
    consumer.close(soon())?;
    // The input has ended.
    input.join().map_err(|_| "the input's thread panicked")?;
    metrics.print();
    Ok(())
}
