//! The real nginx with this repository's configuration in front of two real apis: what hostile and odd clients get, and
//! that nobody else notices.

use super::support::edge::Edge;
use super::support::http::{Connection, Response};
use super::support::program::{Program, Stack};
use super::support::unique;

struct House {
    stack: Stack,
    apis: [Program; 2],
    edge: Edge,
}

impl House {
    fn new() -> House {
        let stack = Stack::new();
        let apis = [stack.start_api(), stack.start_api()].map(Program::ready);
        let edge = Edge::in_front_of(&apis);
        House { stack, apis, edge }
    }

    /// Sends bytes on a connection of their own; the answer.
    #[track_caller]
    fn ask(&self, request: &[u8]) -> Response {
        let mut connection = Connection::open(&self.edge.address());
        connection.write(request);
        connection.read()
    }

    /// What a sample of the two apis adds up to.
    fn sum(&self, sample: &str) -> f64 {
        let value = |api: &Program| api.metric(sample).unwrap_or(0.0);
        self.apis.iter().map(value).sum()
    }
}

const ORDER: &str = r#"{"customer_email":"user@example.com","amount_cents":1299}"#;

/// A request for an order with these header lines, each with its line end.
fn order_with(headers: &[u8]) -> Vec<u8> {
    let length = ORDER.len();
    let head = format!(
        "POST /v1/orders HTTP/1.1\r\nHost: tbd\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    );
    [head.as_bytes(), headers, b"\r\n", ORDER.as_bytes()].concat()
}

fn key() -> Vec<u8> {
    format!("Idempotency-Key: {}\r\n", unique("key")).into_bytes()
}

#[test]
fn bytes_beyond_ascii_are_refused_or_kept_from_the_api() {
    let house = House::new();
    let beyond: [&[u8]; 2] = ["ü".as_bytes(), b"\xff"];
    for bytes in beyond {
        // What the api cannot do without.
        for name in ["Idempotency-Key", "If-Match", "If-None-Match"] {
            let line = [name.as_bytes(), b": k", bytes, b"\r\n"].concat();
            let answer = house.ask(&order_with(&line));
            assert_eq!(answer.status, 400, "{name}: {}", answer.text());
            let media_type = answer.header("Content-Type");
            assert_eq!(media_type, Some("application/problem+json"));
            assert_eq!(answer.json()["status"], 400);
        }
        for path in ["/healthz", "/v1/orders", "/v1/orders/"] {
            let target = [path.as_bytes(), b"?", bytes].concat();
            let request = [b"GET ", &target[..], b" HTTP/1.1\r\nHost: tbd\r\n\r\n"].concat();
            assert_eq!(house.ask(&request).status, 400, "{path}");
        }
        // What it can.
        for name in [
            "User-Agent",
            "X-Request-Id",
            "traceparent",
            "tracestate",
            "X-Forwarded-For",
            "Cookie",
            "X-Unheard-Of",
        ] {
            let line = [name.as_bytes(), b": ", bytes, b"\r\n"].concat();
            let answer = house.ask(&order_with(&[key(), line.clone()].concat()));
            assert_eq!(answer.status, 202, "{name}: {}", answer.text());
            let request = [
                b"GET /v1/orders/x HTTP/1.1\r\nHost: tbd\r\n",
                &line[..],
                b"\r\n",
            ];
            house
                .ask(&request.concat())
                .problem(400, "validation-failed");
        }
    }
    // No instance was taken out of service by connections that had to be closed.
    let orders = house.sum("orders_created_total");
    assert_eq!(orders, 14.0);
}

#[test]
fn a_second_idempotency_key_is_seen_through_the_proxy() {
    let house = House::new();
    let one = key();
    for keys in [[one.clone(), one], [key(), key()]] {
        let answer = house.ask(&order_with(&keys.concat()));
        answer.problem(400, "idempotency-key-invalid");
    }
    assert_eq!(house.stack.count("orders"), 0);
}
