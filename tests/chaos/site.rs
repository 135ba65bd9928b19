//! The system under test: its own servers, two apis, three workers and nginx. Each program reaches each
//! server through a proxy of its own. This module injects faults, repairs them and supervises.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::journal::Journal;
use crate::plan::{APIS, Fault, Harm, Plan, Server, Target, WORKERS};
use crate::support::edge::Edge;
use crate::support::http::get;
use crate::support::program::{API, Program, READY, Stack, WORKER, free_port};
use crate::support::proxy::Proxy;
use crate::support::services::{Service, books};
use crate::support::topic::{records_after, try_committed};
use crate::support::{Database, OwnServer};

/// How long a program may take to end after SIGTERM: the 30 s of its shutdown, on a busy machine.
const ENDED: Duration = Duration::from_secs(40);
/// The supervisor's polling interval.
const LOOK: Duration = Duration::from_millis(250);
/// One answer in this many gets lost: rare enough that a connection, which needs several answers, can
/// be opened.
const LOSE_EVERY: usize = 7;
/// After this time at work, a program has allocated all its long-lived memory.
const GROWN_UP: Duration = Duration::from_secs(10);
/// Its allowed growth from then on, for the threads and buffers of an outage's backlog.
const GROWTH_MAX_KIB: u64 = 24 * 1024;
/// Its allowed memory in all.
const MEMORY_MAX_KIB: u64 = 96 * 1024;

pub struct Site {
    members: Vec<Member>,
    pub edge: Edge,
    pub stack: Stack,
    kafka: Mutex<OwnServer>,
    postgres: Mutex<OwnServer>,
    /// Those of sagas, each behind a proxy; none if orders are no sagas.
    participants: Vec<(Mutex<Service>, Proxy)>,
}

/// An api or a worker, across its restarts.
struct Member {
    index: usize,
    name: String,
    port: u16,
    to_postgres: Proxy,
    to_kafka: Proxy,
    program: Mutex<Program>,
    /// The logs of its earlier processes.
    log: Mutex<Vec<String>>,
    memory: Mutex<Memory>,
}

/// The memory of its processes.
#[derive(Default)]
struct Memory {
    /// Of the running process: its start, and its memory once it was grown up.
    since: Option<Instant>,
    grown_up_kib: Option<u64>,
    growth_max_kib: u64,
    max_kib: u64,
}

impl Site {
    /// Everything started and ready.
    pub fn open(plan: &Plan) -> Site {
        // Committed data has reached the kernel, so it survives the end of every process.
        let postgres = OwnServer::postgres_with(&["synchronous_commit=on"]);
        let to_postgres: Vec<Proxy> = proxies(|_| postgres.address());
        let listeners: Vec<u16> = (0..APIS + WORKERS).map(|_| free_port()).collect();
        let to_kafka = proxies(|index| format!("127.0.0.1:{}", listeners[index]));
        let kafka = OwnServer::kafka_with(|port| kafka_settings(port, &listeners, &to_kafka));
        let stack = Stack::on(Database::on(&postgres.address()), kafka.address())
            .set(
                "EVENT_DELIVERY",
                if plan.outbox { "outbox" } else { "direct" },
            )
            .set("KAFKA_TOPIC_PARTITIONS", "6")
            .set("WORKER_CONCURRENCY", "2")
            .set("WORKER_MAX_ATTEMPTS", "2")
            .set("PROCESSING_TIME", "15ms")
            .set("PROCESSING_FAILURE_RATE", "0.15");
        let participants = match plan.saga {
            true => ["inventory", "payments"].map(participant).into(),
            false => Vec::new(),
        };
        let stack = match &participants[..] {
            [(_, inventory), (_, payments)] => stack
                .set("WORKER_WORKFLOW", "saga")
                .set(
                    "INVENTORY_ADDRESS",
                    &format!("127.0.0.1:{}", inventory.port()),
                )
                .set(
                    "PAYMENTS_ADDRESS",
                    &format!("127.0.0.1:{}", payments.port()),
                ),
            _ => stack,
        };
        let members: Vec<Member> = to_postgres
            .into_iter()
            .zip(to_kafka)
            .enumerate()
            .map(|(index, (to_postgres, to_kafka))| {
                let port = free_port();
                let program = Mutex::new(start(&stack, index, port, &to_postgres, &to_kafka));
                let name = match index {
                    index if index < APIS => format!("api-{}", index + 1),
                    index => format!("worker-{}", index - APIS + 1),
                };
                let (log, memory) = (Mutex::default(), Mutex::default());
                Member {
                    index,
                    name,
                    port,
                    to_postgres,
                    to_kafka,
                    program,
                    log,
                    memory,
                }
            })
            .collect();
        for member in &members {
            let mut program = member.program.lock().expect("a program");
            program.become_ready(READY);
        }
        // Customers order over HTTP; nobody listens for gRPC.
        let ports: Vec<_> = members[..APIS].iter().map(|api| (api.port, 9)).collect();
        Site {
            members,
            edge: Edge::before(&ports),
            stack,
            kafka: Mutex::new(kafka),
            postgres: Mutex::new(postgres),
            participants,
        }
    }

    /// Injects a fault, and repairs it when its time is over.
    pub fn inflict(&self, fault: Fault, journal: &Journal) {
        let Fault {
            lasts,
            target,
            harm,
            ..
        } = fault;
        match target {
            Target::Program(index) => {
                let member = &self.members[index];
                journal.say(&format!("{}: {harm:?} for {lasts:.1?}", member.name));
                let lasting = || thread::sleep(lasts);
                member.inflict(harm, lasting, &self.stack, journal);
            }
            Target::Server(server) => self.inflict_server(server, harm, lasts, journal),
            Target::Participant(index) => self.inflict_participant(index, harm, lasts, journal),
            Target::ParticipantLink(index) => {
                let (service, link) = &self.participants[index];
                let name = service.lock().expect("a participant").name();
                journal.say(&format!("workers to {name}: {harm:?} for {lasts:.1?}"));
                break_link(link, harm, lasts);
            }
            Target::Link(index, server) => {
                let member = &self.members[index];
                let link = match server {
                    Server::Postgres => &member.to_postgres,
                    Server::Kafka => &member.to_kafka,
                };
                journal.say(&format!(
                    "{} to {server:?}: {harm:?} for {lasts:.1?}",
                    member.name
                ));
                break_link(link, harm, lasts);
            }
        }
    }

    fn inflict_server(&self, server: Server, harm: Harm, lasts: Duration, journal: &Journal) {
        journal.say(&format!("{server:?}: {harm:?} for {lasts:.1?}"));
        let process = match server {
            Server::Postgres => &self.postgres,
            Server::Kafka => &self.kafka,
        };
        let process = process.lock().expect("a server");
        match (harm, server) {
            (Harm::Freeze, Server::Postgres) => {
                process.freeze();
                thread::sleep(lasts);
                process.thaw();
            }
            (Harm::Freeze, Server::Kafka) => {
                process.pause();
                thread::sleep(lasts);
                process.resume();
            }
            (_, _) => {
                match harm {
                    Harm::Kill => process.kill(),
                    _ => process.stop(),
                }
                thread::sleep(lasts);
                process.start();
                journal.say(&format!("{server:?} is back"));
            }
        }
    }

    fn inflict_participant(&self, index: usize, harm: Harm, lasts: Duration, journal: &Journal) {
        let mut service = self.participants[index].0.lock().expect("a participant");
        journal.say(&format!("{}: {harm:?} for {lasts:.1?}", service.name()));
        match harm {
            Harm::Freeze => {
                service.program.freeze();
                thread::sleep(lasts);
                service.program.thaw();
            }
            _ => {
                match harm {
                    Harm::Kill => service.program.kill(),
                    _ => {
                        service.program.terminate();
                        let status = service.program.wait(ENDED);
                        if status.code() != Some(0) {
                            let name = service.name();
                            journal.violation(&format!("{name} ended with {status} after SIGTERM"));
                        }
                    }
                }
                thread::sleep(lasts);
                service.restart();
            }
        }
    }

    /// The books of both participants; `None` if orders are no sagas.
    pub fn books(&self) -> Option<[i64; 5]> {
        let [(inventory, _), (payments, _)] = &self.participants[..] else {
            return None;
        };
        let inventory = inventory.lock().expect("a participant");
        let payments = payments.lock().expect("a participant");
        Some(books(&inventory, &payments))
    }

    /// Watches memory, and restarts a program that exits by itself, which is a violation.
    pub fn look_after(&self, journal: &Journal, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            for member in &self.members {
                // A member under a fault is checked the next time.
                if let Ok(mut program) = member.program.try_lock() {
                    if let Some(status) = program.ended() {
                        journal.violation(&format!("{} ended by itself: {status}", member.name));
                        member.start_anew(&mut program, &self.stack);
                    }
                    member.weigh(&program);
                }
            }
            thread::sleep(LOOK);
        }
    }

    /// Whether both apis publish the events of accepted orders.
    pub fn breakers_are_closed(&self) -> bool {
        const STATE: &str = r#"circuit_breaker_state{name="kafka-publish"}"#;
        self.members[..APIS].iter().all(|api| {
            let program = api.program.lock().expect("a program");
            program.metric(STATE) == Some(0.0)
        })
    }

    /// Runs `act` while orders are accepted and no worker takes them up; for less than the group's
    /// session.
    pub fn while_workers_are_frozen(&self, act: impl FnOnce()) {
        let workers: Vec<_> = self.members[APIS..]
            .iter()
            .map(|member| member.program.lock().expect("a program"))
            .collect();
        workers.iter().for_each(|worker| worker.freeze());
        act();
        workers.iter().for_each(|worker| worker.thaw());
    }

    /// Runs `act`, which cancels one order, and loses the database's answer to that statement.
    pub fn lose_the_answer_to_a_cancellation(&self, act: impl FnOnce()) {
        let links = || self.members[..APIS].iter().map(|api| &api.to_postgres);
        // The new status travels as plain text, next to the statement's name.
        links().for_each(|link| link.lose_answer_to(b"canceled"));
        act();
        let lost = links().filter(|link| !link.is_to_lose_an_answer()).count();
        assert_eq!(lost, 1, "one of the apis has canceled an order");
    }

    /// Stops a worker, and starts it again once the others own its partitions, which they must then give
    /// back.
    pub fn rebalance(&self, journal: &Journal) {
        let (worker, others) = self.members[APIS..].split_first().expect("workers");
        let taken = || others.iter().map(Member::times_given).sum::<usize>();
        let before = taken();
        let within_time = |what: &str, is_done: &dyn Fn() -> bool| {
            let begun = Instant::now();
            while !is_done() {
                if begun.elapsed() > READY {
                    return journal.violation(&format!("{} {what}", worker.name));
                }
                thread::sleep(LOOK);
            }
        };
        let lasting = || within_time("is gone, and nobody takes over", &|| taken() > before);
        worker.inflict(Harm::Restart, lasting, &self.stack, journal);
        journal.say(&format!("{} is back, for its partitions", worker.name));
        within_time("is given no partition", &|| worker.times_given() > 0);
    }

    /// Waits until every program is ready, every record of order.created is finished and committed, and
    /// the outbox is empty.
    pub fn await_rest(&self, journal: &Journal, limit: Duration) {
        let begun = Instant::now();
        loop {
            let unrest = self.unrest();
            let Some(unrest) = unrest else {
                journal.say("everything has settled");
                return;
            };
            if begun.elapsed() > limit {
                return journal.violation(&format!("not settled: {unrest}"));
            }
            thread::sleep(LOOK);
        }
    }

    fn unrest(&self) -> Option<String> {
        for member in &self.members {
            let ready = get("/readyz").try_send(&format!("127.0.0.1:{}", member.port));
            if !ready.is_ok_and(|response| response.status == 200) {
                return Some(format!("{} is not ready", member.name));
            }
        }
        let left = self
            .stack
            .number("SELECT count(*) FROM sagas WHERE state IN ('running', 'compensating')");
        if left > 0 {
            return Some(format!("{left} sagas unfinished"));
        }
        let left = self.stack.count("outbox");
        if left > 0 {
            return Some(format!("{left} events in the outbox"));
        }
        let Stack {
            kafka,
            topics,
            group,
            ..
        } = &self.stack;
        let committed = match try_committed(kafka, group, &topics.created) {
            Ok(committed) => committed,
            Err(error) => return Some(format!("Kafka: {error}")),
        };
        let next: Vec<i64> = committed.iter().map(|(_, next)| *next.max(&0)).collect();
        let behind = records_after(kafka, &topics.created, &next).map_or(1, |rest| rest.len());
        (behind > 0).then(|| format!("{behind} records of order.created not committed"))
    }

    /// Writes each program's log to its own file.
    pub fn write_logs(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for member in &self.members {
            let mut lines = member.log.lock().expect("log").clone();
            lines.extend(member.program.lock().expect("a program").log());
            std::fs::write(
                folder.join(format!("{}.log", member.name)),
                lines.join("\n"),
            )?;
        }
        Ok(())
    }

    pub fn judge_memory(&self, journal: &Journal) {
        for member in &self.members {
            let memory = member.memory.lock().expect("memory");
            let (max, growth) = (memory.max_kib / 1024, memory.growth_max_kib / 1024);
            journal.say(&format!(
                "{}: {max} MiB at most, grown by {growth} MiB at most",
                member.name
            ));
            if memory.max_kib > MEMORY_MAX_KIB || memory.growth_max_kib > GROWTH_MAX_KIB {
                journal.violation(&format!("{}: its memory is not flat", member.name));
            }
        }
    }
}

impl Member {
    /// Injects a fault, repairs it after `lasting` returns.
    fn inflict(&self, harm: Harm, lasting: impl FnOnce(), stack: &Stack, journal: &Journal) {
        let name = &self.name;
        let mut program = self.program.lock().expect("a program");
        match harm {
            Harm::Freeze => {
                program.freeze();
                lasting();
                program.thaw();
                return;
            }
            Harm::Kill => program.kill(),
            _ => {
                program.terminate();
                let status = program.wait(ENDED);
                // 1: a server it waited for was down until its 30 s were over.
                if !matches!(status.code(), Some(0 | 1)) {
                    journal.violation(&format!("{name} ended with {status} after SIGTERM"));
                }
            }
        }
        lasting();
        self.start_anew(&mut program, stack);
    }

    /// How often this process was assigned new partitions.
    fn times_given(&self) -> usize {
        let log = self.program.lock().expect("a program").log();
        let given = |line: &&String| {
            line.contains(" partitions assigned, ") && !line.contains(" 0 of them new")
        };
        log.iter().filter(given).count()
    }

    fn start_anew(&self, program: &mut Program, stack: &Stack) {
        self.memory.lock().expect("memory").since = None;
        self.log.lock().expect("log").extend(program.log());
        *program = start(
            stack,
            self.index,
            self.port,
            &self.to_postgres,
            &self.to_kafka,
        );
    }

    fn weigh(&self, program: &Program) {
        let Some(kib) = program.memory_kib() else {
            return;
        };
        let mut memory = self.memory.lock().expect("memory");
        if memory.since.is_none() {
            (memory.since, memory.grown_up_kib) = (Some(Instant::now()), None);
        }
        memory.max_kib = memory.max_kib.max(kib);
        let age = memory.since.map_or(Duration::ZERO, |since| since.elapsed());
        if age >= GROWN_UP {
            let before = *memory.grown_up_kib.get_or_insert(kib);
            memory.growth_max_kib = memory.growth_max_kib.max(kib.saturating_sub(before));
        }
    }
}

fn proxies(upstream: impl Fn(usize) -> String) -> Vec<Proxy> {
    (0..APIS + WORKERS)
        .map(|index| Proxy::before(&upstream(index)))
        .collect()
}

/// A participant that now and then answers nothing, and its proxy.
fn participant(name: &'static str) -> (Mutex<Service>, Proxy) {
    let service = Service::start(name, &[("PARTICIPANT_FAILURE_RATE", "0.02")]);
    let proxy = Proxy::before(&service.address());
    (Mutex::new(service), proxy)
}

/// A listener for each program: the advertised address leads the program through its own proxy.
fn kafka_settings(port: u16, listeners: &[u16], proxies: &[Proxy]) -> Vec<String> {
    let controller = free_port();
    let mut listen = format!("CONTROLLER://127.0.0.1:{controller}");
    let mut advertised = String::new();
    let mut protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT".to_owned();
    for (index, (listener, proxy)) in listeners.iter().zip(proxies).enumerate() {
        listen += &format!(",P{index}://127.0.0.1:{listener}");
        advertised += &format!("P{index}://127.0.0.1:{},", proxy.port());
        protocols += &format!(",P{index}:PLAINTEXT");
    }
    vec![
        format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
        format!("listeners={listen},PLAINTEXT://127.0.0.1:{port}"),
        format!("advertised.listeners={advertised}PLAINTEXT://127.0.0.1:{port}"),
        format!("listener.security.protocol.map={protocols}"),
        "inter.broker.listener.name=PLAINTEXT".to_owned(),
    ]
}

fn start(stack: &Stack, index: usize, port: u16, to_postgres: &Proxy, to_kafka: &Proxy) -> Program {
    let (program, variable) = match index < APIS {
        true => (API, "API_PORT"),
        false => (WORKER, "WORKER_PORT"),
    };
    let mut command = stack.command(program);
    command
        .env(variable, port.to_string())
        .env("DB_HOST", "127.0.0.1")
        .env("DB_PORT", to_postgres.port().to_string())
        .env("KAFKA_BROKERS", format!("127.0.0.1:{}", to_kafka.port()));
    Program::start(command, port)
}

fn break_link(link: &Proxy, harm: Harm, lasts: Duration) {
    match harm {
        Harm::Slow => {
            link.delay(Duration::from_millis(80));
            thread::sleep(lasts);
            link.delay(Duration::ZERO);
        }
        Harm::Cut => {
            link.cut();
            thread::sleep(lasts);
            link.mend();
        }
        Harm::Freeze => {
            link.freeze();
            thread::sleep(lasts);
            link.thaw();
        }
        Harm::LoseAnswers => {
            link.lose_answers(LOSE_EVERY);
            thread::sleep(lasts);
            link.lose_answers(0);
        }
        Harm::HalfOpen => link.half_open(),
        Harm::Reset => link.reset(),
        Harm::Kill | Harm::Restart => unreachable!("only processes end"),
    }
}
