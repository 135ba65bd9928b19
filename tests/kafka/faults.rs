//! Every request that the client sends is answered with error codes, one at a time, by kfake, a cluster
//! in memory. The client recovers or reports the code, as its tables say. It never hangs, and it loses
//! and repeats nothing that it has promised.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tbd_deadline::Deadline;
use tbd_kafka::admin::all;
use tbd_kafka::consumer::{GroupProtocol, Isolation};
use tbd_kafka::producer::{Ended, TransactionError, TransactionalProducer};
use tbd_kafka::{
    Admin, ApiKey, Cluster, Consumer, ConsumerConfig, ErrorCode, ProducerConfig, TopicPartition,
};

use crate::client::{check_promises, cluster_at, consume, record, soon, start, text, topic};
use crate::support::{repository, unique};

/// The most that any case may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Cases at a time. They wait most of the time.
const THREADS: usize = 16;

struct Kfake {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    addresses: Vec<String>,
}

/// The running cluster; it ends with this program.
fn kfake() -> &'static Mutex<Kfake> {
    static KFAKE: OnceLock<Mutex<Kfake>> = OnceLock::new();
    KFAKE.get_or_init(|| {
        let fetched = Command::new("bash")
            .current_dir(repository())
            .args(["-c", "set -euo pipefail; source scripts/lib.sh; scripts/fetch kfake >&2; echo \"$KFAKE\""])
            .output()
            .expect("run bash");
        assert!(fetched.status.success(), "{}", text_of(&fetched.stderr));
        let mut child = Command::new(text_of(&fetched.stdout).trim())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start kfake");
        let orders = child.stdin.take().expect("stdin is piped");
        let mut answers = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let addresses = answers.next().expect("addresses").expect("text");
        Mutex::new(Kfake {
            child,
            orders,
            answers,
            addresses: addresses.split(',').map(str::to_owned).collect(),
        })
    })
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn order(line: &str) -> usize {
    let mut kfake = kfake().lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(kfake.orders, "{line}").expect("kfake reads");
    let answer = kfake.answers.next();
    let answer = answer.unwrap_or_else(|| panic!("kfake has ended: {:?}", kfake.child.try_wait()));
    answer.expect("text").parse().expect("a number")
}

/// A fault that was installed.
struct Fault(usize);

impl Fault {
    fn hits(&self) -> usize {
        order(&format!("hits {}", self.0))
    }
}

/// One request, answered once with one code.
#[derive(Clone, Copy, Debug)]
struct Case {
    api: ApiKey,
    code: ErrorCode,
}

impl Case {
    /// The next such request about this topic, group or transactional id fails.
    fn install(self, topic: &str, group: &str, id: &str) -> Fault {
        // The protocol's numbers are the discriminants.
        let (api, code) = (self.api as i16, self.code.code());
        Fault(order(&format!("fault {api} {code} 1 {topic} {group} {id}")))
    }
}

fn cluster() -> Cluster {
    let kfake = kfake().lock().unwrap_or_else(PoisonError::into_inner);
    cluster_at(kfake.addresses.clone())
}

/// All codes that may be retried, all that these APIs treat in their own way, and some that they do not
/// expect.
fn codes() -> impl Iterator<Item = ErrorCode> {
    use ErrorCode as E;
    let known = (-1..134).filter_map(E::from_code);
    known.chain([E::Unknown(999)]).filter(|code| {
        code.is_retriable()
            || matches!(
                code,
                E::UnknownServerError
                    | E::OffsetOutOfRange
                    | E::MessageTooLarge
                    | E::IllegalGeneration
                    | E::InconsistentGroupProtocol
                    | E::InvalidGroupId
                    | E::UnknownMemberId
                    | E::InvalidSessionTimeout
                    | E::RebalanceInProgress
                    | E::TopicAuthorizationFailed
                    | E::GroupAuthorizationFailed
                    | E::InvalidRequest
                    | E::UnsupportedVersion
                    | E::OutOfOrderSequenceNumber
                    | E::InvalidProducerEpoch
                    | E::InvalidTxnState
                    | E::InvalidProducerIdMapping
                    | E::ConcurrentTransactions
                    | E::TransactionalIdAuthorizationFailed
                    | E::UnknownProducerId
                    | E::InvalidRecord
                    | E::FencedInstanceId
                    | E::ProducerFenced
                    | E::FencedMemberEpoch
                    | E::UnreleasedInstanceId
                    | E::StaleMemberEpoch
                    | E::TransactionAbortable
                    | E::PolicyViolation
                    | E::Unknown(_)
            )
    })
}

/// Checks every code for every request, several cases at a time.
fn check_all(apis: &[ApiKey], check: impl Fn(Case) + Sync) {
    let cases: Vec<Case> = apis
        .iter()
        .flat_map(|api| codes().map(|code| Case { api: *api, code }))
        .collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
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

#[test]
fn a_producer_recovers_from_every_error_code_or_reports_it_and_its_next_record_is_written() {
    check_all(&[ApiKey::Produce, ApiKey::Metadata], |case| {
        use ErrorCode as E;
        let cluster = cluster();
        let topic = topic(&cluster, 1);
        let fault = case.install(&topic, "-", "-");
        let producer = start(&cluster, ProducerConfig::default());
        let outcomes: Vec<_> = ["0:0", "0:1"]
            .into_iter()
            .map(|value| {
                let one = record(&topic, "k".to_owned(), value.to_owned());
                let outcome = producer.publish(vec![one], soon()).remove(0);
                (value.to_owned(), outcome)
            })
            .collect();
        producer.close(soon()).unwrap();
        assert_eq!(fault.hits(), 1);
        let recovers = case.api == ApiKey::Metadata
            || case.code.is_retriable()
            || matches!(
                case.code,
                E::ConcurrentTransactions
                    | E::InvalidProducerEpoch
                    | E::InvalidProducerIdMapping
                    | E::MessageTooLarge
                    | E::OutOfOrderSequenceNumber
                    | E::ProducerFenced
                    | E::UnknownProducerId
            );
        assert_eq!(outcomes[0].1.is_ok(), recovers, "{case:?} {outcomes:?}");
        assert!(outcomes[1].1.is_ok(), "{case:?} {outcomes:?}");
        check_promises(&cluster, &topic, &outcomes);
    });
}

#[test]
fn a_transaction_that_met_an_error_code_is_visible_as_a_whole_or_not_at_all() {
    let apis = [
        ApiKey::FindCoordinator,
        ApiKey::InitProducerId,
        ApiKey::Produce,
        ApiKey::TxnOffsetCommit,
        ApiKey::EndTxn,
    ];
    check_all(&apis, |case| {
        let cluster = cluster();
        let (input, output) = (topic(&cluster, 1), topic(&cluster, 1));
        let (group, id) = (unique("group"), unique("tx"));
        publish_three(&cluster, &input);
        let mut consumer = group_consumer(&cluster, &group, &input, GroupProtocol::Classic);
        let mut values = BTreeSet::new();
        read_three(&mut consumer, &mut values).unwrap();
        let fault = match case.api {
            ApiKey::Produce => case.install(&output, "-", "-"),
            _ => case.install("-", "-", &id),
        };
        let config = ProducerConfig::default();
        let new = || {
            TransactionalProducer::start(cluster.clone(), &*id, config.clone(), Arc::new(()))
                .unwrap()
        };
        let mut producer = new();
        let mut expected = Vec::new();
        for attempt in 0..2 {
            let offsets = consumer.polled_offsets();
            let done = (|| {
                let mut transaction = producer.begin(soon())?;
                for number in 0..3 {
                    let value = format!("{attempt}:{number}");
                    transaction.send(record(&output, "k".to_owned(), value), soon())?;
                }
                transaction.send_offsets(&offsets, soon())?;
                transaction.commit(soon())
            })();
            let is_committed = match done {
                Ok(()) => true,
                Err(TransactionError::Fenced(_)) => {
                    producer.close(soon()).unwrap();
                    producer = new();
                    false
                }
                Err(TransactionError::Failed(_)) => false,
                Err(_) => producer.settle(soon()).unwrap() == Some(Ended::Committed),
            };
            assert!(is_committed || attempt == 0, "{case:?}");
            if is_committed {
                expected.extend((0..3).map(|number| format!("{attempt}:{number}")));
            }
        }
        producer.close(soon()).unwrap();
        consumer.close(soon()).unwrap();
        assert_eq!(fault.hits(), 1, "{case:?}");
        let read = consume(&cluster, &output, Isolation::ReadCommitted);
        let read: Vec<String> = read.iter().map(|one| text(&one.value)).collect();
        assert_eq!(read, expected, "{case:?}");
        assert_eq!(committed(&cluster, &group, &input), Some(3), "{case:?}");
    });
}

fn publish_three(cluster: &Cluster, topic: &str) {
    let producer = start(cluster, ProducerConfig::default());
    let records = (0..3).map(|it| record(topic, "k".to_owned(), format!("0:{it}")));
    for outcome in producer.publish(records.collect(), soon()) {
        outcome.unwrap();
    }
    producer.close(soon()).unwrap();
}

fn group_consumer(
    cluster: &Cluster,
    group: &str,
    topic: &str,
    protocol: GroupProtocol,
) -> Consumer {
    let mut config = ConsumerConfig::new(group, [topic]);
    config.group_protocol = protocol;
    config.set_session_timeout(Duration::from_secs(6));
    config.heartbeat_interval = Duration::from_millis(200);
    Consumer::start(cluster.clone(), config, Box::new(())).unwrap()
}

/// Polls until the three records are there, or a permanent error.
fn read_three(
    consumer: &mut Consumer,
    values: &mut BTreeSet<String>,
) -> Result<(), tbd_kafka::Error> {
    let end = Deadline::after(LIMIT);
    while values.len() < 3 {
        assert!(!end.is_past(), "{values:?}");
        match consumer.poll(Deadline::after(Duration::from_millis(100))) {
            Ok(records) => values.extend(records.iter().map(|one| text(&one.value))),
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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

/// Commits until it succeeds, or a permanent error.
fn commit(consumer: &mut Consumer) -> bool {
    let end = Deadline::after(LIMIT);
    loop {
        assert!(!end.is_past(), "no commit");
        match consumer.commit_polled(Deadline::after(Duration::from_secs(2))) {
            Ok(()) if consumer.lag().iter().any(|(_, lag)| *lag == 0) => return true,
            // Lost partitions come back with the next polls.
            Ok(()) | Err(tbd_kafka::CommitError::Lost) => {}
            Err(error) if !error.is_transient() => return false,
            Err(_) => {}
        }
        let _ = consumer.poll(Deadline::after(Duration::from_millis(100)));
    }
}

fn check_member(case: Case, protocol: GroupProtocol) {
    let cluster = cluster();
    let (topic, group) = (topic(&cluster, 1), unique("group"));
    publish_three(&cluster, &topic);
    let fault = match case.api {
        ApiKey::Fetch | ApiKey::ListOffsets | ApiKey::Metadata => case.install(&topic, "-", "-"),
        _ => case.install("-", &group, "-"),
    };
    let mut consumer = group_consumer(&cluster, &group, &topic, protocol);
    let mut values = BTreeSet::new();
    let mut is_over = read_three(&mut consumer, &mut values).is_err() || !commit(&mut consumer);
    let end = Deadline::after(LIMIT);
    while !is_over && case.api != ApiKey::LeaveGroup && fault.hits() == 0 {
        assert!(!end.is_past(), "{case:?} was not asked for");
        is_over = matches!(
            consumer.poll(Deadline::after(Duration::from_millis(100))),
            Err(error) if !error.is_transient()
        );
    }
    // An error here is one of the group that is left.
    let closed = consumer.close(soon());
    assert_eq!(fault.hits(), 1, "{case:?} {closed:?}");
    if is_over {
        // The next member continues where the group is.
        let mut next = group_consumer(&cluster, &group, &topic, protocol);
        if committed(&cluster, &group, &topic).is_none() {
            values.clear();
            read_three(&mut next, &mut values).unwrap();
        }
        assert!(commit(&mut next), "{case:?}");
        next.close(soon()).unwrap();
    }
    assert_eq!(committed(&cluster, &group, &topic), Some(3), "{case:?}");
    let is_expected = !case.code.is_retriable();
    assert!(!is_over || is_expected, "{case:?} ended the member");
}

#[test]
fn a_member_of_the_classic_protocol_recovers_from_every_retriable_code_and_no_code_loses_a_record()
{
    let apis = [
        ApiKey::Metadata,
        ApiKey::FindCoordinator,
        ApiKey::JoinGroup,
        ApiKey::SyncGroup,
        ApiKey::Heartbeat,
        ApiKey::LeaveGroup,
        ApiKey::OffsetFetch,
        ApiKey::OffsetCommit,
        ApiKey::ListOffsets,
        ApiKey::Fetch,
    ];
    check_all(&apis, |case| check_member(case, GroupProtocol::Classic));
}

#[test]
fn a_member_of_the_consumer_protocol_recovers_from_every_retriable_code_and_no_code_loses_a_record()
{
    let apis = [
        ApiKey::ConsumerGroupHeartbeat,
        ApiKey::OffsetFetch,
        ApiKey::OffsetCommit,
    ];
    check_all(&apis, |case| check_member(case, GroupProtocol::Consumer));
}
