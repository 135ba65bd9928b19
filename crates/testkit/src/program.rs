//! The programs under test, as real processes.

use std::collections::HashMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::http::{Response, get, post};
use crate::{Database, PASSWORD, USER, eventually, kafka, postgres, unique};

/// How long a program may take to get ready, on a busy machine.
pub const READY: Duration = Duration::from_secs(60);

/// The API's program.
pub const API: &str = "tbd-api";
/// The worker's program.
pub const WORKER: &str = "tbd-worker";
/// The participants' program.
pub const PARTICIPANT: &str = "tbd-participant";
/// Variable with a folder of substitutes that have these names, such as the async twin's programs.
const OTHERS: &str = "TBD_TEST_PROGRAMS";

/// One test's database, topics and consumer group, and the variables that point programs to them.
pub struct Stack {
    /// The database.
    pub database: Database,
    /// `host:port` of Kafka.
    pub kafka: String,
    /// The topics.
    pub topics: Topics,
    /// The workers' consumer group.
    pub group: String,
    variables: HashMap<String, String>,
}

/// The topics' names.
pub struct Topics {
    /// `order.created`.
    pub created: String,
    /// `order.processed`.
    pub processed: String,
    /// `order.failed`.
    pub failed: String,
    /// `order.dlq`.
    pub dlq: String,
}

impl Stack {
    /// On the shared servers.
    pub fn new() -> Stack {
        Stack::on(postgres(), kafka())
    }

    /// On servers of the test's own.
    pub fn on(database: Database, kafka: String) -> Stack {
        let topics = Topics {
            created: unique("order.created"),
            processed: unique("order.processed"),
            failed: unique("order.failed"),
            dlq: unique("order.dlq"),
        };
        let group = unique("tbd-workers");
        let variables = [
            ("API_HOST", "127.0.0.1"),
            ("API_GRPC_PORT", "0"), // unless a test's api gets a port of its own
            ("WORKER_HOST", "127.0.0.1"),
            ("LOG_LEVEL", "info"),
            ("OTEL_SDK_DISABLED", "true"),
            ("DB_HOST", &database.host),
            ("DB_PORT", &database.port.to_string()),
            ("DB_USER", USER),
            ("DB_PASSWORD", PASSWORD),
            ("DB_NAME", &database.name),
            ("DB_MAX_CONNS", "8"),
            ("KAFKA_BROKERS", &kafka),
            ("KAFKA_TOPIC_ORDER_CREATED", &topics.created),
            ("KAFKA_TOPIC_ORDER_PROCESSED", &topics.processed),
            ("KAFKA_TOPIC_ORDER_FAILED", &topics.failed),
            ("KAFKA_TOPIC_ORDER_DLQ", &topics.dlq),
            ("KAFKA_TOPIC_PARTITIONS", "3"),
            ("KAFKA_CONSUMER_GROUP", &group),
            ("KAFKA_SESSION_TIMEOUT", "6s"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        Stack {
            database,
            kafka,
            topics,
            group,
            variables,
        }
    }

    /// Sets a variable for every program started from now on.
    pub fn set(mut self, name: &str, value: &str) -> Stack {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A ready api.
    pub fn api(&self) -> Program {
        self.start_api().ready()
    }

    /// An api that has just been started.
    pub fn start_api(&self) -> Program {
        self.start_on(API, "API_PORT", free_port(), free_port())
    }

    /// An api that has just been started on the ports of one that has ended.
    pub fn start_in_place_of(&self, api: &Program) -> Program {
        self.start_on(API, "API_PORT", api.port, api.grpc_port)
    }

    /// An api that a shell has just started after these commands: `ulimit -n 100`.
    pub fn start_api_after(&self, commands: &str) -> Program {
        let port = free_port();
        let mut shell = self.command("/bin/sh");
        shell.env("API_PORT", port.to_string());
        let api = in_its_place(API);
        shell.args(["-c", &format!("{commands}; exec {}", api.display())]);
        Program::start(shell, port)
    }

    /// A ready worker.
    pub fn worker(&self) -> Program {
        self.start_worker().ready()
    }

    /// A worker that has just been started.
    pub fn start_worker(&self) -> Program {
        self.start_on(WORKER, "WORKER_PORT", free_port(), 0)
    }

    /// A program with this stack's variables and no others, for tests of a program that exits by itself.
    pub fn command(&self, program: &str) -> Command {
        let mut command = bare(program);
        command.envs(&self.variables);
        command
    }

    fn start_on(&self, program: &str, port_variable: &str, port: u16, grpc_port: u16) -> Program {
        let mut command = self.command(program);
        command.env(port_variable, port.to_string());
        command.env("API_GRPC_PORT", grpc_port.to_string());
        let mut program = Program::start(command, port);
        program.grpc_port = grpc_port;
        program
    }

    /// The number of rows in a table.
    pub fn count(&self, table: &str) -> i64 {
        self.number(&format!("SELECT count(*) FROM {table}"))
    }

    /// The single number that a query returns.
    pub fn number(&self, query: &str) -> i64 {
        let row = self.database.connect().query_one(query, &[]);
        row.unwrap_or_else(|error| panic!("{query}: {error}"))
            .get(0)
    }

    /// Runs statements.
    pub fn execute(&self, statements: &str) {
        let done = self.database.connect().batch_execute(statements);
        done.unwrap_or_else(|error| panic!("{statements}: {error}"));
    }

    /// An order's status in the database.
    pub fn status(&self, id: &str) -> String {
        let query = format!("SELECT status FROM orders WHERE id = '{id}'");
        let row = self.database.connect().query_one(&query, &[]);
        row.unwrap_or_else(|error| panic!("{query}: {error}"))
            .get(0)
    }

    /// Waits until all of `count` orders have this status.
    pub fn all_become(&self, status: &str, count: i64, limit: Duration) {
        let query = format!("SELECT count(*) FROM orders WHERE status = '{status}'");
        let mut client = self.database.connect();
        let mut last = 0;
        eventually(limit, &format!("{count} orders to be {status}"), || {
            last = client.query_one(&query, &[]).expect("count orders").get(0);
            (last == count).then_some(())
        });
    }
}

/// The folder of the programs that Cargo built for this test, which itself is in its subfolder `deps`.
pub fn folder() -> PathBuf {
    let test = env::current_exe().expect("the test's own path");
    let folder = test.parent().and_then(Path::parent);
    folder.expect("target/PROFILE").to_owned()
}

/// One of our programs or its substitute; any other program is used as it is.
fn in_its_place(program: &str) -> PathBuf {
    match (program, env::var_os(OTHERS)) {
        (API | WORKER, Some(others)) => Path::new(&others).join(program),
        (API | WORKER | PARTICIPANT, _) => folder().join(program),
        _ => program.into(),
    }
}

/// A program without any variable of the test's environment.
pub fn bare(program: &str) -> Command {
    let mut command = Command::new(in_its_place(program));
    command.env_clear().stdin(Stdio::null());
    command
}

/// Output and exit status of a program that exits by itself. If it does not, kills it and fails the
/// test.
pub fn run(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("start the program");
    let id = Pid::from_child(&child);
    let (done, ended) = crossbeam_channel::bounded(1);
    let waiting = thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = done.send(());
        output
    });
    if ended.recv_timeout(READY).is_err() {
        kill_process(id, Signal::KILL).expect("kill the program");
        let output = waiting.join().expect("no panic").expect("wait");
        panic!(
            "did not end by itself: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    waiting
        .join()
        .expect("no panic")
        .expect("wait for the program")
}

/// A running program. Killed when dropped; its log is shown if the test fails.
pub struct Program {
    child: Child,
    port: u16,
    grpc_port: u16,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts a program whose variables put its HTTP server on `port`.
    pub fn start(mut command: Command, port: u16) -> Program {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start the program");
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("no panic").push(line);
            }
        });
        Program {
            child,
            port,
            grpc_port: 0,
            log,
            reader: Some(reader),
        }
    }

    /// The port of its HTTP server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of an api's gRPC server; 0 if it has none.
    pub fn grpc_port(&self) -> u16 {
        self.grpc_port
    }

    /// `host:port` of its HTTP server.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Waits until it reports ready.
    #[track_caller]
    pub fn ready(mut self) -> Program {
        self.become_ready(READY);
        self
    }

    /// Waits until it reports ready; fails at once if it has ended.
    #[track_caller]
    pub fn become_ready(&mut self, limit: Duration) {
        let address = self.address();
        eventually(limit, "readiness", || {
            if let Some(status) = self.ended() {
                panic!("ended ({status}) before it was ready");
            }
            let ready = get("/readyz").try_send(&address);
            ready
                .is_ok_and(|response| response.status == 200)
                .then_some(())
        });
    }

    /// Waits until it reports not ready; the answer.
    pub fn become_unready(&self, limit: Duration) -> Response {
        let address = self.address();
        eventually(limit, "readiness to fail", || {
            get("/readyz")
                .try_send(&address)
                .ok()
                .filter(|response| response.status == 503)
        })
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.child.kill().expect("kill the program");
        self.child.wait().expect("wait for the program");
    }

    /// Asks it to stop (SIGTERM).
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops it in its tracks (SIGSTOP). On a busy machine its threads run on until one of them has had a
    /// core to take the signal, so this waits until it has stopped.
    ///
    /// # Panics
    /// If it has not after 10 s.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let status = format!("/proc/{}/status", self.child.id());
        eventually(Duration::from_secs(10), "the program to stop", || {
            let status = std::fs::read_to_string(&status).ok()?;
            status.contains("State:\tT").then_some(())
        });
    }

    /// Ends a [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("send a signal");
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("look at the program")
    }

    /// The memory it occupies, in KiB; `None` once it has ended.
    pub fn memory_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let status = eventually(limit, "the program to end", || self.ended());
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no panic");
        }
        status
    }

    /// What it has logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("no panic").clone()
    }

    /// The value of a metric's sample, named as in the exposition (`name{label="value"}`); `None` if it
    /// is absent.
    pub fn metric(&self, sample: &str) -> Option<f64> {
        let metrics = get("/metrics").send(&self.address());
        assert_eq!(metrics.status, 200);
        let text = metrics.text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map(|value| value.trim().parse().expect("a sample is a number"))
    }

    /// Waits until a metric's sample has this value, for events that are counted shortly after they show.
    pub fn metric_becomes(&self, sample: &str, value: f64) {
        eventually(READY, &format!("{sample} {value}"), || {
            (self.metric(sample) == Some(value)).then_some(())
        });
    }

    /// Sends a good order under `key`.
    pub fn order(&self, key: &str, amount_cents: u64) -> Response {
        new_order(key, amount_cents).send(&self.address())
    }

    /// Sends a good order under a new key and expects it to be accepted; the Order.
    #[track_caller]
    pub fn accepted_order(&self) -> Value {
        let response = self.order(&unique("key"), 1299);
        assert_eq!(response.status, 202, "{}", response.text());
        response.json()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if thread::panicking() {
            // The test harness prints it with the test's own message.
            let log = self.log();
            let last = log.len().saturating_sub(60);
            println!(
                "--- the end of the log of the program on port {}",
                self.port
            );
            for line in &log[last..] {
                println!("{line}");
            }
        }
    }
}

/// The request that makes a good order under `key`.
pub fn new_order(key: &str, amount_cents: u64) -> super::http::Request {
    let body = json!({ "customer_email": "user@example.com", "amount_cents": amount_cents });
    post("/v1/orders")
        .header("Idempotency-Key", key)
        .json(body.to_string())
}

/// The id of an Order.
pub fn id(order: &Value) -> &str {
    order["id"].as_str().expect("an order has an id")
}

/// A free port below the kernel's range for outgoing connections, given to no other test of this
/// process.
pub fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let start = std::process::id() as u16 % COUNT;
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + step) % COUNT;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
