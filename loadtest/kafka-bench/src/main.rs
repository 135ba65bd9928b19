//! Benchmark of Kafka clients, in turn on one broker.
//!
//! `kafka-bench run RESULTS` measures everything and writes `RESULTS/kafka.json` and `kafka.md`; scripts/bench-kafka sets
//! its environment. Each measurement is a process of its own (`kafka-bench one CLIENT ...`), so that its CPU time and
//! its memory are its own.

mod java;
mod librdkafka;
mod measure;
mod ours;
mod report;

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};

use measure::{Case, Job, Measured, Sample, Task, setting};

/// Clients in the order of the report.
const CLIENTS: [&str; 4] = ["tbd", "librdkafka", "franz-go", "java"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["run", results] => run(Path::new(results)),
        ["one", client, ref job @ ..] => {
            let job = Job::parse(job).ok_or("no such job")?;
            let measured = match client {
                "tbd" => ours::measure(&job),
                "librdkafka" => librdkafka::measure(&job),
                "java" => java::measure(&job)?,
                _ => return Err("no such client".into()),
            };
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
        _ => Err("usage: kafka-bench run RESULTS".into()),
    }
}

fn run(results: &Path) -> Result<(), Box<dyn Error>> {
    let rounds: usize = setting("ROUNDS")?.parse()?;
    let cases = measure::cases()?;
    let mut topics = Vec::new();
    for case in &cases {
        let topic = case.topic();
        if !topics.contains(&topic) {
            ours::prepare(&job(case, false)?, case.partitions)?;
            topics.push(topic);
        }
    }
    // Otherwise the first client would pay for the broker's warm-up.
    for case in cases.iter().filter(|case| case.name.contains("-64")) {
        for client in ["tbd", "librdkafka"] {
            one(client, &job(case, case.tls)?)?;
        }
    }
    let mut samples = Vec::new();
    for round in 0..rounds {
        for case in &cases {
            // The first client meets another state of the broker, so the clients take turns in going first.
            for turn in 0..CLIENTS.len() {
                let client = CLIENTS[(turn + round) % CLIENTS.len()];
                let is_missing = match client {
                    "java" => case.task == Task::Wait, // no tool for that
                    "franz-go" => setting("FRANZ_GO").is_err(),
                    _ => false,
                };
                if is_missing {
                    continue;
                }
                let measured = one(client, &job(case, case.tls)?)?;
                eprintln!("round {round}, {}, {client}: {measured}", case.name);
                let case = case.name;
                samples.push(Sample {
                    client,
                    case,
                    measured,
                });
            }
        }
    }
    report::write(&cases, &samples, rounds, results)
}

fn job(case: &Case, tls: bool) -> Result<Job, Box<dyn Error>> {
    Ok(Job {
        task: case.task,
        count: case.count,
        broker: setting(if tls { "TLS_BROKER" } else { "BROKER" })?,
        topic: case.topic(),
        ca: tls.then(|| setting("CA")).transpose()?.map(Into::into),
    })
}

/// One measurement in a process of its own.
fn one(client: &str, job: &Job) -> Result<Measured, Box<dyn Error>> {
    let mut command = match client {
        "franz-go" => Command::new(setting("FRANZ_GO")?),
        _ => {
            let mut command = Command::new(env::current_exe()?);
            command.args(["one", client]);
            command
        }
    };
    let output = command
        .args(job.arguments())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("{client} failed at {}", job.arguments().join(" ")).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
