//! The history check: producers write numbered records, consumers read them, and transformers copy them
//! to another topic in transactions, while brokers and all these are killed, frozen and shut down at
//! random. Afterwards every reported outcome is compared with the log, and the copy with the original.
//!
//! `make chaos-kafka` (SECONDS=, SEED=) runs it for ten minutes; the tests run a short form.

mod process;
mod verdict;

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tbd_kafka::admin::all;
use tbd_kafka::consumer::Isolation;
use tbd_kafka::{Admin, Cluster};

use self::process::{Process, Role};
use self::verdict::Verdict;
use crate::client::{consume, read_topic, replicated_topic, soon};
use crate::replicas::Brokers;
use crate::support::{eventually, unique};

const PARTITIONS: i32 = 6;
const PRODUCERS: usize = 2;
const CONSUMERS: usize = 3;
const TRANSFORMERS: u8 = 2;
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
    /// Transformers with a successor.
    zombies: Mutex<Vec<Process>>,
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
    // At least one each of these in every run.
    let mut first = [0, 8, 10].into_iter();
    while Instant::now() < end {
        pause(chance.millis(1_000, 6_000), end);
        let deed = match first.next().unwrap_or_else(|| chance.below(11)) {
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
            7 => {
                let mut process = clients.pick(Role::Producer, &mut chance);
                process.kill();
                clients.ended.lock().unwrap().push(process);
                clients.start(Role::Producer);
                "producer killed"
            }
            8..10 => {
                let role = Role::Transformer(chance.below(TRANSFORMERS.into()) as u8);
                let mut process = clients.pick(role, &mut chance);
                process.kill();
                clients.ended.lock().unwrap().push(process);
                clients.start(role);
                "transformer killed"
            }
            _ => {
                let role = Role::Transformer(chance.below(TRANSFORMERS.into()) as u8);
                let mut zombie = clients.pick(role, &mut chance);
                zombie.freeze();
                clients.start(role);
                thread::sleep(chance.millis(2_000, 12_000));
                zombie.thaw();
                zombie.is_zombie = true;
                clients.zombies.lock().unwrap().push(zombie);
                "transformer replaced while frozen"
            }
        };
        deeds.lock().unwrap().push(deed);
    }
}

fn await_commits(cluster: &Cluster, group: &str, topic: &str) {
    eventually(PATIENCE, "transformers to commit all", || {
        let lag = Admin::new(cluster.clone()).lag(group, topic, soon());
        all(lag.ok()?)
            .ok()?
            .values()
            .all(|lag| *lag == 0)
            .then_some(())
    });
}

/// Each deed with the number of its times.
fn counted(mut deeds: Vec<&str>) -> String {
    deeds.sort_unstable();
    let deeds: Vec<String> = deeds
        .chunk_by(|one, other| one == other)
        .map(|same| format!("{} x {}", same.len(), same[0]))
        .collect();
    deeds.join(", ")
}

fn run(length: Duration, seed: u64) {
    let brokers = Brokers::all_up();
    let cluster = brokers.cluster();
    let topic = replicated_topic(&cluster, PARTITIONS, 3);
    let copy = replicated_topic(&cluster, PARTITIONS, 3);
    let transform = unique("transform");
    let clients = Clients {
        cast: vec![
            ("HISTORY_BROKERS".to_owned(), brokers.addresses().join(",")),
            ("HISTORY_TOPIC".to_owned(), topic.clone()),
            ("HISTORY_GROUP".to_owned(), unique("history")),
            ("HISTORY_COPY".to_owned(), copy.clone()),
            ("HISTORY_TRANSFORM".to_owned(), transform.clone()),
        ],
        running: Mutex::default(),
        ended: Mutex::default(),
        zombies: Mutex::default(),
    };
    for _ in 0..PRODUCERS {
        clients.start(Role::Producer);
    }
    for _ in 0..CONSUMERS {
        clients.start(Role::Consumer);
    }
    (0..TRANSFORMERS).for_each(|number| clients.start(Role::Transformer(number)));
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
    await_commits(&cluster, &transform, &topic);
    for mut zombie in clients.zombies.into_inner().unwrap() {
        zombie.finish(PATIENCE);
        ended.push(zombie);
    }
    for mut process in running {
        process.finish(PATIENCE);
        ended.push(process);
    }
    let copied = consume(&cluster, &copy, Isolation::ReadCommitted);
    let histories = ended.into_iter().map(Process::into_history).collect();
    let verdict = Verdict::find(&log, &copied, histories, peace);
    eprintln!(
        "history of {length:?}, SEED={seed}: {}\n{verdict}",
        counted(deeds.into_inner().unwrap())
    );
    assert!(verdict.is_good(), "SEED={seed}\n{verdict}");
    Admin::new(cluster)
        .delete_topics(&[topic, copy], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
}

#[test]
fn no_record_is_lost_reordered_skipped_or_copied_twice_while_brokers_and_clients_die_at_random() {
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
