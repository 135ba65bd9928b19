//! Producers and consumers as processes of their own, so that they can be killed: this test binary once
//! more, running one of the two ignored tests below. They report each outcome as a line on standard
//! output: `@word field...`.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use tbd_deadline::Deadline;
use tbd_kafka::TopicPartition;
use tbd_kafka::consumer::{CommitError, Consumer, ConsumerConfig, ConsumerHooks};
use tbd_kafka::consumer::{ConsumerRecord, Isolation, OffsetReset};
use tbd_kafka::producer::{Certainty, Pending, ProduceError, TransactionError};
use tbd_kafka::{Cluster, Producer, ProducerConfig, TransactionalProducer};

use crate::client::{cluster_at, record, soon, start, text};
use crate::support::{eventually, unique};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Producer,
    Consumer,
    /// Copies records in transactions; with its number in its transactional id.
    Transformer(u8),
}

/// The outcomes that a process reports, in order. Times are microseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A record is in the log; its place is known if the broker still knew it.
    Acknowledged {
        value: String,
        at: u64,
        place: Option<(i32, i64)>,
    },
    /// The record is not in the log and will not be.
    NotSent {
        value: String,
    },
    MaybeSent,
    Assigned {
        at: u64,
        partitions: Vec<i32>,
    },
    /// Revoked or lost.
    Gone {
        partitions: Vec<i32>,
    },
    Got {
        at: u64,
        partition: i32,
        offset: i64,
        value: String,
    },
    Committed {
        at: u64,
        partition: i32,
        offset: i64,
    },
    /// A transaction was committed.
    Transformed,
    /// Another process has the transactional id.
    Fenced,
    /// A violation.
    Fatal {
        what: String,
    },
}

/// A producer or a consumer.
pub struct Process {
    pub role: Role,
    /// Whether a successor has its transactional id.
    pub is_zombie: bool,
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    reader: Option<JoinHandle<()>>,
    events: Arc<Mutex<Vec<Event>>>,
}

/// All events of a process.
pub struct History {
    pub name: String,
    pub role: Role,
    pub is_zombie: bool,
    pub events: Vec<Event>,
}

impl Process {
    pub fn start(role: Role, variables: &[(String, String)]) -> Process {
        let test = match role {
            Role::Producer => "history::process::a_producer_of_the_history_check",
            Role::Consumer => "history::process::a_consumer_of_the_history_check",
            Role::Transformer(_) => "history::process::a_transformer_of_the_history_check",
        };
        let number = match role {
            Role::Transformer(number) => number,
            _ => 0,
        };
        let name = unique("p");
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args([
                test,
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .envs(variables.iter().cloned())
            .env("HISTORY_NAME", &name)
            .env("HISTORY_NUMBER", number.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a process");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let sink = Arc::clone(&events);
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // The harness writes a prefix without a line end before the first line. A line that a kill cut
                // short is ignored.
                if let Some((_, line)) = line.split_once('@') {
                    sink.lock().unwrap().extend(parse(line));
                }
            }
        });
        let input = child.stdin.take();
        Process {
            role,
            is_zombie: false,
            name,
            child,
            input,
            reader: Some(reader),
            events,
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill a process");
        self.wait();
    }

    pub fn freeze(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).expect("freeze a process");
    }

    pub fn thaw(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("thaw a process");
    }

    /// Lets it finish and exit.
    pub fn finish(&mut self, limit: Duration) {
        drop(self.input.take());
        let status = eventually(limit, "a process to end", || {
            self.child.try_wait().expect("look at a process")
        });
        assert!(status.success(), "a {:?} failed", self.role);
        self.wait();
    }

    fn wait(&mut self) {
        self.child.wait().expect("wait for a process");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no panic");
        }
    }

    /// The last offset that this consumer has received from a partition.
    pub fn reached(&self, wanted: i32) -> Option<i64> {
        let events = self.events.lock().unwrap();
        let offset = |event: &Event| match event {
            Event::Got {
                partition, offset, ..
            } if *partition == wanted => Some(*offset),
            _ => None,
        };
        events.iter().rev().find_map(offset)
    }

    pub fn into_history(self) -> History {
        let events = std::mem::take(&mut *self.events.lock().unwrap());
        History {
            name: self.name.clone(),
            role: self.role,
            is_zombie: self.is_zombie,
            events,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Option<Event> {
    // A complete line ends with a full stop.
    let line = line.strip_suffix(" .")?;
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let fields: Vec<&str> = rest.split(' ').collect();
    let partitions = |from: usize| {
        fields[from..]
            .iter()
            .filter_map(|one| one.parse().ok())
            .collect()
    };
    Some(match word {
        "acknowledged" => Event::Acknowledged {
            at: fields[0].parse().ok()?,
            value: fields[1].to_owned(),
            place: match fields[3].parse().ok()? {
                -1 => None,
                offset => Some((fields[2].parse().ok()?, offset)),
            },
        },
        "not-sent" => Event::NotSent {
            value: fields[0].to_owned(),
        },
        "maybe-sent" => Event::MaybeSent,
        "fenced" => Event::Fenced,
        "transformed" => Event::Transformed,
        "assigned" => Event::Assigned {
            at: fields[0].parse().ok()?,
            partitions: partitions(1),
        },
        "gone" => Event::Gone {
            partitions: partitions(0),
        },
        "got" => Event::Got {
            at: fields[0].parse().ok()?,
            partition: fields[1].parse().ok()?,
            offset: fields[2].parse().ok()?,
            value: fields[3].to_owned(),
        },
        "committed" => Event::Committed {
            at: fields[0].parse().ok()?,
            partition: fields[1].parse().ok()?,
            offset: fields[2].parse().ok()?,
        },
        _ => Event::Fatal {
            what: line.to_owned(),
        },
    })
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("a clock after 1970").as_micros() as u64
}

/// Writes complete lines in one write.
fn say(lines: &str) {
    let mut out = std::io::stdout().lock();
    // Nothing reads the output any more if the check has failed already.
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
}

/// True once standard input has ended.
fn end_of_input() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let signal = Arc::clone(&ended);
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        signal.store(true, Ordering::Relaxed);
    });
    ended
}

fn variable(name: &str) -> String {
    std::env::var(name).expect("run by the history check only")
}

/// The brokers that the check names.
fn cluster() -> Cluster {
    let brokers = variable("HISTORY_BROKERS");
    cluster_at(brokers.split(',').map(str::to_owned).collect())
}

fn settled(value: &str, outcome: &Result<tbd_kafka::producer::RecordMetadata, ProduceError>) {
    say(&match outcome {
        Ok(place) => format!(
            "@acknowledged {} {value} {} {} .\n",
            now(),
            place.partition,
            place.offset.unwrap_or(-1)
        ),
        Err(error) if error.certainty == Certainty::NotSent => format!("@not-sent {value} .\n"),
        Err(_) => "@maybe-sent .\n".to_owned(),
    });
}

/// Publishes numbered records under one key, some ahead of their acknowledgements, until stopped.
fn publish(producer: &Producer, topic: &str, key: &str, stop: &AtomicBool) {
    let mut ahead: VecDeque<(String, Pending)> = VecDeque::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let value = format!("{key}:{number}");
        let one = record(topic, key.to_owned(), value.clone());
        match producer.send(one, Deadline::after(Duration::from_secs(30))) {
            Ok(pending) => ahead.push_back((value, pending)),
            Err(error) => settled(&value, &Err(error)),
        }
        while ahead.len() > 20 {
            let (value, pending) = ahead.pop_front().expect("it is not empty");
            settled(
                &value,
                &pending.wait(Deadline::after(Duration::from_secs(60))),
            );
        }
        // The pace of the load.
        thread::sleep(Duration::from_millis(5));
    }
    for (value, pending) in ahead {
        settled(
            &value,
            &pending.wait(Deadline::after(Duration::from_secs(60))),
        );
    }
}

#[test]
#[ignore = "a process of the history check"]
fn a_producer_of_the_history_check() {
    let stop = end_of_input();
    let (name, topic) = (variable("HISTORY_NAME"), variable("HISTORY_TOPIC"));
    let cluster = cluster();
    let mut config = ProducerConfig::default();
    config.request_timeout = Duration::from_secs(3);
    // Two records fill a batch, so that several batches are in flight.
    config.batch_bytes = 700;
    let producer = start(&cluster, config);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (producer, topic, stop) = (&producer, topic.as_str(), &*stop);
            let key = format!("{name}-{thread}");
            scope.spawn(move || publish(producer, topic, &key, stop));
        }
    });
    producer.close(soon()).unwrap();
}

struct Tell;

fn list(partitions: &[TopicPartition]) -> String {
    let numbers: Vec<String> = partitions
        .iter()
        .map(|one| one.partition.to_string())
        .collect();
    numbers.join(" ")
}

impl ConsumerHooks for Tell {
    fn assigned(&self, added: &[TopicPartition]) {
        say(&format!("@assigned {} {} .\n", now(), list(added)));
    }

    fn revoked(&self, partitions: &[TopicPartition]) {
        say(&format!("@gone {} .\n", list(partitions)));
    }

    fn lost(&self, partitions: &[TopicPartition]) {
        say(&format!("@gone {} .\n", list(partitions)));
    }
}

#[test]
#[ignore = "a process of the history check"]
fn a_consumer_of_the_history_check() {
    let stop = end_of_input();
    let cluster = cluster();
    let mut config = ConsumerConfig::new(variable("HISTORY_GROUP"), [variable("HISTORY_TOPIC")]);
    config.set_session_timeout(Duration::from_secs(6));
    let mut consumer = Consumer::start(cluster, config, Box::new(Tell)).unwrap();
    while !stop.load(Ordering::Relaxed) {
        match consumer.poll(Deadline::after(Duration::from_millis(200))) {
            Ok(records) => {
                let at = now();
                let lines = records.iter().map(|one| {
                    let (partition, offset) = (one.partition, one.offset);
                    format!("@got {at} {partition} {offset} {} .\n", text(&one.value))
                });
                say(&lines.collect::<String>());
            }
            Err(error) if error.is_transient() => continue,
            Err(error) => say(&format!("@fatal poll: {error} .\n")),
        }
        match consumer.commit_polled(Deadline::after(Duration::from_secs(5))) {
            Ok(()) => {
                let at = now();
                let owned = consumer.assignment();
                let lines = owned.iter().filter_map(|one| {
                    let position = consumer.position(one)?;
                    Some(format!("@committed {at} {} {position} .\n", one.partition))
                });
                say(&lines.collect::<String>());
            }
            Err(CommitError::Fatal(code)) => say(&format!("@fatal commit: {code} .\n")),
            Err(_) => {}
        }
    }
    // The consumer cannot always send its leave; then the group notices after a session.
    if let Err(error) = consumer.close(soon()) {
        assert!(error.is_transient(), "{error}");
    }
}

/// Copies records and commits their offsets.
fn copy(
    producer: &mut TransactionalProducer,
    consumer: &mut Consumer,
    records: &[ConsumerRecord],
    to: &str,
) -> Result<(), TransactionError> {
    let limit = || Deadline::after(Duration::from_secs(20));
    let mut transaction = producer.begin(limit())?;
    for one in records {
        let copied = record(to, text(&one.key), text(&one.value));
        transaction.send(copied, limit())?;
    }
    transaction.send_offsets(&consumer.polled_offsets(), limit())?;
    transaction.commit(limit())
}

#[test]
#[ignore = "a process of the history check"]
fn a_transformer_of_the_history_check() {
    let stop = end_of_input();
    let (group, to) = (variable("HISTORY_TRANSFORM"), variable("HISTORY_COPY"));
    let cluster = cluster();
    let mut config = ProducerConfig::default();
    config.request_timeout = Duration::from_secs(3);
    let id = format!("{group}-{}", variable("HISTORY_NUMBER"));
    let mut producer =
        TransactionalProducer::start(cluster.clone(), id, config, Arc::new(())).unwrap();
    let mut config = ConsumerConfig::new(group, [variable("HISTORY_TOPIC")]);
    config.auto_offset_reset = OffsetReset::Earliest;
    config.isolation = Isolation::ReadCommitted;
    config.set_session_timeout(Duration::from_secs(6));
    let mut consumer = Consumer::start(cluster, config, Box::new(())).unwrap();
    let mut is_settled = false;
    while !stop.load(Ordering::Relaxed) {
        let settled = match is_settled {
            true => Ok(None),
            false => producer.settle(Deadline::after(Duration::from_secs(20))),
        };
        let result = settled.and_then(|_| {
            if !is_settled {
                consumer.rewind();
                is_settled = true;
            }
            match consumer.poll(Deadline::after(Duration::from_millis(200))) {
                Ok(records) if records.is_empty() => {}
                Ok(records) => {
                    copy(&mut producer, &mut consumer, &records, &to)?;
                    say("@transformed .\n");
                }
                Err(error) if error.is_transient() => {}
                Err(error) => say(&format!("@fatal poll: {error} .\n")),
            }
            Ok(())
        });
        match result {
            Ok(()) => {}
            Err(TransactionError::Fenced(_)) => {
                say("@fenced .\n");
                break;
            }
            Err(error) if error.is_transient() => is_settled = false,
            Err(error) => say(&format!("@fatal transaction: {error} .\n")),
        }
    }
    if let Err(error) = consumer.close(soon()) {
        assert!(error.is_transient(), "{error}");
    }
    // Whatever is open is aborted, by the cluster if it must be.
    let _ = producer.close(soon());
}
