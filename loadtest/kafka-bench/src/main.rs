//! Benchmark of tbd's Kafka client, librdkafka and the Java client, in turn on one broker.
//!
//! `kafka-bench run BROKER KAFKA-JARS RESULTS` measures everything and writes `RESULTS/kafka.json` and `kafka.md`.
//! Each measurement is a process of its own (`kafka-bench one ...`), so that its CPU time is its own.

mod java;
mod librdkafka;
mod measure;
mod ours;
mod report;

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};

use measure::{Case, Measured, Sample};

/// Clients in the order of the report.
const CLIENTS: [&str; 3] = ["tbd", "librdkafka", "java"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["run", broker, jars, results] => run(broker, Path::new(jars), Path::new(results)),
        ["one", client, case, broker, topic] => {
            let case = Case::named(case).ok_or("no such case")?;
            let measured = match client {
                "tbd" => ours::measure(case, broker, topic),
                "librdkafka" => librdkafka::measure(case, broker, topic),
                _ => return Err("no such client".into()),
            };
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
        _ => Err("usage: kafka-bench run BROKER KAFKA-JARS RESULTS".into()),
    }
}

fn run(broker: &str, jars: &Path, results: &Path) -> Result<(), Box<dyn Error>> {
    let rounds: usize = std::env::var("ROUNDS")
        .ok()
        .map_or(Ok(4), |text| text.parse())?;
    let topics = ours::prepare(broker)?;
    let java = java::Tools::new(jars, broker)?;
    // Otherwise the first client would pay for the broker's warm-up.
    for client in ["tbd", "librdkafka"] {
        one(client, Case::Produce64, broker, topics.of(Case::Produce64))?;
    }
    let mut samples = Vec::new();
    for round in 0..rounds {
        for case in Case::ALL {
            // The first client meets another state of the broker, so the clients take turns in going first.
            for turn in 0..CLIENTS.len() {
                let client = CLIENTS[(turn + round) % CLIENTS.len()];
                let topic = topics.of(case);
                let measured = match client {
                    "java" => java.measure(case, topic)?,
                    _ => Some(one(client, case, broker, topic)?),
                };
                if let Some(measured) = measured {
                    eprintln!("round {round}, {}, {client}: {measured}", case.name());
                    samples.push(Sample {
                        client,
                        case,
                        measured,
                    });
                }
            }
        }
    }
    report::write(&samples, rounds, results)
}

/// One measurement in a process of its own.
fn one(client: &str, case: Case, broker: &str, topic: &str) -> Result<Measured, Box<dyn Error>> {
    let output = Command::new(std::env::current_exe()?)
        .args(["one", client, case.name(), broker, topic])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("{client} failed at {}", case.name()).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
