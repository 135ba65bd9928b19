//! The plan of faults: the same for the same seed and length.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

pub const APIS: usize = 2;
pub const WORKERS: usize = 3;
/// The participants of sagas: inventory, payments.
pub const PARTICIPANTS: usize = 2;

/// The target of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// An api or worker: the apis come first.
    Program(usize),
    Server(Server),
    /// The network between a program and a server.
    Link(usize, Server),
    Participant(usize),
    /// The network between all workers and a participant.
    ParticipantLink(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    Postgres,
    Kafka,
}

/// The kind of harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// SIGKILL, then a restart.
    Kill,
    /// SIGSTOP, then SIGCONT. On a link: no byte passes.
    Freeze,
    /// An orderly stop, then a start.
    Restart,
    /// Every piece is delayed.
    Slow,
    /// Connections break, including new ones.
    Cut,
    /// Connections end at the server's side only, and the program does not notice.
    HalfOpen,
    /// Connections are reset; new ones are fine.
    Reset,
    /// The server does the work, but the client gets a reset instead of the answer.
    LoseAnswers,
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at: Duration,
    pub lasts: Duration,
    pub target: Target,
    pub harm: Harm,
}

/// A kind of fault: its class of targets, and its harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(Class, Harm);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Api,
    Worker,
    Server(Server),
    ApiLink(Server),
    WorkerLink(Server),
    Participant,
    ParticipantLink,
}

#[derive(Debug)]
pub struct Plan {
    pub seed: u64,
    pub length: Duration,
    /// Whether orders are answered once the database has them (EVENT_DELIVERY=outbox).
    pub outbox: bool,
    /// Whether orders are processed as sagas (WORKER_WORKFLOW=saga).
    pub saga: bool,
    faults: Vec<Fault>,
}

impl Plan {
    /// 4 classes of processes with 3 harms each, 4 of links with 6 each.
    pub const ALL_KINDS: usize = 4 * 3 + 4 * 6;
    /// With sagas, one more class of each.
    pub const ALL_KINDS_OF_SAGAS: usize = Plan::ALL_KINDS + 3 + 6;

    /// Faults for `length`. Each round has every kind once, in an order that the seed decides. The pause
    /// between two rounds lets breakers close.
    pub fn new(seed: u64, length: Duration) -> Plan {
        let mut plan = Plan {
            seed,
            length,
            outbox: seed % 2 == 1,
            saga: seed % 8 >= 4,
            faults: Vec::new(),
        };
        let mut random = fastrand::Rng::with_seed(seed);
        let mut free_at = BTreeMap::new();
        let mut at = Duration::from_secs(2);
        while at < length {
            at = plan.add_round(at, &mut random, &mut free_at) + Duration::from_secs(25);
        }
        plan
    }

    /// One round of every kind.
    pub fn round(seed: u64, saga: bool) -> Plan {
        let mut plan = Plan {
            seed,
            length: Duration::MAX,
            outbox: false,
            saga,
            faults: Vec::new(),
        };
        let mut random = fastrand::Rng::with_seed(seed);
        let end = plan.add_round(Duration::from_secs(1), &mut random, &mut BTreeMap::new());
        plan.length = end;
        plan
    }

    pub fn faults(&self) -> impl Iterator<Item = Fault> + '_ {
        self.faults.iter().copied()
    }

    /// The number of different kinds of fault in the plan.
    pub fn kinds(&self) -> usize {
        let kinds: BTreeSet<Kind> = self.faults.iter().map(Fault::kind).collect();
        kinds.len()
    }

    fn add_round(
        &mut self,
        mut at: Duration,
        random: &mut fastrand::Rng,
        free_at: &mut BTreeMap<Target, Duration>,
    ) -> Duration {
        let mut kinds = all_kinds(self.saga);
        random.shuffle(&mut kinds);
        // Kafka's faults last: after a long one, an api refuses orders for half a minute (the circuit
        // breaker), and all other faults would hit idle programs.
        kinds.sort_by_key(|Kind(class, _)| *class == Class::Server(Server::Kafka));
        for Kind(class, harm) in kinds {
            let lasts = lasts(class, harm, random);
            // The member of the class that has been healthy for longest.
            let mut targets = targets(class);
            random.shuffle(&mut targets);
            let target = targets
                .into_iter()
                .min_by_key(|target| free_at.get(target).copied().unwrap_or_default())
                .expect("a class has members");
            let start = at.max(free_at.get(&target).copied().unwrap_or_default());
            let fault = Fault {
                at: start,
                lasts,
                target,
                harm,
            };
            if start + lasts <= self.length {
                free_at.insert(target, start + lasts + fault.recovery());
                self.faults.push(fault);
            }
            at += millis(random, 300..1000);
        }
        self.faults.sort_by_key(|fault| fault.at);
        self.faults
            .last()
            .map_or(at, |last| at.max(last.at + last.lasts))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delivery = if self.outbox { "outbox" } else { "direct" };
        let workflow = if self.saga { "sagas" } else { "steps" };
        let (seed, seconds, count) = (self.seed, self.length.as_secs(), self.faults.len());
        write!(
            f,
            "seed {seed}, {seconds} s, {count} faults, {delivery} delivery, {workflow}"
        )
    }
}

impl Fault {
    fn kind(&self) -> Kind {
        let class = match self.target {
            Target::Program(index) if index < APIS => Class::Api,
            Target::Program(_) => Class::Worker,
            Target::Server(server) => Class::Server(server),
            Target::Link(index, server) if index < APIS => Class::ApiLink(server),
            Target::Link(_, server) => Class::WorkerLink(server),
            Target::Participant(_) => Class::Participant,
            Target::ParticipantLink(_) => Class::ParticipantLink,
        };
        Kind(class, self.harm)
    }

    /// How long the target is left alone afterwards, so that the next fault hits it at work and not while
    /// it starts.
    fn recovery(&self) -> Duration {
        Duration::from_secs(match (self.target, self.harm) {
            (Target::Server(Server::Kafka), Harm::Kill | Harm::Restart) => 9,
            (Target::Link(..) | Target::ParticipantLink(_), _) => 1,
            _ => 3,
        })
    }
}

fn all_kinds(saga: bool) -> Vec<Kind> {
    use Harm::{Cut, Freeze, HalfOpen, Kill, LoseAnswers, Reset, Restart, Slow};
    let mut kinds = Vec::new();
    let processes = [
        Class::Api,
        Class::Worker,
        Class::Server(Server::Postgres),
        Class::Server(Server::Kafka),
    ];
    for class in processes
        .into_iter()
        .chain(saga.then_some(Class::Participant))
    {
        kinds.extend([Kill, Freeze, Restart].map(|harm| Kind(class, harm)));
    }
    let links = [Server::Postgres, Server::Kafka]
        .into_iter()
        .flat_map(|server| [Class::ApiLink(server), Class::WorkerLink(server)]);
    for class in links.chain(saga.then_some(Class::ParticipantLink)) {
        kinds.extend(
            [Slow, Cut, Freeze, HalfOpen, Reset, LoseAnswers].map(|harm| Kind(class, harm)),
        );
    }
    kinds
}

fn targets(class: Class) -> Vec<Target> {
    let (apis, workers) = (0..APIS, APIS..APIS + WORKERS);
    match class {
        Class::Api => apis.map(Target::Program).collect(),
        Class::Worker => workers.map(Target::Program).collect(),
        Class::Server(server) => vec![Target::Server(server)],
        Class::ApiLink(server) => apis.map(|index| Target::Link(index, server)).collect(),
        Class::WorkerLink(server) => workers.map(|index| Target::Link(index, server)).collect(),
        Class::Participant => (0..PARTICIPANTS).map(Target::Participant).collect(),
        Class::ParticipantLink => (0..PARTICIPANTS).map(Target::ParticipantLink).collect(),
    }
}

fn lasts(class: Class, harm: Harm, random: &mut fastrand::Rng) -> Duration {
    match (class, harm) {
        // Longer than a group's session (6 s): other members take over, and it returns with a stale
        // membership.
        (Class::Worker, Harm::Freeze)
        | (Class::WorkerLink(Server::Kafka), Harm::Freeze | Harm::Cut) => {
            millis(random, 7500..9500)
        }
        // Some last longer than a publish may take (10 s).
        (Class::ApiLink(Server::Kafka), Harm::Freeze)
        | (Class::Server(Server::Kafka), Harm::Kill) => millis(random, 1000..12_000),
        (_, Harm::Kill | Harm::Restart) => millis(random, 100..2500),
        (_, Harm::Reset | Harm::HalfOpen) => Duration::ZERO,
        _ => millis(random, 500..4500),
    }
}

fn millis(random: &mut fastrand::Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}
