use super::reader::Reader;
use super::*;
use log::LevelFilter;
use tbd_kafka::SaslMechanism;
use tbd_postgres::TargetSessionAttrs;
use tbd_telemetry::logging::LogFormat;

const HOUR: Duration = Duration::from_secs(3600);

/// A lookup that knows only `pairs`.
fn lookup<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
    move |name| {
        pairs
            .iter()
            .find(|(found, _)| *found == name)
            .map(|(_, value)| OsString::from(value))
    }
}

fn api(pairs: &[(&str, &str)]) -> Result<ApiConfig, ConfigErrors> {
    ApiConfig::parse(&lookup(pairs))
}

fn worker(pairs: &[(&str, &str)]) -> Result<WorkerConfig, ConfigErrors> {
    WorkerConfig::parse(&lookup(pairs))
}

fn participant(pairs: &[(&str, &str)]) -> Result<ParticipantConfig, ConfigErrors> {
    ParticipantConfig::parse(&lookup(pairs))
}

const PROGRAMS: [Program; 3] = [Program::Api, Program::Worker, Program::Participant];

/// Whether `program` accepts `value` for `name`.
fn takes(program: Program, name: &str, value: &str) -> bool {
    let pairs = [(name, value)];
    match program {
        Program::Api => api(&pairs).is_ok(),
        Program::Worker => worker(&pairs).is_ok(),
        Program::Participant => participant(&[pairs[0], ("PARTICIPANT", "payments")]).is_ok(),
    }
}

#[test]
fn an_empty_environment_gives_the_documented_defaults() {
    let api = api(&[]).unwrap();
    assert_eq!(api.http.address().to_string(), "0.0.0.0:8080");
    assert_eq!(
        (api.http.acceptors, api.http.workers, api.http.queue),
        (2, 64, 1024)
    );
    assert_eq!(api.http.memory_limit_bytes, 512 << 20);
    assert_eq!(api.http.shutdown_drain, Duration::ZERO);
    assert_eq!(api.log.level, LevelFilter::Info);
    assert_eq!(api.log.format, LogFormat::Json);
    let database = api.database.config;
    assert_eq!(database.location(), "localhost:5432/tbd");
    assert_eq!(database.target, TargetSessionAttrs::ReadWrite);
    assert_eq!(database.password, "secret");
    assert_eq!((database.max_conns, database.max_idle_conns), (25, 5));
    assert_eq!(database.conn_max_lifetime, Duration::from_secs(300));
    assert_eq!(api.kafka.brokers, ["localhost:9092"]);
    assert_eq!(api.kafka.topic_partitions, 16);
    assert_eq!(api.kafka.topic_replication, 1);
    assert_eq!(api.idempotency_ttl, 72 * HOUR);
    assert!(api.auto_migrate);
    assert_eq!(api.migrations_dir, None);
    assert_eq!(api.event_delivery, DeliveryMode::Direct);
    assert_eq!(api.telemetry.service_name, "tbd-api");
    let collector = api.telemetry.collector.unwrap();
    assert_eq!(
        (&*collector.url, collector.is_grpc),
        ("http://localhost:4317", true)
    );
    assert_eq!(api.telemetry.metrics_interval, None);

    let worker = worker(&[]).unwrap();
    assert_eq!(worker.http.address().to_string(), "0.0.0.0:9091");
    assert_eq!(worker.concurrency, 5);
    assert_eq!(worker.workflow, Workflow::Step);
    assert_eq!(worker.max_attempts, 3);
    assert_eq!(worker.processing_time, Duration::ZERO);
    assert_eq!(worker.processing_failure_rate, 0.0);
    assert_eq!(worker.kafka.consumer_group, "tbd-workers");
    assert_eq!(worker.session_timeout, Duration::from_secs(10));
    assert_eq!(worker.telemetry.service_name, "tbd-worker");
}

#[test]
fn defaults_of_a_participant_depend_on_which_one_it_is() {
    let defaults = |kind: &str| {
        let config = participant(&[("PARTICIPANT", kind)]).unwrap();
        assert_eq!(
            (config.initial_stock, config.failure_rate),
            (1_000_000, 0.0)
        );
        assert_eq!(config.latency, Duration::ZERO);
        assert_eq!(config.allowed_clients, ["tbd-worker"]);
        let ports = (config.grpc.address.port(), config.http.port);
        (
            ports,
            config.database.config.name,
            config.telemetry.service_name,
        )
    };
    let expected = |ports, name: &str| (ports, name.to_owned(), format!("tbd-{name}"));
    assert_eq!(defaults("inventory"), expected((50052, 9092), "inventory"));
    assert_eq!(defaults("payments"), expected((50053, 9093), "payments"));
    let unset = participant(&[("GRPC_PORT", "0")]).unwrap_err().to_string();
    assert!(
        unset.contains("PARTICIPANT=\"\" must be inventory or payments."),
        "{unset}"
    );
    assert!(unset.contains("GRPC_PORT"), "{unset}");
}

#[test]
fn tls_of_a_participant_needs_a_certificate_and_its_key() {
    let file = std::env::current_exe().unwrap();
    let file = file.to_str().unwrap();
    let tls = |given: &[&str]| {
        let mut pairs = vec![("PARTICIPANT", "payments")];
        pairs.extend(given.iter().map(|name| (*name, file)));
        participant(&pairs).map(|config| config.grpc.tls.is_some())
    };
    let [cert, key, ca] = [
        "GRPC_TLS_CERT_FILE",
        "GRPC_TLS_KEY_FILE",
        "GRPC_TLS_CLIENT_CA_FILE",
    ];
    assert_eq!(tls(&[]), Ok(false));
    assert_eq!(tls(&[cert, key]), Ok(true));
    assert_eq!(tls(&[cert, key, ca]), Ok(true));
    for (given, missing) in [(cert, key), (key, cert), (ca, cert)] {
        let error = tls(&[given]).unwrap_err();
        assert_eq!(error.errors().len(), 1);
        assert_eq!(error.errors()[0].name, missing);
    }
}

#[test]
fn tls_of_http_needs_a_certificate_and_its_key() {
    let file = std::env::current_exe().unwrap();
    let file = file.to_str().unwrap();
    let [cert, key] = ["HTTP_TLS_CERT_FILE", "HTTP_TLS_KEY_FILE"];
    let tls = |names: &[&'static str]| {
        let mut pairs: Vec<_> = names.iter().map(|name| (*name, file)).collect();
        let found = [
            api(&pairs).map(|config| config.http.tls),
            worker(&pairs).map(|config| config.http.tls),
        ];
        pairs.push(("PARTICIPANT", "inventory"));
        let participant = participant(&pairs).map(|config| config.http.tls);
        found.into_iter().chain([participant])
    };
    assert!(tls(&[]).all(|it| it == Ok(None)));
    assert!(tls(&[cert, key]).all(|it| it == Ok(Some(Identity::new(file, file)))));
    for (given, missing) in [(cert, key), (key, cert)] {
        assert!(tls(&[given]).all(|it| it.unwrap_err().errors()[0].name == missing));
    }
}

#[test]
fn traces_are_looked_at_where_a_browser_can_go_and_only_if_they_are_exported() {
    let jaeger = |pairs: &[(&str, &str)]| api(pairs).unwrap().jaeger_ui;
    assert_eq!(jaeger(&[]).as_deref(), Some("http://localhost:16686"));
    let elsewhere = jaeger(&[("JAEGER_UI_URL", " https://[::1]:8443/jaeger/ ")]);
    assert_eq!(elsewhere.as_deref(), Some("https://[::1]:8443/jaeger"));
    assert_eq!(jaeger(&[("JAEGER_UI_URL", "")]), None);
    assert_eq!(jaeger(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None);
    for bad in [
        "localhost:16686",
        "javascript://x/",
        "http://",
        "http://host/?query",
        "http://user@host",
        "http://host/\"><script>",
    ] {
        assert!(!takes(Program::Api, "JAEGER_UI_URL", bad), "{bad}");
    }
}

#[test]
fn several_database_hosts_have_one_port_or_one_each() {
    let servers = |port: &str| {
        let pairs = [("DB_HOST", "a, b"), ("DB_PORT", port)];
        api(&pairs).map(|api| api.database.config.location())
    };
    assert_eq!(servers("5433"), Ok("a:5433,b:5433/tbd".to_owned()));
    assert_eq!(servers("5433,5434"), Ok("a:5433,b:5434/tbd".to_owned()));
    let refused = servers("1,2,3").expect_err("three for two").to_string();
    assert!(
        refused.contains("as many as DB_HOST has hosts (2)"),
        "{refused}"
    );
}

#[test]
fn a_standby_has_the_database_and_login_of_the_primary() {
    let read = |pairs: &[(&str, &str)]| api(pairs).map(|api| api.read_database);
    assert!(read(&[]).unwrap().is_none());
    let pairs = [("DB_READ_HOST", "s"), ("DB_HOST", "p"), ("DB_USER", "u")];
    let standby = read(&pairs).unwrap().expect("a standby").config;
    assert_eq!(standby.location(), "s:5432/tbd");
    assert_eq!(
        (standby.target, &*standby.user),
        (TargetSessionAttrs::Any, "u"),
        "a standby takes no writes"
    );
    let refused = read(&[("DB_READ_HOST", "a, b"), ("DB_READ_PORT", "1,2,3")]);
    let refused = refused.expect_err("three for two").to_string();
    assert!(
        refused.contains("as many as DB_READ_HOST has hosts (2)"),
        "{refused}"
    );
}

#[test]
fn each_program_reads_exactly_its_rows_of_the_table() {
    let nothing = |_: &str| None;
    for program in PROGRAMS {
        let mut reader = Reader::new(program, &nothing);
        match program {
            Program::Api => drop(ApiConfig::read(&mut reader)),
            Program::Worker => drop(WorkerConfig::read(&mut reader)),
            Program::Participant => drop(ParticipantConfig::read(&mut reader)),
        }
        let mut read = std::mem::take(&mut reader.read);
        read.sort_unstable();
        read.dedup();
        let mut rows: Vec<_> = variables(program).map(|variable| variable.name).collect();
        rows.sort_unstable();
        assert_eq!(read, rows, "{program:?}");
    }
}

#[test]
fn a_saga_has_the_addresses_of_its_participants() {
    let saga = worker(&[
        ("WORKER_WORKFLOW", "saga"),
        ("PAYMENTS_ADDRESS", "a:1, b:2"),
    ])
    .unwrap();
    let addresses = ParticipantAddresses {
        inventory: "localhost:50052".into(),
        payments: "a:1,b:2".into(),
    };
    assert_eq!(saga.workflow, Workflow::Saga(addresses));
    assert!(!takes(Program::Worker, "INVENTORY_ADDRESS", "localhost"));
}

#[test]
fn one_message_names_every_bad_variable() {
    let errors = api(&[
        ("API_PORT", "0"),
        ("LOG_LEVEL", "loud"),
        ("IDEMPOTENCY_TTL", "1h"),
        ("DB_MAX_CONNS", "many"),
        ("KAFKA_BROKERS", "kafka"),
    ])
    .unwrap_err();
    let message = errors.to_string();
    for line in [
        "the configuration is invalid:",
        "  API_PORT=\"0\" must be a port from 1 to 65535.",
        "  LOG_LEVEL=\"loud\" must be debug, info, warn or error.",
        "  IDEMPOTENCY_TTL=\"1h\" must be a duration from 24h to 168h, such as 72h.",
        "  DB_MAX_CONNS=\"many\" must be a number from 1 to 1000.",
        "  KAFKA_BROKERS=\"kafka\" must be host:port, or several separated by commas.",
    ] {
        assert!(
            message.lines().any(|found| found == line),
            "no `{line}` in\n{message}"
        );
    }
    assert_eq!(errors.errors().len(), 5);
}

#[test]
fn a_password_is_never_shown() {
    let errors = api(&[
        ("DB_PASSWORD", "hunter2\u{7}"),
        ("DB_HOST", "me:hunter2@db"),
    ])
    .unwrap_err();
    for shown in [errors.to_string(), format!("{errors:?}")] {
        assert!(
            shown.contains("DB_PASSWORD") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
    let config = api(&[("DB_PASSWORD", "hunter2")]).unwrap();
    assert_eq!(config.database.config.password, "hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));

    let errors = api(&[("KAFKA_SASL_PASSWORD", "hunter2\u{7}")]).unwrap_err();
    assert!(!errors.to_string().contains("hunter2"), "{errors}");
    let config = worker(&LOGIN).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

const LOGIN: [(&str, &str); 4] = [
    ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"),
    ("KAFKA_SASL_MECHANISM", "scram-sha-512"),
    ("KAFKA_SASL_USERNAME", "tbd"),
    ("KAFKA_SASL_PASSWORD", " hunter2"),
];

#[test]
fn a_login_at_kafka_is_taken_whole() {
    let security = api(&LOGIN).unwrap().kafka.security;
    assert_eq!(security.tls.unwrap().ca_file, None);
    let Some(KafkaSasl::Password {
        mechanism: SaslMechanism::ScramSha512,
        username,
        password,
    }) = security.sasl
    else {
        panic!("{:?}", security.sasl);
    };
    assert_eq!(username, "tbd");
    assert_eq!(password.expose(), " hunter2", "blanks may be meant");

    let security = api(&[]).unwrap().kafka.security;
    assert!(security.tls.is_none() && security.sasl.is_none());
}

#[test]
fn what_protects_connections_must_fit_together() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for (pairs, message) in [
        (
            &LOGIN[..3],
            "KAFKA_SASL_PASSWORD must be given: KAFKA_SECURITY_PROTOCOL asks for a login.",
        ),
        (
            &LOGIN[1..2],
            "KAFKA_SECURITY_PROTOCOL=\"\" must be SASL_PLAINTEXT or SASL_SSL, \
             as KAFKA_SASL_MECHANISM is given.",
        ),
        (
            &[
                ("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT"),
                ("KAFKA_SSL_CA_FILE", manifest),
            ],
            "KAFKA_SECURITY_PROTOCOL=\"PLAINTEXT\" must be SSL or SASL_SSL, \
             as KAFKA_SSL_CA_FILE is given.",
        ),
        (
            &[
                ("KAFKA_SECURITY_PROTOCOL", "SSL"),
                ("KAFKA_SSL_CA_FILE", "/no/such/file"),
            ],
            "KAFKA_SSL_CA_FILE=\"/no/such/file\" must be a file that can be read.",
        ),
        (
            &[
                ("KAFKA_SECURITY_PROTOCOL", "SSL"),
                ("KAFKA_SSL_CERT_FILE", manifest),
            ],
            "KAFKA_SSL_KEY_FILE=\"\" must be given, as KAFKA_SSL_CERT_FILE is.",
        ),
        (
            &[
                ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
                ("KAFKA_SASL_MECHANISM", "OAUTHBEARER"),
            ],
            "KAFKA_SASL_OAUTH_TOKEN_FILE=\"\" must be given: KAFKA_SECURITY_PROTOCOL asks for a login.",
        ),
        (
            &[("DB_SSLMODE", "verify-full")],
            "DB_SSLROOTCERT=\"\" must be given: DB_SSLMODE asks for a check.",
        ),
        (
            &[("DB_SSLROOTCERT", "system")],
            "DB_SSLMODE=\"\" must be verify-full, as DB_SSLROOTCERT is system.",
        ),
    ] {
        let errors = worker(pairs).unwrap_err();
        let shown: Vec<String> = errors.errors().iter().map(ToString::to_string).collect();
        assert_eq!(shown, [message]);
    }
}

#[test]
fn tokens_are_checked_with_one_kind_of_key_and_never_with_half_of_the_settings() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    assert!(api(&[]).unwrap().auth.is_none());
    let auth = api(&[
        ("AUTH_JWT_HS256_SECRET", SECRET),
        ("AUTH_JWT_AUDIENCE", "tbd"),
    ]);
    let auth = auth.unwrap().auth.unwrap();
    assert_eq!(auth.key, AuthKey::Hs256(Secret::new(SECRET)));
    assert_eq!((auth.issuer, auth.audience.as_deref()), (None, Some("tbd")));
    let file = api(&[("AUTH_JWT_JWKS_FILE", "/keys.json")]).unwrap().auth;
    assert_eq!(
        file.unwrap().key,
        AuthKey::JwksFile(PathBuf::from("/keys.json"))
    );
    for (pairs, named) in [
        (
            &[("AUTH_JWT_HS256_SECRET", "too-short-to-be-safe")][..],
            "AUTH_JWT_HS256_SECRET must be 32 bytes or more.",
        ),
        (
            &[
                ("AUTH_JWT_HS256_SECRET", SECRET),
                ("AUTH_JWT_JWKS_FILE", "k"),
            ],
            "AUTH_JWT_JWKS_FILE=\"k\" must be unset when AUTH_JWT_HS256_SECRET is set.",
        ),
        (
            &[("AUTH_JWT_ISSUER", "me")],
            "AUTH_JWT_ISSUER=\"me\" must be unset unless AUTH_JWT_JWKS_FILE or AUTH_JWT_HS256_SECRET is set.",
        ),
    ] {
        let said = api(pairs).unwrap_err().to_string();
        assert!(said.contains(named), "{said}");
        assert!(
            !said.contains("too-short") && !said.contains(SECRET),
            "{said}"
        );
    }
}

#[test]
fn a_value_that_is_not_text_is_refused_not_replaced_by_the_default() {
    use std::os::unix::ffi::OsStringExt;
    let broken = |name: &str| (name == "DB_PASSWORD").then(|| OsString::from_vec(vec![0xff, b'x']));
    assert!(ApiConfig::parse(&broken).is_err());
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let config = api(&[("API_PORT", ""), ("DB_USER", "  ")]).unwrap();
    assert_eq!(
        (config.http.port, config.database.config.user.as_str()),
        (8080, "tbd")
    );
}

#[test]
fn another_programs_variables_do_not_matter() {
    assert!(takes(Program::Worker, "API_PORT", "nonsense"));
    assert!(takes(Program::Api, "WORKER_CONCURRENCY", "nonsense"));
}

#[test]
fn ranges_end_where_the_table_says() {
    use Program::{Api, Participant, Worker};
    for (program, name, good, bad) in [
        (
            Api,
            "API_PORT",
            &["1", "65535"][..],
            &["0", "65536", "-1", "80a"][..],
        ),
        (Api, "HTTP_ACCEPTORS", &["1", "64"], &["0", "65"]),
        (Api, "HTTP_WORKERS", &["1", "4096"], &["0", "4097"]),
        (Api, "HTTP_QUEUE", &["1", "65536"], &["0", "65537"]),
        (
            Api,
            "HTTP_MEMORY_LIMIT",
            &["64MiB", "1TiB", "512 MiB", "1GB", "600000000"],
            &[
                "63MiB",
                "2TiB",
                "1",
                "MiB",
                "5XB",
                "99999999999999999999TiB",
            ],
        ),
        (
            Api,
            "LOG_LEVEL",
            &["debug", "INFO", "warn", "error"],
            &["trace", "off"],
        ),
        (
            Worker,
            "SHUTDOWN_DRAIN",
            &["0s", "5s", "10s", "250ms"],
            &["10001ms", "11s", "5", "-1s"],
        ),
        (Api, "LOG_FORMAT", &["json", "text"], &["xml"]),
        (Api, "DB_PORT", &["5432"], &["0", "5432,", "5432,5433"]),
        (
            Worker,
            "DB_TARGET_SESSION_ATTRS",
            &["any", "read-write", "primary"],
            &["standby", "read-only", "prefer-standby"],
        ),
        (Api, "DB_NAME", &["tbd"], &["a\nb"]),
        (
            Api,
            "DB_HOST",
            &["db", "10.0.0.1", "::1", "/var/run/postgresql", "a, b"],
            &["a b", "a,,b", "a,"],
        ),
        (Api, "DB_MAX_CONNS", &["1", "1000"], &["0", "1001"]),
        (Api, "DB_MAX_IDLE_CONNS", &["1", "25"], &["0", "26"]),
        (
            Api,
            "DB_CONN_MAX_LIFETIME",
            &["1s", "168h", "1h 30m"],
            &["999ms", "169h", "5", "five"],
        ),
        (
            Api,
            "AUTO_MIGRATE",
            &["true", "FALSE", "1", "0"],
            &["maybe"],
        ),
        (
            Api,
            "KAFKA_BROKERS",
            &["a:1", "a:1, b:65535", "[::1]:9092"],
            &["a", "a:0", ":1", "a:1,", "a:1,,b:2", "::1:9092", "a b:1"],
        ),
        (
            Api,
            "KAFKA_TOPIC_ORDER_CREATED",
            &["a", "A_b-c.1"],
            &["a b", "..", "a/b"],
        ),
        (
            Api,
            "KAFKA_TOPIC_PARTITIONS",
            &["1", "10000"],
            &["0", "10001"],
        ),
        (Api, "KAFKA_TOPIC_REPLICATION", &["1", "100"], &["0", "101"]),
        (Api, "EVENT_DELIVERY", &["direct", "outbox"], &["both"]),
        (
            Worker,
            "KAFKA_COMPRESSION",
            &["none", "gzip", "snappy", "lz4", "zstd"],
            &["brotli"],
        ),
        (
            Worker,
            "KAFKA_SECURITY_PROTOCOL",
            &["PLAINTEXT", "ssl"],
            &["TLS"],
        ),
        (
            Api,
            "IDEMPOTENCY_TTL",
            &["24h", "168h", "3days"],
            &["23h 59m", "169h"],
        ),
        (
            Api,
            "API_HOST",
            &["127.0.0.1", "::", "[::1]", "localhost"],
            &["example.com"],
        ),
        (Worker, "WORKER_PORT", &["1"], &["0"]),
        (Participant, "GRPC_PORT", &["1"], &["0"]),
        (Participant, "PARTICIPANT", &["Inventory"], &["stock"]),
        (Participant, "INVENTORY_STOCK", &["0"], &["-1", "1.5"]),
        (Participant, "PARTICIPANT_LATENCY", &["60s"], &["61s"]),
        (Participant, "PARTICIPANT_FAILURE_RATE", &["1"], &["1.1"]),
        (Worker, "WORKER_CONCURRENCY", &["1", "256"], &["0", "257"]),
        (Worker, "WORKER_MAX_ATTEMPTS", &["1", "100"], &["0", "101"]),
        (
            Worker,
            "PROCESSING_TIME",
            &["0s", "0ms", "250ms", "60s"],
            &["61s", "-1s"],
        ),
        (
            Worker,
            "PROCESSING_FAILURE_RATE",
            &["0", "0.25", "1"],
            &["1.1", "-0.1", "NaN", "half"],
        ),
        (
            Worker,
            "KAFKA_SESSION_TIMEOUT",
            &["6s", "30m"],
            &["5999ms", "31m"],
        ),
        (
            Worker,
            "OTEL_TRACES_SAMPLER",
            &["always_on", "traceidratio"],
            &["sometimes"],
        ),
        (
            Worker,
            "OTEL_TRACES_SAMPLER_ARG",
            &["0", "0.5", "1"],
            &["2"],
        ),
        (
            Worker,
            "OTEL_RESOURCE_ATTRIBUTES",
            &["a=b", "a=b%20c, d=", ","],
            &["a", "=b", "a=%zz", "a=%f"],
        ),
    ] {
        for value in good {
            assert!(takes(program, name, value), "{name}={value} was refused");
        }
        for value in bad {
            assert!(!takes(program, name, value), "{name}={value} was taken");
        }
    }
}

#[test]
fn allowed_clients_are_names_in_certificates_that_clients_must_show() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let files = [
        ("PARTICIPANT", "payments"),
        ("GRPC_TLS_CERT_FILE", manifest),
        ("GRPC_TLS_KEY_FILE", manifest),
        ("GRPC_TLS_CLIENT_CA_FILE", manifest),
    ];
    let with = |files: &[_], clients| {
        let pairs = [files, &[("ALLOWED_CLIENTS", clients)]].concat();
        participant(&pairs).map(|config| config.allowed_clients)
    };
    assert_eq!(with(&files, "a, b.c").unwrap(), ["a", "b.c"]);
    assert!(with(&files, "a,,b").is_err());
    assert!(with(&files, "a b").is_err());
    let said = with(&files[..3], "a").unwrap_err().to_string();
    assert!(
        said.contains("GRPC_TLS_CLIENT_CA_FILE=\"\" must be given, as ALLOWED_CLIENTS is."),
        "{said}"
    );
}

#[test]
fn migrations_come_from_a_folder_that_can_be_read() {
    for (folder, is_taken) in [
        (env!("CARGO_MANIFEST_DIR"), true),
        ("/no/such/folder", false),
        (concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), false),
    ] {
        assert_eq!(takes(Program::Api, "MIGRATIONS_DIR", folder), is_taken);
    }
}

#[test]
fn the_longest_drain_is_the_one_that_the_shutdown_allows_for() {
    let drain = |millis: u128| {
        let value = format!("{millis}ms");
        worker(&[("SHUTDOWN_DRAIN", &value)]).map(|worker| worker.http.shutdown_drain)
    };
    let longest = SHUTDOWN_DRAIN_MAX.as_millis();
    assert_eq!(drain(longest), Ok(SHUTDOWN_DRAIN_MAX));
    assert!(drain(longest + 1).is_err());
}

#[test]
fn the_idle_default_gives_way_to_a_small_pool() {
    let config = api(&[("DB_MAX_CONNS", "3")]).unwrap();
    assert_eq!(config.database.config.max_idle_conns, 3);
    let errors = api(&[("DB_MAX_CONNS", "3"), ("DB_MAX_IDLE_CONNS", "4")]).unwrap_err();
    assert_eq!(
        errors.errors()[0].to_string(),
        "DB_MAX_IDLE_CONNS=\"4\" must be at most DB_MAX_CONNS, which is 3."
    );
}

#[test]
fn two_topics_never_share_a_name() {
    let errors = worker(&[("KAFKA_TOPIC_ORDER_CREATED", "order.processed")]).unwrap_err();
    assert_eq!(
        errors.errors()[0].to_string(),
        "KAFKA_TOPIC_ORDER_CREATED=\"order.processed\" must be another topic than \
         KAFKA_TOPIC_ORDER_PROCESSED's."
    );
}

#[test]
fn the_two_servers_of_a_program_never_share_a_port() {
    let errors = api(&[("API_PORT", "50051")]).unwrap_err();
    assert_eq!(
        errors.errors()[0].to_string(),
        "API_PORT=\"50051\" must be another port than API_GRPC_PORT's."
    );
    let errors = participant(&[
        ("PARTICIPANT", "payments"),
        ("GRPC_PORT", "9000"),
        ("HTTP_PORT", "9000"),
    ]);
    assert_eq!(
        errors.unwrap_err().errors()[0].to_string(),
        "GRPC_PORT=\"9000\" must be another port than HTTP_PORT's."
    );
    assert!(api(&[("API_PORT", "50051"), ("API_GRPC_PORT", "0")]).is_ok());
}

#[test]
fn the_collectors_port_decides_about_an_unset_protocol() {
    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
    for (written, protocol, url, is_grpc) in [
        (
            "otel-collector:4317",
            "",
            "http://otel-collector:4317",
            true,
        ),
        ("otel-collector", "", "http://otel-collector:4317", true),
        ("[::1]:4317", "", "http://[::1]:4317", true),
        ("c:9", "", "http://c:9", true),
        ("c:4318", "", "http://c:4318", false),
        ("HTTP://c:4317/", "", "http://c:4317", true),
        ("http://c:4318/", "", "http://c:4318", false),
        ("https://c/otlp", "", "https://c:443/otlp", false),
        ("http://c:9", "grpc", "http://c:9", true),
        ("https://c", "grpc", "https://c:443", true),
        ("c", "http/protobuf", "http://c:4318", false),
        ("http://c:4317", "http/protobuf", "http://c:4317", false),
    ] {
        let config = api(&[(ENDPOINT, written), (PROTOCOL, protocol)]).unwrap();
        let collector = config.telemetry.collector.unwrap();
        assert_eq!(
            (&*collector.url, collector.is_grpc),
            (url, is_grpc),
            "{written}"
        );
    }
    for bad in [
        "http://c:4317/path",
        "grpc://c",
        "c:x",
        "c:0",
        "http://u:p@c",
        "http://c/?q",
        "a b",
    ] {
        assert!(!takes(Program::Api, ENDPOINT, bad), "{bad} was taken");
    }
    assert!(!takes(Program::Api, PROTOCOL, "http/json"));
}

#[test]
fn an_empty_endpoint_or_a_disabled_sdk_exports_nothing() {
    for pair in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        ("OTEL_SDK_DISABLED", "true"),
    ] {
        let telemetry = worker(&[pair, ("OTEL_METRICS_EXPORTER", "otlp")])
            .unwrap()
            .telemetry;
        assert!(telemetry.collector.is_none());
    }
}

#[test]
fn metrics_are_exported_in_milliseconds_and_on_request() {
    let exporter = ("OTEL_METRICS_EXPORTER", "otlp");
    let interval = |pairs: &[(&str, &str)]| worker(pairs).unwrap().telemetry.metrics_interval;
    assert_eq!(interval(&[exporter]), Some(Duration::from_secs(15)));
    let often = ("OTEL_METRIC_EXPORT_INTERVAL", "2500");
    assert_eq!(
        interval(&[exporter, often]),
        Some(Duration::from_millis(2500))
    );
    assert_eq!(interval(&[often]), None);
}

#[test]
fn a_refused_header_for_the_collector_is_not_shown() {
    let errors = api(&[("OTEL_EXPORTER_OTLP_HEADERS", "api-key")]).unwrap_err();
    assert!(!errors.to_string().contains("api-key"), "{errors}");
}

#[test]
fn the_service_name_comes_from_the_most_specific_place() {
    let attributes = (
        "OTEL_RESOURCE_ATTRIBUTES",
        "service.name=shop%20api,host.name=h",
    );
    let telemetry = api(&[attributes]).unwrap().telemetry;
    assert_eq!(telemetry.service_name, "shop api");
    assert_eq!(
        telemetry.resource_attributes,
        [("host.name".to_owned(), "h".to_owned())]
    );
    let telemetry = api(&[attributes, ("OTEL_SERVICE_NAME", "mine")])
        .unwrap()
        .telemetry;
    assert_eq!(telemetry.service_name, "mine");
}

#[test]
fn help_shows_every_variable_with_its_default() {
    for program in PROGRAMS {
        let CommandLine::Print(help) = command_line(program, ["--help".into()]) else {
            panic!("--help prints");
        };
        for variable in variables(program) {
            let line = help
                .lines()
                .find(|line| line.starts_with(variable.name))
                .unwrap();
            assert!(line.contains(variable.default), "{line}");
        }
    }
}

#[test]
fn the_command_line_knows_two_options_and_healthcheck() {
    let run = |arguments: &[&str]| command_line(Program::Api, arguments.iter().map(OsString::from));
    assert_eq!(run(&[]), CommandLine::Run);
    assert_eq!(run(&["healthcheck"]), CommandLine::Healthcheck);
    let version = concat!("tbd-api ", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["--version"]), CommandLine::Print(version.to_owned()));
    assert_eq!(
        run(&["--port"]),
        CommandLine::Refuse("tbd-api: unknown argument \"--port\"; see tbd-api --help".to_owned())
    );
}

#[test]
fn the_worker_alone_knows_the_dead_letters() {
    let list = |program| command_line(program, ["dlq".into(), "list".into()]);
    assert_eq!(list(Program::Worker), CommandLine::Dlq(DlqCommand::List));
    assert!(matches!(list(Program::Api), CommandLine::Refuse(_)));
}

#[test]
fn the_markdown_table_has_a_row_for_every_variable() {
    let table = markdown_table(Program::Worker);
    assert!(
        table
            .contains("| `WORKER_CONCURRENCY` | `5` | Number of concurrent message processors |\n")
    );
    assert_eq!(
        table.lines().count(),
        2 + variables(Program::Worker).count()
    );
    assert!(table.lines().all(|line| line.matches('|').count() == 4));
}

#[test]
fn the_configuration_page_shows_the_table_of_each_program() {
    let page = include_str!("../../docs/configuration.md");
    for program in PROGRAMS {
        let table = markdown_table(program);
        assert!(
            page.contains(table.trim_end()),
            "docs/configuration.md should have, for {}:\n{table}",
            program.name()
        );
    }
}
