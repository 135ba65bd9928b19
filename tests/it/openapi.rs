//! `openapi.yaml` and the running api say the same.

use std::process::Command;

use super::support::program::Stack;
use super::support::repository;

#[test]
fn the_api_keeps_every_promise_of_openapi_yaml() {
    let stack = Stack::new();
    let api = stack.api();
    let output = Command::new(repository().join("scripts/schemathesis"))
        .arg(format!("http://{}", api.address()))
        .output()
        .expect("run scripts/schemathesis");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
