//! The Java client's own performance tools. They cannot measure waiting callers.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::resource::UsageWho;

use crate::measure::{BULK, Case, Measured, VALUE_BYTES, cpu_seconds};

pub struct Tools {
    jars: PathBuf,
    broker: String,
    /// The start of the virtual machine and the tool, which is not the client's time.
    start_seconds: f64,
}

impl Tools {
    pub fn new(jars: &Path, broker: &str) -> Result<Tools, Box<dyn Error>> {
        let mut tools = Tools {
            jars: jars.to_owned(),
            broker: broker.to_owned(),
            start_seconds: 0.0,
        };
        let (_, cpu) = tools.run("ProducerPerformance", &["--help"])?;
        tools.start_seconds = cpu;
        Ok(tools)
    }

    /// `None` for a measurement that the tools cannot do.
    pub fn measure(&self, case: Case, topic: &str) -> Result<Option<Measured>, Box<dyn Error>> {
        let count = BULK.to_string();
        let servers = format!("bootstrap.servers={}", self.broker);
        match case {
            Case::Produce1 | Case::Produce64 => Ok(None),
            Case::ProduceBulk => {
                let size = VALUE_BYTES.to_string();
                let (output, cpu) = self.run(
                    "ProducerPerformance",
                    &[
                        "--topic",
                        topic,
                        "--num-records",
                        &count,
                        "--record-size",
                        &size,
                        "--throughput",
                        "-1",
                        "--producer-props",
                        &servers,
                        "acks=all",
                    ],
                )?;
                // 1000000 records sent, 123.4 records/sec (..), .. avg latency, .. max latency, .. 50th, .. 99th, ..
                let last = output
                    .lines()
                    .rfind(|line| line.contains("99th"))
                    .ok_or("no figures")?;
                let before = |what: &str| -> Option<f64> {
                    last.split(what)
                        .next()?
                        .split_whitespace()
                        .next_back()?
                        .parse()
                        .ok()
                };
                let per_second = before(" records/sec").ok_or("no throughput")?;
                Ok(Some(Measured {
                    records: BULK,
                    seconds: BULK as f64 / per_second,
                    p99_ms: before(" ms 99th"),
                    cpu_seconds: cpu - self.start_seconds,
                }))
            }
            Case::Consume1 | Case::Consume16 => {
                let (output, cpu) = self.run(
                    "ConsumerPerformance",
                    &[
                        "--bootstrap-server",
                        &self.broker,
                        "--topic",
                        topic,
                        "--messages",
                        &count,
                        "--hide-header",
                        "--timeout",
                        "60000",
                    ],
                )?;
                // start, end, MB, MB/s, records, records/s, rebalance ms, fetch ms, fetch MB/s, fetch records/s
                let last = output
                    .lines()
                    .rfind(|line| line.matches(',').count() >= 9)
                    .ok_or("no figures")?;
                let fields: Vec<&str> = last.split(", ").collect();
                let fetch_ms: f64 = fields[7].trim().parse()?;
                Ok(Some(Measured {
                    records: fields[4].trim().parse()?,
                    seconds: fetch_ms / 1e3,
                    p99_ms: None,
                    cpu_seconds: cpu - self.start_seconds,
                }))
            }
        }
    }

    /// A tool's output and CPU time.
    fn run(&self, class: &str, arguments: &[&str]) -> Result<(String, f64), Box<dyn Error>> {
        let before = cpu_seconds(UsageWho::RUSAGE_CHILDREN);
        let output = Command::new("java")
            .args(["-Xmx1g", "-cp"])
            .arg(format!("{}/*", self.jars.display()))
            .arg(format!("org.apache.kafka.tools.{class}"))
            .args(arguments)
            .stderr(Stdio::null())
            .output()?;
        let cpu = cpu_seconds(UsageWho::RUSAGE_CHILDREN) - before;
        Ok((String::from_utf8(output.stdout)?, cpu))
    }
}
