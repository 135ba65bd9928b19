//! Group membership over the consumer protocol (KIP-848), alone and together with classic members.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kafka_protocol::messages::{ConsumerGroupHeartbeatRequest, GroupId};
use kafka_protocol::protocol::StrBytes;
use tbd_deadline::Deadline;
use tbd_kafka::admin::all;
use tbd_kafka::consumer::{CommitError, Consumer, ConsumerConfig, GroupProtocol, TopicFilter};
use tbd_kafka::{Admin, ClientConfig, Cluster, ProducerConfig};

use crate::client::{self, soon};
use crate::consumer::{Journal, poll_until, values};
use crate::support::features::has_consumer_protocol;
use crate::support::topic::allow;
use crate::support::{OwnServer, eventually, unique};

const PARTITIONS: i32 = 4;
const PATIENCE: Duration = Duration::from_secs(40);

/// A topic, its own group, and the records that the group has read.
struct Stage {
    cluster: Cluster,
    topic: String,
    group: String,
    written: BTreeSet<String>,
    seen: Arc<Mutex<Vec<String>>>,
}

/// A member on a thread of its own, as a worker runs it.
struct Running {
    stop: Arc<AtomicBool>,
    share: Arc<Mutex<Option<usize>>>,
    thread: thread::JoinHandle<()>,
}

impl Running {
    fn close(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

impl Stage {
    fn new() -> Self {
        let cluster = client::cluster();
        Self {
            topic: client::topic(&cluster, PARTITIONS),
            group: unique("group"),
            cluster,
            written: BTreeSet::new(),
            seen: Arc::default(),
        }
    }

    fn config(&self, protocol: GroupProtocol) -> ConsumerConfig {
        let mut config = ConsumerConfig::new(&self.group, [&self.topic]);
        config.set_session_timeout(Duration::from_secs(6));
        config.group_protocol = protocol;
        config
    }

    fn member(&self, config: ConsumerConfig) -> (Consumer, Journal) {
        let journal = Journal::default();
        let hooks = Box::new(journal.clone());
        let consumer = Consumer::start(self.cluster.clone(), config, hooks).unwrap();
        (consumer, journal)
    }

    fn run(&self, protocol: GroupProtocol) -> Running {
        let (mut consumer, _) = self.member(self.config(protocol));
        let stop = Arc::new(AtomicBool::new(false));
        let share: Arc<Mutex<Option<usize>>> = Arc::default();
        let (stopped, shown, seen) = (stop.clone(), Arc::clone(&share), self.seen.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let polled = consumer.poll(Deadline::after(Duration::from_millis(200)));
                seen.lock()
                    .unwrap()
                    .extend(values(&polled.unwrap_or_default()));
                match consumer.commit_polled(soon()) {
                    Ok(()) | Err(CommitError::Rebalancing | CommitError::Lost) => {}
                    Err(error) => panic!("{error}"),
                }
                let is_settled = !consumer.rebalance_pending();
                *shown.lock().unwrap() = is_settled.then(|| consumer.assignment().len());
            }
            consumer.close(soon()).unwrap();
        });
        Running {
            stop,
            share,
            thread,
        }
    }

    /// Writes this many more records, spread over all partitions.
    fn write(&mut self, count: usize) {
        let producer = client::start(&self.cluster, ProducerConfig::default());
        let first = self.written.len();
        let records = (first..first + count).map(|number| {
            self.written.insert(number.to_string());
            client::record(&self.topic, format!("key-{number}"), number.to_string())
        });
        let outcomes = producer.publish(records.collect(), soon());
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        producer.close(soon()).unwrap();
    }

    /// Waits until every written record has been read at least once.
    fn read_all(&self) {
        eventually(PATIENCE, "every record to be read", || {
            let seen = self.seen.lock().unwrap();
            let seen: BTreeSet<&String> = seen.iter().collect();
            (seen.len() == self.written.len()).then_some(())
        });
    }

    /// Waits until these members alone share the partitions like this.
    fn shared(&self, members: &[&Running], shares: &[usize]) {
        eventually(PATIENCE, &format!("shares of {shares:?}"), || {
            let all = members.iter().map(|member| *member.share.lock().unwrap());
            let mut all: Vec<usize> = all.collect::<Option<_>>()?;
            all.sort_unstable();
            (all == shares).then_some(())
        });
    }
}

#[test]
fn members_share_hand_over_when_one_leaves_and_read_each_record_once() {
    if !has_consumer_protocol() {
        return;
    }
    let mut stage = Stage::new();
    let first = stage.run(GroupProtocol::Consumer);
    stage.shared(&[&first], &[4]);
    stage.write(100);
    stage.read_all();
    let second = stage.run(GroupProtocol::Consumer);
    stage.shared(&[&first, &second], &[2, 2]);
    stage.write(100);
    stage.read_all();
    let start = Instant::now();
    first.close();
    stage.shared(&[&second], &[4]);
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    stage.write(100);
    stage.read_all();
    second.close();
    assert_eq!(stage.seen.lock().unwrap().len(), 300, "none twice");
    let lags = Admin::new(stage.cluster.clone()).lag(&stage.group, &stage.topic, soon());
    let lags = lags.and_then(all).unwrap();
    assert!(lags.into_values().all(|lag| lag == 0));
}

#[test]
fn a_killed_members_partitions_move_after_the_brokers_session_time_out() {
    if !has_consumer_protocol() {
        return;
    }
    let mut stage = Stage::new();
    let (mut killed, _) = stage.member(stage.config(GroupProtocol::Consumer));
    stage.write(40);
    let mut read = Vec::new();
    while read.len() < 40 {
        read.extend(killed.poll(soon()).unwrap());
    }
    drop(killed);
    let heir = stage.run(GroupProtocol::Consumer);
    // Nothing was committed, so every record is delivered again.
    stage.read_all();
    stage.shared(&[&heir], &[4]);
    heir.close();
}

/// Sends requests in a member's name, as a second process with that name would.
fn speak_for(stage: &Stage, member_id: &str, epoch: i32) {
    let coordinator =
        tbd_kafka::internals::find_coordinator(&stage.cluster, &stage.group, soon()).unwrap();
    let config = stage.cluster.config();
    let mut connection =
        tbd_kafka::internals::Connection::open(&coordinator.address, config, soon()).unwrap();
    let mut request = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(GroupId(StrBytes::from_string(stage.group.clone())))
        .with_member_id(StrBytes::from_string(member_id.to_owned()))
        .with_member_epoch(epoch);
    if epoch == 0 {
        let topic = tbd_kafka::internals::topic_name(&stage.topic);
        request = request
            .with_rebalance_timeout_ms(60_000)
            .with_subscribed_topic_names(Some(vec![topic]))
            .with_topic_partitions(Some(Vec::new()));
    }
    let answer = connection.call(&request, soon()).unwrap();
    assert_eq!(answer.error_code, 0, "{answer:?}");
}

#[test]
fn a_member_that_was_thrown_out_loses_its_partitions_and_comes_back_under_its_name() {
    if !has_consumer_protocol() {
        return;
    }
    let stage = Stage::new();
    let (mut consumer, journal) = stage.member(stage.config(GroupProtocol::Consumer));
    poll_until(&mut consumer, |consumer, _| {
        consumer.assignment().len() == 4
    });
    let name = consumer.group_metadata().unwrap().member_id;
    speak_for(&stage, &name, -1);
    poll_until(&mut consumer, |_, _| journal.entries().len() == 3);
    let entries = journal.entries();
    let calls: Vec<_> = entries
        .iter()
        .map(|(call, some)| (*call, some.len()))
        .collect();
    assert_eq!(calls, [("assigned", 4), ("lost", 4), ("assigned", 4)]);
    assert_eq!(consumer.group_metadata().unwrap().member_id, name);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_stuck_member_leaves_and_comes_back_when_it_polls_again() {
    if !has_consumer_protocol() {
        return;
    }
    let stage = Stage::new();
    let mut config = stage.config(GroupProtocol::Consumer);
    config.max_poll_interval = Duration::from_secs(2);
    let (mut stuck, journal) = stage.member(config);
    poll_until(&mut stuck, |consumer, _| consumer.assignment().len() == 4);
    // Another member gets all partitions, although the stuck one's heartbeats would continue.
    let other = stage.run(GroupProtocol::Consumer);
    stage.shared(&[&other], &[4]);
    let refused = stuck.commit(
        &[(tbd_kafka::TopicPartition::new(stage.topic.as_str(), 0), 1)],
        soon(),
    );
    assert!(matches!(refused, Err(CommitError::Lost)), "{refused:?}");
    poll_until(&mut stuck, |consumer, _| consumer.assignment().len() == 2);
    assert!(
        journal
            .entries()
            .iter()
            .any(|(call, some)| *call == "lost" && some.len() == 4)
    );
    stuck.close(soon()).unwrap();
    other.close();
}

#[test]
fn a_member_that_may_not_read_its_topic_any_more_leaves_at_once() {
    if !has_consumer_protocol() {
        return;
    }
    // Each topic is open to all until one user is allowed something.
    let server = OwnServer::kafka_with(|_| {
        let settings = [
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found=true",
            "group.consumer.session.timeout.ms=60000",
        ];
        settings.map(str::to_owned).into()
    });
    let mut config = ClientConfig::new([server.address()]);
    config.metadata_max_age = Duration::from_millis(500);
    let cluster = Cluster::new(config);
    let (topic, other) = (client::topic(&cluster, 1), client::topic(&cluster, 1));
    let group = unique("group");
    let mut config = ConsumerConfig::new(&group, [&topic]);
    // The subscription, which the coordinator checks, is sent again when it changes.
    config.topic_filter = Some(TopicFilter::new(move |name| name == other));
    config.group_protocol = GroupProtocol::Consumer;
    let mut consumer = Consumer::start(cluster.clone(), config, Box::new(())).unwrap();
    poll_until(&mut consumer, |consumer, _| {
        consumer.assignment().len() == 2 && !consumer.rebalance_pending()
    });
    allow(&server.address(), "nobody", 8);
    let admin = Admin::new(cluster);
    eventually(PATIENCE, "the member to leave", || {
        let _ = consumer.poll(Deadline::after(Duration::from_millis(200)));
        let described = admin.describe_groups(&[&group], soon()).ok()?;
        let (_, group) = described.into_iter().next()?;
        group.ok()?.members.is_empty().then_some(())
    });
    let error = consumer.poll(soon()).unwrap_err();
    assert!(!error.is_transient(), "{error}");
}

#[test]
fn a_broker_without_the_protocol_is_named_as_the_cause_with_the_way_out() {
    let server = OwnServer::kafka_with(|_| {
        let only_classic = "group.coordinator.rebalance.protocols=classic";
        vec![only_classic.to_owned()]
    });
    let cluster = Cluster::new(ClientConfig::new([server.address()]));
    let topic = client::topic(&cluster, 1);
    let mut config = ConsumerConfig::new(unique("group"), [&topic]);
    config.group_protocol = GroupProtocol::Consumer;
    let mut consumer = Consumer::start(cluster, config, Box::new(())).unwrap();
    let error = consumer.poll(soon()).unwrap_err();
    assert!(!error.is_transient(), "{error}");
    assert_eq!(
        error.to_string(),
        "kafka refused ConsumerGroupHeartbeat: UnsupportedVersion (code 35); the consumer protocol needs Kafka 4.0; older brokers know the classic one"
    );
}

#[test]
fn a_static_member_restarts_and_gets_its_partitions_back_and_its_twin_waits_until_it_has_gone() {
    if !has_consumer_protocol() {
        return;
    }
    let stage = Stage::new();
    let other = stage.run(GroupProtocol::Consumer);
    let mut config = stage.config(GroupProtocol::Consumer);
    config.group_instance_id = Some("one".to_owned());
    let (mut before, _) = stage.member(config.clone());
    poll_until(&mut before, |consumer, _| consumer.assignment().len() == 2);
    let held = before.assignment();
    before.close(soon()).unwrap();
    let (mut after, _) = stage.member(config.clone());
    poll_until(&mut after, |consumer, _| consumer.assignment().len() == 2);
    assert_eq!(after.assignment(), held);
    stage.shared(&[&other], &[2]);

    let (mut twin, _) = stage.member(config);
    let mut polls = 0;
    poll_until(&mut twin, |twin, _| {
        assert_eq!(twin.assignment(), []);
        polls += 1;
        polls == 5
    });
    after.poll(Deadline::after(Duration::ZERO)).unwrap();
    assert_eq!(after.assignment(), held);
    after.close(soon()).unwrap();
    poll_until(&mut twin, |consumer, _| consumer.assignment().len() == 2);
    assert_eq!(twin.assignment(), held);
    twin.close(soon()).unwrap();
    other.close();
}

#[test]
fn a_group_changes_from_classic_to_consumer_and_back_member_by_member() {
    if !has_consumer_protocol() {
        return;
    }
    use GroupProtocol::{Classic, Consumer as New};
    let mut stage = Stage::new();
    let (mut first, mut second) = (stage.run(Classic), stage.run(Classic));
    stage.shared(&[&first, &second], &[2, 2]);
    for protocol in [New, Classic] {
        for member in [&mut first, &mut second] {
            let old = std::mem::replace(member, stage.run(protocol));
            stage.write(50);
            old.close();
            stage.write(50);
            stage.read_all();
        }
        stage.shared(&[&first, &second], &[2, 2]);
    }
    // A member that lost a partition before its commit leaves records for the next owner to read again.
    let admin = Admin::new(stage.cluster.clone());
    eventually(PATIENCE, "every record to be committed", || {
        let lags = admin.lag(&stage.group, &stage.topic, soon()).ok()?;
        let lags = all(lags).ok()?;
        lags.into_values().all(|lag| lag == 0).then_some(())
    });
    first.close();
    second.close();
}
