//! Log records on standard error, one line each: a JSON object, or text for people.
//!
//! A record's key-values (`log::info!(order_id:% = id; "order created")`) become fields, except an
//! `Option` that is `None`. The fixed fields are `timestamp` (RFC 3339, UTC, microseconds),
//! `level`, `target`, `message` and `service`, plus `trace_id` and `span_id` while the thread is
//! inside a span. Control characters are escaped in both formats, so that external text can neither
//! forge a line nor control a terminal. One call under standard error's lock writes a line.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::io::{self, Write};

use log::kv::{self, VisitSource, VisitValue};
use log::{LevelFilter, Record};
use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;

/// The format of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// `time LEVEL target: message key=value`, for people.
    Text,
}

/// The prefix of this program's targets: the library's and both binaries'.
const OUR_TARGETS: &str = "tbd";

/// Sets up logging for the process; a second call changes nothing.
///
/// `level` applies to tbd's own records; other crates' records appear from `warn` on. A panic of
/// any thread is logged as an error in the same format.
pub fn init(service: &str, level: LevelFilter, format: LogFormat) {
    if builder(service, level, format).try_init().is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
}

fn builder(service: &str, level: LevelFilter, format: LogFormat) -> env_logger::Builder {
    let service = service.to_owned();
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(level.min(LevelFilter::Warn))
        .filter_module(OUR_TARGETS, level)
        // tiny_http logs the end of its listener as an error; the server logs what matters.
        .filter_module("tiny_http", LevelFilter::Off)
        .format(move |buffer, record| match format {
            LogFormat::Json => write_json(buffer, &service, record),
            LogFormat::Text => write_text(buffer, record),
        });
    builder
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let location = panic.location().map(ToString::to_string);
    let payload = panic.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    // Captured only if RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    log::error!(
        target: "tbd::panic",
        thread = thread.name().unwrap_or("unnamed"),
        location = location.as_deref().unwrap_or("unknown"),
        backtrace = backtrace.as_deref();
        "panicked: {}",
        message.unwrap_or("no message")
    );
}

fn write_json(out: &mut impl Write, service: &str, record: &Record<'_>) -> io::Result<()> {
    write!(
        out,
        r#"{{"timestamp":"{:.6}","level":"{}","target":"#,
        jiff::Timestamp::now(),
        level(record.level()),
    )?;
    write_string(out, &record.target())?;
    out.write_all(br#","message":"#)?;
    write_string(out, record.args())?;
    out.write_all(br#","service":"#)?;
    write_string(out, &service)?;
    Context::map_current(|context| {
        let span = context.span();
        let ids = span.span_context();
        if !ids.is_valid() {
            return Ok(());
        }
        let (trace_id, span_id) = (ids.trace_id(), ids.span_id());
        write!(out, r#","trace_id":"{trace_id}","span_id":"{span_id}""#)
    })?;
    record
        .key_values()
        .visit(&mut JsonFields(out))
        .map_err(io::Error::other)?;
    out.write_all(b"}\n")
}

fn level(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "error",
        log::Level::Warn => "warn",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    }
}

fn write_text(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    write!(
        out,
        "{:.6} {:5} {}: ",
        jiff::Timestamp::now(),
        record.level(),
        record.target()
    )?;
    write_escaped(out, record.args())?;
    record
        .key_values()
        .visit(&mut TextFields(out))
        .map_err(io::Error::other)?;
    Context::map_current(|context| {
        let span = context.span();
        let ids = span.span_context();
        if !ids.is_valid() {
            return Ok(());
        }
        write!(out, " trace_id={}", ids.trace_id())
    })?;
    out.write_all(b"\n")
}

/// Field names that a record's own key-values cannot use.
const RESERVED: &[&str] = &[
    "timestamp",
    "level",
    "target",
    "message",
    "service",
    "trace_id",
    "span_id",
];

/// Writes key-values as `,"key":value`.
struct JsonFields<'a, W>(&'a mut W);

impl<'kvs, W: Write> VisitSource<'kvs> for JsonFields<'_, W> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        value.visit(JsonField {
            out: self.0,
            key: key.as_str(),
        })
    }
}

/// Writes one field: numbers and booleans as such, anything else as text. An absent value is
/// omitted.
struct JsonField<'a, W> {
    out: &'a mut W,
    key: &'a str,
}

impl<W: Write> JsonField<'_, W> {
    fn key(&mut self) -> io::Result<()> {
        self.out.write_all(b",")?;
        if RESERVED.contains(&self.key) {
            write_string(self.out, &format_args!("{}_", self.key))?;
        } else {
            write_string(self.out, &self.key)?;
        }
        self.out.write_all(b":")
    }

    fn text(&mut self, value: impl fmt::Display) -> Result<(), kv::Error> {
        self.key()?;
        Ok(write_string(self.out, &value)?)
    }

    fn bare(&mut self, value: impl fmt::Display) -> Result<(), kv::Error> {
        self.key()?;
        Ok(write!(self.out, "{value}")?)
    }
}

impl<'v, W: Write> VisitValue<'v> for JsonField<'_, W> {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        self.text(value)
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.bare(value)
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.bare(value)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.bare(value)
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        if value.is_finite() {
            self.bare(value)
        } else {
            // JSON has no NaN or infinity.
            self.text(value)
        }
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.text(value)
    }
}

/// Writes key-values as ` key=value`.
struct TextFields<'a, W>(&'a mut W);

impl<'kvs, W: Write> VisitSource<'kvs> for TextFields<'_, W> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        value.visit(TextField {
            out: self.0,
            key: key.as_str(),
        })
    }
}

/// Writes one field. An absent value is omitted.
struct TextField<'a, W> {
    out: &'a mut W,
    key: &'a str,
}

impl<'v, W: Write> VisitValue<'v> for TextField<'_, W> {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        write!(self.out, " {}=", self.key)?;
        Ok(write_escaped(self.out, &value)?)
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
    }
}

/// Writes `text` as a JSON string.
fn write_string(out: &mut impl Write, text: &impl fmt::Display) -> io::Result<()> {
    out.write_all(b"\"")?;
    write_through(out, text, |c| match c {
        '"' => Some(Escape::Pair('"')),
        '\\' => Some(Escape::Pair('\\')),
        '\n' => Some(Escape::Pair('n')),
        '\r' => Some(Escape::Pair('r')),
        '\t' => Some(Escape::Pair('t')),
        c if c.is_control() => Some(Escape::Code(c)),
        _ => None,
    })?;
    out.write_all(b"\"")
}

/// Writes `text` on one line, for people.
fn write_escaped(out: &mut impl Write, text: &impl fmt::Display) -> io::Result<()> {
    write_through(out, text, |c| match c {
        '\n' => Some(Escape::Pair('n')),
        '\r' => Some(Escape::Pair('r')),
        '\t' => Some(Escape::Pair('t')),
        c if c.is_control() => Some(Escape::Code(c)),
        _ => None,
    })
}

/// How a character is escaped.
enum Escape {
    /// A backslash and this character.
    Pair(char),
    /// `\u` and four digits; all control characters are below U+00A0.
    Code(char),
}

/// Formats `text` into `out` without an intermediate string. Only characters that `escape` selects
/// are written one by one.
fn write_through(
    out: &mut impl Write,
    text: &impl fmt::Display,
    escape: fn(char) -> Option<Escape>,
) -> io::Result<()> {
    struct Through<'a, W> {
        out: &'a mut W,
        escape: fn(char) -> Option<Escape>,
        result: io::Result<()>,
    }

    impl<W: Write> Through<'_, W> {
        fn try_write(&mut self, text: &str) -> io::Result<()> {
            let mut plain = 0;
            for (index, c) in text.char_indices() {
                let Some(escape) = (self.escape)(c) else {
                    continue;
                };
                self.out.write_all(&text.as_bytes()[plain..index])?;
                plain = index + c.len_utf8();
                match escape {
                    Escape::Pair(c) => write!(self.out, "\\{c}")?,
                    Escape::Code(c) => write!(self.out, "\\u{:04x}", u32::from(c))?,
                }
            }
            self.out.write_all(&text.as_bytes()[plain..])
        }
    }

    impl<W: Write> fmt::Write for Through<'_, W> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.result = self.try_write(text);
            self.result.as_ref().map(|_| ()).map_err(|_| fmt::Error)
        }
    }

    let mut through = Through {
        out,
        escape,
        result: Ok(()),
    };
    // A value whose formatting fails loses its text, not the line.
    let _ = write!(through, "{text}");
    through.result
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use log::Log;

    use super::*;
    use crate::tracing::{SpanKind, span};

    /// The destination of a test's logger.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    fn logger(level: LevelFilter, format: LogFormat) -> (Box<dyn Log>, Sink) {
        // The macros check the process's level first, which `init` would set.
        log::set_max_level(LevelFilter::Trace);
        let sink = Sink::default();
        let target = env_logger::Target::Pipe(Box::new(sink.clone()));
        let logger = builder("tbd-test", level, format).target(target).build();
        (Box::new(logger), sink)
    }

    fn json(sink: &Sink) -> serde_json::Value {
        let lines = sink.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        serde_json::from_str(&lines[0]).unwrap_or_else(|error| panic!("{error}: {}", lines[0]))
    }

    #[test]
    fn a_record_is_one_json_object_with_its_key_values() {
        let (logger, sink) = logger(LevelFilter::Info, LogFormat::Json);
        let id = uuid::Uuid::nil();
        log::warn!(
            logger: logger, target: "tbd::orders",
            order_id:% = id, attempts = 3, share = 0.5, odd = f64::NAN, ok = true, who = "me",
            message = "mine", nobody = None::<&str>;
            "order {} is late", 7
        );
        let line = json(&sink);
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(
            timestamp.ends_with('Z') && timestamp.len() == 27,
            "{timestamp}"
        );
        assert!(timestamp.parse::<jiff::Timestamp>().is_ok());
        assert_eq!(line["level"], "warn");
        assert_eq!(line["target"], "tbd::orders");
        assert_eq!(line["message"], "order 7 is late");
        assert_eq!(line["service"], "tbd-test");
        assert_eq!(line["order_id"], id.to_string());
        assert_eq!(line["attempts"], 3);
        assert_eq!(line["share"], 0.5);
        assert_eq!(line["odd"], "NaN");
        assert_eq!(line["ok"], true);
        assert_eq!(line["who"], "me");
        assert_eq!(line["message_"], "mine");
        assert!(line.get("nobody").is_none());
        assert!(line.get("trace_id").is_none() && line.get("span_id").is_none());
    }

    #[test]
    fn a_record_within_a_span_carries_its_ids() {
        let (logger, sink) = logger(LevelFilter::Info, LogFormat::Json);
        let span = span("test", SpanKind::Internal, []);
        log::info!(logger: logger, target: "tbd", "hello");
        let line = json(&sink);
        assert_eq!(line["trace_id"], span.trace_id());
        assert_eq!(line["span_id"], span.span_id());
    }

    #[test]
    fn hostile_text_can_neither_forge_a_line_nor_steer_a_terminal() {
        let hostile = "a\"b\\c\nd\re\tf\u{0}g\u{1b}[31mh\u{9b}i\u{7f}é\u{1F600}";
        for format in [LogFormat::Json, LogFormat::Text] {
            let (logger, sink) = logger(LevelFilter::Info, format);
            log::info!(logger: logger, target: "tbd", value = hostile; "{hostile}");
            let lines = sink.lines();
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(!lines[0].chars().any(char::is_control), "{}", lines[0]);
            if format == LogFormat::Json {
                assert_eq!(json(&sink)["message"], hostile);
                assert_eq!(json(&sink)["value"], hostile);
            }
        }
    }

    #[test]
    fn the_level_is_for_our_records_and_others_appear_from_warn_on() {
        for (level, shown) in [
            (
                LevelFilter::Debug,
                vec!["ours debug", "ours info", "ours warn", "other warn"],
            ),
            (
                LevelFilter::Info,
                vec!["ours info", "ours warn", "other warn"],
            ),
            (LevelFilter::Error, vec![]),
        ] {
            let (logger, sink) = logger(level, LogFormat::Json);
            log::debug!(logger: logger, target: "tbd::kafka", "ours debug");
            log::info!(logger: logger, target: "tbd_api", "ours info");
            log::warn!(logger: logger, target: "tbd", "ours warn");
            log::info!(logger: logger, target: "ureq", "other info");
            log::warn!(logger: logger, target: "r2d2", "other warn");
            let messages: Vec<String> = sink
                .lines()
                .iter()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
                .map(|line| line["message"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(messages, shown, "{level}");
        }
    }

    #[test]
    fn text_lines_read_well() {
        let (logger, sink) = logger(LevelFilter::Info, LogFormat::Text);
        log::info!(logger: logger, target: "tbd::orders", order_id = "o1", nobody = None::<&str>; "order created");
        let lines = sink.lines();
        assert!(
            lines[0].ends_with("Z INFO  tbd::orders: order created order_id=o1"),
            "{}",
            lines[0]
        );
    }
}
