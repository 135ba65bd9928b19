//! `POST /v1/orders/{id}/cancel`.

use std::thread;

use crate::support::http::{Response, get, post};
use crate::support::program::{Program, Stack, id};

fn cancel(api: &Program, order_id: &str, if_match: Option<&str>) -> Response {
    let request = post(format!("/v1/orders/{order_id}/cancel"));
    let request = match if_match {
        Some(tag) => request.header("If-Match", tag),
        None => request,
    };
    request.send(&api.address())
}

fn etag(api: &Program, order_id: &str) -> String {
    let response = get(format!("/v1/orders/{order_id}")).send(&api.address());
    response.header("ETag").expect("an entity tag").to_owned()
}

#[test]
fn a_pending_order_can_be_canceled_and_canceling_again_answers_the_same() {
    let stack = Stack::new();
    let api = stack.api();
    let order = api.accepted_order();
    let first = cancel(&api, id(&order), None);
    assert_eq!(first.status, 200, "{}", first.text());
    let canceled = first.json();
    assert_eq!(canceled["status"], "canceled");
    assert!(canceled["updated_at"].as_str() > order["updated_at"].as_str());
    for field in ["id", "customer_email", "amount_cents", "created_at"] {
        assert_eq!(canceled[field], order[field]);
    }
    let again = cancel(&api, id(&order), None);
    assert_eq!((again.status, again.body), (200, first.body));
    assert_eq!(
        get(format!("/v1/orders/{}", id(&order)))
            .send(&api.address())
            .json(),
        canceled
    );
}

#[test]
fn an_order_that_is_no_longer_pending_cannot_be_canceled() {
    let stack = Stack::new();
    let api = stack.api();
    for status in ["processing", "completed", "failed"] {
        let order = api.accepted_order();
        stack.execute(&format!(
            "UPDATE orders SET status = '{status}' WHERE id = '{}'",
            id(&order)
        ));
        let problem = cancel(&api, id(&order), None).problem(409, "order-not-cancelable");
        assert!(
            problem["detail"]
                .as_str()
                .is_some_and(|d| d.contains(status)),
            "{problem}"
        );
        assert_eq!(stack.status(id(&order)), status);
    }
}

#[test]
fn if_match_is_looked_at_before_the_state() {
    let stack = Stack::new();
    let api = stack.api();
    let order = api.accepted_order();
    let old = etag(&api, id(&order));
    let weak = format!("W/{old}");
    for other in ["\"other\"", "", &weak] {
        cancel(&api, id(&order), Some(other)).problem(412, "precondition-failed");
    }
    assert_eq!(stack.status(id(&order)), "pending");
    assert_eq!(
        cancel(&api, id(&order), Some(&format!("\"other\", {old}"))).status,
        200
    );
    // As if the first answer had been lost: the order is not in the state that the client expects.
    cancel(&api, id(&order), Some(&old)).problem(412, "precondition-failed");
    let new = etag(&api, id(&order));
    assert_eq!(cancel(&api, id(&order), Some(&new)).status, 200);
    assert_eq!(cancel(&api, id(&order), Some("*")).status, 200);

    stack.execute("UPDATE orders SET status = 'completed'");
    cancel(&api, id(&order), Some(&new)).problem(412, "precondition-failed");
    cancel(&api, id(&order), Some("*")).problem(409, "order-not-cancelable");
}

#[test]
fn twins_that_cancel_at_once_get_the_same_answer() {
    let stack = Stack::new();
    let api = stack.api();
    let order = api.accepted_order();
    let answers: Vec<Response> = thread::scope(|scope| {
        let twins: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| cancel(&api, id(&order), None)))
            .collect();
        twins
            .into_iter()
            .map(|twin| twin.join().expect("no panic"))
            .collect()
    });
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(answers.iter().all(|answer| answer.body == answers[0].body));
}

#[test]
fn a_body_that_nobody_asked_for_does_no_harm() {
    let stack = Stack::new();
    let api = stack.api();
    let order = api.accepted_order();
    let path = format!("/v1/orders/{}/cancel", id(&order));
    assert_eq!(post(path).json("{}").send(&api.address()).status, 200);
}
