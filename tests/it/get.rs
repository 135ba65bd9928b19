//! `GET /v1/orders/{id}`.

use uuid::Uuid;

use crate::support::http::{get, post};
use crate::support::program::{Stack, id};

#[test]
fn an_order_that_older_rules_accepted_stays_readable() {
    let stack = Stack::new();
    let api = stack.api();
    let order = api.accepted_order();
    stack.execute("UPDATE orders SET customer_email = 'user@example.com' || chr(65279)");
    let path = format!("/v1/orders/{}", id(&order));
    let found = get(&path).send(&api.address());
    assert_eq!(found.status, 200, "{}", found.text());
    assert_eq!(found.json()["customer_email"], "user@example.com\u{feff}");
    assert_eq!(get("/v1/orders").send(&api.address()).status, 200);
    let canceled = post(format!("{path}/cancel")).send(&api.address());
    assert_eq!(canceled.status, 200, "{}", canceled.text());
}

#[test]
fn an_order_is_answered_with_its_entity_tag() {
    let stack = Stack::new();
    let api = stack.api();
    let order = api.accepted_order();
    let response = get(format!("/v1/orders/{}", id(&order))).send(&api.address());
    assert_eq!(response.status, 200);
    assert_eq!(response.header("Content-Type"), Some("application/json"));
    assert_eq!(response.json(), order);
    let etag = response.header("ETag").expect("an entity tag");
    assert!(
        etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"'),
        "{etag}"
    );
}

#[test]
fn a_client_that_has_the_order_gets_304_until_it_changes() {
    let stack = Stack::new();
    let api = stack.api();
    let path = format!("/v1/orders/{}", id(&api.accepted_order()));
    let fetch = |if_none_match: &str| {
        get(&path)
            .header("If-None-Match", if_none_match)
            .send(&api.address())
    };
    let first = get(&path).send(&api.address());
    let etag = first.header("ETag").expect("an entity tag");
    for held in [
        etag,
        "*",
        &format!("W/{etag}"),
        &format!("\"other\" , {etag}"),
    ] {
        let response = fetch(held);
        assert_eq!(
            (response.status, response.header("ETag")),
            (304, Some(etag)),
            "{held}"
        );
        assert!(response.header("X-Request-Id").is_some());
    }
    for other in ["\"other\"", "", etag.trim_matches('"')] {
        assert_eq!(fetch(other).status, 200, "{other}");
    }
    let several_lines = get(&path)
        .header("If-None-Match", "\"other\"")
        .header("If-None-Match", etag)
        .send(&api.address());
    assert_eq!(several_lines.status, 304);

    let canceled = post(format!("{path}/cancel")).send(&api.address());
    assert_eq!(canceled.status, 200);
    let response = fetch(etag);
    assert_eq!(response.status, 200);
    assert_ne!(response.header("ETag"), Some(etag));
    assert_eq!(response.header("ETag"), canceled.header("ETag"));
}

#[test]
fn an_id_that_is_no_uuid_is_a_bad_request() {
    let stack = Stack::new();
    let api = stack.api();
    let uuid = Uuid::now_v7();
    for text in [
        "1",
        "x",
        "%20",
        &uuid.simple().to_string(),
        &uuid.braced().to_string(),
        &format!("{uuid}0"),
    ] {
        for path in [
            format!("/v1/orders/{text}"),
            format!("/v1/orders/{text}/cancel"),
        ] {
            let request = if path.ends_with("/cancel") {
                post(&path)
            } else {
                get(&path)
            };
            assert_eq!(
                request.send(&api.address()).faulty_fields(),
                ["id"],
                "{path}"
            );
        }
    }
}

#[test]
fn an_order_that_does_not_exist_is_not_found() {
    let stack = Stack::new();
    let api = stack.api();
    for uuid in [Uuid::now_v7(), Uuid::nil(), Uuid::max()] {
        get(format!("/v1/orders/{uuid}"))
            .send(&api.address())
            .problem(404, "order-not-found");
        post(format!("/v1/orders/{uuid}/cancel"))
            .send(&api.address())
            .problem(404, "order-not-found");
    }
}
