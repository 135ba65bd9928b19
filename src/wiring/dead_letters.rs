//! The commands `tbd-worker dlq`: list, show and replay dead letters.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::time::Duration;

use jiff::Timestamp;
use log::LevelFilter;
use serde_json::value::RawValue;

use crate::config::{DlqCommand, LogConfig, Position, TelemetrySettings, Which, WorkerConfig};
use crate::metrics::Metrics;
use crate::orders::adapters::kafka::{
    DeadLetters, KafkaEventBus, Letter, Letters, ReplayError, replay_letters,
};
use tbd_deadline::Deadline;
use tbd_telemetry::logging::LogFormat;

use super::{Kafka, Telemetry};

/// Time limit of sending the last events and spans.
const CLOSE_BUDGET: Duration = Duration::from_secs(5);

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot read {topic}: {error}")]
    Read {
        topic: String,
        error: tbd_kafka::Error,
    },
    #[error("{0}")]
    Kafka(tbd_kafka::Error),
    #[error("cannot publish: {0}")]
    Producer(tbd_kafka::Error),
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
    #[error("cannot start: {0}")]
    Start(io::Error),
}

/// Runs `command`, writes to standard output, and returns the exit code: 0, or 1 after a failure,
/// with the reason on standard error. Neither joins the worker's group nor commits anything.
pub fn dead_letters(config: &WorkerConfig, command: &DlqCommand) -> i32 {
    let outcome = Tool::new(config).and_then(|tool| {
        let mut out = BufWriter::new(io::stdout().lock());
        let outcome = tool.run(command, &mut out);
        let outcome = out.flush().map_err(Failure::from).and(outcome);
        tool.telemetry.shutdown(Deadline::after(CLOSE_BUDGET));
        outcome
    });
    match outcome {
        Ok(true) => 0,
        Ok(false) => 1,
        // A closed pipe is no failure: `head` stops reading early.
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => 0,
        Err(failure) => {
            eprintln!("tbd-worker: {failure}");
            1
        }
    }
}

struct Tool {
    telemetry: Telemetry,
    metrics: Metrics,
    kafka: Kafka,
    letters: DeadLetters,
}

impl Tool {
    fn new(config: &WorkerConfig) -> Result<Self, Failure> {
        let metrics = Metrics::new();
        // A person reads this: warnings are plain text, and the result goes to standard output.
        let log = LogConfig {
            level: config.log.level.min(LevelFilter::Warn),
            format: LogFormat::Text,
        };
        // The metrics of one command would look like another worker's.
        let settings = TelemetrySettings {
            metrics_interval: None,
            ..config.telemetry.clone()
        };
        let telemetry = Telemetry::start(&log, &settings, &metrics).map_err(Failure::Start)?;
        let kafka =
            Kafka::new(&config.kafka, "tbd-worker-dlq", &metrics).map_err(Failure::Kafka)?;
        let letters = DeadLetters::new(kafka.cluster.clone(), kafka.topics.dlq.clone());
        Ok(Self {
            telemetry,
            metrics,
            kafka,
            letters,
        })
    }

    /// Runs `command`. Returns whether all of it succeeded.
    fn run(&self, command: &DlqCommand, out: &mut impl Write) -> Result<bool, Failure> {
        match command {
            DlqCommand::List => self.list(out),
            DlqCommand::Show(position) => self.show(*position, out),
            DlqCommand::Replay { which, dry_run } => self.replay(which, *dry_run, out),
        }
    }

    fn list(&self, out: &mut impl Write) -> Result<bool, Failure> {
        let mut letters = self.letters.all().map_err(|error| self.unreadable(error))?;
        let mut count = 0;
        self.each(&mut letters, |some| {
            for letter in some {
                if count == 0 {
                    row(
                        out,
                        ["POSITION", "WRITTEN", "ATTEMPTS", "KEY", "FROM"],
                        "REASON",
                    )?;
                }
                count += 1;
                row(
                    out,
                    [
                        &position(letter).to_string(),
                        &written_at(letter),
                        letter.attempts().unwrap_or("?"),
                        &letter.key().map_or("none".into(), shown),
                        &shown(letter.origin().as_bytes()),
                    ],
                    &letter
                        .reason()
                        .map_or("?".into(), |reason| shown(reason.as_bytes())),
                )?;
            }
            Ok(())
        })?;
        if count == 0 {
            writeln!(out, "{} is empty", self.kafka.topics.dlq)?;
        }
        Ok(true)
    }

    fn show(&self, wanted: Position, out: &mut impl Write) -> Result<bool, Failure> {
        let mut letters = self.at(&[wanted])?;
        let (mut found, mut complete) = (false, true);
        self.each(&mut letters, |some| {
            for letter in some {
                found = true;
                match self.letters.complete(letter) {
                    Ok(letter) => show(out, &letter)?,
                    Err(error) => {
                        complete = false;
                        show(out, letter)?;
                        out.flush()?;
                        eprintln!("tbd-worker: {wanted} is shown without its value: {error}");
                    }
                }
            }
            Ok(())
        })?;
        if !found {
            self.say_missing(wanted);
        }
        Ok(found && complete)
    }

    fn replay(&self, which: &Which, dry_run: bool, out: &mut impl Write) -> Result<bool, Failure> {
        let mut missing = BTreeSet::new();
        let mut letters = match which {
            Which::All => self.letters.all().map_err(|error| self.unreadable(error))?,
            Which::These(positions) => {
                missing.extend(positions);
                self.at(positions)?
            }
        };
        let bus = match dry_run {
            true => None,
            false => {
                let producer = self.kafka.producer(&self.metrics);
                let producer = producer.map_err(Failure::Producer)?;
                Some(KafkaEventBus::new(producer, self.kafka.topics.clone()))
            }
        };
        let (mut replayed, mut failed) = (0, 0);
        let outcome = self.each(&mut letters, |some| {
            let results = self.send_back(bus.as_ref(), some);
            for (letter, result) in some.iter().zip(results) {
                missing.remove(&position(letter));
                let origin = letter.origin_topic().map(|topic| shown(topic.as_bytes()));
                let key = letter.key().map_or("no key".into(), shown);
                let at = position(letter);
                match (result, origin) {
                    (Ok(()), Some(origin)) => {
                        replayed += 1;
                        let done = if dry_run { "would go" } else { "replayed" };
                        writeln!(out, "{at}  {done} to {origin}  ({key})")?;
                    }
                    (Ok(()), None) => {
                        failed += 1;
                        writeln!(out, "{at}  would fail: it has no dlq-topic header  ({key})")?;
                    }
                    (Err(error), _) => {
                        failed += 1;
                        writeln!(out, "{at}  NOT replayed: {error}  ({key})")?;
                    }
                }
            }
            // Show what is done, in case the next letters take long or fail.
            out.flush()?;
            Ok(())
        });
        if let Some(bus) = bus {
            bus.close(Deadline::after(CLOSE_BUDGET));
        }
        outcome?;
        for &position in &missing {
            self.say_missing(position);
        }
        failed += missing.len();
        let done = if dry_run {
            "would be replayed"
        } else {
            "replayed"
        };
        writeln!(out, "{replayed} {done}, {failed} failed")?;
        Ok(failed == 0)
    }

    /// Replays letters, or without a bus only checks whether that is possible. Returns one result
    /// per letter.
    fn send_back(
        &self,
        bus: Option<&KafkaEventBus>,
        letters: &[Letter],
    ) -> Vec<Result<(), ReplayError>> {
        let now = Timestamp::now();
        let send = |letters: &[Letter]| match bus {
            Some(bus) => replay_letters(bus, letters, now),
            None => letters.iter().map(|_| Ok(())).collect(),
        };
        // Incomplete letters are large, so they are fetched one at a time.
        letters
            .chunk_by(|one, next| !one.is_incomplete() && !next.is_incomplete())
            .flat_map(|letters| match letters {
                [letter] if letter.is_incomplete() => match self.letters.complete(letter) {
                    Ok(letter) => send(&[letter]),
                    Err(error) => vec![Err(error.into())],
                },
                letters => send(letters),
            })
            .collect()
    }

    fn at(&self, positions: &[Position]) -> Result<Letters, Failure> {
        let positions: Vec<(i32, i64)> = positions
            .iter()
            .map(|position| (position.partition, position.offset))
            .collect();
        let letters = self.letters.at(&positions);
        letters.map_err(|error| self.unreadable(error))
    }

    fn each(
        &self,
        letters: &mut Letters,
        mut work: impl FnMut(&[Letter]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        loop {
            let some = letters.read().map_err(|error| self.unreadable(error))?;
            if some.is_empty() {
                return Ok(());
            }
            work(&some)?;
        }
    }

    fn unreadable(&self, error: tbd_kafka::Error) -> Failure {
        let topic = self.kafka.topics.dlq.to_string();
        Failure::Read { topic, error }
    }

    fn say_missing(&self, position: Position) {
        let topic = &self.kafka.topics.dlq;
        eprintln!("tbd-worker: there is no record at {position} in {topic}");
    }
}

fn position(letter: &Letter) -> Position {
    let (partition, offset) = letter.position();
    Position { partition, offset }
}

fn written_at(letter: &Letter) -> String {
    let time = letter.written_at();
    time.map_or("?".to_owned(), |time| format!("{time:.3}"))
}

/// A row of the table. The columns fit our own values; a longer key shifts the rest.
fn row(out: &mut impl Write, columns: [&str; 5], last: &str) -> io::Result<()> {
    let [position, written, attempts, key, from] = columns;
    writeln!(
        out,
        "{position:<10}  {written:<24}  {attempts:<8}  {key:<36}  {from:<20}  {last}"
    )
}

/// Prints the whole letter: a line for each header, an empty line, the value.
fn show(out: &mut impl Write, letter: &Letter) -> Result<(), Failure> {
    let key = letter.key().map_or("none".into(), shown);
    writeln!(out, "position: {}", position(letter))?;
    writeln!(out, "written: {}", written_at(letter))?;
    writeln!(out, "key: {key}")?;
    for (name, value) in letter.headers() {
        let value = value.map_or("none".into(), shown);
        writeln!(out, "header {}: {value}", shown(name.as_bytes()))?;
    }
    writeln!(out)?;
    let Some(value) = letter.value() else {
        writeln!(out, "(no value)")?;
        return Ok(());
    };
    match serde_json::from_slice::<&RawValue>(value) {
        Ok(json) => {
            for line in pretty(json.get()).lines() {
                writeln!(out, "{}", shown(line.as_bytes()))?;
            }
        }
        Err(_) => writeln!(out, "{}", shown(value))?,
    }
    Ok(())
}

/// Adds line breaks and indentation to valid JSON. Parsing and writing it again could change digits
/// and the order of fields; this does not.
fn pretty(json: &str) -> String {
    let (mut out, mut depth) = (String::new(), 0);
    let (mut in_string, mut escaped, mut opened) = (false, false, false);
    for c in json.chars() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        if c.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(c, '}' | ']');
        depth -= usize::from(closes);
        // An empty object or list stays on its line.
        if opened != closes {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        }
        opened = matches!(c, '{' | '[');
        depth += usize::from(opened);
        out.push(c);
        match c {
            ',' => {
                out.push('\n');
                out.extend(std::iter::repeat_n("  ", depth));
            }
            ':' => out.push(' '),
            _ => {}
        }
        in_string = c == '"';
    }
    out
}

/// Text without control characters: a record must not control the terminal.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_without_changing_what_it_says() {
        let json = r#"{"b":[],"a":{"n":1e400,"s":"{\\\"a,b:\\\\"},"l":[1, 2]}"#;
        let lines = [
            "{",
            "  \"b\": [],",
            "  \"a\": {",
            "    \"n\": 1e400,",
            r#"    "s": "{\\\"a,b:\\\\""#,
            "  },",
            "  \"l\": [",
            "    1,",
            "    2",
            "  ]",
            "}",
        ];
        assert_eq!(pretty(json), lines.join("\n"));
        assert_eq!(pretty("7"), "7");
    }

    #[test]
    fn what_is_shown_cannot_steer_a_terminal() {
        assert_eq!(shown(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(shown("grüße".as_bytes()), "grüße");
    }
}
