//! Three brokers with a copy of everything each: leaders and coordinators die, restart and move, topics
//! grow.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::{BrokerId, CreateTopicsRequest};
use kafka_protocol::protocol::StrBytes;
use tbd_deadline::Deadline;
use tbd_kafka::TopicPartition;
use tbd_kafka::admin::all;
use tbd_kafka::consumer::{Assignor, Consumer, ConsumerConfig, OffsetReset, StartAt};
use tbd_kafka::internals::topic_name;
use tbd_kafka::producer::{Outcome, RecordMetadata};
use tbd_kafka::{Admin, ClientConfig, Cluster, ProducerConfig};

use crate::client::{
    check_promises, check_publishing_to_a_topic_created_again, cluster_at, publish_steadily,
    record, replicated_topic, soon, start, text,
};
use crate::consumer::{Journal, poll_until};
use crate::features::group_protocols;
use crate::support::{self, OwnServer, SetOnDrop, eventually};

const TICK: Duration = Duration::from_millis(200);
/// The cluster notices a killed leader after 4 s; an election and a busy machine add to that.
const PATIENCE: Duration = Duration::from_secs(40);

/// The three brokers; the tests take turns in using them.
pub struct Brokers(MutexGuard<'static, [OwnServer; 3]>);

impl Brokers {
    /// Waits for its turn.
    pub fn all_up() -> Brokers {
        static BROKERS: OnceLock<Mutex<[OwnServer; 3]>> = OnceLock::new();
        let brokers = BROKERS.get_or_init(|| Mutex::new(OwnServer::kafka_cluster()));
        let brokers = Brokers(brokers.lock().unwrap_or_else(PoisonError::into_inner));
        brokers.settle();
        brokers
    }

    pub fn addresses(&self) -> Vec<String> {
        self.0.iter().map(OwnServer::address).collect()
    }

    pub fn cluster(&self) -> Cluster {
        cluster_at(self.addresses())
    }

    pub fn node(&self, id: i32) -> &OwnServer {
        &self.0[usize::try_from(id).expect("an id") - 1]
    }

    /// Waits until a topic can be created with three replicas, which needs all brokers.
    pub fn settle(&self) {
        let cluster = self.cluster();
        eventually(PATIENCE, "three brokers", || {
            cluster.refresh::<&str>(&[], soon()).ok()?;
            (1..=3)
                .all(|id| cluster.address(id).is_some())
                .then_some(())
        });
    }
}

fn leader(cluster: &Cluster, topic: &str, partition: i32) -> i32 {
    eventually(PATIENCE, "a leader", || {
        cluster.refresh(&[topic], soon()).ok()?;
        cluster.leader(topic, partition).map(|(node, _)| node)
    })
}

/// Publishes during `trouble` and until every publisher has been served after it. Every record must be
/// acknowledged. Returns the longest time of one record.
fn publish_through(cluster: &Cluster, topic: &str, trouble: impl FnOnce()) -> Duration {
    let producer = start(cluster, ProducerConfig::default());
    let stop = AtomicBool::new(false);
    let slowest = Mutex::new(Duration::ZERO);
    let outcomes: Vec<(String, Outcome)> = std::thread::scope(|scope| {
        let stopped = SetOnDrop(&stop);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (producer, stop) = (&producer, &stop);
                scope.spawn(move || publish_steadily(producer, topic, thread, PATIENCE, stop))
            })
            .collect();
        let stopwatch = scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                let one = record(topic, "watch".to_owned(), format!("watch:{number}"));
                producer.publish(vec![one], Deadline::after(PATIENCE));
                let mut slowest = slowest.lock().unwrap();
                *slowest = slowest.max(started.elapsed());
                number += 1;
            }
        });
        trouble();
        drop(stopped);
        stopwatch.join().unwrap();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    producer.close(soon()).unwrap();
    for (value, outcome) in &outcomes {
        assert!(outcome.is_ok(), "{value}: {outcome:?}");
    }
    check_promises(cluster, topic, &outcomes);
    slowest.into_inner().unwrap()
}

/// Publishes one record to a partition; its current leader has to acknowledge it.
fn publish_to(cluster: &Cluster, topic: &str, partition: i32, value: &str) -> RecordMetadata {
    let producer = start(cluster, ProducerConfig::default());
    let mut one = record(topic, "k".to_owned(), value.to_owned());
    one.partition = Some(partition);
    let outcome = producer.publish(vec![one], Deadline::after(PATIENCE));
    producer.close(soon()).unwrap();
    outcome.into_iter().next().unwrap().unwrap()
}

#[test]
fn a_killed_leader_costs_no_record_and_no_order_and_neither_does_its_return() {
    let brokers = Brokers::all_up();
    let cluster = brokers.cluster();
    let topic = replicated_topic(&cluster, 6, 3);
    publish_through(&cluster, &topic, || {
        let killed = leader(&cluster, &topic, 0);
        brokers.node(killed).kill();
        eventually(PATIENCE, "another leader", || {
            (leader(&cluster, &topic, 0) != killed).then_some(())
        });
        publish_to(&cluster, &topic, 0, "after:0");
        brokers.node(killed).start();
        brokers.settle();
        publish_to(&cluster, &topic, 0, "after:1");
    });
}

#[test]
fn leaders_that_shut_down_in_order_hand_over_without_delay() {
    let brokers = Brokers::all_up();
    let cluster = brokers.cluster();
    let topic = replicated_topic(&cluster, 6, 3);
    let slowest = publish_through(&cluster, &topic, || {
        let stopped = leader(&cluster, &topic, 0);
        brokers.node(stopped).stop();
        publish_to(&cluster, &topic, 0, "after:0");
        brokers.node(stopped).start();
        brokers.settle();
    });
    // No broker has to be missed first, which would take its session of 4 s.
    eprintln!("controlled shutdown: the slowest record took {slowest:?}");
    assert!(slowest < Duration::from_secs(4), "{slowest:?}");
}

/// A member of its own group, and the calls of its hooks.
struct Reading {
    consumer: Consumer,
    journal: Journal,
    group: String,
}

impl Reading {
    fn start(brokers: &Brokers, config: ConsumerConfig) -> Self {
        let journal = Journal::default();
        let group = config.group_id.clone();
        let hooks = Box::new(journal.clone());
        let consumer = Consumer::start(brokers.cluster(), config, hooks).unwrap();
        Self {
            consumer,
            journal,
            group,
        }
    }

    /// The next records, up to `count`; more records are a failure, and so is a permanent error.
    fn read(&mut self, count: usize) -> Vec<String> {
        let records = poll_until(&mut self.consumer, |_, records| records.len() >= count);
        records.iter().map(|one| text(&one.value)).collect()
    }

    /// Commits, with retries until it succeeds. No record may arrive meanwhile.
    fn commit(&mut self) {
        let deadline = Deadline::after(PATIENCE);
        while let Err(error) = self.consumer.commit_polled(Deadline::after(TICK)) {
            assert!(error.is_transient() && !deadline.is_past(), "{error}");
            let records = self.consumer.poll(Deadline::after(TICK));
            assert!(records.unwrap_or_default().is_empty());
        }
    }
}

#[test]
fn groups_of_either_protocol_continue_when_their_coordinator_is_killed() {
    let brokers = Brokers::all_up();
    let cluster = brokers.cluster();
    let coordinator = |group: &String| support::topic::coordinator(&brokers.addresses()[0], group);
    let killed = coordinator(&support::unique("group"));
    // Led by another broker, so that only one of the two is missing.
    let topic = std::iter::repeat_with(|| replicated_topic(&cluster, 1, 3))
        .find(|topic| leader(&cluster, topic, 0) != killed)
        .unwrap();
    let mut members: Vec<Reading> = group_protocols()
        .into_iter()
        .map(|protocol| {
            let group = std::iter::repeat_with(|| support::unique("group"))
                .find(|group| coordinator(group) == killed)
                .unwrap();
            let mut config = ConsumerConfig::new(group, [topic.as_str()]);
            config.set_session_timeout(Duration::from_secs(30));
            config.group_protocol = protocol;
            Reading::start(&brokers, config)
        })
        .collect();
    publish_to(&cluster, &topic, 0, "before");
    for member in &mut members {
        assert_eq!(member.read(1), ["before"]);
        member.consumer.commit_polled(soon()).unwrap();
    }

    let started = Instant::now();
    brokers.node(killed).kill();
    publish_to(&cluster, &topic, 0, "during");
    for member in &mut members {
        assert_eq!(member.read(1), ["during"]);
        member.commit();
        let took = started.elapsed();
        eprintln!("{}: committed {took:?} after the kill", member.group);
        assert!(took < PATIENCE / 2, "{took:?}");
    }
    publish_to(&cluster, &topic, 0, "after");
    for member in members {
        let Reading {
            mut consumer,
            journal,
            group,
        } = member;
        let records = poll_until(&mut consumer, |_, records| !records.is_empty());
        assert_eq!(text(&records[0].value), "after");
        // The membership continued: nothing was revoked and assigned again.
        let entries = journal.entries();
        assert!(
            entries.iter().all(|(what, _)| *what == "assigned"),
            "{entries:?}"
        );
        let committed = Admin::new(cluster.clone())
            .committed_offsets(&group, Deadline::after(PATIENCE))
            .and_then(all)
            .unwrap();
        assert_eq!(committed[&TopicPartition::new(topic.as_str(), 0)].offset, 2);
        consumer.close(soon()).unwrap();
    }
    brokers.node(killed).start();
}

/// A topic with one partition, led by node 1 and copied to node 2. Node 2 may take over although its
/// copy lacks records.
fn carefree_topic(cluster: &Cluster) -> String {
    let settings = [
        ("unclean.leader.election.enable", "true"),
        ("min.insync.replicas", "1"),
    ];
    topic_on(cluster, &[&[1, 2]], &settings)
}

/// A topic with a partition on each of these sets of nodes.
fn topic_on(
    cluster: &Cluster,
    nodes: &[&[i32]],
    settings: &[(&'static str, &'static str)],
) -> String {
    let name = support::unique("topic");
    let replicas = (0..).zip(nodes).map(|(partition, nodes)| {
        CreatableReplicaAssignment::default()
            .with_partition_index(partition)
            .with_broker_ids(nodes.iter().copied().map(BrokerId).collect())
    });
    let settings = settings.iter().map(|(name, value)| {
        CreatableTopicConfig::default()
            .with_name(StrBytes::from_static_str(name))
            .with_value(Some(StrBytes::from_static_str(value)))
    });
    let topic = CreatableTopic::default()
        .with_name(topic_name(&name))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
        .with_assignments(replicas.collect())
        .with_configs(settings.collect());
    let request = CreateTopicsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(10_000);
    let mut connection = cluster.connect_any(soon()).unwrap();
    let answer = connection.call(&request, soon()).unwrap();
    assert_eq!(answer.topics[0].error_code, 0, "{answer:?}");
    name
}

#[test]
fn a_log_cut_short_by_an_unclean_election_is_written_on_and_read_from_where_it_parts() {
    let brokers = Brokers::all_up();
    let cluster = brokers.cluster();
    let topic = carefree_topic(&cluster);
    eventually(PATIENCE, "its leader", || {
        (leader(&cluster, &topic, 0) == 1).then_some(())
    });
    let producer = start(&cluster, ProducerConfig::default());
    let publish = |values: &[&str]| {
        let records = values
            .iter()
            .map(|value| record(&topic, "k".to_owned(), (*value).to_owned()));
        for outcome in producer.publish(records.collect(), Deadline::after(PATIENCE)) {
            outcome.unwrap();
        }
    };
    let reading = |reset| {
        let mut config = ConsumerConfig::new(support::unique("group"), [topic.as_str()]);
        config.set_session_timeout(Duration::from_secs(30));
        config.auto_offset_reset = reset;
        Reading::start(&brokers, config)
    };
    publish(&["both have it"]);
    let mut lenient = reading(OffsetReset::Earliest);
    assert_eq!(lenient.read(1), ["both have it"]);
    // A group without a reset policy, which starts at a sought position.
    let mut strict = reading(OffsetReset::Error);
    let partition = TopicPartition::new(topic.as_str(), 0);
    while !strict.consumer.seek(&partition, 0).unwrap() {
        let _ = strict.consumer.poll(Deadline::after(TICK));
    }
    assert_eq!(strict.read(1), ["both have it"]);

    brokers.node(2).kill();
    // Acknowledged by all in-sync replicas, which is node 1 alone.
    publish(&["lost 1", "lost 2"]);
    for member in [&mut lenient, &mut strict] {
        assert_eq!(member.read(2), ["lost 1", "lost 2"]);
    }
    lenient.consumer.commit_polled(soon()).unwrap();
    brokers.node(1).kill();
    brokers.node(2).start();
    publish(&["new 1", "new 2", "new 3"]);
    assert_eq!(lenient.read(3), ["new 1", "new 2", "new 3"]);
    lenient.commit();
    let error = eventually(PATIENCE, "word of the truncation", || {
        match strict.consumer.poll(Deadline::after(TICK)) {
            Ok(records) => {
                assert!(records.is_empty(), "{records:?}");
                None
            }
            Err(error) => (!error.is_transient()).then_some(error),
        }
    });
    assert!(error.to_string().contains("OffsetOutOfRange"), "{error}");
    strict.consumer.seek(&partition, 1).unwrap();
    assert_eq!(strict.read(3), ["new 1", "new 2", "new 3"]);
    let committed = Admin::new(cluster.clone())
        .committed_offsets(&lenient.group, Deadline::after(PATIENCE))
        .and_then(all)
        .unwrap();
    assert_eq!(committed[&partition].offset, 4);

    for member in [lenient, strict] {
        member.consumer.close(soon()).unwrap();
    }
    producer.close(soon()).unwrap();
    brokers.node(1).start();
}

#[test]
fn a_topic_created_again_keeps_each_keys_order_although_some_brokers_hear_of_it_later() {
    let brokers = Brokers::all_up();
    check_publishing_to_a_topic_created_again(&brokers.cluster(), 3);
}

#[test]
fn a_consumer_reads_from_the_replica_in_its_rack_and_from_the_leader_when_that_is_killed() {
    let brokers = Brokers::all_up();
    let cluster = brokers.cluster();
    let topic = replicated_topic(&cluster, 1, 3);
    publish_to(&cluster, &topic, 0, "before");
    let leading = leader(&cluster, &topic, 0);
    let near = leading % 3 + 1;
    let mut config = ConsumerConfig::without_group();
    config.client_rack = Some(format!("rack-{near}"));
    let partition = TopicPartition::new(topic.as_str(), 0);
    let start = [(partition.clone(), StartAt::Beginning)];
    let mut consumer =
        Consumer::start_assigned(brokers.cluster(), config, start, Box::new(())).unwrap();
    let mut read = || {
        let records = poll_until(&mut consumer, |_, records| !records.is_empty());
        consumer.seek(&partition, 0).unwrap();
        text(&records[0].value)
    };
    assert_eq!(read(), "before");
    // The leader answers nothing, and after 4 s it leads no more.
    brokers.node(leading).pause();
    let frozen = Instant::now();
    assert_eq!(read(), "before");
    let took = frozen.elapsed();
    brokers.node(leading).resume();
    assert!(took < Duration::from_secs(3), "{took:?}");

    brokers.settle();
    brokers.node(near).kill();
    assert_eq!(read(), "before");
    consumer.close(soon()).unwrap();
    brokers.node(near).start();
}

#[test]
fn each_member_of_a_group_is_assigned_the_partitions_with_a_replica_in_its_rack() {
    let brokers = Brokers::all_up();
    let cluster = brokers.cluster();
    let nodes: &[&[i32]] = &[&[3], &[1], &[1], &[2], &[3], &[2]];
    let topic = topic_on(&cluster, nodes, &[]);
    for assignor in [Assignor::CooperativeSticky, Assignor::Range] {
        let group = support::unique("group");
        let member = |node: i32| {
            let mut config = ConsumerConfig::new(&*group, [topic.as_str()]);
            config.client_rack = Some(format!("rack-{node}"));
            config.assignors = vec![assignor];
            Consumer::start(brokers.cluster(), config, Box::new(())).unwrap()
        };
        // Not in the order of the racks.
        let mut members = [2, 3, 1].map(|node| (node, member(node)));
        eventually(PATIENCE, "two near partitions for each member", || {
            let mut are_settled = true;
            for (node, consumer) in &mut members {
                let _ = consumer.poll(Deadline::after(TICK));
                let is_near = |it: &TopicPartition| leader(&cluster, &topic, it.partition) == *node;
                let assigned = consumer.assignment();
                are_settled &= assigned.len() == 2 && assigned.iter().all(is_near);
            }
            are_settled.then_some(())
        });
        for (_, consumer) in members {
            consumer.close(soon()).unwrap();
        }
    }
}

#[test]
fn partitions_added_while_running_are_written_and_read() {
    let brokers = Brokers::all_up();
    let mut config = ClientConfig::new(brokers.addresses());
    config.metadata_max_age = Duration::from_millis(500);
    let cluster = Cluster::new(config);
    let topic = replicated_topic(&cluster, 1, 3);
    let producer = start(&cluster, ProducerConfig::default());
    let mut consumer = Consumer::start(
        cluster.clone(),
        ConsumerConfig::new(support::unique("group"), [topic.as_str()]),
        Box::new(()),
    )
    .unwrap();
    let publish = |number: usize| {
        let one = record(&topic, format!("key-{number}"), number.to_string());
        producer.publish(vec![one], soon()).remove(0).unwrap()
    };
    publish(0);
    poll_until(&mut consumer, |_, records| records.len() == 1);

    support::topic::grow(&brokers.addresses()[0], &topic, 3);
    // Keys spread over the new partitions as soon as the producer knows them.
    let mut sent = 1;
    eventually(PATIENCE, "a record in each new partition", || {
        sent += 1;
        (publish(sent - 1).partition == 2).then_some(())
    });
    let records = poll_until(&mut consumer, |_, records| records.len() == sent - 1);
    assert_eq!(consumer.assignment().len(), 3);
    let mut numbers: Vec<usize> = records
        .iter()
        .map(|one| text(&one.value).parse().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..sent).collect::<Vec<_>>());
    assert!(consumer.position(&TopicPartition::new(topic.as_str(), 2)) >= Some(1));
    consumer.close(soon()).unwrap();
    producer.close(soon()).unwrap();
}
