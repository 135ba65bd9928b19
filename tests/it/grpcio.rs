//! gRPC's Python library as a client of the orders API: directly, over TLS, and through nginx.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::support::certificates::{Authority, Validity};
use crate::support::edge::Edge;
use crate::support::program::{READY, Stack};

/// tests/grpcio/orders.py, with what `scripts/fetch` has installed for it.
fn orders_py(arguments: &[&str]) -> Command {
    let script = "set -euo pipefail; source scripts/lib.sh; scripts/fetch grpcio >&2
        exec \"$GRPCIO_HOME/bin/python\" tests/grpcio/orders.py \"$@\"";
    let mut command = Command::new("bash");
    command
        .args(["-c", script, "orders.py"])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    command
}

#[track_caller]
fn succeeds(arguments: &[&str]) {
    let status = orders_py(arguments).status().expect("start Python");
    assert!(status.success(), "{arguments:?}");
}

/// The health statuses that the library receives, one a line.
struct Watch {
    python: Child,
    statuses: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(address: &str) -> Watch {
        let mut command = orders_py(&["watch", address]);
        let mut python = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("start Python");
        let output = python.stdout.take().expect("a pipe");
        let statuses = BufReader::new(output).lines();
        Watch { python, statuses }
    }

    fn next(&mut self) -> Option<String> {
        self.statuses.next().transpose().expect("a line")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.python.kill();
        let _ = self.python.wait();
    }
}

#[test]
fn every_method_and_every_detail_of_an_error_reaches_grpcio_directly_and_through_nginx() {
    let stack = Stack::new();
    let api = stack.api();
    let direct = format!("127.0.0.1:{}", api.grpc_port());
    succeeds(&["calls", &direct]);

    let holder = stack.database.holding_orders();
    succeeds(&["blocked", &direct]);
    drop(holder);

    let mut apis = [api, stack.api()];
    let edge = Edge::in_front_of(&apis);
    succeeds(&["calls", &edge.grpc_address()]);

    let mut watch = Watch::start(&direct);
    assert_eq!(watch.next().as_deref(), Some("SERVING"));
    apis[0].terminate();
    assert_eq!(watch.next().as_deref(), Some("NOT_SERVING"));
    assert_eq!(watch.next(), None, "GOAWAY ends the stream");
    assert_eq!(apis[0].wait(READY).code(), Some(0));
    assert!(watch.python.wait().expect("an end").success());
}

#[test]
fn grpcio_calls_over_tls() {
    let authority = Authority::new("tbd-test");
    let files = authority.issue("localhost", Validity::Now);
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let stack = Stack::new()
        .set("API_GRPC_TLS_CERT_FILE", &path(&files.certificate))
        .set("API_GRPC_TLS_KEY_FILE", &path(&files.key));
    let api = stack.api();
    let address = format!("localhost:{}", api.grpc_port());
    succeeds(&["calls", &address, &path(&authority.ca_file())]);
}
