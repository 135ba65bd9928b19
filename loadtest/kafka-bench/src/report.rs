//! Report: medians of all rounds, as JSON and as Markdown.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::CLIENTS;
use crate::measure::{Case, MANY, Measured, RECORDS_OF_MANY, Sample, VALUE_BYTES, setting};

#[derive(Serialize)]
struct Row {
    case: &'static str,
    client: &'static str,
    records_per_second: f64,
    /// The slowest and the fastest round.
    records_per_second_range: (f64, f64),
    p99_ms: Option<f64>,
    cpu_seconds_per_million: f64,
    memory_mib: f64,
}

#[derive(Serialize)]
struct Report<'a> {
    rounds: usize,
    cores: usize,
    value_bytes: usize,
    rows: &'a [Row],
    samples: &'a [Sample],
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

fn row(case: &Case, client: &'static str, samples: &[Sample]) -> Option<Row> {
    let own: Vec<&Measured> = samples
        .iter()
        .filter(|sample| sample.case == case.name && sample.client == client)
        .map(|sample| &sample.measured)
        .collect();
    let rates: Vec<f64> = own.iter().map(|one| one.per_second()).collect();
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    Some(Row {
        case: case.name,
        client,
        records_per_second: median(rates)?,
        records_per_second_range: (least, most),
        p99_ms: median(own.iter().filter_map(|one| one.p99_ms).collect()),
        cpu_seconds_per_million: median(own.iter().map(|one| one.cpu_per_million()).collect())?,
        memory_mib: median(own.iter().map(|one| one.memory_mib).collect())?,
    })
}

fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

pub fn write(
    cases: &[Case],
    samples: &[Sample],
    rounds: usize,
    folder: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut text = String::new();
    let cores = std::thread::available_parallelism()?.get();
    writeln!(
        text,
        "# tbd's Kafka client next to librdkafka, franz-go and the Java client\n\n\
         `make bench-kafka`: medians of {rounds} rounds, the clients taking turns, on one machine of {cores} cores that also runs the\n\
         broker (one Kafka node). Values of {VALUE_BYTES} bytes, no key, acks=all, idempotent, uncompressed; in bulk {} records.\n\
         p99: from handing a record over to its acknowledgement. CPU: the client's process, user and system, per million records;\n\
         Java's without the start of its virtual machine. \"Range\" is the slowest and the fastest round. Java's tools cannot\n\
         measure callers that wait. A consumer is measured from the moment that it has its partitions.\n",
        setting("RECORDS")?
    )?;
    let rows: Vec<Row> = cases
        .iter()
        .flat_map(|case| {
            CLIENTS
                .iter()
                .filter_map(|client| row(case, client, samples))
        })
        .collect();
    for case in cases.iter().filter(|case| !case.is_of_memory()) {
        let tls = if case.tls { ", with TLS" } else { "" };
        writeln!(
            text,
            "## {}: {}{tls}\n\n\
             | Client | Records/s | Range | of librdkafka | p99 ms | CPU s per million |\n\
             |---|---:|---:|---:|---:|---:|",
            case.name, case.title
        )?;
        let own = || rows.iter().filter(|row| row.case == case.name);
        let reference = own()
            .find(|row| row.client == "librdkafka")
            .map(|row| row.records_per_second);
        for row in own() {
            let (least, most) = row.records_per_second_range;
            writeln!(
                text,
                "| {} | {:.0} | {least:.0} to {most:.0} | {} | {} | {:.2} |",
                row.client,
                row.records_per_second,
                cell(reference.map(|one| row.records_per_second / one)),
                cell(row.p99_ms),
                row.cpu_seconds_per_million,
            )?;
        }
        writeln!(text)?;
    }
    if cases.iter().any(Case::is_of_memory) {
        writeln!(
            text,
            "## memory with {MANY} partitions\n\n\
             The largest resident memory of the client's process, in MiB: a producer that has sent a record to each partition, and a\n\
             consumer that has read {RECORDS_OF_MANY} records, as many from each. Java's includes its virtual machine, whose heap has 1 GiB at most.\n\n\
             | Client | Producer | Consumer |\n\
             |---|---:|---:|"
        )?;
        for client in CLIENTS {
            let memory = |case: &str| {
                let mut own = rows.iter().filter(|row| row.client == client);
                let row = own.find(|row| row.case == case)?;
                Some(format!("{:.0}", row.memory_mib))
            };
            let cell = |case| memory(case).unwrap_or_else(|| "-".to_owned());
            let (producer, consumer) = (cell("produce-1000"), cell("consume-1000"));
            writeln!(text, "| {client} | {producer} | {consumer} |")?;
        }
    }
    let report = Report {
        rounds,
        cores,
        value_bytes: VALUE_BYTES,
        rows: &rows,
        samples,
    };
    fs::create_dir_all(folder)?;
    fs::write(
        folder.join("kafka.json"),
        serde_json::to_string_pretty(&report)? + "\n",
    )?;
    fs::write(folder.join("kafka.md"), &text)?;
    println!("{text}");
    Ok(())
}
