//! The HTTP contract that all endpoints share: paths, methods, headers, connections, probes, metrics.

use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::edge::Edge;
use crate::support::http::{Connection, Request, get, is_lower_hex, post};
use crate::support::program::{Program, Stack, id, new_order};
use crate::support::{eventually, unique};

/// Both programs, ready: (name, program).
fn both(stack: &Stack) -> [(&'static str, Program); 2] {
    let (api, worker) = (stack.start_api(), stack.start_worker());
    [("api", api.ready()), ("worker", worker.ready())]
}

#[test]
fn probes_answer_for_both_programs() {
    let stack = Stack::new();
    for (name, program) in both(&stack) {
        let health = get("/healthz").send(&program.address());
        assert_eq!(
            (health.status, health.json()),
            (200, json!({ "status": "ok" })),
            "{name}"
        );
        assert_eq!(health.header("Content-Type"), Some("application/json"));
        let ready = get("/readyz").send(&program.address());
        let expected = json!({ "status": "ready", "checks": { "database": "ok", "kafka": "ok" } });
        assert_eq!((ready.status, ready.json()), (200, expected), "{name}");
        let metrics = get("/metrics").send(&program.address());
        assert_eq!(metrics.status, 200, "{name}");
        let content_type = metrics.header("Content-Type").unwrap_or_default();
        assert!(content_type.starts_with("text/plain"), "{content_type}");
    }
}

#[test]
fn every_metric_of_the_contract_is_there() {
    let stack = Stack::new();
    let [(_, api), (_, worker)] = both(&stack);
    api.accepted_order();
    stack.all_become("completed", 1, Duration::from_secs(30));
    let created = &stack.topics.created;
    let processed = &stack.topics.processed;
    for (program, names) in [
        (
            &api,
            vec![
                r#"http_requests_total{method="POST",route="/v1/orders",status="202"} 1"#,
                r#"http_request_duration_seconds_count{method="POST",route="/v1/orders",status="202"} 1"#,
                &format!(r#"kafka_producer_latency_seconds_count{{topic="{created}"}} 1"#),
                "db_query_duration_seconds_count{query=",
                "orders_created_total 1",
                "idempotency_hits_total 0",
                "circuit_breaker_state{name=",
                "outbox_backlog ",
                "outbox_oldest_seconds ",
                "process_",
            ],
        ),
        (
            &worker,
            vec![
                r#"http_requests_total{method="GET",route="/readyz",status="200"} "#,
                &format!(r#"kafka_producer_latency_seconds_count{{topic="{processed}"}} 1"#),
                "db_query_duration_seconds_count{query=",
                r#"orders_processed_total{outcome="completed"} 1"#,
                r#"orders_processed_total{outcome="failed"} 0"#,
                r#"orders_processed_total{outcome="canceled"} 0"#,
                r#"orders_processed_total{outcome="duplicate"} 0"#,
                "process_",
            ],
        ),
    ] {
        for name in names {
            eventually(Duration::from_secs(30), name, || {
                let text = get("/metrics").send(&program.address()).text();
                text.lines()
                    .any(|line| line.starts_with(name))
                    .then_some(())
            });
        }
    }
}

#[test]
fn both_programs_report_the_lag_and_it_is_right_without_a_worker() {
    let stack = Stack::new();
    let [(_, api), (_, mut worker)] = both(&stack);
    api.accepted_order();
    stack.all_become("completed", 1, Duration::from_secs(30));
    let group = format!(r#"group="{}""#, stack.group);
    let lag_becomes = |program: &Program, expected: RangeInclusive<i64>| {
        eventually(Duration::from_secs(30), "the lag to be reported", || {
            let text = get("/metrics").send(&program.address()).text();
            let lags: Vec<i64> = text
                .lines()
                .filter(|line| line.starts_with("kafka_consumer_lag{") && line.contains(&group))
                .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
                .collect();
            (lags.len() == 3 && expected.contains(&lags.iter().sum())).then_some(())
        });
    };
    lag_becomes(&worker, 0..=0);
    lag_becomes(&api, 0..=0);
    worker.kill();
    api.accepted_order();
    // The killed worker may not have committed what it processed.
    lag_becomes(&api, 1..=2);
}

#[test]
fn a_path_that_is_not_there_is_not_found_and_counted_as_unmatched() {
    let stack = Stack::new();
    let api = stack.api();
    let order = api.accepted_order();
    let paths = [
        "/index.html",
        "/v1",
        "/v1/orders/",
        "/v1/Orders",
        "/v1/orders/x/y",
        &format!("/v1/orders/{}/", id(&order)),
        &format!("/v1/orders/{}/cancel/", id(&order)),
        "/healthz/",
        "//healthz",
    ];
    for path in paths {
        get(path).send(&api.address()).problem(404, "not-found");
    }
    Request::new("BREW", "/coffee")
        .send(&api.address())
        .problem(404, "not-found");
    for (method, count) in [("GET", paths.len() as f64), ("OTHER", 1.0)] {
        let sample =
            format!(r#"http_requests_total{{method="{method}",route="unmatched",status="404"}}"#);
        api.metric_becomes(&sample, count);
    }
    let text = get("/metrics").send(&api.address()).text();
    assert!(
        !text.contains("coffee") && !text.contains(id(&order)),
        "raw paths never become labels"
    );
}

#[test]
fn an_encoded_unreserved_character_is_the_character_itself() {
    let stack = Stack::new();
    let apis = [stack.api()];
    let edge = Edge::in_front_of(&apis);
    let order = apis[0].accepted_order();
    let encoded = id(&order).replace('-', "%2D");
    let first = format!("%{:02x}{}", encoded.as_bytes()[0], &encoded[1..]);
    for address in [apis[0].address(), edge.address()] {
        assert_eq!(get("/%68ealthz").send(&address).status, 200);
        assert_eq!(get("/%76%31/%6frder%73?page=1").send(&address).status, 200);
        for id in [&encoded, &first] {
            let found = get(format!("/v1/%6Frders/{id}")).send(&address);
            assert_eq!(found.json(), order, "{id}");
        }
        let new = new_order(&unique("key"), 1).to("/v1/%6frders");
        assert_eq!(new.send(&address).status, 202);
        // A reserved character differs from its encoded form.
        for path in ["/v1%2Forders", "/v1/orders%3Fpage=1", "/%2568ealthz"] {
            get(path).send(&address).problem(404, "not-found");
        }
    }
    let sample = r#"http_requests_total{method="POST",route="/v1/orders",status="202"}"#;
    apis[0].metric_becomes(sample, 3.0);
}

#[test]
fn two_lines_of_a_condition_are_one_list() {
    let stack = Stack::new();
    let api = stack.api();
    let path = format!("/v1/orders/{}", id(&api.accepted_order()));
    let tag = get(&path).send(&api.address());
    let tag = tag.header("ETag").expect("a tag");
    for [one, other] in [[tag, "\"x\""], ["\"x\"", tag]] {
        let request = get(&path).header("If-None-Match", one);
        let answer = request.header("If-None-Match", other).send(&api.address());
        assert_eq!(answer.status, 304);
    }
    for (tags, status) in [(["\"x\"", "\"y\""], 412), (["\"x\"", tag], 200)] {
        let cancel = post(format!("{path}/cancel")).header("If-Match", tags[0]);
        let answer = cancel.header("If-Match", tags[1]).send(&api.address());
        assert_eq!(answer.status, status, "{}", answer.text());
    }
}

#[test]
fn another_method_on_a_known_path_gets_the_allowed_ones() {
    let stack = Stack::new();
    let api = stack.api();
    let order = format!("/v1/orders/{}", id(&api.accepted_order()));
    for (path, allowed) in [
        ("/v1/orders", "GET, HEAD, POST"),
        (&*order, "GET, HEAD"),
        (&*format!("{order}/cancel"), "POST"),
        ("/v1/orders/not-a-uuid", "GET, HEAD"),
        ("/healthz", "GET, HEAD"),
        ("/readyz", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
    ] {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            if allowed.contains(method) {
                continue;
            }
            let response = Request::new(method, path).send(&api.address());
            response.problem(405, "method-not-allowed");
            let allow = response.header("Allow").expect("Allow");
            let mut methods: Vec<&str> = allow.split(", ").collect();
            methods.sort_unstable();
            assert_eq!(methods.join(", "), allowed, "{method} {path}");
        }
    }
    api.metric_becomes(
        r#"http_requests_total{method="OTHER",route="/v1/orders",status="405"}"#,
        1.0,
    );
}

#[test]
fn head_gets_the_head_that_get_would_get() {
    let stack = Stack::new();
    let api = stack.api();
    let order = format!("/v1/orders/{}", id(&api.accepted_order()));
    for path in [
        &order,
        "/v1/orders",
        "/healthz",
        "/readyz",
        "/v1/orders/x",
        "/nowhere",
    ] {
        let get = get(path).send(&api.address());
        let mut connection = Connection::open(&api.address());
        connection.write(
            &Request::new("HEAD", path)
                .header("Connection", "close")
                .to_bytes(),
        );
        let head = connection.read_head();
        assert_eq!(head.status, get.status, "{path}");
        for name in ["Content-Type", "ETag"] {
            assert_eq!(head.header(name), get.header(name), "{path}: {name}");
        }
        // A problem names its own span; a span id's length never varies.
        assert_eq!(
            head.header("Content-Length"),
            get.header("Content-Length"),
            "{path}"
        );
        assert!(
            connection.is_closed_by_server(),
            "{path}: no byte of a body"
        );
    }
}

#[test]
fn every_response_carries_the_request_id() {
    let stack = Stack::new();
    let api = stack.api();
    for request in [
        get("/healthz"),
        get("/metrics"),
        get("/nowhere"),
        get("/v1/orders"),
        post("/v1/orders"),
    ] {
        let own = request.clone().send(&api.address());
        assert!(
            own.header("X-Request-Id")
                .is_some_and(|id| is_lower_hex(id, 32)),
            "{request:?}"
        );
        let sent = request
            .clone()
            .header("X-Request-Id", "req_1/a=b")
            .send(&api.address());
        assert_eq!(
            sent.header("X-Request-Id"),
            Some("req_1/a=b"),
            "{request:?}"
        );
        for insane in ["", "a b", &"x".repeat(129)] {
            let response = request
                .clone()
                .header("X-Request-Id", insane)
                .send(&api.address());
            let id = response.header("X-Request-Id").expect("an id");
            assert!(is_lower_hex(id, 32), "{insane:?}: {id}");
        }
    }
    let problem = get("/nowhere").send(&api.address());
    assert_eq!(
        problem.header("X-Request-Id"),
        problem.json()["trace_id"].as_str()
    );
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let stack = Stack::new();
    let api = stack.api();
    let mut connection = Connection::open(&api.address());
    for _ in 0..3 {
        connection.write(&new_order(&unique("key"), 1).to_bytes());
        assert_eq!(connection.read().status, 202);
        connection.write(&get("/v1/orders?page=0").to_bytes());
        assert_eq!(connection.read().status, 400);
    }
    // Two requests at once, answered in order.
    connection.write(&[get("/healthz").to_bytes(), get("/nowhere").to_bytes()].concat());
    assert_eq!(connection.read().status, 200);
    assert_eq!(connection.read().status, 404);
}

#[test]
fn a_body_that_nobody_read_is_never_taken_for_a_request() {
    let stack = Stack::new();
    let api = stack.api();
    let smuggled = get("/healthz").to_bytes();
    for request in [
        post("/v1/orders").header("Content-Type", "text/plain"),
        post("/nowhere"),
        Request::new("DELETE", "/v1/orders"),
        get("/v1/orders"),
    ] {
        // One body small enough to be read along with the head, and one that is not.
        for padding in [0, 100_000] {
            let body = [vec![b'\n'; padding], smuggled.clone()].concat();
            let mut connection = Connection::open(&api.address());
            connection.write(&request.clone().body(body).to_bytes());
            connection.read();
            // Either the server skipped the whole body and kept the connection, or it closed it.
            connection.write(&get("/nowhere").to_bytes());
            if let Some(next) = connection.try_next() {
                assert_eq!(next.status, 404, "{request:?}");
            }
        }
    }
}

#[test]
fn a_head_that_contradicts_itself_is_refused_and_its_connection_closed() {
    let stack = Stack::new();
    let api = stack.api();
    let order = r#"{"customer_email":"a@b.com","amount_cents":1}"#;
    for headers in [
        "Content-Length: 45\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 45\r\nContent-Length: 46\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: x\r\n",
        "Transfer-Encoding: gzip\r\n",
    ] {
        let mut connection = Connection::open(&api.address());
        let request = format!(
            "POST /v1/orders HTTP/1.1\r\nHost: tbd\r\nIdempotency-Key: {}\r\nContent-Type: application/json\r\n{headers}\r\n{order}",
            unique("key")
        );
        connection.write(request.as_bytes());
        assert_eq!(connection.read().status, 400, "{headers}");
        assert!(connection.is_closed_by_server(), "{headers}");
    }
    assert_eq!(stack.count("orders"), 0);
}

#[test]
fn a_client_that_expects_100_continue_gets_it() {
    let stack = Stack::new();
    let api = stack.api();
    let body = r#"{"customer_email":"a@b.com","amount_cents":1}"#;
    let request = post("/v1/orders")
        .header("Idempotency-Key", unique("key"))
        .header("Expect", "100-continue")
        .json(body)
        .to_bytes();
    let mut connection = Connection::open(&api.address());
    let (head, body) = request.split_at(request.len() - body.len());
    connection.write(head);
    assert_eq!(connection.read().status, 100);
    connection.write(body);
    assert_eq!(connection.read().status, 202);
}

#[test]
fn probes_answer_and_requests_beyond_the_queue_are_shed_while_every_thread_is_stuck() {
    let stack = Stack::new()
        .set("HTTP_WORKERS", "2")
        .set("HTTP_QUEUE", "2")
        .set("HTTP_ACCEPTORS", "1");
    let api = stack.api();
    let mut holder = stack.database.holding_orders();
    thread::scope(|scope| {
        let stuck: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| get("/v1/orders").send(&api.address())))
            .collect();
        eventually(Duration::from_secs(10), "both threads to be busy", || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            (stack.number(waiting) == 2).then_some(())
        });
        // The first requests find a place in the queue. A request that finds it full is shed at once.
        let shed = eventually(Duration::from_secs(5), "a request to be shed", || {
            let mut connection = Connection::open(&api.address());
            connection.write(&get("/v1/orders/x").header("Connection", "close").to_bytes());
            connection.read_within(Duration::from_millis(300))
        });
        shed.problem(503, "overloaded");
        assert!(shed.header("Retry-After").is_some());
        let start = Instant::now();
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(get(path).send(&api.address()).status, 200, "{path}");
        }
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
        holder.batch_execute("ROLLBACK").expect("unlock the table");
        for request in stuck {
            assert!([200, 503].contains(&request.join().expect("no panic").status));
        }
    });
    assert_eq!(get("/v1/orders").send(&api.address()).status, 200);
}

#[test]
fn a_statement_that_takes_too_long_is_given_up() {
    let stack = Stack::new();
    let api = stack.api();
    let mut holder = stack.database.holding_orders();
    let start = Instant::now();
    let response = get("/v1/orders").send(&api.address());
    response.problem(503, "dependency-unavailable");
    assert!(response.header("Retry-After").is_some());
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    holder.batch_execute("ROLLBACK").expect("unlock the table");
    assert_eq!(get("/v1/orders").send(&api.address()).status, 200);
}

#[test]
fn logs_are_one_json_object_a_line_without_addresses_or_secrets() {
    let stack = Stack::new().set("LOG_LEVEL", "debug");
    let mut api = stack.api();
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let response = new_order(&unique("key"), 1)
        .header("traceparent", format!("00-{trace_id}-00f067aa0ba902b7-01"))
        .send(&api.address());
    assert_eq!(response.status, 202);
    let order_id = id(&response.json()).to_owned();
    api.terminate();
    api.wait(Duration::from_secs(30));
    let log = api.log();
    let mut about_the_order = 0;
    for line in &log {
        let entry: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "target", "message", "service"] {
            assert!(entry[field].is_string(), "{field} in {line}");
        }
        assert_eq!(entry["service"], "tbd-api");
        if entry["order_id"] == *order_id {
            assert_eq!(entry["trace_id"], trace_id, "{line}");
            assert!(
                entry["span_id"]
                    .as_str()
                    .is_some_and(|id| is_lower_hex(id, 16)),
                "{line}"
            );
            about_the_order += 1;
        }
        for secret in ["user@example.com", "secret"] {
            assert!(!line.contains(secret), "{line}");
        }
    }
    assert!(about_the_order > 0, "{log:#?}");
}
