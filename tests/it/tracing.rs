//! One trace, from the client's request to the processed order.

use std::time::Duration;

use crate::support::http::get;
use crate::support::program::{Stack, new_order};
use crate::support::topic::wait_for_records;
use crate::support::unique;

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

#[test]
fn a_problem_names_the_clients_trace_and_a_span_of_ours() {
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
