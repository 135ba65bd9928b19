//! The programs' dependencies, compared with reviewed lists. Works offline, on the packages that Cargo
//! has downloaded for the build. Known vulnerabilities need a downloaded database
//! (`cargo deny check advisories`, `cargo audit`). deny.toml repeats the lists for cargo-deny.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::support::repository;

/// The accepted licences, as the crates spell them.
const LICENCES: &[&str] = &[
    "(MIT OR Apache-2.0) AND Unicode-3.0",
    "0BSD OR MIT OR Apache-2.0",
    "Apache-2.0",
    "Apache-2.0 / MIT",
    "Apache-2.0 AND ISC",
    "Apache-2.0 OR BSL-1.0",
    "Apache-2.0 OR BSL-1.0 OR MIT",
    "Apache-2.0 OR ISC OR MIT",
    "Apache-2.0 OR MIT",
    "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
    "BSD-2-Clause OR Apache-2.0 OR MIT",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT OR Apache-2.0",
    "MIT OR Zlib OR Apache-2.0",
    "MIT/Apache-2.0",
    "Unlicense OR MIT",
    "Zlib",
    "Zlib OR Apache-2.0 OR MIT",
];

/// Crates present in several versions, because their users require different ones.
const DUPLICATES: &[&str] = &[
    "base64",
    "getrandom",
    "linux-raw-sys",
    "rand",
    "rand_core",
    "rustix",
    "syn",
];

/// Crates that must not come in: async runtimes, their HTTP stacks, C libraries for TLS, and
/// unmaintained crates.
const BANNED: &[&str] = &[
    "async-io",
    "async-std",
    "chrono",
    "failure",
    "hyper",
    "kafka",
    "native-tls",
    "openssl",
    "openssl-sys",
    "rdkafka",
    "reqwest",
    "rsa",
    "smol",
    "time",
    "tonic",
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The packages that are built into the programs or help to build them, without those of tests.
struct Packages {
    root: String,
    by_id: BTreeMap<String, Value>,
    uses: BTreeMap<String, Vec<String>>,
}

impl Packages {
    fn read() -> Packages {
        let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version=1", "--locked", "--offline"])
            .args(["--filter-platform", &host])
            .current_dir(repository())
            .output()
            .expect("run cargo metadata");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let mut by_id = BTreeMap::new();
        for package in metadata["packages"].as_array_mut().expect("packages") {
            by_id.insert(text(&package["id"]), package.take());
        }
        let is_shipped = |used: &&Value| {
            let kinds = used["dep_kinds"].as_array().expect("kinds");
            kinds.iter().any(|kind| kind["kind"] != "dev")
        };
        let mut uses = BTreeMap::new();
        for node in metadata["resolve"]["nodes"].as_array().expect("nodes") {
            let used = node["deps"].as_array().expect("dependencies");
            let used = used.iter().filter(is_shipped);
            uses.insert(
                text(&node["id"]),
                used.map(|used| text(&used["pkg"])).collect(),
            );
        }
        Packages {
            root: text(&metadata["resolve"]["root"]),
            by_id,
            uses,
        }
    }

    /// The packages reached from the application without passing through the packages `closed`, the
    /// workspace's own excluded.
    fn reached_without(&self, closed: &[&str]) -> Vec<&Value> {
        let (mut seen, mut next) = (BTreeSet::new(), vec![self.root.as_str()]);
        while let Some(id) = next.pop() {
            let name = self.by_id[id]["name"].as_str().expect("a name");
            if !closed.contains(&name) && seen.insert(id) {
                next.extend(self.uses[id].iter().map(String::as_str));
            }
        }
        let packages = seen.into_iter().map(|id| &self.by_id[id]);
        let is_ours = |package: &&Value| {
            let name = package["name"].as_str();
            package["source"].is_null() && name.is_some_and(|name| name.starts_with("tbd"))
        };
        packages.filter(|package| !is_ours(package)).collect()
    }

    fn all(&self) -> Vec<&Value> {
        self.reached_without(&[])
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

#[test]
fn dependencies_have_known_licences_and_come_from_the_registry() {
    let packages = Packages::read();
    assert!(packages.all().len() > 100);
    for package in packages.all() {
        let name = &package["name"];
        let licence = package["license"].as_str().unwrap_or("none");
        assert!(LICENCES.contains(&licence), "{name}: licence {licence}");
        assert_eq!(package["source"], CRATES_IO, "{name}");
    }
}

#[test]
fn no_dependency_is_banned_and_only_known_ones_are_there_twice() {
    let packages = Packages::read();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages.all() {
        let name = package["name"].as_str().expect("a name");
        assert!(!BANNED.contains(&name), "{name}");
        let version = package["version"].as_str().expect("a version");
        versions.entry(name).or_default().insert(version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    let twice: Vec<&str> = versions.into_keys().collect();
    assert_eq!(twice, DUPLICATES);
}

#[test]
fn tokio_is_there_for_the_database_driver_alone() {
    let packages = Packages::read();
    let named = |packages: Vec<&Value>, name: &str| packages.iter().any(|p| p["name"] == name);
    assert!(
        named(packages.all(), "tokio"),
        "then the README says too much"
    );
    // The second hands the first a stream, whose traits are tokio's.
    let database = ["postgres", "tbd-postgres"];
    assert!(!named(packages.reached_without(&database), "tokio"));
}
