//! Table of all variables of the programs: it drives parsing, `--help` and the tables of
//! docs/configuration.md.

use std::fmt;

use Allowed::{Phrase, Range};

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `tbd-api`.
    Api,
    /// `tbd-worker`.
    Worker,
    /// `tbd-participant`.
    Participant,
}

impl Program {
    /// The binary's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "tbd-api",
            Self::Worker => "tbd-worker",
            Self::Participant => "tbd-participant",
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Name in the environment.
    pub name: &'static str,
    /// The default for an unset or empty variable; empty if it is "none".
    pub default: &'static str,
    /// Its purpose.
    pub description: &'static str,
    /// Its valid values.
    pub allowed: Allowed,
    /// The programs that read it.
    programs: &'static [Program],
}

/// Valid values. Displayed, they follow "must be".
#[derive(Clone, Copy, Debug)]
pub enum Allowed {
    /// What this phrase says.
    Phrase(&'static str),
    /// What lies within bounds: the kind of value with its article, the least and the greatest one, and
    /// an example where the format is not obvious (else empty).
    Range(&'static str, &'static str, &'static str, &'static str),
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Phrase(phrase) => f.write_str(phrase),
            Range(what, min, max, "") => write!(f, "{what} from {min} to {max}"),
            Range(what, min, max, example) => {
                write!(f, "{what} from {min} to {max}, such as {example}")
            }
        }
    }
}

impl Variable {
    /// Whether `program` reads it.
    pub fn is_for(&self, program: Program) -> bool {
        self.programs.contains(&program)
    }
}

const API: &[Program] = &[Program::Api];
const WORKER: &[Program] = &[Program::Worker];
const PARTICIPANT: &[Program] = &[Program::Participant];
/// The programs that process orders.
const BOTH: &[Program] = &[Program::Api, Program::Worker];
/// The programs that answer callers.
const SERVERS: &[Program] = &[Program::Api, Program::Participant];
const ALL: &[Program] = &[Program::Api, Program::Worker, Program::Participant];

const PORT: Allowed = Range("a port", "1", "65535", "");
const ADDRESS: Allowed = Phrase("an IP address or localhost");
const TOPIC: Allowed = Phrase("a topic name: 1 to 249 of the characters a-z A-Z 0-9 . _ -");
const NAME: Allowed = Phrase("1 to 63 bytes without control characters");
const BOOLEAN: Allowed = Phrase("true or false");

const fn number(min: &'static str, max: &'static str) -> Allowed {
    Range("a number", min, max, "")
}

const fn duration(min: &'static str, max: &'static str, example: &'static str) -> Allowed {
    Range("a duration", min, max, example)
}

const fn row(
    programs: &'static [Program],
    name: &'static str,
    default: &'static str,
    description: &'static str,
    allowed: Allowed,
) -> Variable {
    Variable {
        name,
        default,
        description,
        allowed,
        programs,
    }
}

/// The table. A name may occur several times, once for each program.
#[rustfmt::skip]
pub const VARIABLES: &[Variable] = &[
    row(API, "API_HOST", "0.0.0.0", "Address the HTTP and gRPC servers listen on", ADDRESS),
    row(API, "API_PORT", "8080", "HTTP server port", PORT),
    row(API, "API_GRPC_PORT", "50051", "gRPC server port; 0: no gRPC", Range("a port", "0", "65535", "")),
    row(API, "API_GRPC_TLS_CERT_FILE", "", "PEM file of the gRPC server's certificate and its chain; unset: no TLS", Phrase("a file that can be read, and together with API_GRPC_TLS_KEY_FILE")),
    row(API, "API_GRPC_TLS_KEY_FILE", "", "PEM file of the certificate's private key", Phrase("a file that can be read, and together with API_GRPC_TLS_CERT_FILE")),
    row(API, "API_GRPC_TLS_CLIENT_CA_FILE", "", "PEM file of the CAs that sign clients' certificates; unset: clients need none", Phrase("a file that can be read, and together with API_GRPC_TLS_CERT_FILE")),
    row(WORKER, "WORKER_HOST", "0.0.0.0", "Address the worker's HTTP server listens on", ADDRESS),
    row(WORKER, "WORKER_PORT", "9091", "Port of /healthz, /readyz and /metrics", PORT),
    row(PARTICIPANT, "PARTICIPANT", "", "Service to run: `inventory` or `payments`; required", Phrase("inventory or payments")),
    row(PARTICIPANT, "PARTICIPANT_HOST", "0.0.0.0", "Address that both servers listen on", ADDRESS),
    row(PARTICIPANT, "GRPC_PORT", "50052 or 50053", "gRPC port for commands, by PARTICIPANT", PORT),
    row(PARTICIPANT, "HTTP_PORT", "9092 or 9093", "HTTP port of probes, metrics and audits, by PARTICIPANT", PORT),
    row(PARTICIPANT, "GRPC_TLS_CERT_FILE", "", "PEM file of the gRPC server's certificate and its chain; unset: no TLS", Phrase("a file that can be read, and together with GRPC_TLS_KEY_FILE")),
    row(PARTICIPANT, "GRPC_TLS_KEY_FILE", "", "PEM file of its private key", Phrase("a file that can be read, and together with GRPC_TLS_CERT_FILE")),
    row(PARTICIPANT, "GRPC_TLS_CLIENT_CA_FILE", "", "PEM file of the CAs that sign clients' certificates; unset: clients need none", Phrase("a file that can be read, and together with GRPC_TLS_CERT_FILE")),
    row(PARTICIPANT, "ALLOWED_CLIENTS", "tbd-worker", "DNS names; a client certificate must have one of them", Phrase("a host name, or several separated by commas")),
    row(ALL, "HTTP_TLS_CERT_FILE", "", "PEM file of the HTTP server's certificate and its chain; unset: no TLS", Phrase("a file that can be read, and together with HTTP_TLS_KEY_FILE")),
    row(ALL, "HTTP_TLS_KEY_FILE", "", "PEM file of its private key", Phrase("a file that can be read, and together with HTTP_TLS_CERT_FILE")),
    row(API, "HTTP_ACCEPTORS", "2", "Threads that take requests from the listener", number("1", "64")),
    row(SERVERS, "HTTP_WORKERS", "64", "Threads that answer requests", number("1", "4096")),
    row(SERVERS, "HTTP_QUEUE", "1024", "Requests that may wait for a thread; one more is answered 503", number("1", "65536")),
    row(ALL, "HTTP_MEMORY_LIMIT", "512MiB", "Memory beyond which the process ends itself (exit code 70)", Range("a size", "64MiB", "1TiB", "512MiB")),
    row(ALL, "SHUTDOWN_DRAIN", "0s", "Time after SIGTERM in which new connections are still accepted while `/readyz` answers 503", duration("0s", "10s", "5s")),
    row(ALL, "LOG_LEVEL", "info", "Log level: `debug`, `info`, `warn`, `error`", Phrase("debug, info, warn or error")),
    row(ALL, "LOG_FORMAT", "json", "Log lines: `json` for machines, `text` for people", Phrase("json or text")),
    row(ALL, "DB_HOST", "localhost", "PostgreSQL host, or several separated by commas, tried in this order", Phrase("a host name or address, or several separated by commas")),
    row(ALL, "DB_PORT", "5432", "PostgreSQL port: one for all hosts, or one for each", Phrase("a port from 1 to 65535, or one for each host, separated by commas")),
    row(ALL, "DB_TARGET_SESSION_ATTRS", "read-write", "Acceptable servers, in libpq's words: `read-write` (takes writes), `primary` (no standby), `any`", Phrase("read-write, primary or any, since every program writes")),
    row(API, "DB_READ_HOST", "", "Standby that answers reads (GET and list), or several as in DB_HOST; unset: `DB_HOST` answers them", Phrase("a host name or address, or several separated by commas")),
    row(API, "DB_READ_PORT", "5432", "Its port: one for all hosts, or one for each", Phrase("a port from 1 to 65535, or one for each host, separated by commas")),
    row(ALL, "DB_USER", "tbd", "Database user", NAME),
    row(ALL, "DB_PASSWORD", "secret", "Database password", Phrase("text without control characters")),
    row(BOTH, "DB_NAME", "tbd", "Database name", NAME),
    row(PARTICIPANT, "DB_NAME", "inventory or payments", "Database name, by PARTICIPANT; the database must exist", NAME),
    row(ALL, "DB_SSLMODE", "prefer", "Encryption, in libpq's words: `disable`, `prefer`, `require`, `verify-ca`, `verify-full`", Phrase("disable, prefer, require, verify-ca or verify-full")),
    row(ALL, "DB_SSLROOTCERT", "", "PEM file of the CA certificates to trust, or `system`", Phrase("a file that can be read, or system")),
    row(ALL, "DB_SSLCERT", "", "PEM file of the certificate for PostgreSQL", Phrase("a file that can be read")),
    row(ALL, "DB_SSLKEY", "", "PEM file of its key, unencrypted", Phrase("a file that can be read")),
    row(SERVERS, "DB_MAX_CONNS", "25", "Maximum database connections", number("1", "1000")),
    row(SERVERS, "DB_MAX_IDLE_CONNS", "5", "Maximum idle database connections", number("1", "DB_MAX_CONNS")),
    row(SERVERS, "DB_CONN_MAX_LIFETIME", "5m", "Maximum connection lifetime", duration("1s", "168h", "5m")),
    row(API, "DB_COALESCE", "on", "`on`: orders that arrive during a commit share the next one, and look-ups share a statement; `off`: one statement each", Phrase("on or off")),
    row(SERVERS, "AUTO_MIGRATE", "true", "Run database migrations on startup", BOOLEAN),
    row(SERVERS, "MIGRATIONS_DIR", "", "Folder of migrations to use instead of those built into the program", Phrase("a folder that can be read")),
    row(BOTH, "KAFKA_BROKERS", "localhost:9092", "Comma-separated Kafka broker addresses", Phrase("host:port, or several separated by commas")),
    row(BOTH, "KAFKA_SECURITY_PROTOCOL", "PLAINTEXT", "Encryption and login: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT`, `SASL_SSL`", Phrase("PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")),
    row(BOTH, "KAFKA_SSL_CA_FILE", "", "PEM file of the CA certificates to trust instead of the system's", Phrase("a file that can be read")),
    row(BOTH, "KAFKA_SSL_CERT_FILE", "", "PEM file of the certificate for Kafka", Phrase("a file that can be read")),
    row(BOTH, "KAFKA_SSL_KEY_FILE", "", "PEM file of its key, unencrypted", Phrase("a file that can be read")),
    row(BOTH, "KAFKA_SASL_MECHANISM", "", "Login: `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` with a password, `OAUTHBEARER` with a token", Phrase("PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER")),
    row(BOTH, "KAFKA_SASL_USERNAME", "", "User name for the login", Phrase("1 to 255 bytes without control characters")),
    row(BOTH, "KAFKA_SASL_PASSWORD", "", "Password for the login", Phrase("text without control characters")),
    row(BOTH, "KAFKA_SASL_OAUTH_TOKEN_FILE", "", "File of the token for `OAUTHBEARER`, read again when it changes", Phrase("a file that can be read")),
    row(BOTH, "KAFKA_COMPRESSION", "none", "Compression of published records: `none`, `gzip`, `snappy`, `lz4`, `zstd`", Phrase("none, gzip, snappy, lz4 or zstd")),
    row(BOTH, "KAFKA_CONSUMER_GROUP", "tbd-workers", "Consumer group ID for worker instances (an api reports its lag)", Phrase("1 to 255 bytes without control characters")),
    row(WORKER, "KAFKA_SESSION_TIMEOUT", "10s", "Silence after which the group reassigns a worker's partitions", duration("6s", "30m", "10s")),
    row(WORKER, "KAFKA_GROUP_PROTOCOL", "classic", "How the group shares partitions: `classic`, or `consumer` (KIP-848, Kafka 4.0 or newer)", Phrase("classic or consumer")),
    row(BOTH, "KAFKA_TOPIC_ORDER_CREATED", "order.created", "Topic for order creation events", TOPIC),
    row(BOTH, "KAFKA_TOPIC_ORDER_PROCESSED", "order.processed", "Topic for order processed events", TOPIC),
    row(BOTH, "KAFKA_TOPIC_ORDER_FAILED", "order.failed", "Topic for orders whose processing failed", TOPIC),
    row(BOTH, "KAFKA_TOPIC_ORDER_DLQ", "order.dlq", "Dead-letter topic", TOPIC),
    row(BOTH, "KAFKA_TOPIC_PARTITIONS", "16", "Partitions of a topic that is created", number("1", "10000")),
    row(BOTH, "KAFKA_TOPIC_REPLICATION", "1", "Replicas of a topic that is created", number("1", "100")),
    row(API, "EVENT_DELIVERY", "direct", "`direct`: 202 once Kafka has the event; `outbox`: 202 once the database has it", Phrase("direct or outbox")),
    row(API, "IDEMPOTENCY_TTL", "72h", "Time-to-live for idempotency keys (24h to 168h)", duration("24h", "168h", "72h")),
    row(SERVERS, "AUTH_JWT_JWKS_FILE", "", "File of the public keys (JSON Web Key Set) for bearer tokens; unset: callers need no token", Phrase("a path, and not together with AUTH_JWT_HS256_SECRET")),
    row(SERVERS, "AUTH_JWT_HS256_SECRET", "", "Shared secret for bearer tokens (HS256), instead of a file of keys", Phrase("32 bytes or more without control characters, and not together with AUTH_JWT_JWKS_FILE")),
    row(SERVERS, "AUTH_JWT_ISSUER", "", "Required `iss` of tokens; unset: any", Phrase("text without control characters, and together with AUTH_JWT_JWKS_FILE or AUTH_JWT_HS256_SECRET")),
    row(SERVERS, "AUTH_JWT_AUDIENCE", "", "Required `aud` of tokens; unset: any", Phrase("text without control characters, and together with AUTH_JWT_JWKS_FILE or AUTH_JWT_HS256_SECRET")),
    row(WORKER, "WORKER_CONCURRENCY", "5", "Number of concurrent message processors", number("1", "256")),
    row(WORKER, "WORKER_WORKFLOW", "step", "How orders are processed: `step`, in one simulated step; `saga`, by several services (docs/saga.md)", Phrase("step or saga")),
    row(WORKER, "INVENTORY_ADDRESS", "localhost:50052", "Inventory service: one address, or several separated by commas and used in turn", Phrase("host:port, or several separated by commas")),
    row(WORKER, "PAYMENTS_ADDRESS", "localhost:50053", "Payments service: one address, or several separated by commas and used in turn", Phrase("host:port, or several separated by commas")),
    row(WORKER, "WORKER_MAX_ATTEMPTS", "3", "Attempts at processing an order before it is failed", number("1", "100")),
    row(WORKER, "PROCESSING_TIME", "0ms", "Time the simulated processing step takes", duration("0s", "60s", "250ms")),
    row(WORKER, "PROCESSING_FAILURE_RATE", "0", "Share of processing steps that fail, for demonstrations", number("0", "1")),
    row(WORKER, "PARTICIPANTS_TLS_CA_FILE", "", "PEM file of the CA certificates to trust for the participants; unset: no TLS", Phrase("a file that can be read")),
    row(WORKER, "PARTICIPANTS_TLS_CERT_FILE", "", "PEM file of the certificate for the participants", Phrase("a file that can be read")),
    row(WORKER, "PARTICIPANTS_TLS_KEY_FILE", "", "PEM file of its key, unencrypted", Phrase("a file that can be read")),
    row(WORKER, "PARTICIPANTS_TOKEN_FILE", "", "File of the bearer token for participants, read again when it changes", Phrase("a file that can be read")),
    row(PARTICIPANT, "INVENTORY_STOCK", "1000000", "Initial units, for an empty table (inventory)", number("0", "9007199254740991")),
    row(PARTICIPANT, "PARTICIPANT_LATENCY", "0ms", "Time that each call waits before its work, for demonstrations", duration("0s", "60s", "250ms")),
    row(PARTICIPANT, "PARTICIPANT_FAILURE_RATE", "0", "Share of calls answered UNAVAILABLE, half of them after their effect, for demonstrations", number("0", "1")),
    row(ALL, "OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317", "OpenTelemetry collector; empty: no export", Phrase("host, host:port, http://host:port or https://host:port, with a path for http/protobuf alone, or empty")),
    row(ALL, "OTEL_EXPORTER_OTLP_PROTOCOL", "", "Protocol of the collector: `grpc` or `http/protobuf`; unset: the port decides (4317 is `grpc`, 4318 is `http/protobuf`)", Phrase("grpc or http/protobuf")),
    row(ALL, "OTEL_EXPORTER_OTLP_HEADERS", "", "Headers for the collector, such as a key: `key=value,key=value`", Phrase("key=value pairs separated by commas, percent-encoded where needed")),
    row(ALL, "OTEL_EXPORTER_OTLP_CERTIFICATE", "", "PEM file of the CA certificates to trust for `https`, instead of the system's", Phrase("a path")),
    row(ALL, "OTEL_METRICS_EXPORTER", "none", "`otlp`: send all metrics to the collector, too", Phrase("none or otlp")),
    row(ALL, "OTEL_METRIC_EXPORT_INTERVAL", "15000", "Time between two exports of all metrics, in milliseconds", number("1000", "86400000")),
    row(API, "OTEL_SERVICE_NAME", "tbd-api", "Service name for traces and logs", Phrase("1 to 255 bytes without control characters")),
    row(WORKER, "OTEL_SERVICE_NAME", "tbd-worker", "Service name for traces and logs", Phrase("1 to 255 bytes without control characters")),
    row(PARTICIPANT, "OTEL_SERVICE_NAME", "tbd-inventory or tbd-payments", "Service name for traces and logs, by PARTICIPANT", Phrase("1 to 255 bytes without control characters")),
    row(ALL, "OTEL_RESOURCE_ATTRIBUTES", "", "More attributes of the process: `key=value,key=value`", Phrase("key=value pairs separated by commas, percent-encoded where needed")),
    row(ALL, "OTEL_TRACES_SAMPLER", "parentbased_always_on", "Which traces are recorded (OpenTelemetry's names)", Phrase("always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio")),
    row(ALL, "OTEL_TRACES_SAMPLER_ARG", "1", "Share of traces that the `traceidratio` samplers record", number("0", "1")),
    row(ALL, "OTEL_SDK_DISABLED", "false", "`true`: record no traces and export nothing", BOOLEAN),
    row(API, "JAEGER_UI_URL", "http://localhost:16686", "Jaeger's address for browsers: the live page links exported traces to it; empty: no links", Phrase("http:// or https://, a host and a path, or empty")),
];

/// The rows of one program, in the table's order.
pub fn variables(program: Program) -> impl Iterator<Item = &'static Variable> {
    VARIABLES
        .iter()
        .filter(move |variable| variable.is_for(program))
}

/// The table of one program in Markdown, as docs/configuration.md shows it.
pub fn markdown_table(program: Program) -> String {
    let mut table = String::from("| Variable | Default | Description |\n|---|---|---|\n");
    for variable in variables(program) {
        let default = match variable.default {
            "" => "unset".to_owned(),
            default => format!("`{default}`"),
        };
        table.push_str(&format!(
            "| `{}` | {default} | {} |\n",
            variable.name, variable.description
        ));
    }
    table
}
