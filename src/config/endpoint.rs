//! Parsing of the endpoints for traces: `OTEL_EXPORTER_OTLP_ENDPOINT` and `JAEGER_UI_URL`.

use super::reader::{is_network_host, number, split_port};

/// The port of OTLP over gRPC, which tbd does not speak.
const GRPC_PORT: &str = "4317";
/// The port of OTLP over HTTP, which tbd speaks.
const HTTP_PORT: &str = "4318";

/// A collector's base URL, with a note for the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `http://host:port` with an optional path; `None`: no export.
    pub url: Option<String>,
    /// One sentence for the log, if the URL differs from the setting.
    pub note: Option<String>,
}

/// Parses an endpoint. A bare `host:4317`, the customary default, is the collector's gRPC port;
/// its HTTP port replaces it. Accepts an `http` URL without user, query and fragment, a `host`, a
/// `host:port`, or nothing; `None` for anything else.
pub(super) fn endpoint(text: &str) -> Option<Endpoint> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Endpoint::default());
    }
    match text.split_once("://") {
        None => bare(text),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => url(rest),
        // TLS is not built in.
        Some(_) => None,
    }
}

fn bare(text: &str) -> Option<Endpoint> {
    let (host, port) = checked(text)?;
    let (port, note) = match port {
        Some(GRPC_PORT) => (
            HTTP_PORT,
            Some(format!(
                "spans are sent by OTLP over HTTP to {host}:{HTTP_PORT}: \
                 {host}:{GRPC_PORT} is the collector's gRPC port"
            )),
        ),
        Some(port) => (port, None),
        None => (HTTP_PORT, None),
    };
    Some(Endpoint {
        url: Some(format!("http://{host}:{port}")),
        note,
    })
}

fn url(rest: &str) -> Option<Endpoint> {
    let (authority, path) = split_path(rest)?;
    let (_, port) = checked(authority)?;
    Some(Endpoint {
        url: Some(format!("http://{authority}{path}")),
        note: (port == Some(GRPC_PORT)).then(|| {
            format!(
                "spans are sent by OTLP over HTTP to {authority}, \
                 but {GRPC_PORT} is usually the collector's gRPC port"
            )
        }),
    })
}

/// A base URL for browsers, without a slash at its end; `Some(None)` for an empty value.
pub(super) fn web_address(text: &str) -> Option<Option<String>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(None);
    }
    let (scheme, rest) = text.split_once("://")?;
    let (authority, path) = split_path(rest)?;
    checked(authority)?;
    matches!(scheme, "http" | "https").then(|| Some(format!("{scheme}://{authority}{path}")))
}

/// Host and port, and the path without a slash at its end.
fn split_path(rest: &str) -> Option<(&str, &str)> {
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let is_path = path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte));
    is_path.then(|| (authority, path.trim_end_matches('/')))
}

fn checked(authority: &str) -> Option<(&str, Option<&str>)> {
    let (host, port) = split_port(authority)?;
    if let Some(port) = port {
        number(1..=u16::MAX)(port)?;
    }
    is_network_host(host).then_some((host, port))
}
