//! `tbd-worker dlq`: inspection and replay of dead letters.

use std::time::Duration;

use crate::support::program::{Program, Stack, WORKER, id, run};
use crate::support::topic::{self, Record, configure, records, wait_for_records, write};

const SOON: Duration = Duration::from_secs(60);

/// Standard output, standard error and exit code of `tbd-worker dlq ...`.
fn dlq(stack: &Stack, arguments: &[&str]) -> (String, String, i32) {
    let mut command = stack.command(WORKER);
    command.arg("dlq").args(arguments);
    let output = run(command);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        text(output.stdout),
        text(output.stderr),
        output.status.code().expect("no signal"),
    )
}

/// As [`dlq`], for a call that must succeed.
#[track_caller]
fn dlq_ok(stack: &Stack, arguments: &[&str]) -> String {
    let (out, err, code) = dlq(stack, arguments);
    assert_eq!((err.as_str(), code), ("", 0), "{out}");
    out
}

/// A stack with one failed order, and the api that accepted it. No worker runs any more.
fn with_a_failed_order() -> (Stack, Program, String) {
    let stack = Stack::new();
    let api = stack.api();
    let order = api.accepted_order();
    let failing = stack.set("PROCESSING_FAILURE_RATE", "1");
    let mut worker = failing.worker();
    wait_for_records(&failing.kafka, &failing.topics.dlq, 1, SOON);
    worker.terminate();
    assert_eq!(worker.wait(SOON).code(), Some(0));
    let order = id(&order).to_owned();
    assert_eq!(failing.status(&order), "failed");
    (failing.set("PROCESSING_FAILURE_RATE", "0"), api, order)
}

fn position(record: &Record) -> String {
    format!("{}:{}", record.partition, record.offset)
}

#[test]
fn a_failed_order_whose_letter_is_replayed_is_completed() {
    let (stack, _api, order) = with_a_failed_order();
    let letter = records(&stack.kafka, &stack.topics.dlq).remove(0);
    let at = position(&letter);

    let listed = dlq_ok(&stack, &["list"]);
    let line = listed.lines().nth(1).expect("a line under the headings");
    for word in [
        &*at,
        &*order,
        &*stack.topics.created,
        "3",
        "simulated failure",
    ] {
        assert!(line.contains(word), "{word} in {listed}");
    }
    assert!(!listed.contains("example.com"), "no values: {listed}");
    let shown = dlq_ok(&stack, &["show", &at]);
    for word in ["user@example.com", "dlq-attempts: 3", "  \"data\": {"] {
        assert!(shown.contains(word), "{word} in {shown}");
    }
    let would = dlq_ok(&stack, &["replay", "--all", "--dry-run"]);
    assert!(would.contains("1 would be replayed, 0 failed"), "{would}");
    assert_eq!(records(&stack.kafka, &stack.topics.created).len(), 1);

    let committed = topic::committed(&stack.kafka, &stack.group, &stack.topics.dlq);
    assert!(
        committed.iter().all(|(_, offset)| *offset < 0),
        "{committed:?}"
    );
    let done = dlq_ok(&stack, &["replay", &at]);
    assert!(
        done.contains(&format!("{at}  replayed to {}", stack.topics.created)),
        "{done}"
    );
    let created = records(&stack.kafka, &stack.topics.created);
    assert_eq!(created.len(), 2);
    let (original, replayed) = (&created[0], &created[1]);
    assert_eq!(
        (&replayed.key, &replayed.value, replayed.partition),
        (&original.key, &original.value, original.partition)
    );
    assert_eq!(
        replayed.header("content-type"),
        original.header("content-type")
    );
    let trace = |record: &Record| record.header("traceparent")[3..35].to_owned();
    assert_eq!(trace(replayed), trace(original));
    let ours = replayed
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("dlq-"));
    assert_eq!(ours.count(), 1, "{:?}", replayed.headers);
    assert!(replayed.header("dlq-replayed").ends_with('Z'));

    let _worker = stack.worker();
    stack.all_become("completed", 1, SOON);
    wait_for_records(&stack.kafka, &stack.topics.processed, 1, SOON);
    assert_eq!(
        stack.number("SELECT count(*) FROM orders WHERE failure_reason IS NOT NULL"),
        0
    );
    assert_eq!(records(&stack.kafka, &stack.topics.dlq).len(), 1);
}

#[test]
fn a_replayed_order_that_fails_again_is_another_letter_and_its_first_replay_is_spent() {
    let (stack, _api, order) = with_a_failed_order();
    dlq_ok(&stack, &["replay", "--all"]);
    let failing = stack.set("PROCESSING_FAILURE_RATE", "1");
    let mut worker = failing.worker();
    let dead = wait_for_records(&failing.kafka, &failing.topics.dlq, 2, SOON);
    worker.terminate();
    worker.wait(SOON);
    assert!(dead.iter().all(|letter| letter.key() == order));

    // The replayed message once more, as after a rebalance: it has had its attempts.
    let replayed = records(&failing.kafka, &failing.topics.created).remove(1);
    let before =
        failing.number("SELECT (extract(epoch FROM updated_at) * 1000000)::bigint FROM orders");
    write(&failing.kafka, &failing.topics.created, &[replayed]);
    let stack = failing.set("PROCESSING_FAILURE_RATE", "0");
    let _worker = stack.worker();
    wait_for_records(&stack.kafka, &stack.topics.dlq, 3, SOON);
    assert_eq!(stack.status(&order), "failed");
    let after =
        stack.number("SELECT (extract(epoch FROM updated_at) * 1000000)::bigint FROM orders");
    assert_eq!(before, after);

    // Replaying all letters of one order allows one more run, and does no harm.
    dlq_ok(&stack, &["replay", "--all"]);
    stack.all_become("completed", 1, SOON);
}

#[test]
fn many_letters_are_listed_and_replayed_each_with_its_own_outcome() {
    let stack = Stack::new();
    let _api = stack.api();
    let created = &stack.topics.created;
    let letters: Vec<Record> = (0..300)
        .map(|number| {
            let key = format!("key-{number}");
            let letter = Record::new(&key, Some("{\u{1b}[2J"));
            match number {
                // Another program's.
                7 => letter,
                _ => letter
                    .with("mine", "kept")
                    .with("dlq-topic", created)
                    .with("dlq-reason", "why"),
            }
        })
        .collect();
    write(&stack.kafka, &stack.topics.dlq, &letters);
    let listed = dlq_ok(&stack, &["list"]);
    assert_eq!(listed.lines().count(), 301);

    let (out, err, code) = dlq(&stack, &["replay", "--all"]);
    assert_eq!((err.as_str(), code), ("", 1));
    assert!(
        out.contains("0:7  NOT replayed: it has no dlq-topic header"),
        "{out}"
    );
    assert!(out.ends_with("299 replayed, 1 failed\n"), "{out}");
    let replayed = records(&stack.kafka, created);
    assert_eq!(replayed.len(), 299);
    assert!(
        replayed
            .iter()
            .all(|record| record.header("mine") == "kept")
    );

    let (out, err, code) = dlq(&stack, &["replay", "0:3", "0:300", "99:0"]);
    assert_eq!(code, 1);
    assert!(out.ends_with("1 replayed, 2 failed\n"), "{out}");
    for missing in ["at 0:300 in", "at 99:0 in"] {
        assert!(err.contains(missing), "{err}");
    }
    let shown = dlq_ok(&stack, &["show", "0:3"]);
    assert!(
        shown.contains("key-3") && !shown.contains('\u{1b}'),
        "{shown}"
    );
}

#[test]
fn what_a_letter_had_to_omit_is_fetched_from_where_the_original_lies() {
    let stack = Stack::new().set("KAFKA_TOPIC_PARTITIONS", "1");
    drop(stack.api());
    let (created, dlq_topic) = (&stack.topics.created, &stack.topics.dlq);
    // More than a worker's producer can compress into the limit of a letter.
    configure(&stack.kafka, dlq_topic, "max.message.bytes", "20000");
    let noise = std::iter::repeat_with(fastrand::alphanumeric);
    let value: String = noise.take(50_000).collect();
    let original = Record::new("k", Some(&value)).with("mine", "kept");
    write(&stack.kafka, created, &[original]);
    let mut worker = stack.worker();
    let letter = wait_for_records(&stack.kafka, dlq_topic, 1, SOON).remove(0);
    worker.terminate();
    assert_eq!(worker.wait(SOON).code(), Some(0));
    assert_eq!(letter.header("dlq-value-length"), "50000");

    let shown = dlq_ok(&stack, &["show", "0:0"]);
    assert!(shown.contains("header dlq-value-omitted: true"), "{shown}");
    assert!(shown.ends_with(&format!("\n\n{value}\n")), "{shown}");
    let would = dlq_ok(&stack, &["replay", "--all", "--dry-run"]);
    assert!(would.contains("1 would be replayed, 0 failed"), "{would}");
    dlq_ok(&stack, &["replay", "--all"]);
    let replayed = records(&stack.kafka, created).remove(1);
    assert_eq!(replayed.value.as_deref(), Some(value.as_bytes()));
    assert_eq!((replayed.key(), replayed.header("mine")), ("k", "kept"));
    let ours = |(name, _): &&(String, _)| name.starts_with("dlq-");
    assert_eq!(replayed.headers.iter().filter(ours).count(), 1);

    // As after retention, and as after the topic was created again.
    let headers = letter.headers.iter().cloned();
    let elsewhere = |offset: &str| {
        let mut letter = letter.clone();
        letter.headers = headers
            .clone()
            .map(|(name, value)| match &*name {
                "dlq-offset" => (name, Some(offset.to_owned().into())),
                "dlq-value-length" if offset == "1" => (name, Some("7".into())),
                _ => (name, value),
            })
            .collect();
        letter
    };
    let letters = [elsewhere("1"), elsewhere("99")];
    write(&stack.kafka, dlq_topic, &letters);
    for (at, why) in [
        ("0:1", "is not the original"),
        ("0:2", "is gone: retention"),
    ] {
        let (out, err, code) = dlq(&stack, &["show", at]);
        assert_eq!((code, err.lines().count()), (1, 1), "{err}");
        assert!(err.contains(why) && err.contains(created), "{err}");
        assert!(out.ends_with("(no value)\n"), "{out}");
        let (out, _, code) = dlq(&stack, &["replay", at]);
        assert_eq!(code, 1);
        assert!(out.contains("NOT replayed") && out.contains(why), "{out}");
    }
    let (out, _, _) = dlq(&stack, &["replay", "--all", "--dry-run"]);
    assert!(out.ends_with("1 would be replayed, 2 failed\n"), "{out}");
}

#[test]
fn a_mistake_gets_one_clear_sentence() {
    let stack = Stack::new();
    let (out, err, code) = dlq(&stack, &["show", "seventeen"]);
    assert_eq!((out.as_str(), code), ("", 2));
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(
        err.contains("\"seventeen\"") && err.contains("PARTITION:OFFSET"),
        "{err}"
    );

    let _api = stack.api();
    assert!(dlq_ok(&stack, &["list"]).contains("is empty"));
    let (_, err, code) = dlq(&stack, &["show", "0:0"]);
    assert_eq!(code, 1);
    assert!(err.contains("no record at 0:0"), "{err}");
}
