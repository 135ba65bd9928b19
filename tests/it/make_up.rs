//! `make up` and `make down`: the effect of each on a running stack.

use std::collections::HashMap;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use postgres::{Client, NoTls};
use tbd::config::{Program, variables};

use crate::support::http::{Response, get, post};
use crate::support::program::{self, API, READY, WORKER, free_port, new_order};
use crate::support::token::{claims, hs256};
use crate::support::{PASSWORD, USER, eventually, own_folder, repository, unique};

/// The first of two or more consecutive free ports.
fn ports_in_a_row(count: u16) -> u16 {
    loop {
        let first = free_port();
        if (1..count).all(|number| free_port() == first + number) {
            return first;
        }
    }
}

/// A stack of two api instances and one worker. Stopped when dropped.
struct MakeUp {
    folder: PathBuf,
    ports: HashMap<&'static str, u16>,
}

impl MakeUp {
    fn new() -> MakeUp {
        let ports = [
            ("HTTP_PORT", free_port()),
            ("GRPC_PORT", free_port()),
            ("API_PORT", ports_in_a_row(2)),
            ("API_GRPC_PORT", ports_in_a_row(2)),
            ("WORKER_PORT", free_port()),
            ("TWIN_PORT", ports_in_a_row(4)),
            ("DB_PORT", free_port()),
            ("KAFKA_PORT", ports_in_a_row(2)),
        ];
        MakeUp {
            folder: own_folder("stack"),
            ports: ports.into(),
        }
    }

    /// Runs one of the scripts with these variables; its output.
    fn run(&self, script: &str, variables: &[(&str, &str)]) -> String {
        let output = Command::new(repository().join("scripts").join(script))
            .env("STATE_DIR", &self.folder)
            .env("TBD_BIN", program::folder())
            .envs([("API", "2"), ("WORKERS", "1")])
            .envs(
                self.ports
                    .iter()
                    .map(|(name, port)| (name, port.to_string())),
            )
            .envs(variables.iter().copied())
            .output()
            .expect("run the script");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{script}: {said}");
        said
    }

    /// The answer of each of `count` instances, on consecutive ports from the named one on.
    fn ask(&self, port: &str, count: u16, ask: impl Fn(&str) -> Response) -> Vec<Response> {
        let ports = (0..count).map(|number| self.ports[port] + number);
        ports
            .map(|port| ask(&format!("127.0.0.1:{port}")))
            .collect()
    }
}

impl Drop for MakeUp {
    fn drop(&mut self) {
        self.run("down", &[]);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_secret_given_to_a_running_stack_reaches_every_instance_and_no_terminal_or_file() {
    const SECRET: &str = "a-secret-of-more-than-32-bytes-for-this-test";
    let stack = MakeUp::new();
    stack.run("up", &[]);
    // A Kafka that has just started, on a busy machine, may take longer than a publish.
    let order = |token: Option<&str>, address: &str| {
        let key = unique("key");
        eventually(READY, "an answer that is not about Kafka", || {
            let order = new_order(&key, 1);
            let order = match token {
                Some(token) => order.header("Authorization", format!("Bearer {token}")),
                None => order,
            };
            Some(order.send(address)).filter(|answer| answer.status != 503)
        })
    };
    for answer in stack.ask("API_PORT", 2, |address| order(None, address)) {
        assert_eq!(answer.status, 202, "{}", answer.text());
    }

    let said = stack.run("up", &[("AUTH_JWT_HS256_SECRET", SECRET)]);
    assert!(said.contains("restarting api-1"), "{said}");
    assert!(!said.contains("restarting worker-1"), "{said}");
    assert!(!said.contains(SECRET), "{said}");
    for answer in stack.ask("API_PORT", 2, |address| order(None, address)) {
        assert_eq!(answer.status, 401, "{}", answer.text());
    }
    let header = serde_json::json!({ "alg": "HS256", "typ": "JWT" });
    let token = hs256(&header, &claims(), SECRET.as_bytes());
    for answer in stack.ask("API_PORT", 2, |address| order(Some(&token), address)) {
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    for kept in fs::read_dir(stack.folder.join("run")).expect("run") {
        let text = fs::read_to_string(kept.expect("a file").path()).expect("text");
        assert!(!text.contains(SECRET), "{text}");
    }

    let said = stack.run("up", &[("AUTH_JWT_HS256_SECRET", SECRET)]);
    assert!(!said.contains("restarting"), "{said}");
    for ready in stack.ask("WORKER_PORT", 1, |address| get("/readyz").send(address)) {
        assert_eq!(ready.status, 200);
    }
    down_answers_what_has_begun(&stack, &token);
}

/// From the edge inwards: nginx accepts nothing new, and its last request still gets its answer.
fn down_answers_what_has_begun(stack: &MakeUp, token: &str) {
    let database = format!(
        "host=127.0.0.1 port={} user={USER} password={PASSWORD} dbname=tbd",
        stack.ports["DB_PORT"]
    );
    let mut holder = Client::connect(&database, NoTls).expect("the stack's database");
    let edge = format!("127.0.0.1:{}", stack.ports["HTTP_PORT"]);
    let lock = "BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE";
    holder.batch_execute(lock).expect("lock the table");
    thread::scope(|scope| {
        let begun = scope.spawn(|| {
            let order = new_order(&unique("key"), 1);
            order
                .header("Authorization", format!("Bearer {token}"))
                .send(&edge)
        });
        let blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        eventually(READY, "a statement to be blocked", || {
            let count: i64 = holder.query_one(blocked, &[]).expect("count").get(0);
            (count > 0).then_some(())
        });
        let down = scope.spawn(|| stack.run("down", &[]));
        eventually(READY, "nginx to take nothing new", || {
            TcpStream::connect(&edge).err()
        });
        holder.batch_execute("ROLLBACK").expect("unlock the table");
        let answer = begun.join().expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
        drop(holder);
        down.join().expect("down");
    });
}

/// The twins' programs take some minutes to build, and have tbd's command line. So tbd's own stand in for
/// them here; the labs run the real ones.
fn stand_ins() -> PathBuf {
    let folder = own_folder("twins");
    for twin in ["async", "go"] {
        let programs = folder.join(twin);
        fs::create_dir_all(&programs).expect("a folder");
        for program in [API, WORKER] {
            let built = program::folder().join(program);
            symlink(built, programs.join(program)).expect("a link");
        }
    }
    folder
}

#[test]
fn twins_run_next_to_tbd_with_a_database_and_topics_of_their_own_until_up_is_run_without_them() {
    let stack = MakeUp::new();
    let twins = stand_ins();
    let twins = twins.to_str().expect("the folder's name is UTF-8");
    stack.run("up", &[("TWIN", "1"), ("GO", "1"), ("TWINS_BIN", twins)]);
    let edge = format!("127.0.0.1:{}", stack.ports["HTTP_PORT"]);
    let key = unique("key");
    for path in [
        "/v1/orders",
        "/twins/async/v1/orders",
        "/twins/go/v1/orders",
    ] {
        let answer = eventually(READY, "an answer that is not about Kafka", || {
            let order = post(path).header("Idempotency-Key", &key);
            let order = order.json(r#"{"customer_email":"a@b.com","amount_cents":1}"#);
            Some(order.send(&edge)).filter(|answer| answer.status != 503)
        });
        let replayed = answer.header("Idempotent-Replayed");
        assert_eq!((answer.status, replayed), (202, None), "{path}");
        let base = path.trim_end_matches("orders");
        let completed = format!("{base}orders?status=completed");
        eventually(READY, "its own worker to complete it", || {
            let orders = get(&completed).send(&edge).json();
            (orders["orders"].as_array().map(Vec::len) == Some(1)).then_some(())
        });
    }
    let said = stack.run("status", &[]);
    for name in ["async-api", "async-worker", "go-api", "go-worker"] {
        let is_ready = |line: &str| line.starts_with(name) && line.contains(" ready ");
        assert!(said.lines().any(is_ready), "{said}");
    }

    stack.run("up", &[("GO", "1"), ("TWINS_BIN", twins)]);
    eventually(READY, "nginx to know no async twin", || {
        let answer = get("/twins/async/readyz").send(&edge);
        (answer.status == 404).then_some(())
    });
    assert_eq!(get("/twins/go/readyz").send(&edge).status, 200);
    let said = stack.run("status", &[]);
    assert!(!said.contains("async-"), "{said}");
    let _ = fs::remove_dir_all(twins);
}

/// Prints `NAME FINGERPRINT` for each variable of `changed`, with that one alone set to `value`.
const FINGERPRINTS: &str = r#"
set -euo pipefail
source scripts/lib.sh; source scripts/stack.sh
db_port=1 kafka_port=2 participant_grpc_port=5
printf 'unchanged %s\n' "$(settings "$program" 3 4)"
for name in $changed; do printf '%s %s\n' "$name" "$(export "$name=$value"; settings "$program" 3 4)"; done
"#;

/// A folder of small programs that stand in for tbd's.
fn programs() -> PathBuf {
    let folder = own_folder("programs");
    fs::create_dir_all(&folder).expect("a folder");
    for program in [API, WORKER] {
        let path = folder.join(program);
        let built = program::folder().join(program);
        let script = format!("#!/bin/sh\nexec {} \"$@\"\n", built.display());
        fs::write(&path, script).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }
    folder
}

/// The fingerprint of a stack's current settings, and with each of `changed` set to `value`.
fn fingerprints(
    programs: &Path,
    program: &str,
    changed: &[&str],
    value: &str,
) -> HashMap<String, String> {
    let output = Command::new("bash")
        .args(["-c", FINGERPRINTS])
        .current_dir(repository())
        .env("TBD_BIN", programs)
        .env("program", program)
        .env("changed", changed.join(" "))
        .env("value", value)
        .output()
        .expect("run bash");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(name, print)| (name.to_owned(), print.to_owned()))
        .collect()
}

#[test]
fn no_variable_of_a_program_can_change_without_its_instances_being_restarted() {
    // The stack itself decides its servers' addresses.
    const THE_STACKS: [&str; 11] = [
        "API_PORT",
        "API_GRPC_PORT",
        "WORKER_PORT",
        "DB_HOST",
        "DB_PORT",
        "DB_USER",
        "DB_PASSWORD",
        "DB_NAME",
        "KAFKA_BROKERS",
        "INVENTORY_ADDRESS",
        "PAYMENTS_ADDRESS",
    ];
    let programs = programs();
    for (program, name) in [(Program::Api, "api"), (Program::Worker, "worker")] {
        let names: Vec<&str> = variables(program).map(|variable| variable.name).collect();
        let prints = fingerprints(&programs, name, &names, "changed");
        assert_eq!(prints.len(), names.len() + 1);
        for changed in names {
            let is_the_same = prints[changed] == prints["unchanged"];
            assert_eq!(is_the_same, THE_STACKS.contains(&changed), "{changed}");
        }
    }
    let _ = fs::remove_dir_all(programs);
}

#[test]
fn a_file_with_other_keys_under_the_same_name_counts_as_a_change() {
    let programs = programs();
    let keys = programs.join("keys.json");
    let keys = keys.to_str().expect("the folder's name is UTF-8");
    let print = |text: &str| {
        fs::write(keys, text).expect("write the keys");
        let name = "AUTH_JWT_JWKS_FILE";
        fingerprints(&programs, "api", &[name], keys)[name].clone()
    };
    let prints = [print("old"), print("new"), print("new")];
    let _ = fs::remove_dir_all(&programs);
    assert_ne!(prints[0], prints[1]);
    assert_eq!(prints[1], prints[2]);
}
