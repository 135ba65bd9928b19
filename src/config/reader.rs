//! Reader of environment variables: parses text into typed values and collects all errors.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::table::{Allowed, Program, Variable, variables};

/// All errors of a configuration, in the table's words. Shows no secret: neither a password nor a
/// value that may contain one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// The single errors, one for each bad variable.
    pub fn errors(&self) -> &[ConfigError] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is invalid:")?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

/// One bad variable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Its name.
    pub name: &'static str,
    /// Its value, as far as it may be shown.
    value: Option<String>,
    /// What it must be.
    allowed: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(value) = &self.value {
            write!(f, "={value:?}")?;
        }
        write!(f, " must be {}.", self.allowed)
    }
}

/// Reads the variables of one program and collects errors.
pub(super) struct Reader<'a> {
    program: Program,
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
    errors: Vec<ConfigError>,
    /// Defaults that depend on another variable. The table describes them.
    defaults: Vec<(&'static str, &'static str)>,
    /// The names that were read, so that a test can compare them with the table.
    #[cfg(test)]
    pub read: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(program: Program, lookup: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self {
            program,
            lookup,
            errors: Vec::new(),
            defaults: Vec::new(),
            #[cfg(test)]
            read: Vec::new(),
        }
    }

    /// The value of `name`, or its default if it is unset, empty or invalid. Records an invalid
    /// value as an error.
    pub(super) fn get<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Option<T>) -> T {
        #[cfg(test)]
        self.read.push(name);
        let variable = self.variable(name);
        if let Some(value) = self.given(name) {
            if let Some(value) = value.to_str().and_then(&parse) {
                return value;
            }
            let allowed = variable.map(|variable| variable.allowed.to_string());
            self.refuse(name, value, allowed.unwrap_or_default());
        }
        let dependent = self.defaults.iter().find(|(found, _)| *found == name);
        dependent
            .map(|(_, default)| *default)
            .or(variable.map(|variable| variable.default))
            .and_then(parse)
            .expect("the table has a valid default for each variable; a test reads them all")
    }

    /// A number within the table's bounds.
    pub(super) fn number<T: FromStr + PartialOrd>(&mut self, name: &'static str) -> T {
        self.within_bounds(name, |text| text.parse().ok())
    }

    /// A duration within the table's bounds, such as `5m`, `72h`, `1h 30m` or `250ms`.
    pub(super) fn duration(&mut self, name: &'static str) -> Duration {
        self.within_bounds(name, |text| humantime::parse_duration(text).ok())
    }

    /// A size within the table's bounds, such as `512MiB`; a bare number means bytes.
    pub(super) fn size(&mut self, name: &'static str) -> u64 {
        self.within_bounds(name, size)
    }

    fn within_bounds<T: PartialOrd>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let bounds = match self.variable(name).map(|variable| variable.allowed) {
            Some(Allowed::Range(_, min, max, _)) => parse(min).zip(parse(max)),
            _ => None,
        };
        self.get(name, |text| {
            let (min, max) = bounds.as_ref()?;
            parse(text.trim()).filter(|value| (min..=max).contains(&value))
        })
    }

    /// One of `choices`, in any case.
    pub(super) fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> T {
        self.get(name, choice(choices))
    }

    /// Sets the default of `name`, where it depends on another variable.
    pub(super) fn set_default(&mut self, name: &'static str, default: &'static str) {
        self.defaults.push((name, default));
    }

    /// The value of a variable whose empty value differs from an unset one.
    pub(super) fn get_even_empty<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let given = (self.lookup)(name).and_then(|value| parse(value.to_str()?.trim()));
        given.unwrap_or_else(|| self.get(name, parse))
    }

    /// Whether `name` is set and not empty.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given(name).is_some()
    }

    /// Records as an error that `name`, valid by itself, does not fit another variable.
    pub(super) fn refuse_combination(&mut self, name: &'static str, allowed: impl Into<String>) {
        let value = self.given(name).unwrap_or_default();
        self.refuse(name, value, allowed.into());
    }

    /// Records that `name` must be given, because `other` is, if only `other` is.
    pub(super) fn require_with(&mut self, name: &'static str, other: &'static str) {
        if self.is_given(other) && !self.is_given(name) {
            self.refuse_combination(name, format!("given, as {other} is"));
        }
    }

    fn variable(&self, name: &str) -> Option<&'static Variable> {
        variables(self.program).find(|variable| variable.name == name)
    }

    fn given(&self, name: &str) -> Option<OsString> {
        (self.lookup)(name).filter(|value| !value.to_string_lossy().trim().is_empty())
    }

    fn refuse(&mut self, name: &'static str, value: OsString, allowed: String) {
        const SHOWN_CHARS: usize = 80;
        let value = value.to_string_lossy();
        let is_secret = ["_PASSWORD", "_SECRET", "_HEADERS"]
            .iter()
            .any(|ending| name.ends_with(ending))
            // A URL's user part may hold a password as well.
            || value.contains('@');
        self.errors.push(ConfigError {
            name,
            value: (!is_secret).then(|| value.chars().take(SHOWN_CHARS).collect()),
            allowed,
        });
    }
}

/// The configuration of `program` that `read` makes of the variables in `lookup`.
///
/// # Errors
/// All bad variables at once.
pub(super) fn parse<T>(
    program: Program,
    lookup: &dyn Fn(&str) -> Option<OsString>,
    read: impl FnOnce(&mut Reader<'_>) -> T,
) -> Result<T, ConfigErrors> {
    let mut reader = Reader::new(program, lookup);
    let config = read(&mut reader);
    match reader.errors.is_empty() {
        true => Ok(config),
        false => Err(ConfigErrors(reader.errors)),
    }
}

fn size(text: &str) -> Option<u64> {
    let unit = text.find(|c: char| !c.is_ascii_digit());
    let (digits, unit) = text.split_at(unit.unwrap_or(text.len()));
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// A TCP port.
pub(super) fn port(text: &str) -> Option<u16> {
    text.trim().parse().ok().filter(|port| *port > 0)
}

/// A path; whether it exists, its user finds out.
pub(super) fn path(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text.trim()))
}

/// `true` or `false`, or a common synonym.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// One of `choices`, in any case.
pub(super) fn choice<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&str) -> Option<T> {
    move |text| {
        choices
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text.trim()))
            .map(|(_, value)| *value)
    }
}

/// Text of 1 to `bytes_max` bytes without control characters.
pub(super) fn text(bytes_max: usize) -> impl Fn(&str) -> Option<String> {
    move |text| {
        let text = text.trim();
        is_plain(text, bytes_max).then(|| text.to_owned())
    }
}

/// The result of `parse`, or `None` for an empty value: for variables whose default is "none".
pub(super) fn optional<T>(parse: impl Fn(&str) -> Option<T>) -> impl Fn(&str) -> Option<Option<T>> {
    move |text| match text.trim().is_empty() {
        true => Some(None),
        false => parse(text).map(Some),
    }
}

/// Text of 1 to `bytes_max` bytes without control characters, blanks at its
/// ends included.
pub(super) fn untrimmed_text(bytes_max: usize) -> impl Fn(&str) -> Option<String> {
    move |text| is_plain(text, bytes_max).then(|| text.to_owned())
}

fn is_plain(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// A topic's name, by Kafka's rule.
pub(super) fn topic(text: &str) -> Option<String> {
    let text = text.trim();
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_topic = (1..=249).contains(&text.len())
        && text.bytes().all(is_legal)
        && !matches!(text, "." | "..");
    is_topic.then(|| text.to_owned())
}

/// An address to listen on.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    match text.trim() {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        text => text
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .ok(),
    }
}

/// A host to connect to: a name, an address or a folder of a Unix socket.
pub(super) fn host(text: &str) -> Option<String> {
    let text = text.trim();
    let is_host = is_plain(text, 255) && !text.contains([' ', '@']);
    is_host.then(|| text.to_owned())
}

/// One or several values, separated by commas.
pub(super) fn list<T>(parse: impl Fn(&str) -> Option<T>) -> impl Fn(&str) -> Option<Vec<T>> {
    move |text| text.split(',').map(&parse).collect()
}

/// `host:port`, or several separated by commas.
pub(super) fn brokers(text: &str) -> Option<Vec<String>> {
    text.split(',')
        .map(|broker| {
            let broker = broker.trim();
            let (host, port) = split_port(broker)?;
            self::port(port?)?;
            is_network_host(host).then(|| broker.to_owned())
        })
        .collect()
}

/// Splits `host` or `host:port`; an IPv6 address is in brackets.
pub(super) fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    let end_of_host = text.rfind(']').map_or(0, |bracket| bracket + 1);
    match text[end_of_host..].rfind(':') {
        Some(colon) => {
            let (host, port) = text.split_at(end_of_host + colon);
            Some((host, Some(&port[1..])))
        }
        None => Some((text, None)),
    }
    .filter(|(host, _)| !host.is_empty())
}

/// A host name, an IPv4 address or an IPv6 address in brackets.
pub(super) fn is_network_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']').unwrap_or_default();
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=253).contains(&host.len()) && host.bytes().all(is_legal)
}

/// `key=value,key=value`, values percent-encoded (OpenTelemetry's resource
/// specification, after W3C Baggage).
pub(super) fn key_values(text: &str) -> Option<Vec<(String, String)>> {
    text.split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let key = key.trim();
            (!key.is_empty()).then_some((key.to_owned(), percent_decoded(value.trim())?))
        })
        .collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            // `from_str_radix` would accept a sign.
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}
