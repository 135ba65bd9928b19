//! Table of all variables of both programs: it drives parsing, `--help` and the two tables of
//! docs/configuration.md.

/// One of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `tbd-api`.
    Api,
    /// `tbd-worker`.
    Worker,
}

impl Program {
    /// The binary's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "tbd-api",
            Self::Worker => "tbd-worker",
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
    /// Its valid values, as a phrase after "must be".
    pub allowed: &'static str,
    /// The programs that read it.
    programs: &'static [Program],
}

impl Variable {
    /// Whether `program` reads it.
    pub fn is_for(&self, program: Program) -> bool {
        self.programs.contains(&program)
    }
}

const API: &[Program] = &[Program::Api];
const WORKER: &[Program] = &[Program::Worker];
const BOTH: &[Program] = &[Program::Api, Program::Worker];

const PORT: &str = "a port from 1 to 65535";
const ADDRESS: &str = "an IP address or localhost";
const TOPIC: &str = "a topic name: 1 to 249 of the characters a-z A-Z 0-9 . _ -";
const NAME: &str = "1 to 63 bytes without control characters";
const BOOLEAN: &str = "true or false";

const fn row(
    programs: &'static [Program],
    name: &'static str,
    default: &'static str,
    description: &'static str,
    allowed: &'static str,
) -> Variable {
    Variable {
        name,
        default,
        description,
        allowed,
        programs,
    }
}

/// The table. A name may occur twice, once for each program.
#[rustfmt::skip]
pub const VARIABLES: &[Variable] = &[
    row(API, "API_HOST", "0.0.0.0", "Address the HTTP server listens on", ADDRESS),
    row(API, "API_PORT", "8080", "HTTP server port", PORT),
    row(WORKER, "WORKER_HOST", "0.0.0.0", "Address the worker's HTTP server listens on", ADDRESS),
    row(WORKER, "WORKER_PORT", "9091", "Port of /healthz, /readyz and /metrics", PORT),
    row(API, "HTTP_ACCEPTORS", "2", "Threads that take requests from the listener", "a number from 1 to 64"),
    row(API, "HTTP_WORKERS", "64", "Threads that answer requests", "a number from 1 to 4096"),
    row(API, "HTTP_QUEUE", "1024", "Requests that may wait for a thread; one more is answered 503", "a number from 1 to 65536"),
    row(BOTH, "HTTP_MEMORY_LIMIT", "512MiB", "Memory beyond which the process ends itself (exit code 70)", "a size from 64MiB to 1TiB, such as 512MiB"),
    row(BOTH, "SHUTDOWN_DRAIN", "0s", "Time after SIGTERM in which new connections are still accepted while `/readyz` answers 503", "a duration from 0s to 10s, such as 5s"),
    row(BOTH, "LOG_LEVEL", "info", "Log level: `debug`, `info`, `warn`, `error`", "debug, info, warn or error"),
    row(BOTH, "LOG_FORMAT", "json", "Log lines: `json` for machines, `text` for people", "json or text"),
    row(BOTH, "DB_HOST", "localhost", "PostgreSQL host, or several separated by commas, tried in this order", "a host name or address, or several separated by commas"),
    row(BOTH, "DB_PORT", "5432", "PostgreSQL port: one for all hosts, or one for each", "a port from 1 to 65535, or one for each host, separated by commas"),
    row(BOTH, "DB_TARGET_SESSION_ATTRS", "read-write", "Acceptable servers, in libpq's words: `read-write` (takes writes), `primary` (no standby), `any`", "read-write, primary or any, since every program writes"),
    row(BOTH, "DB_USER", "tbd", "Database user", NAME),
    row(BOTH, "DB_PASSWORD", "secret", "Database password", "text without control characters"),
    row(BOTH, "DB_NAME", "tbd", "Database name", NAME),
    row(API, "DB_MAX_CONNS", "25", "Maximum database connections", "a number from 1 to 1000"),
    row(API, "DB_MAX_IDLE_CONNS", "5", "Maximum idle database connections", "a number from 1 to DB_MAX_CONNS"),
    row(API, "DB_CONN_MAX_LIFETIME", "5m", "Maximum connection lifetime", "a duration from 1s to 168h, such as 5m"),
    row(API, "DB_COALESCE", "on", "`on`: orders that come while a commit is under way share the next one, look-ups of an order likewise; `off`: a statement each", "on or off"),
    row(API, "AUTO_MIGRATE", "true", "Run database migrations on startup", BOOLEAN),
    row(API, "MIGRATIONS_DIR", "", "Folder of migrations to use instead of those built into the program", "a path"),
    row(BOTH, "KAFKA_BROKERS", "localhost:9092", "Comma-separated Kafka broker addresses", "host:port, or several separated by commas"),
    row(BOTH, "KAFKA_SECURITY_PROTOCOL", "PLAINTEXT", "Encryption and login: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT`, `SASL_SSL`", "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
    row(BOTH, "KAFKA_SSL_CA_FILE", "", "PEM file of the CA certificates to trust instead of the system's", "a file that can be read"),
    row(BOTH, "KAFKA_SASL_MECHANISM", "", "How the password is proven: `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
    row(BOTH, "KAFKA_SASL_USERNAME", "", "Who logs in", "1 to 255 bytes without control characters"),
    row(BOTH, "KAFKA_SASL_PASSWORD", "", "The password", "text without control characters"),
    row(BOTH, "KAFKA_COMPRESSION", "none", "Compression of published records: `none`, `gzip`, `snappy`, `lz4`, `zstd`", "none, gzip, snappy, lz4 or zstd"),
    row(BOTH, "KAFKA_CONSUMER_GROUP", "tbd-workers", "Consumer group ID for worker instances (an api reports its lag)", "1 to 255 bytes without control characters"),
    row(WORKER, "KAFKA_SESSION_TIMEOUT", "10s", "Silence after which the group gives a worker's partitions away", "a duration from 6s to 30m, such as 10s"),
    row(WORKER, "KAFKA_GROUP_PROTOCOL", "classic", "How the group shares partitions: `classic`, or `consumer` (KIP-848, Kafka 4.0 or newer)", "classic or consumer"),
    row(BOTH, "KAFKA_TOPIC_ORDER_CREATED", "order.created", "Topic for order creation events", TOPIC),
    row(BOTH, "KAFKA_TOPIC_ORDER_PROCESSED", "order.processed", "Topic for order processed events", TOPIC),
    row(BOTH, "KAFKA_TOPIC_ORDER_FAILED", "order.failed", "Topic for orders whose processing failed", TOPIC),
    row(BOTH, "KAFKA_TOPIC_ORDER_DLQ", "order.dlq", "Dead-letter topic", TOPIC),
    row(BOTH, "KAFKA_TOPIC_PARTITIONS", "16", "Partitions of a topic that is created", "a number from 1 to 10000"),
    row(BOTH, "KAFKA_TOPIC_REPLICATION", "1", "Replicas of a topic that is created", "a number from 1 to 100"),
    row(API, "EVENT_DELIVERY", "direct", "`direct`: 202 once Kafka has the event; `outbox`: 202 once the database has it", "direct or outbox"),
    row(API, "IDEMPOTENCY_TTL", "72h", "Time-to-live for idempotency keys (24h to 168h)", "a duration from 24h to 168h, such as 72h"),
    row(API, "AUTH_JWT_JWKS_FILE", "", "File with the public keys (JSON Web Key Set) that callers' bearer tokens are checked against; unset: no token is asked for", "a path, and not together with AUTH_JWT_HS256_SECRET"),
    row(API, "AUTH_JWT_HS256_SECRET", "", "Secret, instead of a file of keys, that bearer tokens are signed with (HS256)", "32 bytes or more without control characters, and not together with AUTH_JWT_JWKS_FILE"),
    row(API, "AUTH_JWT_ISSUER", "", "What tokens must have as `iss`; unset: anything", "text without control characters, beside AUTH_JWT_JWKS_FILE or AUTH_JWT_HS256_SECRET"),
    row(API, "AUTH_JWT_AUDIENCE", "", "What tokens must have as `aud`; unset: anything", "text without control characters, beside AUTH_JWT_JWKS_FILE or AUTH_JWT_HS256_SECRET"),
    row(WORKER, "WORKER_CONCURRENCY", "5", "Number of concurrent message processors", "a number from 1 to 256"),
    row(WORKER, "WORKER_MAX_ATTEMPTS", "3", "Attempts at processing an order before it is failed", "a number from 1 to 100"),
    row(WORKER, "PROCESSING_TIME", "0ms", "Time the simulated processing step takes", "a duration from 0s to 60s, such as 250ms"),
    row(WORKER, "PROCESSING_FAILURE_RATE", "0", "Share of processing steps that fail, for demonstrations", "a number from 0 to 1"),
    row(BOTH, "OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317", "OpenTelemetry collector (OTLP over HTTP; a bare `host:4317` means `http://host:4318`; empty: no export)", "host, host:port or http://host:port/path, or empty"),
    row(API, "OTEL_SERVICE_NAME", "tbd-api", "Service name for traces and logs", "1 to 255 bytes without control characters"),
    row(WORKER, "OTEL_SERVICE_NAME", "tbd-worker", "Service name for traces and logs", "1 to 255 bytes without control characters"),
    row(BOTH, "OTEL_RESOURCE_ATTRIBUTES", "", "More attributes of the process: `key=value,key=value`", "key=value pairs separated by commas, percent-encoded where needed"),
    row(BOTH, "OTEL_TRACES_SAMPLER", "parentbased_always_on", "Which traces are recorded (OpenTelemetry's names)", "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio"),
    row(BOTH, "OTEL_TRACES_SAMPLER_ARG", "1", "Share of traces that the `traceidratio` samplers record", "a number from 0 to 1"),
    row(BOTH, "OTEL_SDK_DISABLED", "false", "`true`: record and export no traces", BOOLEAN),
    row(API, "JAEGER_UI_URL", "http://localhost:16686", "Jaeger as a browser finds it: where the page at `/` leads to for traces that are exported; empty: nowhere", "http:// or https://, a host and a path, or empty"),
];

/// The valid values of OTEL_TRACES_SAMPLER.
pub const SAMPLERS: &[&str] = &[
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
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
