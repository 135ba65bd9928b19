//! Tracing: one trace from the client's request to the processed order.

use std::time::Duration;

use uuid::Uuid;

use crate::support::edge::Edge;
use crate::support::http::{get, post};
use crate::support::observers::{Collector, Span, Trace};
use crate::support::program::{Stack, id, new_order};
use crate::support::topic::{records, wait_for_records};
use crate::support::{eventually, unique};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
pub const PARENT_ID: &str = "00f067aa0ba902b7";

#[test]
fn a_problem_names_the_clients_trace_and_the_servers_span() {
    let stack = Stack::new();
    let api = stack.api();
    for flags in ["01", "00"] {
        let response = get("/nowhere")
            .header("traceparent", format!("00-{TRACE_ID}-{PARENT_ID}-{flags}"))
            .send(&api.address());
        let problem = response.problem(404, "not-found");
        assert_eq!(problem["trace_id"], TRACE_ID);
        assert_ne!(problem["span_id"], PARENT_ID);
        assert_eq!(response.header("X-Request-Id"), Some(TRACE_ID));
    }
}

#[test]
fn a_traceparent_that_is_none_begins_a_trace_of_its_own() {
    let stack = Stack::new();
    let api = stack.api();
    let zeros = "0".repeat(32);
    for header in [
        "".to_owned(),
        "x".to_owned(),
        format!("00-{zeros}-{PARENT_ID}-01"),
        format!("00-{TRACE_ID}-0000000000000000-01"),
        format!("ff-{TRACE_ID}-{PARENT_ID}-01"),
        format!("00-{TRACE_ID}-{PARENT_ID}"),
        format!("00-{TRACE_ID}-{PARENT_ID}-01-"),
        format!("00-{}-{PARENT_ID}-01", TRACE_ID.to_uppercase()),
    ] {
        let response = get("/nowhere")
            .header("traceparent", &header)
            .send(&api.address());
        let problem = response.problem(404, "not-found");
        assert_ne!(problem["trace_id"], TRACE_ID, "{header}");
        assert_ne!(problem["trace_id"], *zeros, "{header}");
    }
}

#[test]
fn of_two_traceparents_none_is_followed() {
    let stack = Stack::new();
    let apis = [stack.api()];
    let edge = Edge::in_front_of(&apis);
    let traceparent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    for address in [apis[0].address(), edge.address()] {
        let request = post("/v1/orders").header("traceparent", &traceparent);
        let one = request.clone().send(&address);
        let problem = one.problem(415, "unsupported-media-type");
        assert_eq!(problem["trace_id"], TRACE_ID);
        let two = request.header("traceparent", &traceparent).send(&address);
        let problem = two.problem(415, "unsupported-media-type");
        assert_ne!(problem["trace_id"], TRACE_ID);
    }
}

#[test]
fn a_clients_tracestate_goes_along_to_both_events_and_every_span() {
    const LIST: &str = "a=1,b=2,tenant@c=3";
    let collector = Collector::start();
    for delivery in ["direct", "outbox"] {
        let stack = Stack::new().set("EVENT_DELIVERY", delivery);
        let stack = traced(stack, &collector.grpc_address());
        let (apis, _worker) = ([stack.api()], stack.worker());
        let edge = Edge::in_front_of(&apis);
        for address in [apis[0].address(), edge.address()] {
            let (trace_id, traceparent) = new_trace();
            let accepted = new_order(&unique("key"), 1)
                .header("traceparent", traceparent)
                .header("tracestate", "a=1 , b=2")
                .header("tracestate", "tenant@c=3")
                .send(&address);
            assert_eq!(accepted.status, 202, "{}", accepted.text());
            let (send, process, announce) = (
                format!("send {}", stack.topics.created),
                format!("process {}", stack.topics.created),
                format!("send {}", stack.topics.processed),
            );
            let names = ["POST /v1/orders", &send, &process, &announce];
            let trace = collector.wait_for(&trace_id, &names);
            for span in &trace.0 {
                assert_eq!(span.state(), LIST, "{delivery}: {span:?}");
            }
        }
        for topic in [&stack.topics.created, &stack.topics.processed] {
            let records = records(&stack.kafka, topic);
            assert_eq!(records.len(), 2, "{delivery}: {topic}");
            for record in records {
                assert_eq!(record.header("tracestate"), LIST, "{delivery}: {topic}");
            }
        }
    }
}

#[test]
fn both_events_of_an_order_belong_to_the_clients_trace() {
    for delivery in ["direct", "outbox"] {
        let stack = Stack::new().set("EVENT_DELIVERY", delivery);
        let (api, _worker) = (stack.api(), stack.worker());
        let accepted = new_order(&unique("key"), 1)
            .header("traceparent", format!("00-{TRACE_ID}-{PARENT_ID}-01"))
            .send(&api.address());
        assert_eq!(accepted.status, 202);
        for topic in [&stack.topics.created, &stack.topics.processed] {
            let record =
                wait_for_records(&stack.kafka, topic, 1, Duration::from_secs(60)).remove(0);
            let traceparent: Vec<&str> = record.header("traceparent").split('-').collect();
            assert_eq!(traceparent[..2], ["00", TRACE_ID], "{delivery}: {topic}");
            assert_ne!(traceparent[2], PARENT_ID);
        }
    }
}

/// Programs of this stack send their spans to `url`.
pub fn traced(stack: Stack, url: &str) -> Stack {
    stack
        .set("OTEL_SDK_DISABLED", "false")
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", url)
}

/// A new trace id, and the traceparent of a client that starts the trace.
pub fn new_trace() -> (String, String) {
    let trace_id = Uuid::now_v7().simple().to_string();
    let traceparent = format!("00-{trace_id}-{PARENT_ID}-01");
    (trace_id, traceparent)
}

#[track_caller]
pub fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let found = span.attribute(key);
        assert_eq!(found.as_deref(), Some(*value), "{key} of {}", span.name());
    }
}

#[test]
fn one_trace_leads_from_the_request_to_the_processed_order() {
    let collector = Collector::start();
    for delivery in ["direct", "outbox"] {
        let stack = traced(
            Stack::new().set("EVENT_DELIVERY", delivery),
            &collector.grpc_address(),
        );
        let (api, _worker) = (stack.api(), stack.worker());
        let (trace_id, traceparent) = new_trace();
        let order = new_order(&unique("key"), 1)
            .header("traceparent", traceparent)
            .header("User-Agent", "tests/1")
            .send(&api.address())
            .json();
        let (send, process, announce) = (
            format!("send {}", stack.topics.created),
            format!("process {}", stack.topics.created),
            format!("send {}", stack.topics.processed),
        );
        let trace = collector.wait_for(&trace_id, &["POST /v1/orders", &send, &process, &announce]);

        let server = trace.one("POST /v1/orders");
        assert_eq!((server.kind(), server.parent()), (2, PARENT_ID));
        let expected = [
            ("http.request.method", "POST"),
            ("http.route", "/v1/orders"),
            ("http.response.status_code", "202"),
            ("url.path", "/v1/orders"),
            ("url.scheme", "http"),
            ("user_agent.original", "tests/1"),
            ("tbd.order.id", id(&order)),
        ];
        assert_attributes(server, &expected);
        assert_eq!(trace.below(server, "wait for a thread").count(), 1);

        let insert = trace.one("INSERT order");
        assert_eq!((insert.kind(), insert.parent()), (3, server.id()));
        let (host, port) = (&*stack.database.host, stack.database.port.to_string());
        let namespace = format!("{}|public", stack.database.name);
        let expected = [
            ("db.system.name", "postgresql"),
            ("db.namespace", &*namespace),
            ("db.operation.name", "INSERT"),
            ("db.query.summary", "INSERT order"),
            ("server.address", host),
            ("server.port", &*port),
        ];
        assert_attributes(insert, &expected);
        let text = insert.attribute("db.query.text").expect("the statement");
        assert!(
            text.contains("$1") && !text.contains("user@example.com"),
            "{text}"
        );
        assert_eq!(trace.below(insert, "wait for a connection").count(), 1);

        // The request's, even when a relay publishes long afterwards.
        let sent = trace.one(&send);
        assert_eq!((sent.kind(), sent.parent()), (4, server.id()));
        let record = &records(&stack.kafka, &stack.topics.created)[0];
        let place = (record.partition.to_string(), record.offset.to_string());
        let of_the_record = [
            ("messaging.system", "kafka"),
            ("messaging.destination.name", &*stack.topics.created),
            ("messaging.destination.partition.id", &*place.0),
            ("messaging.kafka.offset", &*place.1),
            ("messaging.kafka.message.key", id(&order)),
        ];
        assert_attributes(sent, &of_the_record);
        assert_attributes(sent, &[("messaging.operation.type", "send")]);
        assert!(record.header("traceparent").contains(sent.id()));

        let processed = trace.one(&process);
        assert_eq!((processed.kind(), processed.parent()), (5, sent.id()));
        assert_eq!(processed.links(), [sent.id()]);
        assert_attributes(processed, &of_the_record);
        let expected = [
            ("messaging.operation.type", "process"),
            ("messaging.consumer.group.name", &*stack.group),
            ("tbd.order.id", id(&order)),
        ];
        assert_attributes(processed, &expected);
        for statement in ["UPDATE orders processing", "UPDATE orders completed"] {
            let update = trace.one(statement);
            assert_eq!((update.kind(), update.parent()), (3, processed.id()));
            assert_eq!(trace.below(update, "wait for a connection").count(), 1);
        }
        let announced = trace.one(&announce);
        assert_eq!((announced.kind(), announced.parent()), (4, processed.id()));

        for span in &trace.0 {
            assert!(!span.has_failed(), "{span:?}");
            assert!(span.time().0 >= server.time().0 && span.time().0 <= span.time().1);
            let is_workers = span.time().0 >= processed.time().0 && span.parent() != server.id();
            let service = if is_workers { "tbd-worker" } else { "tbd-api" };
            assert_eq!(span.service, service, "{span:?}");
        }
    }
}

#[test]
fn a_failure_is_marked_where_it_happened() {
    let collector = Collector::start();
    let stack = traced(Stack::new(), &collector.grpc_address())
        .set("PROCESSING_FAILURE_RATE", "1")
        .set("WORKER_MAX_ATTEMPTS", "1");
    let (api, _worker) = (stack.api(), stack.worker());

    let (trace_id, traceparent) = new_trace();
    let order = new_order(&unique("key"), 1).header("traceparent", traceparent);
    assert_eq!(order.send(&api.address()).status, 202);
    let process = format!("process {}", stack.topics.created);
    let trace = collector.wait_for(&trace_id, &[&process]);
    let processed = trace.one(&process);
    assert!(processed.has_failed());
    assert_attributes(processed, &[("error.type", "failed")]);
    assert_eq!(
        processed.exception("exception.message").as_deref(),
        Some("simulated failure")
    );
    for topic in [&stack.topics.failed, &stack.topics.dlq] {
        let send = format!("send {topic}");
        assert_eq!(trace.below(processed, &send).count(), 1, "{send}");
    }

    stack.execute("ALTER TABLE orders RENAME TO away");
    let (trace_id, traceparent) = new_trace();
    let answer = get("/v1/orders")
        .header("traceparent", traceparent)
        .send(&api.address());
    let problem = answer.problem(503, "dependency-unavailable");
    assert_eq!(problem["trace_id"], *trace_id);
    let trace = collector.wait_for(&trace_id, &["GET /v1/orders"]);
    let (server, select) = (trace.one("GET /v1/orders"), trace.one("SELECT orders"));
    assert!(server.has_failed() && select.has_failed());
    assert_eq!(problem["span_id"], server.id());
    assert_attributes(
        server,
        &[("error.type", "503"), ("http.response.status_code", "503")],
    );
    assert_attributes(select, &[("db.response.status_code", "42P01")]);
    assert!(
        select
            .exception("exception.message")
            .is_some_and(|text| text.contains("orders"))
    );
}

#[test]
fn a_request_whose_order_another_ones_commit_carried_points_at_it() {
    const REQUESTS: usize = 12;
    let collector = Collector::start();
    let stack = traced(Stack::new(), &collector.grpc_address());
    let api = stack.api();
    let mut holder = stack.database.connect();
    let mut held = holder.transaction().expect("a transaction");
    held.batch_execute("LOCK TABLE idempotency_keys IN EXCLUSIVE MODE")
        .expect("hold up every commit");
    let traces: Vec<(String, String)> = (0..REQUESTS).map(|_| new_trace()).collect();
    std::thread::scope(|scope| {
        for (_, traceparent) in &traces {
            let address = api.address();
            scope.spawn(move || {
                let order = new_order(&unique("key"), 1).header("traceparent", traceparent);
                assert_eq!(order.send(&address).status, 202);
            });
        }
        eventually(Duration::from_secs(20), "all to be under way", || {
            (api.metric("http_threads_busy") == Some(REQUESTS as f64)).then_some(())
        });
        held.rollback().expect("let them go");
    });
    let mut carried = 0;
    let all: Vec<Trace> = traces
        .iter()
        .map(|(trace_id, _)| collector.wait_for(trace_id, &["POST /v1/orders"]))
        .collect();
    for span in all.iter().flat_map(|trace| &trace.0) {
        if span.name() != "wait for a shared commit" {
            continue;
        }
        carried += 1;
        let mut others = all.iter().flat_map(|trace| &trace.0);
        let by = others.find(|other| span.links() == [other.id()]);
        let by = by.expect("the statement that it links to");
        assert_eq!(by.name(), "INSERT orders");
        assert!(
            by.attribute("db.operation.batch.size")
                .is_some_and(|size| size != "1")
        );
    }
    assert!(carried >= REQUESTS / 2, "{carried} of {REQUESTS}");
}
