//! Trace context between processes: W3C Trace Context, `traceparent` and `tracestate`.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};

/// The maximum number of members of a `tracestate`.
const MEMBERS_MAX: usize = 32;
/// The maximum number of characters of a `tracestate` that is passed on.
const STATE_CHARS_MAX: usize = 512;
/// Members longer than this, in characters, are removed first.
const MEMBER_CHARS_MAX: usize = 128;

/// The context sent by a caller, from the values of all its `traceparent` and all its `tracestate`
/// headers. A `traceparent` that is malformed or repeated counts as absent. The context is then
/// empty, and a span begun in it begins a new trace.
pub fn extract<'a>(
    traceparent: impl IntoIterator<Item = &'a str>,
    tracestate: impl IntoIterator<Item = &'a str>,
) -> Context {
    let mut parents = traceparent.into_iter();
    match (parents.next().and_then(parent), parents.next()) {
        (Some((trace_id, span_id, flags)), None) => {
            let state = state(tracestate).unwrap_or_default();
            let span = SpanContext::new(trace_id, span_id, flags, true, state);
            Context::new().with_remote_span_context(span)
        }
        _ => Context::new(),
    }
}

/// The `traceparent` that carries `context` to another process; `None` if it
/// holds no span.
pub fn inject(context: &Context) -> Option<String> {
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| {
        let flags = u8::from(span.is_sampled());
        format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id())
    })
}

/// The `tracestate` of `context`; `None` if it has none.
pub fn inject_state(context: &Context) -> Option<String> {
    let state = context.span().span_context().trace_state().header();
    Some(state).filter(|state| !state.is_empty())
}

/// The header of a trace's ids (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";
/// The header of what vendors add to a trace.
pub const TRACESTATE: &str = "tracestate";

/// The names and values of the headers that carry `context` to another process.
pub fn headers(context: &Context) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let parent = inject(context).map(|value| (TRACEPARENT, value));
    let state = inject_state(context).map(|value| (TRACESTATE, value));
    parent.into_iter().chain(state)
}

/// `context` as one text, to be stored and read by [`deserialize`]: `traceparent`, then a space and
/// `tracestate` if it has one. `None` if it holds no span.
pub fn serialize(context: &Context) -> Option<String> {
    let parent = inject(context)?;
    Some(match inject_state(context) {
        None => parent,
        Some(state) => format!("{parent} {state}"),
    })
}

/// The context from which [`serialize`] made `text`; empty without one.
pub fn deserialize(text: Option<&str>) -> Context {
    let (parent, state) = match text.and_then(|text| text.split_once(' ')) {
        None => (text, None),
        Some((parent, state)) => (Some(parent), Some(state)),
    };
    extract(parent, state)
}

/// `version-trace_id-parent_id-flags` with fields of 2, 32, 16 and 2 digits;
/// versions after 00 may add more.
fn parent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let fields: Vec<&str> = text.trim_matches(OWS).splitn(5, '-').collect();
    let [version, trace_id, span_id, flags, ..] = fields[..] else {
        return None;
    };
    let is_hex = |field: &str, length| {
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        field.len() == length && field.bytes().all(is_digit)
    };
    let well_formed = is_hex(version, 2)
        && is_hex(trace_id, 32)
        && is_hex(span_id, 16)
        && is_hex(flags, 2)
        && version != "ff"
        && (version != "00" || fields.len() == 4);
    if !well_formed {
        return None;
    }
    let trace_id = TraceId::from_hex(trace_id).ok()?;
    let span_id = SpanId::from_hex(span_id).ok()?;
    // Unknown flags must not be passed on.
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    (trace_id != TraceId::INVALID && span_id != SpanId::INVALID)
        .then_some((trace_id, span_id, flags))
}

/// The list that all `lines` form together. Whole members are removed until it fits the limit for
/// passing it on. `None` if a member is malformed, or there are too many.
fn state<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<TraceState> {
    let mut members: Vec<(&str, &str)> = lines
        .into_iter()
        .flat_map(|line| line.split(','))
        .map(|member| member.trim_matches(OWS))
        .filter(|member| !member.is_empty())
        .take(MEMBERS_MAX + 1)
        .map(member)
        .collect::<Option<_>>()?;
    if members.len() > MEMBERS_MAX {
        return None;
    }
    // With the equals sign, without the comma.
    let length = |(key, value): &(&str, &str)| key.len() + 1 + value.len();
    while members
        .iter()
        .map(|member| length(member) + 1)
        .sum::<usize>()
        > STATE_CHARS_MAX + 1
    {
        let long = |member: &(&str, &str)| length(member) > MEMBER_CHARS_MAX;
        let at = members.iter().rposition(long);
        members.remove(at.unwrap_or(members.len() - 1));
    }
    TraceState::from_key_value(members).ok()
}

/// Key and value of a member: `vendor=value` or `tenant@system=value`.
fn member(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split_once('=')?;
    let is_name = |name: &str, max| {
        name.len() <= max
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && name
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
    };
    let is_key = match key.split_once('@') {
        None => is_name(key, 256),
        Some((tenant, system)) => is_name(tenant, 241) && is_name(system, 14),
    };
    let is_value = (1..=256).contains(&value.len())
        && value.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'=');
    (is_key && is_value).then_some((key, value))
}

/// Optional white space in HTTP.
const OWS: [char; 2] = [' ', '\t'];

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: &str = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

    fn passed_on(parents: &[&str]) -> Option<String> {
        inject(&extract(parents.iter().copied(), None))
    }

    #[test]
    fn a_context_survives_the_way_through_headers_and_text() {
        let traceparent = format!("00-{IDS}-01");
        let context = extract([&*traceparent], ["a=1", "b@c=2"]);
        for context in [&context, &deserialize(serialize(&context).as_deref())] {
            assert_eq!(inject(context).as_deref(), Some(&*traceparent));
            assert_eq!(inject_state(context).as_deref(), Some("a=1,b@c=2"));
        }
        let without = extract([&*traceparent], None);
        assert_eq!(serialize(&without).as_deref(), Some(&*traceparent));
        assert_eq!(
            serialize(&deserialize(Some(&traceparent))),
            Some(traceparent)
        );
        assert_eq!(serialize(&Context::new()), None);
        assert_eq!(serialize(&deserialize(None)), None);
    }

    // The cases of the working group's own suite (w3c/trace-context, test/test.py).
    #[test]
    fn a_malformed_traceparent_counts_as_absent() {
        for text in [
            String::new(),
            "00".into(),
            "nonsense".into(),
            format!("00-{IDS}"),
            format!("00-{IDS}-01-"),
            format!("00-{IDS}-01-what"),
            format!("00-{IDS}-01.what"),
            format!("cc-{IDS}-01.what"),
            format!("ff-{IDS}-01"),
            format!("0-{IDS}-01"),
            format!(".0-{IDS}-01"),
            format!("000-{IDS}-01"),
            format!("00-{IDS}-1"),
            format!("00-{IDS}-.1"),
            format!("00-{IDS}-001"),
            format!("00-{IDS}-é1"),
            format!("00-{}-01", IDS.to_uppercase()),
            format!("00-{}-01", &IDS[1..]),
            format!("00-0{IDS}-01"),
            format!("00-{IDS}0-01"),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{}-0000000000000000-01", &IDS[..32]),
            format!("00-{}-01", IDS.replace('a', ".")),
            format!("00 -{IDS}-01"),
        ] {
            assert_eq!(passed_on(&[&text]), None, "{text}");
        }
        let good = format!("00-{IDS}-01");
        for text in [
            format!("cc-{IDS}-01"),
            format!("cc-{IDS}-01-"),
            format!("01-{IDS}-01-what-the-future-will-be-like"),
            format!(" \t00-{IDS}-01\t "),
            format!("00-{IDS}-ff"),
        ] {
            assert_eq!(passed_on(&[&text]).as_ref(), Some(&good), "{text}");
        }
        assert_eq!(
            passed_on(&[&format!("00-{IDS}-fe")]),
            Some(format!("00-{IDS}-00"))
        );
    }

    #[test]
    fn of_two_traceparents_none_counts() {
        let one = format!("00-{IDS}-01");
        let other = one.replace('7', "8");
        for parents in [[&*one, &*other], [&one, &one], [&one, "x"], ["x", &one]] {
            assert_eq!(passed_on(&parents), None, "{parents:?}");
        }
    }

    fn state_of(lines: &[&str]) -> Option<String> {
        let parent = format!("00-{IDS}-01");
        let context = extract([&*parent], lines.iter().copied());
        assert_eq!(inject(&context), Some(parent), "{lines:?}");
        inject_state(&context)
    }

    #[test]
    fn several_tracestate_lines_are_one_list() {
        for (lines, list) in [
            (&["foo=1", "bar=2"][..], "foo=1,bar=2"),
            (&["foo=1,bar=2", "", "baz=3"], "foo=1,bar=2,baz=3"),
            (&["foo=1 \t , \t bar=2, \t baz=3"], "foo=1,bar=2,baz=3"),
            (&["foo=1,", ",bar=2"], "foo=1,bar=2"),
            (&["t@s=1,0-_*/=!<>~ x"], "t@s=1,0-_*/=!<>~ x"),
        ] {
            assert_eq!(state_of(lines).as_deref(), Some(list), "{lines:?}");
        }
    }

    #[test]
    fn a_malformed_tracestate_is_dropped_and_the_trace_continues() {
        let (long_key, long_value) = ("k".repeat(257), "v".repeat(257));
        let (long_tenant, long_system) = ("t".repeat(242), "s".repeat(15));
        for line in [
            "",
            "foo",
            "foo=",
            "=1",
            "foo =1",
            "FOO=1",
            "foo.bar=1",
            "foo@=1",
            "@foo=1",
            "foo@@bar=1",
            "foo@bar@baz=1",
            "foo=bar=baz",
            "foo=,bar=3",
            "foo=1\t2",
            "foo=ü",
            &format!("{long_key}=1"),
            &format!("foo={long_value}"),
            &format!("{long_tenant}@v=1"),
            &format!("t@{long_system}=1"),
        ] {
            for lines in [vec![line], vec!["good=1", line, "fine=2"]] {
                let expected =
                    Some("good=1,fine=2".to_owned()).filter(|_| line.is_empty() && lines.len() > 1);
                assert_eq!(state_of(&lines), expected, "{line}");
            }
        }
    }

    #[test]
    fn a_long_tracestate_is_cut_by_whole_members() {
        let list = |count: usize| (0..count).map(|n| format!("k{n:02}=1")).collect::<Vec<_>>();
        assert_eq!(state_of(&[&list(32).join(",")]), Some(list(32).join(",")));
        assert_eq!(state_of(&[&list(33).join(",")]), None);
        // The long ones are removed first, then the last ones.
        let member =
            |name: &str, length: usize| format!("{name}={}", "v".repeat(length - name.len() - 1));
        let short = ["a", "b", "c", "d"].map(|name| member(name, 127));
        let long = member("long", 129);
        assert_eq!(short.join(",").len(), 511);
        let lines = [&*short[0], &long, &short[1], &short[2], &short[3]];
        assert_eq!(state_of(&lines), Some(short.join(",")));
        assert_eq!(state_of(&[&short.join(","), "e=1"]), Some(short.join(",")));
        let kept = format!("{long},e=1");
        assert_eq!(state_of(&[&long, "e=1"]), Some(kept));
    }
}
