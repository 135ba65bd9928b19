//! The labs of docs/labs.md in their short form: what each shows must hold on a busy machine, too.

use std::env;
use std::process::{Command, Stdio};

use crate::support::program::folder;
use crate::support::{kafka, postgres, repository};

/// The folder of the twins' programs (`scripts/twins`), for the labs that compare with them. Their build takes
/// long, so it is not part of every run.
const TWINS: &str = "TBD_TEST_TWINS";

/// Runs a lab on the tests' servers; it fails if it does not show what it should.
fn lab(number: u32) {
    let database = postgres();
    let server = format!("{}:{}", database.host, database.port);
    let mut lab = Command::new(repository().join("scripts/lab"));
    lab.arg(number.to_string())
        .env("SHORT", "1")
        .env("TBD_BIN", folder())
        .env("LAB_POSTGRES", server)
        .env("LAB_KAFKA", kafka())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(twins) = env::var_os(TWINS) {
        lab.env("TWINS_BIN", twins).env("TWIN", "1").env("GO", "1");
    }
    let lab = lab.spawn().expect("run the lab");
    let own = format!(
        "SELECT count(*) FROM pg_database WHERE datname LIKE 'lab%\\_{}'",
        lab.id()
    );
    let output = lab.wait_with_output().expect("the lab's output");
    let (said, errors) = (&output.stdout, &output.stderr);
    let [said, errors] = [said, errors].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "lab {number}: {said}\n{errors}");
    assert!(said.contains("\n  yes  "), "it claims something: {said}");
    let left: i64 = database
        .connect()
        .query_one(&own, &[])
        .expect("count")
        .get(0);
    assert_eq!(left, 0, "its database is gone");
}

/// One test, since each lab puts load on the machine for some seconds: one after the other, next to the
/// other tests.
#[test]
fn every_lab_shows_what_it_claims() {
    (1..=8).for_each(lab);
}
