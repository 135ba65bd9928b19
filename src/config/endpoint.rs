//! Parsing of the endpoints for telemetry: `OTEL_EXPORTER_OTLP_ENDPOINT` and `JAEGER_UI_URL`.

use super::reader::{self, is_network_host, split_port};

/// The registered port of OTLP over gRPC.
const GRPC_PORT: &str = "4317";
/// The registered port of OTLP over HTTP.
const HTTP_PORT: &str = "4318";

/// A collector's address and the protocol that it speaks there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// OTLP over gRPC, not over HTTP.
    pub is_grpc: bool,
    /// `http` or `https`, `://host:port` and, over HTTP, an optional path.
    pub url: String,
}

/// Parses an endpoint; `Some(None)` for an empty one. Without `protocol` (whether it is gRPC) the registered ports
/// decide. Other ports speak HTTP if the address is a URL, and gRPC if it is bare, as addresses of gRPC are.
pub(super) fn endpoint(text: &str, protocol: Option<bool>) -> Option<Option<Endpoint>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(None);
    }
    let (scheme, rest) = match text.split_once("://") {
        None => (None, text),
        Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
    };
    let (authority, path) = split_path(rest)?;
    let (host, port) = checked(authority)?;
    let is_grpc = protocol.unwrap_or(match port {
        Some(GRPC_PORT) => true,
        Some(HTTP_PORT) => false,
        _ => scheme.is_none(),
    });
    let (scheme, default_port) = match scheme.as_deref() {
        None => ("http", if is_grpc { GRPC_PORT } else { HTTP_PORT }),
        Some("http") => ("http", "80"),
        Some("https") => ("https", "443"),
        Some(_) => return None,
    };
    if is_grpc && !path.is_empty() {
        return None;
    }
    let port = port.unwrap_or(default_port);
    Some(Some(Endpoint {
        is_grpc,
        url: format!("{scheme}://{host}:{port}{path}"),
    }))
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
        reader::port(port)?;
    }
    is_network_host(host).then_some((host, port))
}
