//! Export of finished spans: OTLP over HTTP, by the SDK's batch processor on a thread of its own.
//!
//! The SDK and `opentelemetry-otlp` gather, encode and send. This file adds what they lack: a
//! blocking HTTP client (theirs need an async runtime), an exact count of exported and dropped
//! spans, and one warning a minute. A span that ends is moved into a bounded queue, or dropped and
//! counted; it never waits for the collector.

use std::future::{self, Future};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, RetryPolicy, WithExportConfig, WithHttpConfig};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use prost::Message;
use tbd_deadline::lock;

use crate::metrics::TracingMetrics;

/// Spans that may wait for the thread. At about 2 KiB each this is 16 MiB, and nearly a second of
/// spans under full load.
pub(super) const QUEUE_SPANS_MAX: usize = 8192;
/// Spans in one request to the collector.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others before it is sent.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// The maximum time of one request to the collector, connecting included.
pub(super) const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two warnings about lost spans.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// The maximum length that is read of a collector's answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// A processor that sends spans to `url` on its own thread. Starts the thread; does no I/O itself.
///
/// # Errors
/// When a standard variable of the exporter (such as `OTEL_EXPORTER_OTLP_HEADERS`) has an unusable
/// value.
pub(super) fn processor(url: String, metrics: TracingMetrics) -> io::Result<Processor> {
    let counts = Arc::new(Counts::new(metrics));
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url)
        .with_timeout(EXPORT_TIMEOUT)
        // A trace is not worth a retry: retries would delay shutdown while the collector is
        // unavailable.
        .with_retry_policy(RetryPolicy::disabled())
        .with_http_client(Client::new(Arc::clone(&counts)))
        .build()
        .map_err(io::Error::other)?;
    let exporter = Exporter {
        inner: exporter,
        counts: Arc::clone(&counts),
    };
    let config = BatchConfigBuilder::default()
        // `Processor` drops the spans beyond the limit first.
        .with_max_queue_size(QUEUE_SPANS_MAX + BATCH_SPANS_MAX)
        .with_max_export_batch_size(BATCH_SPANS_MAX)
        .with_scheduled_delay(BATCH_DELAY)
        .build();
    let inner = BatchSpanProcessor::builder(exporter)
        .with_batch_config(config)
        .build();
    Ok(Processor { inner, counts })
}

/// The outcome of spans.
#[derive(Debug)]
struct Counts {
    waiting: AtomicUsize,
    metrics: TracingMetrics,
    /// Spans that the collector rejected from its last request, while accepting the rest.
    rejected: AtomicUsize,
    warnings: Mutex<Warnings>,
}

/// Limits warnings about lost spans to one a minute.
#[derive(Debug, Default)]
struct Warnings {
    reported: u64,
    latest: Option<Instant>,
}

impl Counts {
    fn new(metrics: TracingMetrics) -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            metrics,
            rejected: AtomicUsize::new(0),
            warnings: Mutex::default(),
        }
    }

    fn exported(&self, spans: usize, result: &OTelSdkResult) {
        let rejected = match result {
            Ok(()) => self.rejected.swap(0, Ordering::Relaxed).min(spans),
            Err(_) => spans,
        };
        self.metrics.exported.inc_by((spans - rejected) as u64);
        self.metrics.dropped.inc_by(rejected as u64);
        let reason = match result {
            Err(error) => error.to_string(),
            Ok(()) if rejected > 0 => "the collector rejected them".to_owned(),
            Ok(()) => "they ended faster than they could be sent".to_owned(),
        };
        self.warn(&reason);
    }

    fn warn(&self, reason: &str) {
        let dropped = self.metrics.dropped.get();
        let lost = {
            let mut warnings = lock(&self.warnings);
            let is_recent = |latest: Instant| latest.elapsed() < WARNING_INTERVAL;
            if dropped == warnings.reported || warnings.latest.is_some_and(is_recent) {
                return;
            }
            warnings.latest = Some(Instant::now());
            dropped - std::mem::replace(&mut warnings.reported, dropped)
        };
        log::warn!(spans_dropped = lost; "spans were dropped: {reason}");
    }
}

/// The SDK's batch processor behind a bound that counts dropped spans.
#[derive(Debug)]
pub(super) struct Processor {
    inner: BatchSpanProcessor,
    counts: Arc<Counts>,
}

impl SpanProcessor for Processor {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        if self.counts.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE_SPANS_MAX {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.metrics.dropped.inc();
            return;
        }
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[derive(Debug)]
struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    counts: Arc<Counts>,
}

impl SpanExporter for Exporter {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let spans = batch.len();
        self.counts.waiting.fetch_sub(spans, Ordering::Relaxed);
        self.inner
            .export(batch)
            .inspect(move |result| self.counts.exported(spans, result))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// A blocking client behind the SDK's asynchronous interface: a request is complete before its
/// future is returned.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
    counts: Arc<Counts>,
}

impl Client {
    fn new(counts: Arc<Counts>) -> Self {
        let agent = ureq::Agent::config_builder()
            // The collector is on the local network; HTTP_PROXY is for the internet.
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_global(Some(EXPORT_TIMEOUT))
            .build()
            .new_agent();
        Self { agent, counts }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let mut response = self.agent.run(Request::from_parts(head, &body[..]))?;
        // Read to the end, so that the connection can be reused.
        let answer = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec()?;
        let rejected = ExportTraceServiceResponse::decode(&answer[..])
            .ok()
            .and_then(|response| response.partial_success)
            .map_or(0, |partial| partial.rejected_spans);
        self.counts
            .rejected
            .store(usize::try_from(rejected).unwrap_or(0), Ordering::Relaxed);
        let (head, _) = response.into_parts();
        Ok(Response::from_parts(head, Bytes::from(answer)))
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Answer<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(future::ready(self.send(request)))
    }
}
