//! Environment variables and command-line arguments, as an operator uses them.

use std::net::TcpListener;
use std::time::Duration;

use crate::support::eventually;
use crate::support::program::{API, Stack, WORKER, bare, run};

#[test]
fn every_bad_variable_is_named_at_once_and_no_good_one() {
    let bad_for_both = [
        "LOG_LEVEL",
        "LOG_FORMAT",
        "DB_PORT",
        "KAFKA_BROKERS",
        "KAFKA_TOPIC_PARTITIONS",
        "DB_CONN_MAX_LIFETIME",
    ];
    let bad_for_one = [
        (
            API,
            vec![
                "API_PORT",
                "API_HOST",
                "IDEMPOTENCY_TTL",
                "EVENT_DELIVERY",
                "AUTO_MIGRATE",
                "HTTP_WORKERS",
                "HTTP_MEMORY_LIMIT",
                "DB_MAX_CONNS",
            ],
        ),
        (
            WORKER,
            vec![
                "WORKER_PORT",
                "WORKER_CONCURRENCY",
                "WORKER_MAX_ATTEMPTS",
                "PROCESSING_TIME",
                "PROCESSING_FAILURE_RATE",
                "KAFKA_SESSION_TIMEOUT",
            ],
        ),
    ];
    for (program, own) in bad_for_one {
        // The API alone has variables for the lifetime of its connections; the worker ignores them.
        let shared = bad_for_both
            .iter()
            .copied()
            .filter(|name| program == API || !name.starts_with("DB_CONN"));
        let bad: Vec<&str> = shared.chain(own).collect();
        let mut command = bare(program);
        command.envs(bad.iter().map(|name| (*name, "~?~")));
        command.env("DB_PASSWORD", "hunter2").env("DB_NAME", "tbd");
        let output = run(command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        for name in bad {
            assert!(said.contains(name), "{name} in {said}");
        }
        for absent in ["DB_NAME", "DB_USER", "hunter2"] {
            assert!(!said.contains(absent), "{absent} in {said}");
        }
    }
}

#[test]
fn values_outside_their_range_are_refused() {
    for (program, name, value) in [
        (API, "IDEMPOTENCY_TTL", "23h"),
        (API, "IDEMPOTENCY_TTL", "169h"),
        (API, "API_PORT", "65536"),
        (API, "DB_MAX_CONNS", "0"),
        (API, "HTTP_WORKERS", "0"),
        (API, "EVENT_DELIVERY", "Direct mode"),
        (API, "LOG_LEVEL", "loud"),
        (WORKER, "PROCESSING_FAILURE_RATE", "1.1"),
        (WORKER, "PROCESSING_FAILURE_RATE", "NaN"),
        (WORKER, "WORKER_CONCURRENCY", "0"),
        (WORKER, "WORKER_MAX_ATTEMPTS", "0"),
        (WORKER, "PROCESSING_TIME", "5"),
    ] {
        let mut command = bare(program);
        command.env(name, value);
        let output = run(command);
        assert_eq!(output.status.code(), Some(2), "{name}={value}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(name),
            "{name}={value}"
        );
    }
}

#[test]
fn help_prints_every_variable_and_version_the_version() {
    for (program, name, variables) in [
        (
            API,
            "tbd-api",
            [
                "API_PORT",
                "DB_HOST",
                "IDEMPOTENCY_TTL",
                "HTTP_QUEUE",
                "OTEL_SERVICE_NAME",
            ],
        ),
        (
            WORKER,
            "tbd-worker",
            [
                "WORKER_PORT",
                "DB_HOST",
                "WORKER_CONCURRENCY",
                "PROCESSING_TIME",
                "OTEL_SERVICE_NAME",
            ],
        ),
    ] {
        let ask = |argument: &str| {
            let mut command = bare(program);
            command.arg(argument);
            run(command)
        };
        let help = ask("--help");
        assert_eq!(help.status.code(), Some(0));
        let text = String::from_utf8(help.stdout).expect("UTF-8");
        for variable in variables {
            assert!(text.contains(variable), "{variable} in {text}");
        }
        let version = ask("--version");
        assert_eq!(version.status.code(), Some(0));
        let text = String::from_utf8(version.stdout).expect("UTF-8");
        assert_eq!(text.trim(), format!("{name} {}", env!("CARGO_PKG_VERSION")));
        let unknown = ask("--verbose");
        assert_eq!(unknown.status.code(), Some(2));
        let said = String::from_utf8_lossy(&unknown.stderr);
        assert!(
            said.contains("--verbose") && said.trim().lines().count() == 1,
            "{said}"
        );
    }
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_a_word_on_it() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("take a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let stack = Stack::new();
    for (program, variable) in [(API, "API_PORT"), (WORKER, "WORKER_PORT")] {
        let mut command = stack.command(program);
        command.env(variable, &port);
        let output = run(command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&port), "{said}");
    }
}

#[test]
fn topics_are_made_with_the_partitions_asked_for() {
    let stack = Stack::new().set("KAFKA_TOPIC_PARTITIONS", "5");
    let _api = stack.api();
    let topics = &stack.topics;
    for topic in [
        &topics.created,
        &topics.processed,
        &topics.failed,
        &topics.dlq,
    ] {
        // A broker learns of a new topic a moment after the controller has created it.
        eventually(Duration::from_secs(30), topic, || {
            let count = crate::support::topic::partitions(&stack.kafka, topic);
            assert!(matches!(count, 0 | 5), "{topic} has {count} partitions");
            (count == 5).then_some(())
        });
    }
}
