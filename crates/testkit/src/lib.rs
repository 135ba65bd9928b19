//! The servers of integration tests, as `scripts/with-servers` provides them.
//!
//! Every test gets a database and topics of its own, so tests run in parallel and in any order. A
//! missing server is a failure, never a skip: an unnoticed skip would look like a pass.
//!
//! A test that needs to stop a server starts its own with [`OwnServer`].

#![allow(
    clippy::new_without_default,
    clippy::unwrap_used,
    reason = "a test that cannot continue panics, and a server is started by name"
)]

pub mod browser;
pub mod certificates;
pub mod edge;
pub mod features;
pub mod http;
pub mod observers;
pub mod program;
pub mod proxy;
pub mod recreate;
pub mod services;
pub mod token;
pub mod topic;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uuid::Uuid;

use certificates::Files;

/// Role and password of the tests' PostgreSQL; a superuser there.
pub const USER: &str = "tbd";
/// See [`USER`].
pub const PASSWORD: &str = "secret";

/// A variable that `scripts/with-servers` sets.
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `make test`, or `scripts/with-servers cargo test ...`")
    })
}

/// A database for one test. Dropping this value drops the database and ends its remaining sessions.
pub struct Database {
    /// The server's host.
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// The database's name, unique to this value.
    pub name: String,
}

/// A fresh, empty database on the shared server.
pub fn postgres() -> Database {
    Database::on(&variable("TBD_TEST_POSTGRES"))
}

impl Database {
    /// A fresh, empty database on the server at `address` (host:port).
    pub fn on(address: &str) -> Database {
        let (host, port) = split(address);
        let name = unique("test").replace('-', "_");
        let database = Database { host, port, name };
        database
            .admin()
            .batch_execute(&format!("CREATE DATABASE {}", database.name))
            .expect("create the test's database");
        database
    }

    /// A plain connection to this database, outside any pool.
    pub fn connect(&self) -> Client {
        self.connect_to(&self.name)
    }

    /// A connection that locks the table of orders: every other user of it waits for the rollback.
    pub fn holding_orders(&self) -> Client {
        let mut holder = self.connect();
        holder
            .batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            .expect("lock the table");
        holder
    }

    /// Connection URL for other programs: `postgres://user:password@host:port/name?sslmode=disable`.
    pub fn url(&self) -> String {
        let Database { host, port, name } = self;
        format!("postgres://{USER}:{PASSWORD}@{host}:{port}/{name}?sslmode=disable")
    }

    fn admin(&self) -> Client {
        self.connect_to("tbd")
    }

    fn connect_to(&self, name: &str) -> Client {
        self.try_connect_to(name)
            .unwrap_or_else(|error| panic!("connect to {}:{}: {error}", self.host, self.port))
    }

    /// As [`connect`](Self::connect), to a server that may be unreachable.
    pub fn try_connect(&self) -> Result<Client, postgres::Error> {
        self.try_connect_to(&self.name)
    }

    fn try_connect_to(&self, name: &str) -> Result<Client, postgres::Error> {
        postgres::Config::new()
            .host(&self.host)
            .port(self.port)
            .user(USER)
            .password(PASSWORD)
            .dbname(name)
            .connect(NoTls)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The test may have stopped this server; then the database goes with the server's folder.
        let config = format!(
            "host={} port={} user={USER} password={PASSWORD} dbname=tbd connect_timeout=2",
            self.host, self.port
        );
        if let Ok(mut admin) = Client::connect(&config, NoTls) {
            let _ = admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
    }
}

/// `host:port` of the shared Kafka. It never creates a topic by itself.
pub fn kafka() -> String {
    variable("TBD_TEST_KAFKA")
}

/// One of Kafka's own command-line programs, by its class; the caller adds its arguments.
pub fn kafka_tool(class: &str) -> Command {
    let jars = variable("TBD_TEST_KAFKA_JARS");
    let mut command = Command::new("java");
    command
        .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .arg(format!("-XX:SharedArchiveFile={jars}/classes.jsa"))
        .args(["-cp", &format!("{jars}/*"), class]);
    command
}

/// `tests/kafka/librdkafka.py`; the caller adds its arguments.
pub fn librdkafka() -> Command {
    let mut command = Command::new(variable("TBD_TEST_LIBRDKAFKA"));
    command.arg(repository().join("tests/kafka/librdkafka.py"));
    command
}

/// A name that no other test uses, for topics, groups, keys: `prefix-<32 hex digits>`.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", Uuid::now_v7().simple())
}

/// Polls `look` every 25 ms until it returns something. After `limit` it fails the test and names
/// `what` it waited for. The condition changes in other processes, so nothing can wake this thread.
pub fn eventually<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            start.elapsed() < limit,
            "gave up after {limit:?} waiting for {what}"
        );
        thread::sleep(Duration::from_millis(25));
    }
}

/// Sets a flag when dropped: it ends a scope's other threads, also when an assertion fails. Without
/// it the scope would wait for them for ever.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// golang-migrate's own command-line program on this repository's migrations; the caller adds
/// `-database URL` and the verb.
pub fn migrate(database: &Database) -> Command {
    let mut command = Command::new(variable("TBD_TEST_MIGRATE"));
    command
        .arg("-path")
        .arg(repository().join("migrations"))
        .args(["-database", &database.url()]);
    command
}

/// Raises this process's limit of open files to this number.
pub fn allow_descriptors(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let raised = Rlimit {
            current: limit
                .maximum
                .map_or(Some(count), |most| Some(count.min(most))),
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised).expect("raise the limit of open files");
        assert!(
            raised.current == Some(count),
            "this test needs {count} open files: ulimit -Hn says less"
        );
    }
}

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A file of the repository.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of Grafana's dashboards.
pub fn dashboards() -> Vec<PathBuf> {
    files_below("docker/grafana/dashboards")
}

/// The files of one of the repository's folders and of the folders in it, sorted.
pub fn files_below(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let folder = repository().join(folder);
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}")) {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.extend(files_below(path)),
            false => files.push(path),
        }
    }
    files.sort();
    files
}

/// The test's own PostgreSQL, Kafka or PgBouncer. The test may stop, kill and pause it, and start it
/// again on the same port with the same data. Killed when dropped.
pub struct OwnServer {
    kind: &'static str,
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
}

impl OwnServer {
    /// A running PostgreSQL with the shared server's role and database. Takes about a second.
    pub fn postgres() -> OwnServer {
        OwnServer::postgres_with(&[])
    }

    /// As [`postgres`](Self::postgres), with these settings: `name=value`.
    pub fn postgres_with(settings: &[&str]) -> OwnServer {
        let settings = settings.iter().map(|setting| (*setting).to_owned());
        OwnServer::start_new("postgres", |_| settings.collect())
    }

    /// A running PostgreSQL with TLS. The role `service` must use it, with a password and with a
    /// certificate for its name that `ca` has signed. The tests' own role need not.
    pub fn postgres_with_tls(server: &Files, ca: &Path) -> OwnServer {
        let this = OwnServer {
            kind: "postgres",
            folder: own_folder("postgres"),
            port: free_port(),
            settings: vec!["ssl=on".to_owned()],
        };
        this.secure(server, ca);
        this.start();
        this
    }

    /// Gives a PostgreSQL another certificate. It takes it at its next start or reload.
    pub fn secure(&self, server: &Files, ca: &Path) {
        let paths = [&*self.folder, &server.certificate, &server.key, ca];
        let [folder, certificate, key, ca] = paths.map(|path| path.to_str().expect("UTF-8"));
        script(&["postgres", "secure", folder, certificate, key, ca]);
    }

    /// A standby with this PostgreSQL's current data. Stops this server for the copy, then starts it
    /// again.
    pub fn standby(&self) -> OwnServer {
        let standby = OwnServer {
            kind: "postgres",
            folder: own_folder("postgres"),
            port: free_port(),
            settings: self.settings.clone(),
        };
        self.stop();
        let folders = [&standby, self].map(|it| it.folder.to_str().expect("UTF-8"));
        script(&["postgres", "standby", folders[0], folders[1]]);
        self.start();
        standby.start();
        standby
    }

    /// A running PgBouncer in front of the PostgreSQL on `port` of this machine, with these settings:
    /// `name=value`. It can be killed, not stopped.
    pub fn pgbouncer(port: u16, settings: &[&str]) -> OwnServer {
        let settings = settings.iter().map(|setting| (*setting).to_owned());
        let settings = std::iter::once(port.to_string()).chain(settings).collect();
        OwnServer::start_new("pgbouncer", |_| settings)
    }

    /// A running Kafka of one node. Takes about five seconds.
    pub fn kafka() -> OwnServer {
        OwnServer::kafka_with(|_| Vec::new())
    }

    /// As [`kafka`](Self::kafka), with settings (`name=value`) computed from its port.
    pub fn kafka_with(settings: impl FnOnce(u16) -> Vec<String>) -> OwnServer {
        OwnServer::start_new("kafka", settings)
    }

    /// Three running Kafkas with node ids 1 to 3. Each holds a copy of everything, and a write needs two
    /// of them. Takes about ten seconds.
    pub fn kafka_cluster() -> [OwnServer; 3] {
        let base = own_folder("kafka");
        let base = base.to_str().expect("the folder's name is UTF-8");
        let nodes = [1, 2, 3].map(|node| OwnServer {
            kind: "kafka",
            folder: PathBuf::from(format!("{base}-{node}")),
            port: free_port(),
            settings: Vec::new(),
        });
        let ports = nodes.each_ref().map(|node| node.port.to_string());
        script(&["kafka", "cluster", base, &ports[0], &ports[1], &ports[2]]);
        nodes
    }

    fn start_new(kind: &'static str, settings: impl FnOnce(u16) -> Vec<String>) -> OwnServer {
        let folder = own_folder(kind);
        let port = free_port();
        let server = OwnServer {
            kind,
            folder,
            port,
            settings: settings(port),
        };
        server.start();
        server
    }

    /// `host:port`, the same across restarts.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port of [`address`](Self::address).
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill); returns when it is ready.
    pub fn start(&self) {
        self.control("start");
    }

    /// Stops it in an orderly way; returns when it has ended.
    pub fn stop(&self) {
        self.control("stop");
    }

    /// Kills all of its processes at once (SIGKILL).
    pub fn kill(&self) {
        self.control("kill");
    }

    /// Freezes it: connections stay open without answers. PostgreSQL only accepts no new connections;
    /// existing ones continue.
    pub fn pause(&self) {
        self.control("pause");
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.control("resume");
    }

    /// Freezes every process of a PostgreSQL.
    pub fn freeze(&self) {
        self.control("freeze");
    }

    /// Ends a [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.control("thaw");
    }

    fn control(&self, action: &str) {
        let folder = self.folder.to_str().expect("the folder's name is UTF-8");
        let port = self.port.to_string();
        let mut arguments = vec![self.kind, action, folder, &port];
        arguments.extend(self.settings.iter().map(String::as_str));
        script(&arguments);
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A free port.
pub fn free_port() -> u16 {
    let port = script(&["free-port"]);
    port.trim().parse().expect("scripts/server prints a port")
}

/// A folder name for the test's own server, below the folder whose leftover servers are cleaned up.
pub fn own_folder(kind: &str) -> PathBuf {
    Path::new(&variable("TBD_TEST_SERVERS")).join(unique(kind))
}

/// Runs `scripts/server` and returns its output.
fn script(arguments: &[&str]) -> String {
    let output = Command::new(repository().join("scripts/server"))
        .args(arguments)
        .output()
        .expect("run scripts/server");
    assert!(
        output.status.success(),
        "scripts/server {arguments:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Splits `host:port`.
fn split(address: &str) -> (String, u16) {
    let (host, port) = address.rsplit_once(':').expect("an address is host:port");
    (host.to_owned(), port.parse().expect("a port is a number"))
}
