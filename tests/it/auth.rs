//! Bearer tokens in front of `/v1`, on the running api.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::support::http::{Request, Response, get, post};
use crate::support::program::{API, Stack, new_order, run};
use crate::support::token::{Issuer, SECRET, claims, hs256, now};
use crate::support::{eventually, unique};

fn bearer(request: Request, token: &str) -> Request {
    request.header("Authorization", format!("Bearer {token}"))
}

#[track_caller]
fn assert_refused(response: &Response, error: Option<&str>) {
    assert_eq!(response.status, 401, "{}", response.text());
    assert_eq!(
        response.header("Content-Type"),
        Some("application/problem+json")
    );
    assert_eq!(response.json()["type"], "urn:tbd:problem:unauthorized");
    let challenge = response.header("WWW-Authenticate").expect("a challenge");
    assert!(challenge.starts_with("Bearer realm=\"tbd\""), "{challenge}");
    match error {
        None => assert!(!challenge.contains("error"), "{challenge}"),
        Some(error) => assert!(challenge.contains(error), "{challenge}"),
    }
}

#[test]
fn only_requests_with_a_token_of_the_issuers_keys_reach_the_orders() {
    let issuer = Issuer::new();
    let file = std::env::temp_dir().join(unique("jwks"));
    fs::write(&file, issuer.jwks()).expect("write the keys");
    let stack = Stack::new()
        .set("AUTH_JWT_JWKS_FILE", file.to_str().expect("UTF-8"))
        .set("AUTH_JWT_ISSUER", "https://issuer.example")
        .set("AUTH_JWT_AUDIENCE", "tbd");
    let api = stack.api();
    let address = api.address();

    for token in [issuer.rs256(&claims()), issuer.es256(&claims())] {
        let created = bearer(new_order(&unique("key"), 5), &token).send(&address);
        assert_eq!(created.status, 202, "{}", created.text());
        let location = created.header("Location").expect("a location");
        assert_eq!(bearer(get(location), &token).send(&address).status, 200);
    }

    assert_refused(&new_order(&unique("key"), 5).send(&address), None);
    assert_refused(&get("/v1/orders").send(&address), None);
    let mut expired = claims();
    expired["exp"] = json!(now(-60));
    let forged = hs256(
        &json!({ "alg": "HS256", "kid": "rsa" }),
        &claims(),
        &issuer.rsa_public_der(),
    );
    for (token, error) in [
        (issuer.rs256(&expired), "expired"),
        (forged, "invalid_token"),
        (Issuer::new().es256(&claims()), "invalid_token"),
        ("x".repeat(20_000), "invalid_token"),
    ] {
        let refused = bearer(new_order(&unique("key"), 5), &token).send(&address);
        assert_refused(&refused, Some(error));
    }
    assert_eq!(stack.count("orders"), 2);

    // Probes and metrics are open. Path and method are checked before the token, the request after it.
    for open in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(open).send(&address).status, 200, "{open}");
    }
    assert_eq!(get("/v1/nothing").send(&address).status, 404);
    assert_eq!(post("/v1/orders/x").send(&address).status, 405);
    assert_refused(&get("/v1/orders/not-a-uuid").send(&address), None);
    assert_refused(&post("/v1/orders").body("{").send(&address), None);

    let token = issuer.rs256(&claims());
    let log = api.log().join("\n");
    let payload = token.split('.').nth(1).expect("three parts");
    assert!(!log.contains(payload), "a token's claims in the log");
    fs::remove_file(file).expect("remove the keys");
}

#[test]
fn an_idempotency_key_belongs_to_the_caller_who_sent_it() {
    let stack = Stack::new().set("AUTH_JWT_HS256_SECRET", SECRET);
    let api = stack.api();
    let token_with = |changes: &[(&str, Option<&str>)]| {
        let mut claims = claims();
        for (name, value) in changes {
            let fields = claims.as_object_mut().expect("an object");
            match value {
                Some(value) => fields.insert((*name).to_owned(), json!(value)),
                None => fields.remove(*name),
            };
        }
        hs256(&json!({ "alg": "HS256" }), &claims, SECRET.as_bytes())
    };
    let key = unique("key");
    let order = |token: &str, cents| bearer(new_order(&key, cents), token).send(&api.address());
    let mut ids = Vec::new();
    for changes in [
        &[("sub", Some("alice"))][..],
        &[("sub", Some("bob"))],
        &[("sub", Some("alice")), ("iss", Some("another"))],
        &[("sub", Some("alice")), ("iss", None)],
        &[("sub", None)],
    ] {
        let first = order(&token_with(changes), 5);
        assert_eq!(first.status, 202, "{changes:?}: {}", first.text());
        assert_eq!(first.header("Idempotent-Replayed"), None, "{changes:?}");
        ids.push(first.json()["id"].clone());
        // A second token of the same caller is still the same caller.
        let other_token = token_with(&[changes, &[("jti", Some("2"))]].concat());
        let again = order(&other_token, 5);
        assert_eq!((again.status, &again.body), (202, &first.body));
        order(&other_token, 6).problem(422, "idempotency-key-reused");
    }
    assert_eq!(stack.count("orders"), 5);
    assert!((1..ids.len()).all(|at| !ids[..at].contains(&ids[at])));
}

#[test]
fn a_shared_secret_works_as_well_and_is_never_shown() {
    let stack = Stack::new()
        .set("AUTH_JWT_HS256_SECRET", SECRET)
        .set("LOG_LEVEL", "debug");
    let api = stack.api();
    let token = hs256(&json!({ "alg": "HS256" }), &claims(), SECRET.as_bytes());
    let list = bearer(get("/v1/orders"), &token).send(&api.address());
    assert_eq!(list.status, 200, "{}", list.text());
    let other = hs256(&json!({ "alg": "HS256" }), &claims(), &[7; 32]);
    let refused = bearer(get("/v1/orders"), &other).send(&api.address());
    assert_refused(&refused, Some("invalid_token"));
    let log = api.log().join("\n");
    assert!(!log.contains(SECRET) && !log.contains(&token));
}

#[test]
fn keys_are_exchanged_without_a_restart_and_unusable_ones_are_not_taken() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let file = std::env::temp_dir().join(unique("jwks"));
    let replace = |text: String| {
        let next = file.with_extension("next");
        fs::write(&next, text).expect("write the keys");
        fs::rename(next, &file).expect("replace the keys");
    };
    replace(old.jwks());
    let stack = Stack::new().set("AUTH_JWT_JWKS_FILE", file.to_str().expect("UTF-8"));
    let api = stack.api();
    let status = |issuer: &Issuer| {
        let token = issuer.es256(&claims());
        bearer(get("/v1/orders"), &token)
            .send(&api.address())
            .status
    };
    assert_eq!([&old, &new].map(status), [200, 401]);
    replace(new.jwks());
    assert_eq!([&old, &new].map(status), [401, 200]);
    replace("{".to_owned());
    assert_eq!([&old, &new].map(status), [401, 200]);
    let warned = |line: &String| line.contains("the earlier content stays in use");
    eventually(Duration::from_secs(10), "a warning", || {
        api.log().iter().any(warned).then_some(())
    });
    fs::remove_file(&file).expect("remove the keys");
    assert_eq!(status(&new), 200);
}

#[test]
fn an_api_that_cannot_check_tokens_does_not_start() {
    let missing = Stack::new().set("AUTH_JWT_JWKS_FILE", "/nowhere/jwks.json");
    let output = run(missing.command(API));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/nowhere/jwks.json"), "{said}");
}
