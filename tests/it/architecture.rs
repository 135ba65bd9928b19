//! The allowed dependencies between modules, checked in the sources: the compiler lets a module use
//! any other.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{files_below, repository};

/// For each folder or file of `src`: what it may use of this crate and of the libraries in
/// `crates/`, besides itself. The first match counts. Cargo's manifests hold the rest.
const ARROWS: &[(&str, &[&str])] = &[
    ("orders/domain", &[]),
    ("orders/ports", &["orders::domain", "tbd_deadline"]),
    (
        "orders/app",
        &["orders::domain", "orders::ports", "tbd_deadline"],
    ),
    (
        "orders/adapters/grpc",
        &[
            "orders::app",
            "orders::domain",
            "orders::ports",
            "orders::adapters::http",
            "proto",
            "tbd_grpc",
            "tbd_http",
            "tbd_telemetry",
            "tbd_deadline",
        ],
    ),
    (
        "orders/adapters/http",
        &[
            "orders::app",
            "orders::domain",
            "orders::ports",
            "orders::adapters::wire",
            "tbd_http",
            "tbd_telemetry",
            "tbd_deadline",
        ],
    ),
    (
        "orders/adapters/postgres",
        &[
            "orders::app",
            "orders::domain",
            "orders::ports",
            "orders::adapters::breaker",
            "tbd_postgres",
            "tbd_telemetry",
            "tbd_deadline",
        ],
    ),
    (
        "orders/adapters/kafka",
        &[
            "orders::app",
            "orders::domain",
            "orders::ports",
            "orders::adapters::wire",
            "orders::adapters::breaker",
            "metrics",
            "tbd_telemetry",
            "tbd_deadline",
            "tbd_kafka",
        ],
    ),
    (
        "orders/adapters/participants",
        &[
            "orders::adapters::breaker",
            "orders::domain",
            "orders::ports",
            "proto",
            "tbd_telemetry",
            "tbd_deadline",
            "tbd_grpc",
        ],
    ),
    (
        "orders/adapters",
        &[
            "orders::domain",
            "orders::ports",
            "metrics",
            "tbd_telemetry",
            "tbd_deadline",
        ],
    ),
    ("participants/domain", &[]),
    (
        "participants/ports",
        &["participants::domain", "tbd_deadline"],
    ),
    (
        "participants/adapters",
        &[
            "participants::domain",
            "participants::ports",
            "auth",
            "metrics",
            "proto",
            "tbd_deadline",
            "tbd_grpc",
            "tbd_http",
            "tbd_postgres",
            "tbd_telemetry",
            "tbd_tls",
        ],
    ),
    ("auth", &["tbd_http"]),
    // Settings have the types of what they configure.
    (
        "config",
        &[
            "orders::app",
            "participants::domain",
            "tbd_kafka",
            "tbd_postgres",
            "tbd_telemetry",
            "tbd_tls",
        ],
    ),
];

#[test]
fn every_module_knows_only_what_it_may_know() {
    let folder = repository().join("src");
    let mut faults = Vec::new();
    for file in sources(&folder) {
        let place = file
            .strip_prefix(&folder)
            .expect("below src")
            .with_extension("");
        let place = place
            .to_str()
            .expect("a UTF-8 path")
            .trim_end_matches("/mod");
        let Some((room, allowed)) = ARROWS.iter().find(|(room, _)| is_below(place, room, '/'))
        else {
            continue;
        };
        // Tests may use more than the code they test.
        if file.ends_with("tests.rs") {
            continue;
        }
        let own = room.replace('/', "::");
        let text = fs::read_to_string(&file).expect("read a source");
        for path in crate_paths(&text) {
            let known = allowed.iter().copied().chain([own.as_str()]);
            if !known.into_iter().any(|known| is_below(&path, known, ':')) {
                faults.push(format!("src/{place}.rs uses {path}"));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "against the arrows of tests/it/architecture.rs:\n{}",
        faults.join("\n")
    );
}

#[test]
fn the_rules_speak_of_rooms_that_exist() {
    let sources = repository().join("src");
    for (room, allowed) in ARROWS {
        let uses = allowed.iter().map(|path| match path.strip_prefix("tbd_") {
            Some(library) => format!("../crates/{library}"),
            None => path.replace("::", "/"),
        });
        for place in uses.chain([(*room).to_owned()]) {
            let found =
                sources.join(&place).is_dir() || sources.join(format!("{place}.rs")).is_file();
            assert!(found, "{place}");
        }
    }
}

#[test]
fn the_code_is_neither_asynchronous_nor_unsafe() {
    let sources = ["src", "crates"].map(sources);
    // The database driver asks for a future that negotiates TLS.
    let negotiation = repository().join("crates/postgres/src/tls.rs");
    for file in sources.concat() {
        if file == negotiation {
            continue;
        }
        let text = fs::read_to_string(&file).expect("read a source");
        for word in [
            "async fn",
            "async move",
            "async {",
            ".await;",
            ".await?",
            ".await)",
            "unsafe {",
            "unsafe fn",
        ] {
            let used = code_lines(&text).any(|line| line.contains(word));
            assert!(!used, "{word} in {}", file.display());
        }
    }
}

/// The sources below one of the repository's folders.
fn sources(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut files = files_below(folder);
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files
}

fn is_below(path: &str, folder: &str, separator: char) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// Every path that starts at the crate's root, without `crate::`, and every workspace library.
/// Groups in braces are expanded.
fn crate_paths(text: &str) -> Vec<String> {
    let code: String = code_lines(text).collect::<Vec<_>>().join("\n");
    let is_other = |c: char| c != '_' && !c.is_alphanumeric();
    let libraries = code
        .split("::")
        .filter_map(|before| before.rsplit(is_other).next())
        .filter(|word| word.starts_with("tbd_"))
        .map(str::to_owned);
    let rooms = code
        .match_indices("crate::")
        // `$crate::` and `my_crate::` are something else.
        .filter(|(at, _)| {
            !code[..*at].ends_with(|c: char| c == '$' || c == '_' || c.is_alphanumeric())
        })
        .flat_map(|(at, found)| expand(&code[at + found.len()..]));
    rooms.chain(libraries).collect()
}

fn expand(rest: &str) -> Vec<String> {
    let end = rest
        .find(|c: char| !(c == ':' || c == '_' || c.is_alphanumeric()))
        .unwrap_or(rest.len());
    let (path, behind) = rest.split_at(end);
    let Some(group) = behind.strip_prefix('{') else {
        return vec![path.trim_end_matches(':').to_owned()];
    };
    members(group)
        .iter()
        .flat_map(|member| expand(member))
        .map(|member| format!("{path}{member}"))
        .collect()
}

/// The members of a group, split at its own commas.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(group[start..at].trim());
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(group[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    found.retain(|member| !member.is_empty());
    found
}

#[test]
fn groups_of_imports_are_taken_apart() {
    let text = "use crate::a::B;\nuse crate::{c::{D, e::F},\n  g};\n// use crate::h;\nlet x = crate::i::j();\nuse tbd_k::L; \"tbd_no\"";
    let expected = ["a::B", "c::D", "c::e::F", "g", "i::j", "tbd_k"];
    assert_eq!(crate_paths(text), expected);
}
