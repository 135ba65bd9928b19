//! Serves metrics to Prometheus: `metrics <broker> <group> <topic> <address>`. Each line of the input
//! becomes a record of the topic, and the group reads them. The end of the input ends the program.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tbd_kafka::consumer::ConsumerHooks;
use tbd_kafka::producer::{Outcome, ProducerHooks, Record};
use tbd_kafka::{
    ApiKey, ClientConfig, ClientHooks, Cluster, Consumer, ConsumerConfig, Deadline, Producer,
    ProducerConfig, TopicPartition,
};

/// Upper bounds of the latencies' buckets in seconds.
const BOUNDS: [f64; 6] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5];

#[derive(Debug, Default)]
struct Metrics {
    requests: AtomicUsize,
    requests_lost: AtomicUsize,
    records_failed: AtomicUsize,
    records_read: AtomicUsize,
    partitions: AtomicUsize,
    /// Latencies of written records: one number for each bucket, and for those beyond.
    latencies: [AtomicUsize; BOUNDS.len() + 1],
    latency_micros: AtomicUsize,
}

impl ClientHooks for Metrics {
    fn request_ended(&self, _: ApiKey, latency: Option<Duration>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let is_lost = usize::from(latency.is_none());
        self.requests_lost.fetch_add(is_lost, Ordering::Relaxed);
    }
}

impl ProducerHooks for Metrics {
    fn record_settled(&self, _: &str, latency: Duration, outcome: &Outcome) {
        if outcome.is_err() {
            self.records_failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let seconds = latency.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.latencies[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = usize::try_from(latency.as_micros()).unwrap_or(0);
        self.latency_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// The consumer's part; a consumer owns its hooks.
struct Assignment(Arc<Metrics>);

impl ConsumerHooks for Assignment {
    fn assigned(&self, added: &[TopicPartition]) {
        self.0.partitions.fetch_add(added.len(), Ordering::Relaxed);
    }

    fn revoked(&self, partitions: &[TopicPartition]) {
        let count = partitions.len();
        self.0.partitions.fetch_sub(count, Ordering::Relaxed);
    }

    fn lost(&self, partitions: &[TopicPartition]) {
        self.revoked(partitions);
    }
}

impl Metrics {
    /// The page, in Prometheus's text format.
    fn page(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        for (name, kind, value) in [
            ("kafka_requests_total", "counter", &self.requests),
            ("kafka_requests_lost_total", "counter", &self.requests_lost),
            (
                "kafka_records_failed_total",
                "counter",
                &self.records_failed,
            ),
            ("kafka_records_read_total", "counter", &self.records_read),
            ("kafka_partitions", "gauge", &self.partitions),
        ] {
            let value = value.load(Ordering::Relaxed);
            writeln!(page, "# TYPE {name} {kind}\n{name} {value}")?;
        }
        let name = "kafka_record_seconds";
        writeln!(page, "# TYPE {name} histogram")?;
        let bounds = BOUNDS.iter().map(ToString::to_string);
        let mut count = 0;
        for (bucket, bound) in self.latencies.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            count += bucket.load(Ordering::Relaxed);
            writeln!(page, "{name}_bucket{{le=\"{bound}\"}} {count}")?;
        }
        let sum = Duration::from_micros(self.latency_micros.load(Ordering::Relaxed) as u64);
        writeln!(
            page,
            "{name}_sum {}\n{name}_count {count}",
            sum.as_secs_f64()
        )?;
        Ok(page)
    }

    /// Answers one HTTP request, whatever it asks for.
    fn answer(&self, mut socket: TcpStream) -> Result<(), Box<dyn Error>> {
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.set_write_timeout(Some(Duration::from_secs(2)))?;
        let mut lines = BufReader::new(&socket).lines();
        while lines
            .next()
            .transpose()?
            .is_some_and(|line| !line.is_empty())
        {}
        let page = self.page()?;
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
        write!(
            socket,
            "{head}\r\nContent-Length: {}\r\n\r\n{page}",
            page.len()
        )?;
        Ok(())
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn consume(
    mut consumer: Consumer,
    metrics: &Metrics,
    is_over: &AtomicBool,
) -> Result<(), tbd_kafka::Error> {
    while !is_over.load(Ordering::SeqCst) {
        match consumer.poll(soon()) {
            Ok(records) => metrics
                .records_read
                .fetch_add(records.len(), Ordering::Relaxed),
            Err(error) if error.is_transient() => continue,
            Err(error) => return Err(error),
        };
        if let Err(error) = consumer.commit_polled(soon()) {
            eprintln!("{error}; the next poll repeats the commit, or the records");
        }
    }
    consumer.close(soon())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [broker, group, topic, address] = &arguments[..] else {
        return Err("usage: metrics <broker> <group> <topic> <address>".into());
    };
    let metrics = Arc::new(Metrics::default());
    let mut config = ClientConfig::new([broker]);
    config.hooks = metrics.clone();
    let cluster = Cluster::new(config);
    let producer = Producer::start(cluster.clone(), ProducerConfig::default(), metrics.clone())?;
    let hooks = Box::new(Assignment(metrics.clone()));
    let consumer = Consumer::start(cluster, ConsumerConfig::new(group, [topic]), hooks)?;

    let listener = TcpListener::bind(address)?;
    println!("http://{}/metrics", listener.local_addr()?);
    let served = metrics.clone();
    // It ends with the program.
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            if let Err(error) = socket.map_err(Into::into).and_then(|it| served.answer(it)) {
                eprintln!("no metrics: {error}");
            }
        }
    });
    let (waker, is_over) = (consumer.waker(), Arc::new(AtomicBool::new(false)));
    let flag = is_over.clone();
    let reader = std::thread::spawn(move || consume(consumer, &metrics, &flag));
    for line in std::io::stdin().lines() {
        let record = Record::new(topic.as_str(), None, Some(line?.into()));
        // Its outcome is among the metrics.
        let _pending = producer.send(record, soon())?;
    }
    producer.close(soon())?;
    is_over.store(true, Ordering::SeqCst);
    waker.wake();
    reader.join().map_err(|_| "the reader panicked")??;
    Ok(())
}
