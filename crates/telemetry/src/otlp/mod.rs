//! Client of an OpenTelemetry collector: OTLP over gRPC or over HTTP, with the specification's retries.
//!
//! Spans ([`tracing`](crate::tracing)) and metrics ([`MetricsExport`]) share one [`Client`]. Its callers are threads
//! of the export, so nothing else waits for a collector.
//!
//! Source of the rules: OpenTelemetry protocol specification 1.10, "Failures", "Partial Success" and "Throttling".

mod convert;
mod metrics;
mod transport;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tbd_deadline::{Deadline, StopSignal, lock};
use tbd_grpc::Method;

pub use metrics::MetricsExport;
use transport::{Retry, Transport};

/// The maximum time of one export: connecting, retries and pauses included. It is the default of
/// `OTEL_EXPORTER_OTLP_TIMEOUT`.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before the first retry; each further one is twice as long. A collector that names a pause gets no shorter one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Time between two warnings about the same loss.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Where the collector is, and how to speak to it. Its headers may hold secrets, so `Debug` omits them.
#[derive(Clone)]
pub struct OtlpConfig {
    /// OTLP over gRPC; if not, OTLP over HTTP with protobuf bodies.
    pub is_grpc: bool,
    /// `http://host:port` or `https://host:port`. Over HTTP a path may follow; `/v1/traces` is appended.
    pub url: String,
    /// Headers of every request, such as `authorization`.
    pub headers: Vec<(String, String)>,
    /// PEM file of the CA certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for OtlpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpConfig")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// A connection to the collector. Clones share it.
#[derive(Clone, Debug)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    transport: Transport,
    stopping: StopSignal,
}

impl Client {
    /// A client that connects with its first export. Reads the CA file, or the system's CA certificates.
    ///
    /// # Errors
    /// A header or a CA certificate cannot be used.
    pub fn new(config: &OtlpConfig) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            transport: Transport::new(config)?,
            stopping: StopSignal::new(),
        })))
    }

    /// For the end of the program: an export that follows is tried once, and one that waits is tried a last time, at
    /// once.
    pub fn stop_retries(&self) {
        self.0.stopping.stop();
    }

    /// Sends `request`, and sends it again after a failure that may pass. Blocks until the collector has answered for
    /// good, at most for [`EXPORT_TIMEOUT`].
    ///
    /// # Errors
    /// Why the collector did not take the request. It is not worth another try.
    pub(crate) fn export<S: Signal>(&self, request: &S::Request) -> Result<Partial, String> {
        let deadline = Deadline::after(EXPORT_TIMEOUT);
        let mut backoff = FIRST_PAUSE;
        loop {
            let is_last = self.0.stopping.is_stopped();
            let failure = match self.0.transport.send::<S>(request, deadline) {
                Ok(answer) => return Ok(S::partial(answer)),
                Err(failure) => failure,
            };
            let pause = match failure.retry {
                Retry::Never => return Err(failure.reason),
                Retry::Backoff => backoff.mul_f64(0.8 + 0.4 * fastrand::f64()),
                // A collector may ask for no pause at all, and keep failing.
                Retry::After(pause) => pause.max(FIRST_PAUSE),
            };
            backoff *= 2;
            if is_last || pause >= deadline.remaining() {
                return Err(failure.reason);
            }
            self.0.stopping.wait_for(pause);
        }
    }
}

/// One of OTLP's services: traces or metrics.
pub(crate) trait Signal {
    /// The export request.
    type Request: Message;
    /// The collector's answer.
    type Response: Message + Default;
    /// The method over gRPC.
    const METHOD: Method<Self::Request, Self::Response>;
    /// The path over HTTP, below the base URL.
    const PATH: &'static str;
    /// What the answer says about a part that was refused.
    fn partial(response: Self::Response) -> Partial;
}

/// What the collector refused of a request that it accepted. Sending it again is of no use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Partial {
    /// Spans or data points.
    pub rejected: usize,
    /// The reason, or a warning about accepted data; may be empty.
    pub message: String,
}

impl Partial {
    fn new(rejected: i64, message: String) -> Self {
        Self {
            rejected: usize::try_from(rejected).unwrap_or(0),
            message,
        }
    }
}

/// Spans.
pub(crate) struct Traces;

impl Signal for Traces {
    type Request = ExportTraceServiceRequest;
    type Response = ExportTraceServiceResponse;
    const METHOD: Method<Self::Request, Self::Response> =
        Method::new("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    const PATH: &'static str = "/v1/traces";

    fn partial(response: Self::Response) -> Partial {
        let partial = response.partial_success.unwrap_or_default();
        Partial::new(partial.rejected_spans, partial.error_message)
    }
}

/// Metrics.
pub(crate) struct Metrics;

impl Signal for Metrics {
    type Request = ExportMetricsServiceRequest;
    type Response = ExportMetricsServiceResponse;
    const METHOD: Method<Self::Request, Self::Response> =
        Method::new("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export");
    const PATH: &'static str = "/v1/metrics";

    fn partial(response: Self::Response) -> Partial {
        let partial = response.partial_success.unwrap_or_default();
        Partial::new(partial.rejected_data_points, partial.error_message)
    }
}

/// Limits warnings to one a minute.
#[derive(Debug, Default)]
pub(crate) struct WarningLimit(Mutex<Option<Instant>>);

impl WarningLimit {
    /// Whether a warning is due; if so, the next one is due in a minute.
    pub(crate) fn is_due(&self) -> bool {
        let mut latest = lock(&self.0);
        let is_due = latest.is_none_or(|latest| latest.elapsed() >= WARNING_INTERVAL);
        if is_due {
            *latest = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests;
