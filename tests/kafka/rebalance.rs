//! Delay of records during rebalances: a group of fifteen gains a member, loses one that leaves, and
//! loses one that crashes. `make bench-rebalance` shows the figures.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tbd_deadline::Deadline;
use tbd_kafka::consumer::{Consumer, ConsumerConfig};
use tbd_kafka::{Cluster, ProducerConfig};

use crate::client::{cluster, record, soon, start, topic};
use crate::support::{SetOnDrop, eventually, unique};

const MEMBERS: usize = 15;
const PARTITIONS: i32 = 30;
const SESSION: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(60);
/// The delay that a busy machine may add to every figure.
const SLACK: Duration = Duration::from_secs(3);

/// Which member received a record of which partition, and when.
type Arrivals = Arc<Mutex<Vec<(Instant, i32, usize)>>>;

struct Member {
    id: usize,
    /// `Some(true)`: leave. `Some(false)`: crash.
    end: Arc<Mutex<Option<bool>>>,
    shares: Arc<Mutex<BTreeMap<usize, usize>>>,
    thread: JoinHandle<()>,
}

struct Group {
    cluster: Cluster,
    topic: String,
    name: String,
    arrivals: Arrivals,
    shares: Arc<Mutex<BTreeMap<usize, usize>>>,
    members: Vec<Member>,
    started: usize,
}

impl Group {
    fn add(&mut self) {
        let mut config = ConsumerConfig::new(self.name.as_str(), [self.topic.as_str()]);
        config.set_session_timeout(SESSION);
        let mut consumer = Consumer::start(self.cluster.clone(), config, Box::new(())).unwrap();
        let id = self.started;
        self.started += 1;
        let end: Arc<Mutex<Option<bool>>> = Arc::default();
        let (arrivals, shares) = (Arc::clone(&self.arrivals), Arc::clone(&self.shares));
        let ending = Arc::clone(&end);
        let thread = thread::spawn(move || {
            while ending.lock().unwrap().is_none() {
                let records = consumer.poll(Deadline::after(Duration::from_millis(100)));
                let now = Instant::now();
                let records = records.unwrap_or_default();
                arrivals
                    .lock()
                    .unwrap()
                    .extend(records.iter().map(|one| (now, one.partition, id)));
                let _ = consumer.commit_polled(soon());
                shares
                    .lock()
                    .unwrap()
                    .insert(id, consumer.assignment().len());
            }
            if *ending.lock().unwrap() == Some(true) {
                consumer.close(soon()).unwrap();
            }
        });
        let shares = Arc::clone(&self.shares);
        self.members.push(Member {
            id,
            end,
            shares,
            thread,
        });
    }

    /// Waits until every member has an equal share.
    fn settle(&self) {
        let least = PARTITIONS as usize / self.members.len();
        eventually(PATIENCE, "equal shares", || {
            let shares = self.shares.lock().unwrap();
            let are_equal = shares
                .values()
                .all(|share| (least..=least + 1).contains(share));
            let is_whole = shares.values().sum::<usize>() == PARTITIONS as usize;
            (are_equal && is_whole && shares.len() == self.members.len()).then_some(())
        });
    }

    /// Waits until every partition delivers again, to its new owner if it has one.
    fn flow(&self) {
        let settled = Instant::now();
        let gone = |id: &usize| !self.members.iter().any(|member| member.id == *id);
        eventually(PATIENCE, "all partitions to flow", || {
            let arrivals = self.arrivals.lock().unwrap();
            let since = arrivals
                .iter()
                .filter(|(at, _, id)| *at > settled && !gone(id));
            let flowing: BTreeMap<i32, usize> = since.map(|(_, one, id)| (*one, *id)).collect();
            (flowing.len() == PARTITIONS as usize).then_some(())
        });
    }

    /// The member that received a partition's last record.
    fn owners(&self) -> BTreeMap<i32, usize> {
        let arrivals = self.arrivals.lock().unwrap();
        arrivals
            .iter()
            .map(|(_, partition, id)| (*partition, *id))
            .collect()
    }

    /// Applies a change to the group; the longest wait of a record in an untouched partition and in a
    /// moved one.
    fn measure(&mut self, what: &str, event: impl FnOnce(&mut Self)) -> (Duration, Duration) {
        self.flow();
        let before = self.owners();
        let begin = Instant::now();
        event(self);
        self.settle();
        self.flow();
        let end = Instant::now();
        let after = self.owners();
        let arrivals = self.arrivals.lock().unwrap();
        let (mut untouched, mut moved, mut moves) = (Duration::ZERO, Duration::ZERO, 0);
        for (partition, owner) in &after {
            let times = arrivals
                .iter()
                .filter(|(_, one, _)| one == partition)
                .map(|(at, ..)| *at);
            let mut times: Vec<Instant> = times.collect();
            times.push(end);
            let gaps = times
                .windows(2)
                .filter(|pair| pair[1] > begin)
                .map(|pair| pair[1] - pair[0]);
            let longest = gaps.max().unwrap_or_default();
            if before[partition] == *owner {
                untouched = untouched.max(longest);
            } else {
                moves += 1;
                moved = moved.max(longest);
            }
        }
        eprintln!(
            "{what}: {moves} partitions moved and waited {moved:.2?}, the others {untouched:.2?}"
        );
        assert!(moves > 0);
        (untouched, moved)
    }

    fn take(&mut self, leaves: bool) {
        let member = self.members.swap_remove(0);
        *member.end.lock().unwrap() = Some(leaves);
        member.thread.join().unwrap();
        member.shares.lock().unwrap().remove(&member.id);
    }
}

#[test]
fn a_group_of_fifteen_stops_only_the_partitions_that_move_and_those_not_for_long() {
    let cluster = cluster();
    let topic = topic(&cluster, PARTITIONS);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // One record into each partition every 50 ms.
        let feeder = scope.spawn(|| {
            let producer = start(&cluster, ProducerConfig::default());
            while !stop.load(Ordering::Relaxed) {
                let records = (0..PARTITIONS).map(|partition| {
                    let mut one = record(&topic, "k".to_owned(), "v".to_owned());
                    one.partition = Some(partition);
                    one
                });
                for outcome in producer.publish(records.collect(), soon()) {
                    outcome.unwrap();
                }
                thread::sleep(Duration::from_millis(50));
            }
            producer.close(soon()).unwrap();
        });
        let ending = SetOnDrop(&stop);
        let mut group = Group {
            cluster: cluster.clone(),
            topic: topic.clone(),
            name: unique("fifteen"),
            arrivals: Arc::default(),
            shares: Arc::default(),
            members: Vec::new(),
            started: 0,
        };
        for _ in 0..MEMBERS {
            group.add();
        }
        group.settle();
        let added = group.measure("one added", Group::add);
        let left = group.measure("one left", |group| group.take(true));
        let killed = group.measure("one crashed", |group| group.take(false));
        while !group.members.is_empty() {
            group.take(false);
        }
        drop(ending);
        feeder.join().unwrap();

        for (what, (untouched, _)) in [("added", added), ("left", left), ("killed", killed)] {
            // The usual interval of 50 ms, plus the machine's noise.
            assert!(
                untouched < SLACK,
                "{what}: untouched partitions waited {untouched:?}"
            );
        }
        let limit = Duration::from_secs(3);
        assert!(
            added.1 < limit + SLACK && left.1 < limit + SLACK,
            "{added:?}, {left:?}"
        );
        assert!(killed.1 < SESSION + limit + SLACK, "{killed:?}");
    });
}
