//! Configuration of the programs: read from the environment, typed, and checked as a whole.
//!
//! One table ([`VARIABLES`]) has the variables, their defaults and their bounds. A program reads its
//! own rows once, at start. It reports all errors in one message. A valid configuration needs no
//! further checks. Limits that the system guarantees (time-outs, retries) are constants where they
//! are used, not settings.
//!
//! Settings have the types of what they configure; `main` passes them on.

mod cli;
mod database;
mod dlq;
mod endpoint;
mod files;
mod kafka;
mod participant;
mod reader;
mod table;
mod telemetry;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tbd_kafka::consumer::GroupProtocol;
use tbd_tls::Identity;

use crate::orders::app::DeliveryMode;

pub use cli::{CommandLine, command_line};
pub use database::{DatabaseSettings, DatabaseTls};
pub use dlq::{DlqCommand, Position, Which};
pub use files::TlsServerFiles;
pub use kafka::{KafkaSasl, KafkaSecurity, KafkaSettings, KafkaTls};
pub use participant::ParticipantConfig;
pub use reader::{ConfigError, ConfigErrors};
pub use table::{Program, VARIABLES, Variable, markdown_table, variables};
pub use telemetry::{CollectorSettings, LogConfig, TelemetrySettings};

use database::{PoolLimits, database_settings, pool_limits, read_database};
use endpoint::web_address;
use files::{identity, readable_file, readable_folder, server_files};
use kafka::kafka_settings;
use reader::{Reader, address, boolean, brokers, optional, path, text, untrimmed_text};
use telemetry::{log_config, telemetry_settings};

/// The longest SHUTDOWN_DRAIN: a third of the shutdown's 30 s. A test compares it with the table.
pub const SHUTDOWN_DRAIN_MAX: Duration = Duration::from_secs(10);

/// Settings of `tbd-api`.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Logging.
    pub log: LogConfig,
    /// The HTTP server.
    pub http: HttpConfig,
    /// The gRPC server; `None`: there is none.
    pub grpc: Option<GrpcConfig>,
    /// PostgreSQL.
    pub database: DatabaseSettings,
    /// A standby for reads; `None`: the primary answers them.
    pub read_database: Option<DatabaseSettings>,
    /// Kafka.
    pub kafka: KafkaSettings,
    /// Traces.
    pub telemetry: TelemetrySettings,
    /// How long an idempotency key is kept.
    pub idempotency_ttl: Duration,
    /// Whether migrations run at start.
    pub auto_migrate: bool,
    /// Folder of migrations, instead of those in the binary.
    pub migrations_dir: Option<PathBuf>,
    /// When a created order is acknowledged.
    pub event_delivery: DeliveryMode,
    /// The check of bearer tokens; `None`: no check.
    pub auth: Option<AuthSettings>,
    /// Whether orders that arrive at the same time share a commit.
    pub database_coalesce: bool,
    /// Base URL of exported traces in a browser; `None`: no links, or no export.
    pub jaeger_ui: Option<String>,
}

/// Settings of `tbd-worker`.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Logging.
    pub log: LogConfig,
    /// The HTTP server for probes and metrics.
    pub http: HttpConfig,
    /// PostgreSQL.
    pub database: DatabaseSettings,
    /// Kafka.
    pub kafka: KafkaSettings,
    /// Traces.
    pub telemetry: TelemetrySettings,
    /// Silence after which the consumer group evicts a member.
    pub session_timeout: Duration,
    /// The rebalance protocol of the group.
    pub group_protocol: GroupProtocol,
    /// Access to the participants of sagas.
    pub participants_access: ParticipantsAccess,
    /// Consumer threads.
    pub concurrency: usize,
    /// How orders are processed.
    pub workflow: Workflow,
    /// Attempts at processing an order before it fails.
    pub max_attempts: u32,
    /// How long the simulated processing step takes.
    pub processing_time: Duration,
    /// Share of processing steps that fail, 0 to 1.
    pub processing_failure_rate: f64,
}

/// The HTTP server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on.
    pub port: u16,
    /// Certificate and key; `None`: plain text.
    pub tls: Option<Identity>,
    /// Threads that take requests from the listener.
    pub acceptors: usize,
    /// Threads that answer requests.
    pub workers: usize,
    /// Maximum number of requests that wait for a thread.
    pub queue: usize,
    /// Resident memory, in bytes, beyond which the process ends itself.
    pub memory_limit_bytes: u64,
    /// How long the listener still accepts after the stop signal.
    pub shutdown_drain: Duration,
}

impl HttpConfig {
    /// Host and port together.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }
}

/// A gRPC server.
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    /// Address to listen on.
    pub address: SocketAddr,
    /// Certificate and key; `None`: cleartext.
    pub tls: Option<TlsServerFiles>,
}

/// Requirements of bearer tokens.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// The key of their signatures.
    pub key: AuthKey,
    /// Their `iss`; `None`: any.
    pub issuer: Option<String>,
    /// Their `aud`; `None`: any.
    pub audience: Option<String>,
}

/// The key of bearer tokens' signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthKey {
    /// A public key in this file, a JSON Web Key Set.
    JwksFile(PathBuf),
    /// This secret.
    Hs256(Secret),
}

/// Access to the participants of sagas.
#[derive(Clone, Debug, Default)]
pub struct ParticipantsAccess {
    /// PEM file of the CAs of their certificates; `None`: cleartext.
    pub ca_file: Option<PathBuf>,
    /// The worker's own certificate.
    pub identity: Option<Identity>,
    /// File of the bearer token that each call carries.
    pub token_file: Option<PathBuf>,
}

/// How a worker processes orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workflow {
    /// In one simulated step.
    Step,
    /// As sagas of several services.
    Saga(ParticipantAddresses),
}

/// Where the participants of sagas are: `host:port` each, or several separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParticipantAddresses {
    /// The inventory service.
    pub inventory: String,
    /// The payments service.
    pub payments: String,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Gives each configuration its two ways to be read.
macro_rules! readable {
    ($($config:ident: $program:ident),*) => {$(
        impl $config {
            /// Reads the process's environment.
            ///
            /// # Errors
            /// All bad variables at once.
            pub fn from_env() -> Result<Self, ConfigErrors> {
                Self::parse(&|name| std::env::var_os(name))
            }

            /// Reads variables from `lookup`, which gives a name's value.
            ///
            /// # Errors
            /// All bad variables at once.
            pub fn parse(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, ConfigErrors> {
                reader::parse(Program::$program, lookup, Self::read)
            }
        }
    )*};
}

readable!(ApiConfig: Api, WorkerConfig: Worker, ParticipantConfig: Participant);

impl ApiConfig {
    fn read(reader: &mut Reader<'_>) -> Self {
        let pool = pool_limits(reader);
        let database = database_settings(reader, pool);
        let telemetry = telemetry_settings(reader);
        let jaeger_ui = reader.get_even_empty("JAEGER_UI_URL", web_address);
        let acceptors = reader.number("HTTP_ACCEPTORS");
        let http = server_config(reader, "API_HOST", "API_PORT", acceptors);
        let deliveries = [
            ("direct", DeliveryMode::Direct),
            ("outbox", DeliveryMode::Outbox),
        ];
        Self {
            log: log_config(reader),
            grpc: api_grpc(reader, &http),
            http,
            read_database: read_database(reader, &database),
            database,
            kafka: kafka_settings(reader),
            jaeger_ui: jaeger_ui.filter(|_| telemetry.collector.is_some()),
            telemetry,
            idempotency_ttl: reader.duration("IDEMPOTENCY_TTL"),
            auto_migrate: reader.get("AUTO_MIGRATE", boolean),
            migrations_dir: reader.get("MIGRATIONS_DIR", optional(readable_folder)),
            event_delivery: reader.choice("EVENT_DELIVERY", &deliveries),
            auth: auth_settings(reader),
            database_coalesce: reader.choice("DB_COALESCE", &[("on", true), ("off", false)]),
        }
    }
}

impl WorkerConfig {
    /// Acceptors, threads and queue of the worker's HTTP server, which serves one scraper and one
    /// prober.
    const HTTP_POOL: (usize, usize, usize) = (1, 2, 16);
    /// Connections in addition to one per consumer thread: for health checks and metrics.
    const EXTRA_CONNECTIONS: u32 = 2;

    fn read(reader: &mut Reader<'_>) -> Self {
        let concurrency: u32 = reader.number("WORKER_CONCURRENCY");
        let connections = concurrency + Self::EXTRA_CONNECTIONS;
        let pool = PoolLimits {
            max_conns: connections,
            max_idle_conns: connections,
            conn_max_lifetime: Duration::from_secs(5 * 60),
        };
        let protocols = [
            ("classic", GroupProtocol::Classic),
            ("consumer", GroupProtocol::Consumer),
        ];
        let (acceptors, workers, queue) = Self::HTTP_POOL;
        Self {
            log: log_config(reader),
            http: HttpConfig {
                host: reader.get("WORKER_HOST", address),
                port: reader.number("WORKER_PORT"),
                tls: http_tls(reader),
                acceptors,
                workers,
                queue,
                memory_limit_bytes: reader.size("HTTP_MEMORY_LIMIT"),
                shutdown_drain: reader.duration("SHUTDOWN_DRAIN"),
            },
            database: database_settings(reader, pool),
            kafka: kafka_settings(reader),
            telemetry: telemetry_settings(reader),
            session_timeout: reader.duration("KAFKA_SESSION_TIMEOUT"),
            group_protocol: reader.choice("KAFKA_GROUP_PROTOCOL", &protocols),
            participants_access: participants_access(reader),
            concurrency: concurrency as usize,
            workflow: workflow(reader),
            max_attempts: reader.number("WORKER_MAX_ATTEMPTS"),
            processing_time: reader.duration("PROCESSING_TIME"),
            processing_failure_rate: reader.number("PROCESSING_FAILURE_RATE"),
        }
    }
}

/// The HTTP server of a program that answers callers.
fn server_config(
    reader: &mut Reader<'_>,
    host: &'static str,
    port: &'static str,
    acceptors: usize,
) -> HttpConfig {
    HttpConfig {
        host: reader.get(host, address),
        port: reader.number(port),
        tls: http_tls(reader),
        acceptors,
        workers: reader.number("HTTP_WORKERS"),
        queue: reader.number("HTTP_QUEUE"),
        memory_limit_bytes: reader.size("HTTP_MEMORY_LIMIT"),
        shutdown_drain: reader.duration("SHUTDOWN_DRAIN"),
    }
}

fn http_tls(reader: &mut Reader<'_>) -> Option<Identity> {
    identity(reader, "HTTP_TLS_CERT_FILE", "HTTP_TLS_KEY_FILE")
}

fn api_grpc(reader: &mut Reader<'_>, http: &HttpConfig) -> Option<GrpcConfig> {
    let port = grpc_port(reader, "API_GRPC_PORT", ("API_PORT", http.port));
    let files = [
        "API_GRPC_TLS_CERT_FILE",
        "API_GRPC_TLS_KEY_FILE",
        "API_GRPC_TLS_CLIENT_CA_FILE",
    ];
    let tls = server_files(reader, files);
    (port != 0).then(|| GrpcConfig {
        address: SocketAddr::new(http.host, port),
        tls,
    })
}

/// The port of the gRPC server, which cannot be the one of the HTTP server.
fn grpc_port(
    reader: &mut Reader<'_>,
    name: &'static str,
    (http_name, http_port): (&'static str, u16),
) -> u16 {
    let port = reader.number(name);
    if port == http_port {
        let (given, other) = match reader.is_given(name) {
            true => (name, http_name),
            false => (http_name, name),
        };
        reader.refuse_combination(given, format!("another port than {other}'s"));
    }
    port
}

fn workflow(reader: &mut Reader<'_>) -> Workflow {
    let addresses = |text: &str| brokers(text).map(|all| all.join(","));
    let participants = ParticipantAddresses {
        inventory: reader.get("INVENTORY_ADDRESS", addresses),
        payments: reader.get("PAYMENTS_ADDRESS", addresses),
    };
    match reader.choice("WORKER_WORKFLOW", &[("step", false), ("saga", true)]) {
        false => Workflow::Step,
        true => Workflow::Saga(participants),
    }
}

fn participants_access(reader: &mut Reader<'_>) -> ParticipantsAccess {
    const CA: &str = "PARTICIPANTS_TLS_CA_FILE";
    const CERTIFICATE: &str = "PARTICIPANTS_TLS_CERT_FILE";
    let access = ParticipantsAccess {
        ca_file: reader.get(CA, optional(readable_file)),
        identity: identity(reader, CERTIFICATE, "PARTICIPANTS_TLS_KEY_FILE"),
        token_file: reader.get("PARTICIPANTS_TOKEN_FILE", optional(readable_file)),
    };
    reader.require_with(CA, CERTIFICATE);
    access
}

fn auth_settings(reader: &mut Reader<'_>) -> Option<AuthSettings> {
    const FILE: &str = "AUTH_JWT_JWKS_FILE";
    const SECRET: &str = "AUTH_JWT_HS256_SECRET";
    const CLAIMS: [&str; 2] = ["AUTH_JWT_ISSUER", "AUTH_JWT_AUDIENCE"];
    let file = reader.get(FILE, optional(path));
    let secret = reader.get(SECRET, optional(untrimmed_text(usize::MAX)));
    let [issuer, audience] = CLAIMS.map(|name| reader.get(name, optional(text(255))));
    if file.is_some() && secret.is_some() {
        reader.refuse_combination(FILE, format!("unset when {SECRET} is set"));
    }
    if secret.as_ref().is_some_and(|secret| secret.len() < 32) {
        // As long as the hash (RFC 7518, section 3.2): a shorter secret can be guessed.
        reader.refuse_combination(SECRET, "32 bytes or more");
    }
    // An operator who names an issuer expects a check of tokens.
    if !reader.is_given(FILE) && !reader.is_given(SECRET) {
        for name in CLAIMS {
            if reader.is_given(name) {
                let allowed = format!("unset unless {FILE} or {SECRET} is set");
                reader.refuse_combination(name, allowed);
            }
        }
    }
    let key = file.map(AuthKey::JwksFile);
    Some(AuthSettings {
        key: key.or_else(|| secret.map(|it| AuthKey::Hs256(Secret(it))))?,
        issuer,
        audience,
    })
}

#[cfg(test)]
mod tests;
