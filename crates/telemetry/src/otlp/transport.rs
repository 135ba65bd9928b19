//! One attempt at an export, over gRPC or HTTP, and whether a failure is worth a retry.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tbd_deadline::Deadline;
use tbd_grpc::proto::google::rpc;
use tbd_grpc::tls::{ClientTls, Roots};
use tbd_grpc::{Channel, Code, Metadata, Status};
use ureq::http::{HeaderName, HeaderValue};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::{OtlpConfig, Signal};

/// The maximum length that is read of an answer over HTTP, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// The longest pause between two attempts to reach a collector that is away.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub reason: String,
    pub retry: Retry,
}

/// When an attempt may be repeated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    /// After a pause that grows from attempt to attempt.
    Backoff,
    /// After the pause that the collector asks for.
    After(Duration),
}

/// The protocol in use.
pub(super) enum Transport {
    Grpc {
        channel: Channel,
        metadata: Metadata,
    },
    Http {
        agent: ureq::Agent,
        url: String,
        headers: Vec<(String, String)>,
    },
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold secrets.
        f.write_str("Transport")
    }
}

impl Transport {
    pub(super) fn new(config: &OtlpConfig) -> io::Result<Self> {
        match config.is_grpc {
            true => grpc(config),
            false => http(config),
        }
    }

    /// Sends `request` once. Blocks until the answer, at most until `deadline`.
    pub(super) fn send<S: Signal>(
        &self,
        request: &S::Request,
        deadline: Deadline,
    ) -> Result<S::Response, Failure> {
        match self {
            Self::Grpc { channel, metadata } => channel
                .call(S::METHOD)
                .metadata(metadata.clone())
                .deadline(deadline)
                .send(request)
                .map_err(of_status),
            Self::Http {
                agent,
                url,
                headers,
            } => {
                let mut post = agent
                    .post(format!("{url}{}", S::PATH))
                    .content_type("application/x-protobuf");
                for (name, value) in headers {
                    post = post.header(name, value);
                }
                let post = post
                    .config()
                    .timeout_global(Some(deadline.remaining()))
                    .build();
                answer(post.send(request.encode_to_vec()))
            }
        }
    }
}

fn grpc(config: &OtlpConfig) -> io::Result<Transport> {
    let (scheme, address) = config
        .url
        .split_once("://")
        .unwrap_or(("http", &config.url));
    let mut settings = tbd_grpc::client::ChannelConfig::default();
    settings.reconnect.max = RECONNECT_PAUSE_MAX;
    let mut channel = Channel::builder(address).config(settings);
    if scheme == "https" {
        let roots = config.ca_file.clone().map_or(Roots::System, Roots::File);
        let tls = ClientTls::from_files(roots, None).map_err(io::Error::other)?;
        channel = channel.tls(tls);
    }
    let mut metadata = Metadata::new();
    for (name, value) in &config.headers {
        metadata
            .insert_text(&name.to_ascii_lowercase(), value)
            .map_err(|error| io::Error::other(format!("header {name}: {error}")))?;
    }
    Ok(Transport::Grpc {
        channel: channel.build(),
        metadata,
    })
}

fn http(config: &OtlpConfig) -> io::Result<Transport> {
    for (name, value) in &config.headers {
        let unusable = |error: String| io::Error::other(format!("header {name}: {error}"));
        HeaderName::try_from(name).map_err(|error| unusable(error.to_string()))?;
        HeaderValue::try_from(value).map_err(|error| unusable(error.to_string()))?;
    }
    let mut agent = ureq::Agent::config_builder()
        // The collector is on the local network; HTTP_PROXY is for the internet.
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false);
    if config.url.starts_with("https://") {
        let roots: Vec<Certificate<'static>> = match &config.ca_file {
            Some(file) => {
                let pem = std::fs::read(file)
                    .map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?;
                let certificates = parse_pem(&pem).filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                });
                certificates.collect()
            }
            None => rustls_native_certs::load_native_certs()
                .certs
                .iter()
                .map(|certificate| Certificate::from_der(certificate).to_owned())
                .collect(),
        };
        if roots.is_empty() {
            return Err(io::Error::other("there is no CA certificate to trust"));
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        agent = agent.tls_config(tls.build());
    }
    Ok(Transport::Http {
        agent: agent.build().new_agent(),
        url: config.url.trim_end_matches('/').to_owned(),
        headers: config.headers.clone(),
    })
}

/// The specification's table of retryable codes.
fn of_status(status: Status) -> Failure {
    let asked = status
        .detail::<rpc::RetryInfo>()
        .and_then(|info| Duration::try_from(info.retry_delay?).ok());
    let is_retryable = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        // A collector that recovers says when.
        Code::ResourceExhausted => asked.is_some(),
        _ => false,
    };
    Failure {
        reason: status.to_string(),
        retry: match asked {
            _ if !is_retryable => Retry::Never,
            Some(pause) => Retry::After(pause),
            None => Retry::Backoff,
        },
    }
}

/// What an answer over HTTP says. Reads it to the end, so that the connection can be reused.
fn answer<M: Message + Default>(
    answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<M, Failure> {
    let away = |error: ureq::Error| Failure {
        reason: error.to_string(),
        retry: Retry::Backoff,
    };
    let mut response = answer.map_err(away)?;
    let body = response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_vec()
        .map_err(away)?;
    let status = response.status();
    if status.is_success() {
        return M::decode(&body[..]).map_err(|error| Failure {
            reason: format!("the collector's answer: {error}"),
            retry: Retry::Never,
        });
    }
    let asked = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let details = rpc::Status::decode(&body[..]).unwrap_or_default();
    Err(Failure {
        reason: format!("{status} {}", details.message)
            .trim_end()
            .to_owned(),
        retry: match (status.as_u16(), asked) {
            (429 | 502 | 503 | 504, Some(pause)) => Retry::After(pause),
            (429 | 502 | 503 | 504, None) => Retry::Backoff,
            _ => Retry::Never,
        },
    })
}
