//! Commands and figures in README.md and docs/, compared with the files that they name.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tbd::orders::adapters::postgres::submission::{ROWS_MAX, WRITERS};

use crate::support::program::{Stack, id};
use crate::support::{read, repository};

/// The pages with commands to try.
fn pages() -> Vec<PathBuf> {
    let files = fs::read_dir(repository().join("docs")).expect("docs");
    let files = files.map(|file| file.expect("a file").path());
    let pages = files.filter(|path| path.extension().is_some_and(|end| end == "md"));
    pages.chain(["README.md".into()]).collect()
}

/// The commands in the code blocks of these pages, without comments; a continued line is one command.
fn command_lines(pages: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    for page in pages {
        let (mut is_shell, mut command) = (false, String::new());
        for line in read(page).lines().map(str::trim) {
            if line.starts_with("```") {
                is_shell = !is_shell && matches!(line, "```sh" | "```bash");
                continue;
            }
            let code = line.split(" #").next().unwrap_or_default().trim_end();
            if !is_shell || code.is_empty() || code.starts_with('#') {
                continue;
            }
            command.push_str(code.trim_end_matches('\\'));
            if !code.ends_with('\\') {
                found.push(std::mem::take(&mut command));
            }
        }
    }
    found
}

/// The simple commands in them: their words, without options and assignments.
fn commands() -> Vec<Vec<String>> {
    let mut pages = pages();
    pages.push("loadtest/README.md".into());
    let is_word = |word: &&str| !word.starts_with('-') && !word.contains('=');
    let lines = command_lines(&pages);
    let parts = lines
        .iter()
        .flat_map(|code| code.split([';', '|', '(', ')', '&', '"']));
    let words = parts.map(|command| command.split_whitespace().filter(is_word));
    words
        .map(|words| words.map(str::to_owned).collect())
        .collect()
}

/// Every documented command is run by a named file, or there is a reason why nothing runs it.
#[test]
fn every_command_of_the_pages_is_run_or_says_why_not() {
    let table = read("tests/it/commands.txt");
    let mut entries = Vec::new();
    for section in table.split("\n\n").skip(1) {
        let (head, lines) = section.split_once('\n').expect("a head");
        if let Some(by) = head.strip_prefix("run by ") {
            let (file, text) = by.split_once(": ").expect("a file and its text");
            assert!(read(file).contains(text), "{file} has no {text}");
        } else {
            assert!(head.starts_with("not run: "), "{head}");
        }
        entries.extend(lines.lines());
    }
    let commands = command_lines(&pages());
    assert!(commands.len() > 150, "{}", commands.len());
    for command in &commands {
        let is_listed = entries.iter().any(|entry| command.starts_with(entry));
        assert!(is_listed, "tests/it/commands.txt does not list: {command}");
    }
    for entry in entries {
        let is_there = commands.iter().any(|command| command.starts_with(entry));
        assert!(is_there, "no page has: {entry}");
    }
}

#[test]
fn the_examples_of_the_readme_are_answered() {
    const SAMPLE: &str = "01922f3e-8a54-7cc1-9a63-5d0f4c1b7e21";
    let stack = Stack::new();
    let api = stack.api();
    let created = api.accepted_order();
    let mut statuses = Vec::new();
    for command in command_lines(&["README.md".into()]) {
        if !command.starts_with("curl ") {
            continue;
        }
        let here = command.replace("localhost:8080", &api.address());
        let here = here.replace("localhost:8081", &api.address());
        let here = here.replace(SAMPLE, id(&created));
        let quiet = here.replacen(
            "curl ",
            "curl -s -o /dev/null -w '%{http_code}' --noproxy '*' ",
            1,
        );
        let output = Command::new("bash").args(["-c", &quiet]).output();
        let answer = output.expect("run curl").stdout;
        let status = String::from_utf8(answer).expect("a status");
        statuses.push((command, status));
    }
    let codes: Vec<&str> = statuses.iter().map(|(_, status)| &**status).collect();
    assert_eq!(codes, ["202", "200", "200", "200", "200"], "{statuses:#?}");
}

#[test]
fn commands_name_services_targets_and_scripts_that_exist() {
    const OF_SERVICES: [&str; 9] = [
        "build", "logs", "pause", "ps", "restart", "start", "stop", "unpause", "up",
    ];
    let (compose, makefile) = (read("docker-compose.yml"), read("Makefile"));
    let (mut services, mut targets, mut scripts) = (0, 0, 0);
    for command in commands() {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let named = match &words[..] {
            ["docker", "compose", "exec", service, ..] => std::slice::from_ref(service),
            ["docker", "compose", verb, named @ ..] if OF_SERVICES.contains(verb) => named,
            _ => &[],
        };
        for service in named {
            assert!(compose.contains(&format!("\n  {service}:\n")), "{words:?}");
            services += 1;
        }
        if let ["make", target, ..] = &words[..] {
            assert!(makefile.contains(&format!("\n{target}:")), "{words:?}");
            targets += 1;
        }
        for script in words.iter().filter(|word| word.ends_with(".js")) {
            assert!(repository().join(script).exists(), "{words:?}");
            scripts += 1;
        }
    }
    let enough = services > 15 && targets > 15 && scripts > 1;
    assert!(enough, "{services} {targets} {scripts}");
}

#[test]
fn the_tour_is_an_afternoon_and_states_the_lengths_of_its_files() {
    let tour = read("docs/tour.md");
    let files = tour.lines().filter_map(|row| {
        let cells: Vec<&str> = row.split(['|', '`']).map(str::trim).collect();
        let [_, _, _, path, _, stated, ..] = cells[..] else {
            return None;
        };
        Some((path, stated.parse::<usize>().ok()?))
    });
    let (mut number, mut sum) = (0, 0);
    for (path, stated) in files {
        let lines = read(path).lines().count();
        // A tenth: not every change of a file changes the tour.
        assert!(lines.abs_diff(stated) * 10 <= lines, "{path}: {lines}");
        (number, sum) = (number + 1, sum + lines);
    }
    assert!(number == 12 && sum <= 2000, "{number} files, {sum} lines");
}

/// The sum of the limits in these parts of a Compose file, in GiB.
fn memory<'a>(services: impl Iterator<Item = &'a str>) -> f64 {
    let limits = services
        .flat_map(str::lines)
        .filter_map(|line| line.trim().strip_prefix("mem_limit: "));
    let mebibytes = |limit: &str| {
        let limit = limit.split(' ').next().unwrap_or_default();
        let (number, unit) = limit.split_at(limit.len() - 1);
        let number: u32 = number.parse().expect("a number");
        number * if unit == "g" { 1024 } else { 1 }
    };
    f64::from(limits.map(mebibytes).sum::<u32>()) / 1024.0
}

#[test]
fn the_memory_of_compose_is_the_sum_of_its_limits() {
    let compose = read("docker-compose.yml");
    let services: Vec<&str> = compose.split("\n\n").collect();
    let of = |name: &str| {
        let mut found = services.iter().filter(|it| {
            let mut lines = it.lines();
            lines.any(|line| line.strip_prefix("  ") == Some(&format!("{name}:")))
        });
        *found.next().unwrap_or_else(|| panic!("no service {name}"))
    };
    // The participants are started by a profile only, and their limit is stated for each.
    let all = memory(
        services
            .iter()
            .copied()
            .filter(|it| !it.contains("profiles: ")),
    );
    let small = memory(
        ["nginx", "api", "worker", "postgres", "kafka"]
            .map(of)
            .into_iter(),
    );
    let override_file = read("docker-compose.ha.yml");
    let copies = override_file
        .lines()
        .filter_map(|line| line.split_once("extends: {file: docker-compose.yml, service: "))
        .map(|(_, service)| of(service.trim_end_matches('}')));
    let more = memory(copies);
    for (page, stated) in [
        ("compose", format!("all together they may use {all} GiB")),
        (
            "compose",
            format!("the user interfaces and observers it is {small} GiB"),
        ),
        ("scaling", format!("It may use {more} GiB more memory")),
    ] {
        let text = read(format!("docs/{page}.md")).replace('\n', " ");
        assert!(text.contains(&stated), "{stated}");
    }
}

#[test]
fn the_page_on_scaling_shows_what_its_program_prints() {
    let program = repository().join("loadtest/scaling.py");
    let output = Command::new(&program).output().expect("run it");
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(read("docs/scaling.md").contains(&printed), "{printed}");
    let constants = format!("\nROWS_MAX, WRITERS = {ROWS_MAX}, {WRITERS} ");
    assert!(read(program).contains(&constants), "{constants}");
}
