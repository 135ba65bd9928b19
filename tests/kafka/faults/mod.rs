//! Every request that the client sends is answered with every error code, one at a time, by kfake, a
//! cluster in memory. The client does what the tables in its `DESIGN.md` say. It never hangs, and it
//! loses and repeats nothing that it has promised.

mod admin;
mod logins;
mod members;
mod producers;
mod readers;
#[path = "../../../crates/kafka/src/error_tables.rs"]
mod tables;

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tbd_deadline::Deadline;
use tbd_kafka::admin::all;
use tbd_kafka::{Admin, ApiKey, Cluster, ErrorCode, ProducerConfig, TopicPartition};

use crate::client::{cluster_at, record, soon, start};
use crate::support::repository;
use tables::ErrorTable;

/// The most that any case may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Cases at a time. They wait most of the time.
const THREADS: usize = 16;

/// A cluster of its own, which ends with this value.
struct Kfake {
    child: Child,
    orders: Mutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
    addresses: Vec<String>,
}

impl Kfake {
    fn start() -> Self {
        Self::with(&[])
    }

    /// Without `transaction.version` 2.
    fn old() -> Self {
        Self::with(&["old"])
    }

    /// It asks for a login.
    fn with_login() -> Self {
        Self::with(&["login"])
    }

    fn with(arguments: &[&str]) -> Self {
        let fetched = Command::new("bash")
            .current_dir(repository())
            .args(["-c", "set -euo pipefail; source scripts/lib.sh; scripts/fetch kfake >&2; echo \"$KFAKE\""])
            .output()
            .expect("run bash");
        assert!(fetched.status.success(), "{}", text_of(&fetched.stderr));
        let mut child = Command::new(text_of(&fetched.stdout).trim())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start kfake");
        let orders = child.stdin.take().expect("stdin is piped");
        let mut answers = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let addresses = answers.next().expect("addresses").expect("text");
        Self {
            child,
            orders: Mutex::new((orders, answers)),
            addresses: addresses.split(',').map(str::to_owned).collect(),
        }
    }

    fn cluster(&self) -> Cluster {
        cluster_at(self.addresses.clone())
    }

    fn order(&self, line: &str) -> usize {
        let mut pipes = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(pipes.0, "{line}").expect("kfake reads");
        let answer = pipes.1.next().expect("kfake runs").expect("text");
        answer.parse().expect("a number")
    }

    /// Counts a group's requests of this kind from now on.
    fn watch(&self, api: ApiKey, group: &str) -> Fault<'_> {
        Fault(self, self.order(&format!("watch {} {group}", api as i16)))
    }
}

impl Drop for Kfake {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A fault that was installed, or a count of requests.
struct Fault<'a>(&'a Kfake, usize);

impl Fault<'_> {
    fn hits(&self) -> usize {
        self.0.order(&format!("hits {}", self.1))
    }

    fn remove(&self) {
        self.0.order(&format!("remove {}", self.1));
    }
}

/// Where in a request or an answer the code belongs.
#[derive(Clone, Copy)]
enum At<'a> {
    Topic(&'a str),
    Group(&'a str),
    /// A transactional id.
    Id(&'a str),
    /// A topic whose configuration is asked for.
    Resource(&'a str),
    /// A member's last heartbeat.
    Leave(&'a str),
    /// The code of the whole answer. It meets the next such request of any client.
    Whole,
    /// The next such request of any client.
    Any,
}

/// One request, answered once with one code.
#[derive(Clone, Copy, Debug)]
struct Case {
    api: ApiKey,
    code: ErrorCode,
}

impl Case {
    /// The next such request is answered with the code.
    fn install<'a>(self, kfake: &'a Kfake, at: At<'_>) -> Fault<'a> {
        self.install_times(kfake, at, 1)
    }

    /// All such requests are answered with the code, until the fault is removed.
    fn install_for_good<'a>(self, kfake: &'a Kfake, at: At<'_>) -> Fault<'a> {
        self.install_times(kfake, at, -1)
    }

    fn install_times<'a>(self, kfake: &'a Kfake, at: At<'_>, count: i32) -> Fault<'a> {
        let (mut topic, mut group, mut id, mut resource, mut scope) = ("-", "-", "-", "-", "-");
        match at {
            At::Topic(name) => topic = name,
            At::Group(name) => group = name,
            At::Id(name) => id = name,
            At::Resource(name) => resource = name,
            At::Leave(name) => (group, scope) = (name, "leave"),
            At::Whole => scope = "top",
            At::Any => {}
        }
        // The protocol's numbers are the discriminants.
        let (api, code) = (self.api as i16, self.code.code());
        let line = format!("fault {api} {code} {count} {topic} {group} {id} {resource} {scope}");
        Fault(kfake, kfake.order(&line))
    }

    /// What the table says about the code, in the column of that name.
    fn reaction<'t>(self, table: &'t ErrorTable, column: &str) -> &'t str {
        table.reaction(column, self.code.name(), self.code.is_retriable())
    }
}

/// All codes of the client's enumeration, and one that it does not know.
fn codes() -> impl Iterator<Item = ErrorCode> {
    let known = (-1..1000).filter_map(ErrorCode::from_code);
    let known = known.filter(|code| !matches!(code, ErrorCode::Unknown(_)));
    known.chain([ErrorCode::Unknown(999)])
}

/// Checks every code for every request, `threads` cases at a time.
fn check_all(apis: &[ApiKey], threads: usize, check: impl Fn(Case) + Sync) {
    let cases: Vec<Case> = apis
        .iter()
        .flat_map(|api| codes().map(|code| Case { api: *api, code }))
        .collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let started = Instant::now();
                    let checked = std::panic::AssertUnwindSafe(|| check(*case));
                    let is_good = std::panic::catch_unwind(checked).is_ok();
                    if !is_good || started.elapsed() > LIMIT {
                        let took = started.elapsed();
                        failures
                            .lock()
                            .unwrap()
                            .push(format!("{case:?} after {took:.1?}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
}

fn publish_three(cluster: &Cluster, topic: &str) {
    let producer = start(cluster, ProducerConfig::default());
    let records = (0..3).map(|it| record(topic, "k".to_owned(), format!("0:{it}")));
    for outcome in producer.publish(records.collect(), soon()) {
        outcome.unwrap();
    }
    producer.close(soon()).unwrap();
}

fn committed(cluster: &Cluster, group: &str, topic: &str) -> Option<i64> {
    let admin = Admin::new(cluster.clone());
    match admin.committed_offsets(group, soon()).and_then(all) {
        Ok(offsets) => {
            let found = offsets.get(&TopicPartition::new(topic, 0));
            found.map(|it| it.offset)
        }
        // Apache Kafka has no offsets then, either, but does not call it an error.
        Err(error) => {
            assert_eq!(error.code(), Some(ErrorCode::GroupIdNotFound));
            None
        }
    }
}

/// A poll that ends soon.
fn moment() -> Deadline {
    Deadline::after(Duration::from_millis(100))
}
