//! Configuration of both programs: read from the environment, typed, and checked as a whole.
//!
//! One table ([`VARIABLES`]) has the variables, their defaults and their valid values. A program
//! reads its own rows once, at start. It reports all errors in one message. A valid configuration
//! needs no further checks. Limits that the system guarantees (time-outs, retries) are constants
//! where they are used, not settings.
//!
//! The module depends on no other module of the crate; `main` passes the values on.

mod cli;
mod database;
mod dlq;
mod endpoint;
mod reader;
mod security;
mod table;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

pub use cli::{CommandLine, command_line};
pub use database::{DatabaseSettings, SessionTarget};
pub use dlq::{DlqCommand, Position, Which};
pub use reader::{ConfigError, ConfigErrors};
pub use security::{KafkaSasl, KafkaSecurity, KafkaTls, SaslMechanism};
pub use table::{Program, SAMPLERS, VARIABLES, Variable, markdown_table, variables};

use database::{PoolLimits, database_settings};
use endpoint::{endpoint, web_address};
use reader::{
    Reader, address, boolean, brokers, choice, duration, key_values, number, optional, size, text,
    topic, untrimmed_text,
};

/// The longest SHUTDOWN_DRAIN: a third of the shutdown's 30 s.
pub const SHUTDOWN_DRAIN_MAX: Duration = Duration::from_secs(10);

const HOUR: Duration = Duration::from_secs(3600);
const MIB: u64 = 1 << 20;

/// Settings of `tbd-api`.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Logging.
    pub log: LogConfig,
    /// The HTTP server.
    pub http: HttpConfig,
    /// PostgreSQL.
    pub database: DatabaseSettings,
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
    pub event_delivery: EventDelivery,
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
    /// Consumer threads.
    pub concurrency: usize,
    /// Attempts at processing an order before it fails.
    pub max_attempts: u32,
    /// How long the simulated processing step takes.
    pub processing_time: Duration,
    /// Share of processing steps that fail, 0 to 1.
    pub processing_failure_rate: f64,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The least severe level that appears.
    pub level: LevelFilter,
    /// The format of the lines.
    pub format: LogFormat,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// The HTTP server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on.
    pub port: u16,
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

/// Kafka.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// `host:port` of the bootstrap brokers.
    pub brokers: Vec<String>,
    /// Topic of created orders.
    pub topic_order_created: String,
    /// Topic of completed orders.
    pub topic_order_processed: String,
    /// Topic of failed orders.
    pub topic_order_failed: String,
    /// Dead-letter topic.
    pub topic_order_dlq: String,
    /// Partitions of a new topic.
    pub topic_partitions: i32,
    /// Replicas of a new topic.
    pub topic_replication: i16,
    /// Consumer group of the workers.
    pub consumer_group: String,
    /// Silence after which the group evicts a member; always the default in the api.
    pub session_timeout: Duration,
    /// Encryption and login.
    pub security: KafkaSecurity,
    /// How published records are compressed.
    pub compression: Compression,
    /// The rebalance protocol of the group; always the default in the api.
    pub group_protocol: GroupProtocol,
}

/// How records are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// Traces.
#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    /// The collector's base URL; `None`: no export.
    pub otlp_endpoint: Option<String>,
    /// A sentence to log once, if the endpoint differs from the setting.
    pub endpoint_note: Option<String>,
    /// `service.name`.
    pub service_name: String,
    /// One of [`SAMPLERS`].
    pub sampler: &'static str,
    /// The samplers' ratio, 0 to 1.
    pub sampler_arg: f64,
    /// Further attributes of the process.
    pub resource_attributes: Vec<(String, String)>,
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

/// The rebalance protocol of a consumer group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupProtocol {
    /// One member assigns the partitions.
    Classic,
    /// The coordinator assigns the partitions (KIP-848).
    Consumer,
}

/// When a created order is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventDelivery {
    /// Once Kafka has its event.
    Direct,
    /// Once the database has it; the relay publishes the event.
    Outbox,
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

impl ApiConfig {
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
        let mut reader = Reader::new(Program::Api, lookup);
        let config = Self::read(&mut reader);
        reader.finish(config)
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let max_conns = reader.get("DB_MAX_CONNS", number(1..=1000));
        let max_idle_conns = reader.get("DB_MAX_IDLE_CONNS", number(1..=1000));
        // A default adapts to an explicit value; two explicit values must agree.
        if max_idle_conns > max_conns && reader.is_given("DB_MAX_IDLE_CONNS") {
            let allowed = format!("at most DB_MAX_CONNS, which is {max_conns}");
            reader.refuse_combination("DB_MAX_IDLE_CONNS", allowed);
        }
        let lifetime = duration(Duration::from_secs(1)..=168 * HOUR);
        let pool = PoolLimits {
            max_conns,
            max_idle_conns: max_idle_conns.min(max_conns),
            conn_max_lifetime: reader.get("DB_CONN_MAX_LIFETIME", lifetime),
        };
        let telemetry = telemetry_settings(reader);
        let jaeger_ui = reader.get_even_empty("JAEGER_UI_URL", web_address);
        Self {
            log: log_config(reader),
            http: HttpConfig {
                host: reader.get("API_HOST", address),
                port: reader.get("API_PORT", number(1..=u16::MAX)),
                acceptors: reader.get("HTTP_ACCEPTORS", number(1..=64)),
                workers: reader.get("HTTP_WORKERS", number(1..=4096)),
                queue: reader.get("HTTP_QUEUE", number(1..=65536)),
                memory_limit_bytes: memory_limit(reader),
                shutdown_drain: shutdown_drain(reader),
            },
            database: database_settings(reader, pool),
            kafka: kafka_settings(reader, GroupSettings::default()),
            jaeger_ui: jaeger_ui.filter(|_| telemetry.otlp_endpoint.is_some()),
            telemetry,
            idempotency_ttl: reader.get("IDEMPOTENCY_TTL", duration(24 * HOUR..=168 * HOUR)),
            auto_migrate: reader.get("AUTO_MIGRATE", boolean),
            migrations_dir: reader.get("MIGRATIONS_DIR", optional(path)),
            event_delivery: reader.get(
                "EVENT_DELIVERY",
                choice(&[
                    ("direct", EventDelivery::Direct),
                    ("outbox", EventDelivery::Outbox),
                ]),
            ),
            auth: auth_settings(reader),
            database_coalesce: reader.get("DB_COALESCE", choice(&[("on", true), ("off", false)])),
        }
    }
}

impl WorkerConfig {
    /// Acceptors, threads and queue of the worker's HTTP server, which serves one scraper and one
    /// prober.
    const HTTP_POOL: (usize, usize, usize) = (1, 2, 16);
    /// Connections in addition to one per consumer thread: for health checks and metrics.
    const EXTRA_CONNECTIONS: u32 = 2;

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
        let mut reader = Reader::new(Program::Worker, lookup);
        let config = Self::read(&mut reader);
        reader.finish(config)
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let concurrency: u32 = reader.get("WORKER_CONCURRENCY", number(1..=256));
        let connections = concurrency + Self::EXTRA_CONNECTIONS;
        let pool = PoolLimits {
            max_conns: connections,
            max_idle_conns: connections,
            conn_max_lifetime: Duration::from_secs(5 * 60),
        };
        let session = duration(Duration::from_secs(6)..=Duration::from_secs(30 * 60));
        let group = GroupSettings {
            session_timeout: reader.get("KAFKA_SESSION_TIMEOUT", session),
            protocol: reader.get(
                "KAFKA_GROUP_PROTOCOL",
                choice(&[
                    ("classic", GroupProtocol::Classic),
                    ("consumer", GroupProtocol::Consumer),
                ]),
            ),
        };
        let (acceptors, workers, queue) = Self::HTTP_POOL;
        Self {
            log: log_config(reader),
            http: HttpConfig {
                host: reader.get("WORKER_HOST", address),
                port: reader.get("WORKER_PORT", number(1..=u16::MAX)),
                acceptors,
                workers,
                queue,
                memory_limit_bytes: memory_limit(reader),
                shutdown_drain: shutdown_drain(reader),
            },
            database: database_settings(reader, pool),
            kafka: kafka_settings(reader, group),
            telemetry: telemetry_settings(reader),
            concurrency: concurrency as usize,
            max_attempts: reader.get("WORKER_MAX_ATTEMPTS", number(1..=100)),
            processing_time: reader.get(
                "PROCESSING_TIME",
                duration(Duration::ZERO..=Duration::from_secs(60)),
            ),
            processing_failure_rate: reader.get("PROCESSING_FAILURE_RATE", number(0.0..=1.0)),
        }
    }
}

/// The settings of a group member. The api has none.
struct GroupSettings {
    session_timeout: Duration,
    protocol: GroupProtocol,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            session_timeout: Duration::from_secs(10),
            protocol: GroupProtocol::Classic,
        }
    }
}

fn log_config(reader: &mut Reader<'_>) -> LogConfig {
    LogConfig {
        level: reader.get(
            "LOG_LEVEL",
            choice(&[
                ("debug", LevelFilter::Debug),
                ("info", LevelFilter::Info),
                ("warn", LevelFilter::Warn),
                ("error", LevelFilter::Error),
            ]),
        ),
        format: reader.get(
            "LOG_FORMAT",
            choice(&[("json", LogFormat::Json), ("text", LogFormat::Text)]),
        ),
    }
}

fn memory_limit(reader: &mut Reader<'_>) -> u64 {
    reader.get("HTTP_MEMORY_LIMIT", size(64 * MIB..=MIB * MIB))
}

fn shutdown_drain(reader: &mut Reader<'_>) -> Duration {
    reader.get(
        "SHUTDOWN_DRAIN",
        duration(Duration::ZERO..=SHUTDOWN_DRAIN_MAX),
    )
}

fn kafka_settings(reader: &mut Reader<'_>, group: GroupSettings) -> KafkaSettings {
    const TOPICS: [&str; 4] = [
        "KAFKA_TOPIC_ORDER_CREATED",
        "KAFKA_TOPIC_ORDER_PROCESSED",
        "KAFKA_TOPIC_ORDER_FAILED",
        "KAFKA_TOPIC_ORDER_DLQ",
    ];
    let topics = TOPICS.map(|name| reader.get(name, topic));
    for (index, name) in TOPICS.into_iter().enumerate() {
        let same = topics[..index]
            .iter()
            .position(|other| *other == topics[index]);
        if let Some(same) = same {
            // If a topic were both consumed and published to, its events would loop for ever.
            let (given, other) = if reader.is_given(name) {
                (name, TOPICS[same])
            } else {
                (TOPICS[same], name)
            };
            reader.refuse_combination(given, format!("another topic than {other}'s"));
        }
    }
    let [created, processed, failed, dlq] = topics;
    KafkaSettings {
        brokers: reader.get("KAFKA_BROKERS", brokers),
        topic_order_created: created,
        topic_order_processed: processed,
        topic_order_failed: failed,
        topic_order_dlq: dlq,
        topic_partitions: reader.get("KAFKA_TOPIC_PARTITIONS", number(1..=10_000)),
        topic_replication: reader.get("KAFKA_TOPIC_REPLICATION", number(1..=100)),
        consumer_group: reader.get("KAFKA_CONSUMER_GROUP", text(255)),
        session_timeout: group.session_timeout,
        security: security::kafka_security(reader),
        compression: reader.get(
            "KAFKA_COMPRESSION",
            choice(&[
                ("none", Compression::None),
                ("gzip", Compression::Gzip),
                ("snappy", Compression::Snappy),
                ("lz4", Compression::Lz4),
                ("zstd", Compression::Zstd),
            ]),
        ),
        group_protocol: group.protocol,
    }
}

fn auth_settings(reader: &mut Reader<'_>) -> Option<AuthSettings> {
    const FILE: &str = "AUTH_JWT_JWKS_FILE";
    const SECRET: &str = "AUTH_JWT_HS256_SECRET";
    let file = reader.get(FILE, optional(path));
    let secret = reader.get(SECRET, optional(untrimmed_text(usize::MAX)));
    let claim = || optional(text(255));
    let issuer = reader.get("AUTH_JWT_ISSUER", claim());
    let audience = reader.get("AUTH_JWT_AUDIENCE", claim());
    if file.is_some() && secret.is_some() {
        reader.refuse_combination(FILE, format!("unset when {SECRET} is set"));
    }
    if secret.as_ref().is_some_and(|secret| secret.len() < 32) {
        // As long as the hash (RFC 7518, section 3.2): a shorter secret can be guessed.
        reader.refuse_combination(SECRET, "32 bytes or more".to_owned());
    }
    let key = match (file, secret) {
        (Some(file), _) => AuthKey::JwksFile(file),
        (None, Some(secret)) => AuthKey::Hs256(Secret(secret)),
        (None, None) => {
            // An operator who names an issuer expects a check of tokens.
            if !reader.is_given(FILE) && !reader.is_given(SECRET) {
                for name in ["AUTH_JWT_ISSUER", "AUTH_JWT_AUDIENCE"] {
                    if reader.is_given(name) {
                        let allowed = format!("unset unless {FILE} or {SECRET} is set");
                        reader.refuse_combination(name, allowed);
                    }
                }
            }
            return None;
        }
    };
    Some(AuthSettings {
        key,
        issuer,
        audience,
    })
}

fn path(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text.trim()))
}

fn telemetry_settings(reader: &mut Reader<'_>) -> TelemetrySettings {
    let endpoint = reader.get_even_empty("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    let is_disabled = reader.get("OTEL_SDK_DISABLED", boolean);
    let mut resource_attributes = reader.get("OTEL_RESOURCE_ATTRIBUTES", key_values);
    // OTEL_SERVICE_NAME overrides service.name; its default does not.
    let mut service_name = reader.get("OTEL_SERVICE_NAME", text(255));
    resource_attributes.retain(|(key, value)| {
        let is_name = key == "service.name";
        if is_name && !value.is_empty() && !reader.is_given("OTEL_SERVICE_NAME") {
            service_name.clone_from(value);
        }
        !is_name
    });
    let (otlp_endpoint, endpoint_note) = match is_disabled {
        true => (None, None),
        false => (endpoint.url, endpoint.note),
    };
    TelemetrySettings {
        otlp_endpoint,
        endpoint_note,
        service_name,
        sampler: reader.get("OTEL_TRACES_SAMPLER", |text| {
            let is_meant = |name: &&&str| name.eq_ignore_ascii_case(text.trim());
            SAMPLERS.iter().find(is_meant).copied()
        }),
        sampler_arg: reader.get("OTEL_TRACES_SAMPLER_ARG", number(0.0..=1.0)),
        resource_attributes,
    }
}

#[cfg(test)]
mod tests;
