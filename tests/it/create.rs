//! `POST /v1/orders`: accepted requests, and refusals that store nothing.

use serde_json::json;

use crate::support::http::{Request, Response, get, post};
use crate::support::program::{Program, Stack, id, new_order};
use crate::support::unique;

/// A POST of `body` under a new key.
fn submit(api: &Program, body: impl Into<Vec<u8>>) -> Response {
    post("/v1/orders")
        .header("Idempotency-Key", unique("key"))
        .json(body)
        .send(&api.address())
}

/// Rows in every table that a POST writes to.
fn rows(stack: &Stack) -> [i64; 3] {
    ["orders", "idempotency_keys", "outbox"].map(|table| stack.count(table))
}

/// A time as RFC 3339 in UTC with microseconds.
fn is_time(text: &str) -> bool {
    let pattern = "dddd-dd-ddTdd:dd:dd.ddddddZ";
    text.len() == pattern.len()
        && text.bytes().zip(pattern.bytes()).all(|(byte, p)| match p {
            b'd' => byte.is_ascii_digit(),
            _ => byte == p,
        })
}

#[test]
fn a_new_order_is_accepted_and_can_be_fetched_where_location_points() {
    let stack = Stack::new();
    let api = stack.api();
    let response = submit(&api, r#"{"customer_email":"a@b.com","amount_cents":1234}"#);
    assert_eq!(response.status, 202, "{}", response.text());
    assert_eq!(response.header("Content-Type"), Some("application/json"));
    assert_eq!(response.header("Idempotent-Replayed"), None);

    let order = response.json();
    let text = |field: &str| order[field].as_str().expect("a string").to_owned();
    assert_eq!(order.as_object().expect("an object").len(), 6, "{order}");
    assert_eq!(order["customer_email"], "a@b.com");
    assert_eq!(order["amount_cents"], 1234);
    assert_eq!(order["status"], "pending");
    assert!(is_time(&text("created_at")), "{order}");
    assert_eq!(order["updated_at"], order["created_at"]);
    let uuid = uuid::Uuid::parse_str(id(&order)).expect("a UUID");
    assert_eq!((uuid.get_version_num(), uuid.to_string()), (7, text("id")));

    let location = response.header("Location").expect("a location");
    assert_eq!(location, format!("/v1/orders/{uuid}"));
    assert_eq!(get(location).send(&api.address()).body, response.body);
    assert_eq!(stack.count("orders"), 1);
}

#[test]
fn every_plausible_address_and_amount_is_kept_exactly() {
    let stack = Stack::new();
    let api = stack.api();
    let longest = format!("{}@{}.example", "l".repeat(64), "d".repeat(254 - 65 - 8));
    for email in [
        "a@b.co",
        "jürgen@straße.example",
        "o'neil+tag@mail.example.org",
        "\"\\<>&@x.y",
        &longest,
    ] {
        for amount in [1, 9_007_199_254_740_991_u64] {
            let body = json!({ "amount_cents": amount, "customer_email": email });
            let response = submit(&api, body.to_string());
            assert_eq!(response.status, 202, "{body}: {}", response.text());
            let order = response.json();
            assert_eq!(
                (&order["customer_email"], &order["amount_cents"]),
                (&json!(email), &json!(amount))
            );
            let fetched = get(format!("/v1/orders/{}", id(&order))).send(&api.address());
            assert_eq!(fetched.json(), order);
        }
    }
}

#[test]
fn every_faulty_field_is_named_and_nothing_is_stored() {
    let stack = Stack::new();
    let api = stack.api();
    let before = rows(&stack);
    let email = |email: &str| {
        (
            json!({ "customer_email": email, "amount_cents": 5 }).to_string(),
            vec!["customer_email"],
        )
    };
    let amount = |amount: &str| {
        (
            format!(r#"{{"customer_email":"a@b.co","amount_cents":{amount}}}"#),
            vec!["amount_cents"],
        )
    };
    let mut cases = vec![
        ("{}".to_owned(), vec!["customer_email", "amount_cents"]),
        (
            r#"{"customer_email":5,"amount_cents":"5"}"#.to_owned(),
            vec!["customer_email", "amount_cents"],
        ),
        (
            r#"{"customer_email":null,"amount_cents":null}"#.to_owned(),
            vec!["customer_email", "amount_cents"],
        ),
        (
            r#"{"customer_email":"a@b.co","amount_cents":5,"note":"x"}"#.to_owned(),
            vec!["note"],
        ),
        (
            r#"{"Customer_Email":"a@b.co","amount_cents":5}"#.to_owned(),
            vec!["Customer_Email", "customer_email"],
        ),
        (
            r#"{"customer_email":"a@b.co","amount_cents":5,"amount_cents":5}"#.to_owned(),
            vec!["amount_cents"],
        ),
        (
            r#"{"customer_email":"a@b.co","amount_cents":5,"id":"x","status":"completed"}"#
                .to_owned(),
            vec!["id", "status"],
        ),
    ];
    cases.extend([
        email(""),
        email("nobody"),
        email("@b.co"),
        email("a@localhost"),
        email("a@b..co"),
        email("a@.co"),
        email("a@b."),
        email("a@b@c.co"),
        email("a b@c.co"),
        email("a@b.co\n"),
        email("a\u{0}@b.co"),
        email("a\u{a0}@b.co"),
        email(&format!("{}@b.co", "l".repeat(65))),
        email(&format!("a@{}.co", "d".repeat(250))),
    ]);
    cases.extend(
        [
            "0",
            "-1",
            "-0",
            "5.0",
            "5e2",
            "\"5\"",
            "true",
            "[5]",
            "{}",
            "9007199254740992",
            "1e999",
            "99999999999999999999",
        ]
        .map(amount),
    );
    for (body, fields) in cases {
        assert_eq!(
            submit(&api, body.as_str()).faulty_fields(),
            fields,
            "{body}"
        );
    }
    for body in ["[]", "null", "5", "\"x\"", "true"] {
        submit(&api, body).problem(400, "validation-failed");
    }
    assert_eq!(rows(&stack), before);
}

#[test]
fn what_is_not_json_is_refused_and_nothing_is_stored() {
    let stack = Stack::new();
    let api = stack.api();
    let before = rows(&stack);
    let deep = "[".repeat(30_000);
    let bodies: [&[u8]; 9] = [
        b"",
        b" ",
        b"{",
        b"{\"a\":}",
        b"{'a':1}",
        b"{} {}",
        b"\xff\xfe",
        b"{\"customer_email\":\"\xc3\"}",
        deep.as_bytes(),
    ];
    for body in bodies {
        submit(&api, body).problem(400, "malformed-json");
    }
    assert_eq!(rows(&stack), before);
}

#[test]
fn an_encoded_body_is_refused_with_the_encoding_to_use() {
    let stack = Stack::new();
    let api = stack.api();
    let send = |encodings: &[&str]| {
        let request = new_order(&unique("key"), 1);
        let add = |request: Request, value: &&str| request.header("Content-Encoding", value);
        encodings.iter().fold(request, add).send(&api.address())
    };
    for encodings in [
        &["gzip"][..],
        &["br"],
        &["GZIP, identity"],
        &["identity", "gzip"],
        &["x"],
    ] {
        let refused = send(encodings);
        refused.problem(415, "unsupported-content-encoding");
        assert_eq!(refused.header("Accept-Encoding"), Some("identity"));
    }
    assert_eq!(stack.count("orders"), 0);
    for encodings in [&["identity"][..], &["Identity"], &[""], &["", "identity"]] {
        assert_eq!(send(encodings).status, 202, "{encodings:?}");
    }
}

#[test]
fn json_is_the_only_accepted_media_type() {
    let stack = Stack::new();
    let api = stack.api();
    let body = r#"{"customer_email":"a@b.com","amount_cents":1}"#;
    let send = |content_type: Option<&str>| {
        let request = post("/v1/orders").header("Idempotency-Key", unique("key"));
        let request = match content_type {
            Some(content_type) => request.header("Content-Type", content_type),
            None => request,
        };
        request.body(body).send(&api.address())
    };
    let refused = [
        None,
        Some(""),
        Some("text/plain"),
        Some("application/jsonx"),
        Some("application/problem+json"),
    ];
    for content_type in refused {
        send(content_type).problem(415, "unsupported-media-type");
    }
    assert_eq!(rows(&stack), [0, 0, 0]);
    for content_type in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/json;charset=UTF-8",
    ] {
        assert_eq!(send(Some(content_type)).status, 202, "{content_type}");
    }
}

#[test]
fn an_idempotency_key_is_required_and_has_1_to_255_visible_characters() {
    let stack = Stack::new();
    let api = stack.api();
    let body = r#"{"customer_email":"a@b.com","amount_cents":1}"#;
    post("/v1/orders")
        .json(body)
        .send(&api.address())
        .problem(400, "idempotency-key-missing");
    let send = |key: &str| {
        post("/v1/orders")
            .header("Idempotency-Key", key)
            .json(body)
            .send(&api.address())
    };
    for key in ["", "\"\"", "a b", &"k".repeat(256)] {
        send(key).problem(400, "idempotency-key-invalid");
    }
    // A byte beyond ASCII in any header ends the connection before the handler sees the request.
    let beyond_ascii = post("/v1/orders")
        .header("Idempotency-Key", "schlüssel")
        .json(body)
        .try_send(&api.address());
    assert!(beyond_ascii.is_err() || beyond_ascii.is_ok_and(|response| response.status == 400));
    post("/v1/orders")
        .header("Idempotency-Key", "one")
        .header("Idempotency-Key", "two")
        .json(body)
        .send(&api.address())
        .problem(400, "idempotency-key-invalid");
    assert_eq!(rows(&stack), [0, 0, 0]);
    for key in ["k", "!~\\;,", &"k".repeat(255)] {
        assert_eq!(send(key).status, 202, "{key}");
    }
}

#[test]
fn a_body_may_have_64_kib_and_not_a_byte_more() {
    let stack = Stack::new();
    let api = stack.api();
    let body = |length: usize| {
        let json = r#"{"customer_email":"a@b.com","amount_cents":1}"#;
        format!("{json}{}", " ".repeat(length - json.len()))
    };
    assert_eq!(submit(&api, body(64 * 1024)).status, 202);
    submit(&api, body(64 * 1024 + 1)).problem(413, "body-too-large");

    // The same without announcing the length.
    let chunked = |length: usize| {
        let body = format!("{length:x}\r\n{}\r\n0\r\n\r\n", body(length));
        post("/v1/orders")
            .header("Idempotency-Key", unique("key"))
            .header("Transfer-Encoding", "chunked")
            .json(body)
            .send(&api.address())
    };
    assert_eq!(chunked(64 * 1024).status, 202);
    chunked(64 * 1024 + 1).problem(413, "body-too-large");
    assert_eq!(stack.count("orders"), 2);
}

#[test]
fn of_several_faults_the_first_in_order_is_reported() {
    let stack = Stack::new();
    let api = stack.api();
    let used = unique("key");
    assert_eq!(api.order(&used, 1).status, 202);
    let other_order = r#"{"customer_email":"a@b.com","amount_cents":2}"#;
    let invalid = r#"{"customer_email":"nobody","amount_cents":2}"#;
    let large = "x".repeat(64 * 1024 + 1);
    let send = |method: &str, path: &str, content_type: &str, key: &str, body: &str| {
        crate::support::http::Request::new(method, path)
            .header("Content-Type", content_type)
            .header("Idempotency-Key", key)
            .body(body)
            .send(&api.address())
    };
    send("PUT", "/v1/nothing", "text/plain", "a b", &large).problem(404, "not-found");
    send("PUT", "/v1/orders", "text/plain", "a b", &large).problem(405, "method-not-allowed");
    send("POST", "/v1/orders", "text/plain", "a b", &large).problem(415, "unsupported-media-type");
    send("POST", "/v1/orders", "application/json", "a b", &large)
        .problem(400, "idempotency-key-invalid");
    send("POST", "/v1/orders", "application/json", &used, &large).problem(413, "body-too-large");
    send("POST", "/v1/orders", "application/json", &used, "{").problem(400, "malformed-json");
    send("POST", "/v1/orders", "application/json", &used, invalid)
        .problem(400, "validation-failed");
    send("POST", "/v1/orders", "application/json", &used, other_order)
        .problem(422, "idempotency-key-reused");
    assert_eq!(stack.count("orders"), 1);
}

#[test]
fn a_failing_database_shows_nothing_of_itself() {
    let stack = Stack::new();
    let api = stack.api();
    stack.execute("ALTER TABLE orders RENAME COLUMN amount_cents TO cents");
    let response = api.order(&unique("key"), 1);
    let text = response.text();
    response.problem(500, "internal-error");
    for secret in [
        "amount_cents",
        "SELECT",
        "INSERT",
        "orders",
        "secret",
        "42703",
    ] {
        assert!(!text.contains(secret), "{text}");
    }
}
