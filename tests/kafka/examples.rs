//! The Kafka client's examples and the programs in its README, run as programs against a real broker.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tbd_kafka::admin::{Admin, TopicSpec, all};
use tbd_kafka::consumer::Isolation;
use tbd_kafka::{Cluster, ProducerConfig, TopicPartition};

use crate::client::{cluster, consume, read_topic, record, soon, start, text, topic};
use crate::support::{eventually, kafka, repository, unique};

const PATIENCE: Duration = Duration::from_secs(60);

/// The path of a built example. Cargo builds them with the same features as this test.
fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "--quiet"]);
        for name in ["hello", "consume", "transform", "metrics"] {
            build.args(["--example", name]);
        }
        assert!(build.current_dir(repository()).status().unwrap().success());
    });
    let here = std::env::current_exe().unwrap();
    here.parent().unwrap().with_file_name("examples").join(name)
}

/// A running example, whose standard input ends with this value.
struct Running {
    child: Child,
    input: Option<ChildStdin>,
}

impl Running {
    fn start(name: &str, arguments: &[&str]) -> Running {
        let mut command = Command::new(example(name));
        command.args(arguments);
        // One for each topic written to.
        command.envs(arguments.last().map(|last| ("TRANSACTIONAL_ID", last)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        Running { child, input }
    }

    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        let output = self.child.stdout.take().unwrap();
        BufReader::new(output).lines().map_while(Result::ok)
    }

    /// Ends the input, and expects that the program ends well.
    fn end(mut self) {
        self.input = None;
        let end = self.child.wait().unwrap();
        assert!(end.success(), "{end}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn publish(topic: &str, values: &[&str]) {
    let producer = start(&cluster(), ProducerConfig::default());
    let records = values
        .iter()
        .map(|value| record(topic, (*value).to_owned(), (*value).to_owned()));
    for outcome in producer.publish(records.collect(), soon()) {
        outcome.unwrap();
    }
    producer.close(soon()).unwrap();
}

fn committed(cluster: &Cluster, group: &str, topic: &str) -> Option<i64> {
    let committed = Admin::new(cluster.clone()).committed_offsets(group, soon());
    let mut committed = committed.and_then(all).ok()?;
    let found = committed.remove(&TopicPartition::new(topic, 0));
    found.map(|it| it.offset)
}

#[test]
fn the_programs_in_the_readme_are_those_of_the_examples() {
    let folder = repository().join("crates/kafka");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let sources = fs::read_dir(folder.join("examples")).unwrap();
    let sources: Vec<String> = sources
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    let blocks: Vec<&str> = readme
        .split("```rust,no_run\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        assert!(
            sources.iter().any(|source| source.contains(block)),
            "{block}"
        );
    }
}

#[test]
fn the_first_program_writes_and_reads_its_record_and_commits() {
    let cluster = cluster();
    let spec = TopicSpec::new("greetings", 1, 1);
    Admin::new(cluster.clone())
        .create_topics(&[spec], soon())
        .and_then(all)
        .unwrap();
    let mut running = Running::start("hello", &[&kafka()]);
    let lines: Vec<String> = running.lines().collect();
    assert!(
        lines[0].starts_with("written to partition 0 at Some("),
        "{lines:?}"
    );
    assert!(lines[1].contains(r#"Some(b"hello")"#), "{lines:?}");
    running.end();
    assert!(committed(&cluster, "greeters", "greetings") >= Some(1));
}

#[test]
fn the_consumer_prints_and_commits_records_until_its_input_ends() {
    let (cluster, group) = (cluster(), unique("group"));
    let topic = topic(&cluster, 1);
    publish(&topic, &["a", "b"]);
    let mut running = Running::start("consume", &[&kafka(), &group, &topic]);
    let lines: Vec<String> = running.lines().take(2).collect();
    assert_eq!(
        lines,
        [format!("{topic}-0@0: a"), format!("{topic}-0@1: b")]
    );
    running.end();
    assert_eq!(committed(&cluster, &group, &topic), Some(2));
}

#[test]
fn the_transformer_writes_capital_letters_once_although_it_is_killed() {
    let cluster = cluster();
    let (from, to) = (topic(&cluster, 1), topic(&cluster, 1));
    let values = || {
        let records = consume(&cluster, &to, Isolation::ReadCommitted);
        records
            .iter()
            .map(|one| text(&one.value))
            .collect::<Vec<_>>()
    };
    let arguments = [&*kafka(), &*from, &*to];
    publish(&from, &["a", "b"]);
    let first = Running::start("transform", &arguments);
    eventually(PATIENCE, "the first letters", || {
        (values() == ["A", "B"]).then_some(())
    });
    drop(first);
    publish(&from, &["c"]);
    let second = Running::start("transform", &arguments);
    eventually(PATIENCE, "the last letter", || {
        (values().len() > 2).then_some(())
    });
    second.end();
    assert_eq!(values(), ["A", "B", "C"]);
}

#[test]
fn metrics_of_producer_and_consumer_are_served_to_prometheus() {
    let cluster = cluster();
    let (group, topic) = (unique("group"), topic(&cluster, 1));
    let arguments = [&*kafka(), &*group, &*topic, "127.0.0.1:0"];
    let mut running = Running::start("metrics", &arguments);
    let url = running.lines().next().unwrap();
    let address = url
        .trim_start_matches("http://")
        .trim_end_matches("/metrics");
    let page = || {
        let mut socket = TcpStream::connect(address).ok()?;
        socket
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
            .ok()?;
        let mut page = String::new();
        socket.read_to_string(&mut page).ok()?;
        Some(page)
    };
    let input = running.input.as_mut().unwrap();
    writeln!(input, "one\ntwo").unwrap();
    eventually(PATIENCE, "two records written and read", || {
        let page = page()?;
        let has = |line: &str| page.lines().any(|it| it == line);
        let is_written = has("kafka_record_seconds_count 2");
        (is_written && has("kafka_records_read_total 2") && has("kafka_partitions 1")).then_some(())
    });
    let page = page().unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(
        page.contains("# TYPE kafka_record_seconds histogram\n"),
        "{page}"
    );
    assert!(
        page.contains("kafka_record_seconds_bucket{le=\"+Inf\"} 2\n"),
        "{page}"
    );
    assert!(page.contains("kafka_records_failed_total 0\n"), "{page}");
    running.end();
    assert_eq!(read_topic(&cluster, &topic)[&0].len(), 2);
}
