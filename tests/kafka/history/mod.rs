//! The history check: producers write numbered records and consumers read them while brokers, consumers
//! and producers are killed, frozen and shut down at random. Afterwards every reported outcome is
//! compared with the log.
//!
//! `make chaos-kafka` (SECONDS=, SEED=) runs it for ten minutes; the tests run a short form.

mod process;
mod verdict;

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use self::process::{Process, Role};
use self::verdict::Verdict;
use crate::client::{read_topic, replicated_topic, soon};
use crate::replicas::Brokers;
use crate::support::{eventually, unique};

const PARTITIONS: i32 = 6;
const PRODUCERS: usize = 2;
const CONSUMERS: usize = 3;
/// How long producers may take to finish, and consumers to catch up, after the last fault.
const PATIENCE: Duration = Duration::from_secs(90);

/// Reproducible random numbers: SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// The running processes, and those that have ended.
struct Clients {
    cast: Vec<(String, String)>,
    running: Mutex<Vec<Process>>,
    ended: Mutex<Vec<Process>>,
}

impl Clients {
    fn start(&self, role: Role) {
        self.running
            .lock()
            .unwrap()
            .push(Process::start(role, &self.cast));
    }

    /// Removes a random running process of this role and returns it.
    fn pick(&self, role: Role, chance: &mut Chance) -> Process {
        let mut running = self.running.lock().unwrap();
        let candidates: Vec<usize> = (0..running.len())
            .filter(|index| running[*index].role == role)
            .collect();
        let pick = candidates[usize::try_from(chance.below(candidates.len() as u64)).unwrap()];
        running.swap_remove(pick)
    }
}

/// Sleeps, but not beyond the end.
fn pause(pause: Duration, end: Instant) {
    thread::sleep(pause.min(end.saturating_duration_since(Instant::now())));
}

fn trouble_brokers(brokers: &Brokers, mut chance: Chance, end: Instant, deeds: &Mutex<Vec<&str>>) {
    let mut first = true;
    while Instant::now() < end {
        pause(chance.millis(500, 4_000), end);
        let node = brokers.node(1 + i32::try_from(chance.below(3)).unwrap());
        // At least one kill in every run.
        let deed = if first { 0 } else { chance.below(6) };
        first = false;
        let deed = match deed {
            0..3 => {
                node.kill();
                pause(chance.millis(0, 6_000), end);
                node.start();
                "broker killed"
            }
            3..5 => {
                node.stop();
                pause(chance.millis(0, 3_000), end);
                node.start();
                "broker shut down"
            }
            _ => {
                node.pause();
                // The other brokers notice it after 4 s.
                thread::sleep(chance.millis(1_000, 9_000));
                node.resume();
                "broker frozen"
            }
        };
        deeds.lock().unwrap().push(deed);
    }
}

fn trouble_clients(clients: &Clients, mut chance: Chance, end: Instant, deeds: &Mutex<Vec<&str>>) {
    let mut first = true;
    while Instant::now() < end {
        pause(chance.millis(1_000, 6_000), end);
        let deed = if first { 0 } else { chance.below(8) };
        first = false;
        let deed = match deed {
            0..3 => {
                let mut process = clients.pick(Role::Consumer, &mut chance);
                process.kill();
                clients.ended.lock().unwrap().push(process);
                clients.start(Role::Consumer);
                "consumer killed"
            }
            3..5 => {
                let mut process = clients.pick(Role::Consumer, &mut chance);
                process.finish(PATIENCE);
                clients.ended.lock().unwrap().push(process);
                clients.start(Role::Consumer);
                "consumer left"
            }
            5..7 => {
                let process = clients.pick(Role::Consumer, &mut chance);
                process.freeze();
                // Sometimes long enough to be evicted, sometimes not.
                thread::sleep(chance.millis(2_000, 12_000));
                process.thaw();
                clients.running.lock().unwrap().push(process);
                "consumer frozen"
            }
            _ => {
                let mut process = clients.pick(Role::Producer, &mut chance);
                process.kill();
                clients.ended.lock().unwrap().push(process);
                clients.start(Role::Producer);
                "producer killed"
            }
        };
        deeds.lock().unwrap().push(deed);
    }
}

fn run(length: Duration, seed: u64) {
    let brokers = Brokers::all_up();
    let cluster = brokers.cluster();
    let topic = replicated_topic(&cluster, PARTITIONS, 3);
    let clients = Clients {
        cast: vec![
            ("HISTORY_BROKERS".to_owned(), brokers.addresses().join(",")),
            ("HISTORY_TOPIC".to_owned(), topic.clone()),
            ("HISTORY_GROUP".to_owned(), unique("history")),
        ],
        running: Mutex::default(),
        ended: Mutex::default(),
    };
    for _ in 0..PRODUCERS {
        clients.start(Role::Producer);
    }
    for _ in 0..CONSUMERS {
        clients.start(Role::Consumer);
    }
    let deeds = Mutex::default();
    let end = Instant::now() + length;
    thread::scope(|scope| {
        scope.spawn(|| trouble_brokers(&brokers, Chance(seed), end, &deeds));
        scope.spawn(|| trouble_clients(&clients, Chance(!seed), end, &deeds));
    });
    brokers.settle();

    let peace = SystemTime::now();
    let mut running = clients.running.into_inner().unwrap();
    let mut ended = clients.ended.into_inner().unwrap();
    for process in running.iter_mut().filter(|one| one.role == Role::Producer) {
        process.finish(PATIENCE);
    }
    let log = read_topic(&cluster, &topic);
    // None skipped: the final owner of a partition reads to its end. Checked process by process, for
    // speed.
    eventually(PATIENCE, "consumers to read to the end", || {
        let reached = |partition: i32| {
            let all = running.iter().chain(&ended);
            all.filter_map(|one| one.reached(partition)).max()
        };
        log.iter()
            .all(|(partition, records)| reached(*partition) >= records.last().map(|one| one.offset))
            .then_some(())
    });
    for mut process in running {
        process.finish(PATIENCE);
        ended.push(process);
    }
    let histories = ended.into_iter().map(Process::into_history).collect();
    let verdict = Verdict::find(&log, histories, peace);
    let mut deeds: Vec<&str> = deeds.into_inner().unwrap();
    deeds.sort_unstable();
    let deeds: Vec<String> = deeds
        .chunk_by(|one, other| one == other)
        .map(|same| format!("{} x {}", same.len(), same[0]))
        .collect();
    eprintln!(
        "history of {length:?}, SEED={seed}: {}\n{verdict}",
        deeds.join(", ")
    );
    assert!(verdict.is_good(), "SEED={seed}\n{verdict}");
    tbd_kafka::Admin::new(cluster)
        .delete_topics(&[topic], soon())
        .unwrap();
}

#[test]
fn no_acknowledged_record_is_lost_reordered_or_skipped_while_brokers_and_clients_die_at_random() {
    let number = |name: &str| {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
        Some(
            text.parse()
                .unwrap_or_else(|_| panic!("{name} is a number")),
        )
    };
    let seed = number("KAFKA_CHAOS_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |since| since.as_millis() as u64 % 1_000_000)
    });
    run(
        Duration::from_secs(number("KAFKA_CHAOS_SECONDS").unwrap_or(25)),
        seed,
    );
}
