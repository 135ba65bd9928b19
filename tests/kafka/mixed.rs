//! Interoperability with librdkafka and the Java client: mixed groups, and records that each writes and
//! the others read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tbd_deadline::Deadline;
use tbd_kafka::TopicPartition;
use tbd_kafka::admin::all;
use tbd_kafka::consumer::Assignor;
use tbd_kafka::consumer::{CommitError, Consumer, ConsumerConfig, GroupProtocol, Isolation};
use tbd_kafka::producer::Compression;
use tbd_kafka::producer::partition_for_key;
use tbd_kafka::{Admin, OffsetAndMetadata, ProducerConfig};

use crate::client::{cluster, read_topic, record, soon, start, text, topic};
use crate::consumer::poll_until;
use crate::support::features::is_before_kafka_4;
use crate::support::{eventually, kafka, kafka_tool, librdkafka, unique};

/// How long a Java program may take to start and do its part, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const PARTITIONS: i32 = 6;

/// The assignments of a group's members, and the records they have read.
#[derive(Default)]
pub struct Seen {
    owned: BTreeMap<&'static str, BTreeSet<i64>>,
    /// Partition and offset, in the order of reading.
    pub read: Vec<(i64, i64)>,
}

/// A group under test.
pub struct Group {
    pub topic: String,
    pub group: String,
    protocol: GroupProtocol,
    assignor: Assignor,
    pub seen: Arc<Mutex<Seen>>,
}

/// A member; leaves in an orderly way when dropped.
pub enum Member {
    Ours(Arc<AtomicBool>, Option<JoinHandle<()>>),
    Other(Child, End, Option<JoinHandle<()>>),
}

/// How to ask another client to leave.
pub enum End {
    /// By closing its standard input (librdkafka).
    Input(Option<ChildStdin>),
    /// By a signal (Java).
    Signal,
}

impl Group {
    fn new(assignor: Assignor) -> Group {
        Group {
            topic: topic(&cluster(), PARTITIONS),
            group: unique("mixed"),
            protocol: GroupProtocol::Classic,
            assignor,
            seen: Arc::default(),
        }
    }

    pub fn of(protocol: GroupProtocol) -> Group {
        Group {
            protocol,
            ..Group::new(Assignor::CooperativeSticky)
        }
    }

    pub fn join(&self, who: &'static str) -> Member {
        match who {
            "ours" => self.ours(),
            "librdkafka" => self.librdkafka(),
            "java" => self.java(),
            _ => panic!("{who}"),
        }
    }

    fn ours(&self) -> Member {
        let mut config = ConsumerConfig::new(self.group.as_str(), [self.topic.as_str()]);
        config.set_session_timeout(Duration::from_secs(6));
        config.assignors = vec![self.assignor];
        config.group_protocol = self.protocol;
        let mut consumer = Consumer::start(cluster(), config, Box::new(())).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopping) = (Arc::clone(&self.seen), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let records = consumer.poll(Deadline::after(Duration::from_millis(100)));
                {
                    let mut seen = seen.lock().unwrap();
                    let owned = consumer.assignment();
                    let owned = owned.iter().map(|one| i64::from(one.partition));
                    seen.owned.insert("ours", owned.collect());
                    let records = records.unwrap_or_default();
                    let places = records
                        .iter()
                        .map(|one| (i64::from(one.partition), one.offset));
                    seen.read.extend(places);
                }
                match consumer.commit_polled(soon()) {
                    Ok(()) | Err(CommitError::Rebalancing | CommitError::Lost) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            consumer.close(soon()).unwrap();
            seen.lock().unwrap().owned.insert("ours", BTreeSet::new());
        });
        Member::Ours(stop, Some(thread))
    }

    fn librdkafka(&self) -> Member {
        let strategy = self.assignor.name();
        let mut command = librdkafka();
        command.args(["consume", &kafka(), &self.topic, &self.group, strategy]);
        Member::other(command, true, Arc::clone(&self.seen), |seen, line| {
            if let Some(owned) = line["owned"].as_array() {
                let owned = owned.iter().filter_map(Value::as_i64).collect();
                seen.owned.insert("librdkafka", owned);
            } else {
                let place = |field: &str| line[field].as_i64().expect("a number");
                seen.read.push((place("partition"), place("offset")));
            }
        })
    }

    fn java(&self) -> Member {
        let mut command = kafka_tool("org.apache.kafka.tools.VerifiableConsumer");
        let strategy = match self.assignor {
            Assignor::Range => "RangeAssignor",
            _ => "CooperativeStickyAssignor",
        };
        command
            .args(["--bootstrap-server", &kafka(), "--topic", &self.topic])
            .args(["--group-id", &self.group, "--reset-policy", "earliest"])
            .arg("--verbose");
        match self.protocol {
            GroupProtocol::Consumer => command.args(["--group-protocol", "consumer"]),
            _ => command
                .args(["--session-timeout", "6000", "--assignment-strategy"])
                .arg(format!("org.apache.kafka.clients.consumer.{strategy}")),
        };
        Member::other(command, false, Arc::clone(&self.seen), |seen, line| {
            let owned = seen.owned.entry("java").or_default();
            let partitions = line["partitions"].as_array().into_iter().flatten();
            let mut partitions = partitions.filter_map(|one| one["partition"].as_i64());
            match line["name"].as_str() {
                Some("partitions_assigned") => owned.extend(partitions),
                Some("partitions_revoked") => {
                    partitions.all(|one| owned.remove(&one));
                }
                Some("shutdown_complete") => owned.clear(),
                Some("record_data") => {
                    let place = |field: &str| line[field].as_i64().expect("a number");
                    seen.read.push((place("partition"), place("offset")));
                }
                _ => {}
            }
        })
    }

    /// Writes ten records into each partition.
    fn publish(&self) {
        let producer = start(&cluster(), ProducerConfig::default());
        let records = (0..10 * PARTITIONS).map(|number| {
            let mut one = record(&self.topic, number.to_string(), "v".to_owned());
            one.partition = Some(number % PARTITIONS);
            one
        });
        for outcome in producer.publish(records.collect(), soon()) {
            outcome.unwrap();
        }
        producer.close(soon()).unwrap();
    }

    /// Waits until each of these members has its share, and no other member has any.
    pub fn wait_for_shares(&self, members: &[&'static str]) {
        let share = usize::try_from(PARTITIONS).unwrap() / members.len();
        let mut owned = BTreeMap::new();
        eventually(
            PATIENCE,
            &format!("{members:?} to share the partitions"),
            || {
                owned.clone_from(&self.seen.lock().unwrap().owned);
                owned.retain(|_, partitions| !partitions.is_empty());
                let all: BTreeSet<_> = owned.values().flatten().collect();
                let is_fair = owned.values().all(|partitions| partitions.len() == share);
                let is_whole = all.len() == PARTITIONS as usize && owned.len() == members.len();
                (is_fair && is_whole).then_some(())
            },
        );
        assert!(
            members.iter().all(|member| owned.contains_key(member)),
            "{owned:?}"
        );
    }

    /// Waits until `count` records are read and committed; fails if one is read twice.
    fn wait_for_reading(&self, count: usize) {
        let admin = Admin::new(cluster());
        eventually(
            PATIENCE,
            &format!("{count} records to be read and committed"),
            || {
                let read = self.seen.lock().unwrap().read.clone();
                let distinct: BTreeSet<_> = read.iter().collect();
                assert_eq!(distinct.len(), read.len(), "read twice: {read:?}");
                let committed = admin
                    .committed_offsets(&self.group, soon())
                    .and_then(all)
                    .ok()?;
                let committed: i64 = committed.values().map(|it| it.offset).sum();
                (read.len() == count && usize::try_from(committed) == Ok(count)).then_some(())
            },
        );
    }
}

impl Member {
    fn other(
        mut command: Command,
        ends_with_input: bool,
        seen: Arc<Mutex<Seen>>,
        take: impl Fn(&mut Seen, Value) + Send + 'static,
    ) -> Member {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start the other client");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(line) = serde_json::from_str(&line) {
                    take(&mut seen.lock().unwrap(), line);
                }
            }
        });
        let end = match child.stdin.take() {
            input if ends_with_input => End::Input(input),
            _ => End::Signal,
        };
        Member::Other(child, end, Some(reader))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        match self {
            Member::Ours(stop, thread) => {
                stop.store(true, Ordering::Relaxed);
                if thread.take().is_some_and(|thread| thread.join().is_err())
                    && !thread::panicking()
                {
                    panic!("the member failed");
                }
            }
            Member::Other(child, end, reader) => {
                match end {
                    End::Input(input) => drop(input.take()),
                    End::Signal => {
                        let _ = kill_process(Pid::from_child(child), Signal::TERM);
                    }
                }
                let _ = child.wait();
                let _ = reader.take().map(JoinHandle::join);
            }
        }
    }
}

/// `leader` joins first and so leads; the others join; it leaves, and another member leads. Every
/// record is read once meanwhile.
fn share(assignor: Assignor, leader: &'static str, others: &[&'static str]) {
    let group = Group::new(assignor);
    group.publish();
    let first = group.join(leader);
    group.wait_for_shares(&[leader]);
    group.wait_for_reading(60);

    let _others: Vec<Member> = others.iter().map(|other| group.join(other)).collect();
    let mut all = others.to_vec();
    all.push(leader);
    group.wait_for_shares(&all);
    group.publish();
    group.wait_for_reading(120);

    let before = group.seen.lock().unwrap().owned.clone();
    drop(first);
    group.wait_for_shares(others);
    if assignor == Assignor::CooperativeSticky {
        let after = group.seen.lock().unwrap().owned.clone();
        for other in others {
            assert!(
                after[other].is_superset(&before[other]),
                "{before:?}, then {after:?}"
            );
        }
    }
    group.publish();
    group.wait_for_reading(180);
}

fn share_under_each_leader(assignor: Assignor) {
    thread::scope(|scope| {
        scope.spawn(|| share(assignor, "ours", &["librdkafka", "java"]));
        scope.spawn(|| share(assignor, "librdkafka", &["ours"]));
        scope.spawn(|| share(assignor, "java", &["ours"]));
    });
}

#[test]
fn cooperative_sticky_groups_with_librdkafka_and_java_read_all_once_under_each_leader() {
    share_under_each_leader(Assignor::CooperativeSticky);
}

#[test]
fn range_groups_with_librdkafka_and_java_read_all_once_under_each_leader() {
    share_under_each_leader(Assignor::Range);
}

#[test]
fn metadata_pass_between_this_client_and_librdkafka_until_a_commit_without_them() {
    let (topic, group) = (topic(&cluster(), 1), unique("group"));
    let partition = TopicPartition::new(topic.as_str(), 0);
    let producer = start(&cluster(), ProducerConfig::default());
    let records = (0..3).map(|number| record(&topic, format!("{number}"), "v".to_owned()));
    for outcome in producer.publish(records.collect(), soon()) {
        outcome.unwrap();
    }
    producer.close(soon()).unwrap();
    let theirs = |arguments: &[&str]| {
        let mut command = librdkafka();
        command.args([arguments[0], &kafka(), &topic, &group]);
        let output = command.args(&arguments[1..]).output().expect("run it");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };

    theirs(&["commit", "1", "of theirs"]);
    // The Python module counts the zero at the end of a C string.
    let expected = OffsetAndMetadata::new(1, "of theirs\0");
    let committed = Admin::new(cluster()).committed_offsets(&group, soon());
    assert_eq!(committed.and_then(all).unwrap()[&partition], expected);

    let config = ConsumerConfig::new(group.as_str(), [topic.as_str()]);
    let mut consumer = Consumer::start(cluster(), config, Box::new(())).unwrap();
    let records = poll_until(&mut consumer, |_, records| records.len() == 2);
    assert_eq!(consumer.committed(&partition), Some(&expected));
    let mut ours = OffsetAndMetadata::new(2, "of ours");
    ours.leader_epoch = records[0].leader_epoch;
    let offsets = [(partition.clone(), ours.clone())];
    consumer.commit(&offsets, soon()).unwrap();
    assert_eq!(consumer.committed(&partition), Some(&ours));
    let seen = theirs(&["committed"]);
    assert_eq!(seen.trim(), r#"{"offset": 2, "metadata": "of ours"}"#);

    consumer.commit_polled(soon()).unwrap();
    consumer.close(soon()).unwrap();
    let seen = theirs(&["committed"]);
    assert!(
        seen.starts_with(r#"{"offset": 3, "metadata": "topic-id="#),
        "{seen}"
    );
}

const CODECS: [(Compression, &str); 5] = [
    (Compression::None, "none"),
    (Compression::Gzip, "gzip"),
    (Compression::Snappy, "snappy"),
    (Compression::Lz4, "lz4"),
    (Compression::Zstd, "zstd"),
];
const KEYS: usize = 8;

/// Eight records, long enough to be worth compressing: (key, value).
fn letters(writer: &str, codec: &str) -> Vec<(String, String)> {
    (0..KEYS)
        .map(|key| {
            (
                format!("key-{key}"),
                format!("{writer}-{codec}-{key}-").repeat(40),
            )
        })
        .collect()
}

/// Gives a program `key<TAB>value` lines to publish.
fn feed(mut command: Command, letters: &[(String, String)]) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("start");
    let lines: String = letters
        .iter()
        .map(|(key, value)| format!("{key}\t{value}\n"))
        .collect();
    let mut input = child.stdin.take().expect("stdin is piped");
    input.write_all(lines.as_bytes()).expect("feed the program");
    drop(input);
    assert!(
        child.wait().expect("wait for the program").success(),
        "{command:?}"
    );
}

/// A multiset of records: (key, value) and how often.
fn counted(
    records: impl IntoIterator<Item = (String, String)>,
) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for record in records {
        *counts.entry(record).or_default() += 1;
    }
    counts
}

#[test]
fn each_client_reads_what_each_writes_in_every_compression_and_all_agree_on_partitions() {
    let cluster = cluster();
    let topic = topic(&cluster, 4);
    let broker = kafka();
    thread::scope(|scope| {
        for (compression, codec) in CODECS {
            let (cluster, topic, broker) = (&cluster, &topic, &broker);
            scope.spawn(move || {
                let mut config = ProducerConfig::default();
                config.compression = compression;
                let producer = start(cluster, config);
                let records = letters("ours", codec).into_iter();
                let records = records
                    .map(|(key, value)| record(topic, key, value))
                    .collect();
                for outcome in producer.publish(records, soon()) {
                    outcome.unwrap();
                }
                producer.close(soon()).unwrap();
                let mut command = librdkafka();
                command.args(["produce", broker, topic, codec]);
                feed(command, &letters("librdkafka", codec));
                let class = match is_before_kafka_4() {
                    true => "kafka.tools.ConsoleProducer",
                    false => "org.apache.kafka.tools.ConsoleProducer",
                };
                let mut command = kafka_tool(class);
                command
                    .args(["--bootstrap-server", broker, "--topic", topic])
                    .args(["--compression-codec", codec, "--property", "parse.key=true"]);
                feed(command, &letters("java", codec));
            });
        }
    });
    let writers = ["ours", "librdkafka", "java"];
    let written = writers.iter().flat_map(|writer| {
        CODECS
            .iter()
            .flat_map(move |(_, codec)| letters(writer, codec))
    });
    let expected = counted(written);
    let total = writers.len() * CODECS.len() * KEYS;

    // The log itself: every key is where this client's partitioner says, for every writer.
    let log = read_topic(&cluster, &topic);
    let in_log = log.iter().flat_map(|(partition, records)| {
        records.iter().map(move |one| {
            let key = text(&one.key);
            assert_eq!(partition_for_key(key.as_bytes(), 4), *partition, "{key}");
            (key, text(&one.value))
        })
    });
    assert_eq!(counted(in_log), expected);

    let config = ConsumerConfig::new(unique("group"), [topic.as_str()]);
    let mut consumer = Consumer::start(cluster.clone(), config, Box::new(())).unwrap();
    let records = poll_until(&mut consumer, |_, records| records.len() >= total);
    let ours = records.iter().map(|one| (text(&one.key), text(&one.value)));
    assert_eq!(counted(ours), expected);
    consumer.close(soon()).unwrap();

    let mut command = kafka_tool("org.apache.kafka.tools.consumer.ConsoleConsumer");
    command
        .args([
            "--bootstrap-server",
            &broker,
            "--topic",
            &topic,
            "--from-beginning",
        ])
        .args([
            "--max-messages",
            &total.to_string(),
            "--timeout-ms",
            "30000",
        ])
        .args(["--property", "print.key=true"]);
    let output = command
        .stderr(Stdio::null())
        .output()
        .expect("run Java's consumer");
    let java = String::from_utf8(output.stdout).expect("text");
    let java = java.lines().filter_map(|line| line.split_once('\t'));
    let java = java.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(counted(java), expected);

    let mut command = librdkafka();
    command.args(["consume", &broker, &topic, &unique("group"), "range"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let records = lines
        .map(|line| serde_json::from_str::<Value>(&line.expect("a line")).expect("JSON"))
        .filter(|line| line["owned"].is_null());
    let records: Vec<_> = records
        .take(total)
        .map(|line| {
            let field = |name: &str| line[name].as_str().expect("text").to_owned();
            (field("key"), field("value"))
        })
        .collect();
    drop(child.stdin.take());
    child.kill().expect("end librdkafka");
    child.wait().expect("wait for librdkafka");
    assert_eq!(counted(records), expected);
}

#[test]
fn aborted_transactions_are_read_only_uncommitted_and_all_markers_are_passed_over() {
    let cluster = cluster();
    let topic = topic(&cluster, 1);
    let letters = ["committed", "aborted", "committed"].map(|key| (key.to_owned(), "v".to_owned()));
    let mut command = librdkafka();
    command.args(["transact", &kafka(), &topic]);
    feed(command, &letters);

    let (committed, aborted) = ([(0, "committed"), (4, "committed")], (2, "aborted"));
    for (isolation, expected) in [
        (Isolation::ReadCommitted, committed.to_vec()),
        (
            Isolation::ReadUncommitted,
            vec![committed[0], aborted, committed[1]],
        ),
    ] {
        let mut config = ConsumerConfig::new(unique("group"), [topic.as_str()]);
        config.isolation = isolation;
        let mut consumer = Consumer::start(cluster.clone(), config, Box::new(())).unwrap();
        // Past the last marker, too, or the group would always show a lag.
        let partition = TopicPartition::new(topic.as_str(), 0);
        let records = poll_until(&mut consumer, |consumer, _| {
            consumer.position(&partition) == Some(6)
        });
        consumer.commit_polled(soon()).unwrap();
        assert_eq!(consumer.lag(), [(partition, 0)]);
        let read = records.iter().map(|one| (one.offset, text(&one.key)));
        let expected = expected
            .iter()
            .map(|(offset, key)| (*offset, (*key).to_owned()));
        assert_eq!(read.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        consumer.close(soon()).unwrap();
    }
}
