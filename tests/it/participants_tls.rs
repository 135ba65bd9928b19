//! The worker and the participants of sagas, each with a certificate, and a token that is replaced.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::support::certificates::{Authority, Validity};
use crate::support::eventually;
use crate::support::services::Site;
use crate::support::token::{SECRET, claims, hs256, now};

const SOON: Duration = Duration::from_secs(60);

fn token(seconds: i64) -> String {
    let mut claims = claims();
    claims["exp"] = json!(now(seconds));
    hs256(&json!({ "alg": "HS256" }), &claims, SECRET.as_bytes())
}

#[test]
fn sagas_wait_for_a_worker_that_is_not_admitted_and_end_with_its_new_files() {
    let authority = Authority::new("tests");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let server = authority.issue("127.0.0.1", Validity::Now);
    let ca_file = text(&authority.ca_file());
    let mut site = Site::new(&[
        ("GRPC_TLS_CERT_FILE", &text(&server.certificate)),
        ("GRPC_TLS_KEY_FILE", &text(&server.key)),
        ("GRPC_TLS_CLIENT_CA_FILE", &ca_file),
        ("AUTH_JWT_HS256_SECRET", SECRET),
    ]);
    let ours = authority.issue("tbd-worker", Validity::Now);
    let token_file = authority.folder().join("token");
    fs::write(&token_file, token(600)).expect("write a token");
    site.stack = site
        .stack
        .set("PARTICIPANTS_TLS_CA_FILE", &ca_file)
        .set("PARTICIPANTS_TLS_CERT_FILE", &text(&ours.certificate))
        .set("PARTICIPANTS_TLS_KEY_FILE", &text(&ours.key))
        .set("PARTICIPANTS_TOKEN_FILE", &text(&token_file));
    let worker = site.stack.worker();
    site.order(1299);
    site.settle(SOON);
    assert_eq!(site.books(), [0, 1, 0, 1]);

    // An expired token: the participants refuse, and no order fails for it.
    let bad = token(-120);
    fs::write(&token_file, &bad).expect("write a token");
    let waiting = site.order(1299);
    let refused = |program: &crate::support::program::Program, hint: &str| {
        eventually(SOON, hint, || {
            program
                .log()
                .iter()
                .any(|line| line.contains(hint))
                .then_some(())
        });
    };
    refused(&site.inventory.program, "UNAUTHENTICATED");
    assert_eq!(site.stack.status(&waiting), "processing");
    fs::write(&token_file, token(600)).expect("write a token");
    site.settle(SOON);
    assert_eq!(site.books(), [0, 2, 0, 2]);

    // A certificate of another name, which a new connection shows: refused as well.
    ours.become_those_of(&authority.issue("stranger", Validity::Now));
    site.inventory.program.kill();
    site.inventory.restart();
    let waiting = site.order(1299);
    refused(
        &site.inventory.program,
        "none of the names in ALLOWED_CLIENTS",
    );
    assert_eq!(site.stack.status(&waiting), "processing");
    ours.become_those_of(&authority.issue("tbd-worker", Validity::Now));
    site.inventory.program.kill();
    site.inventory.restart();
    site.settle(SOON);
    assert_eq!(site.books(), [0, 3, 0, 3]);
    for program in [&worker, &site.inventory.program] {
        let log = program.log().join("\n");
        assert!(!log.contains(&bad) && !log.contains("PRIVATE KEY"));
    }
}
