//! The Java client's own performance tools. They cannot measure waiting callers.

use std::error::Error;
use std::fs;
use std::process::{Command, Stdio};

use nix::sys::resource::{UsageWho, getrusage};

use crate::measure::{Job, Measured, Task, VALUE_BYTES, cpu_seconds, setting};

/// In a process of its own: the tools are its only children.
pub fn measure(job: &Job) -> Result<Measured, Box<dyn Error>> {
    // The start of the virtual machine and the tool is not the client's time.
    run("ProducerPerformance", &["--help".into()])?;
    let started = cpu_seconds(UsageWho::RUSAGE_CHILDREN);
    let (records, seconds, p99_ms) = match job.task {
        Task::Wait => return Err("the tools do not wait for single records".into()),
        Task::Bulk | Task::Each => produce(job)?,
        Task::Consume => consume(job)?,
    };
    let cpu = cpu_seconds(UsageWho::RUSAGE_CHILDREN) - started;
    Ok(Measured {
        records,
        seconds,
        p99_ms,
        cpu_seconds: cpu - started,
        memory_mib: getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() as f64 / 1024.0,
    })
}

/// Records, seconds, and 99th percentile.
type Figures = (usize, f64, Option<f64>);

fn produce(job: &Job) -> Result<Figures, Box<dyn Error>> {
    let mut arguments = words("--throughput -1 --topic");
    arguments.push(job.topic.clone());
    arguments.extend(words(&format!(
        "--num-records {} --record-size {VALUE_BYTES} --producer-props acks=all bootstrap.servers={}",
        job.count, job.broker
    )));
    if job.task == Task::Each {
        let in_turn = "org.apache.kafka.clients.producer.RoundRobinPartitioner";
        arguments.push(format!("partitioner.class={in_turn}"));
    }
    arguments.extend(tls(job));
    let output = run("ProducerPerformance", &arguments)?;
    // 1000000 records sent, 123.4 records/sec (..), .. avg latency, .. max latency, .. 50th, .. 99th, ..
    let last = output
        .lines()
        .rfind(|line| line.contains("99th"))
        .ok_or("no figures")?;
    let before = |what: &str| -> Option<f64> {
        let words = last.split(what).next()?.split_whitespace();
        words.last()?.parse().ok()
    };
    let per_second = before(" records/sec").ok_or("no throughput")?;
    let seconds = job.count as f64 / per_second;
    Ok((job.count, seconds, before(" ms 99th")))
}

fn consume(job: &Job) -> Result<Figures, Box<dyn Error>> {
    let mut arguments = words(&format!(
        "--hide-header --timeout 60000 --bootstrap-server {} --topic {} --messages {}",
        job.broker, job.topic, job.count
    ));
    if let Some(ca) = &job.ca {
        let file = ca.with_extension("properties");
        fs::write(&file, tls(job).join("\n"))?;
        arguments.extend(["--consumer.config".to_owned(), file.display().to_string()]);
    }
    let output = run("ConsumerPerformance", &arguments)?;
    // start, end, MB, MB/s, records, records/s, rebalance ms, fetch ms, fetch MB/s, fetch records/s
    let last = output
        .lines()
        .rfind(|line| line.matches(',').count() >= 9)
        .ok_or("no figures")?;
    let fields: Vec<&str> = last.split(", ").collect();
    let fetch_ms: f64 = fields[7].trim().parse()?;
    Ok((fields[4].trim().parse()?, fetch_ms / 1e3, None))
}

/// Kafka's settings for TLS, if the job has any.
fn tls(job: &Job) -> Vec<String> {
    let settings = job.ca.iter().flat_map(|ca| {
        [
            "security.protocol=SSL".to_owned(),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.location={}", ca.display()),
        ]
    });
    settings.collect()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A tool's output.
fn run(class: &str, arguments: &[String]) -> Result<String, Box<dyn Error>> {
    let output = Command::new("java")
        .args(["-Xmx1g", "-cp"])
        .arg(format!("{}/*", setting("KAFKA_JARS")?))
        .arg(format!("org.apache.kafka.tools.{class}"))
        .args(arguments)
        .stderr(Stdio::null())
        .output()?;
    Ok(String::from_utf8(output.stdout)?)
}
