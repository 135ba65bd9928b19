//! Export of finished spans by the SDK's batch processor, on a thread of its own.
//!
//! The SDK gathers spans and [`Client`] sends them. This file adds a bounded queue that counts what it drops, and one
//! warning a minute. A span that ends is moved into the queue, or dropped and counted; it never waits for the collector.

use std::future::{self, Future};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};

use crate::metrics::TracingMetrics;
use crate::otlp::{Client, Partial, Traces, WarningLimit};

/// Spans that may wait for the thread. At about 2 KiB each this is 16 MiB, and nearly a second of
/// spans under full load.
pub(super) const QUEUE_SPANS_MAX: usize = 8192;
/// Spans in one request to the collector.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others before it is sent.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// A processor that sends spans by `client` on its own thread. Starts the thread; does no I/O itself.
pub(super) fn processor(client: Client, metrics: TracingMetrics) -> Processor {
    let counts = Arc::new(Counts {
        waiting: AtomicUsize::new(0),
        metrics,
        reported: AtomicU64::new(0),
        warnings: WarningLimit::default(),
    });
    let exporter = Exporter {
        client: client.clone(),
        resource: ResourceAttributesWithSchema::default(),
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
    Processor {
        inner,
        client,
        counts,
    }
}

/// The outcome of spans.
#[derive(Debug)]
struct Counts {
    waiting: AtomicUsize,
    metrics: TracingMetrics,
    /// How many of the dropped spans a warning has named.
    reported: AtomicU64,
    warnings: WarningLimit,
}

impl Counts {
    fn exported(&self, spans: usize, result: &Result<Partial, String>) {
        let (rejected, reason) = match result {
            Ok(partial) => (partial.rejected.min(spans), &*partial.message),
            Err(reason) => (spans, &**reason),
        };
        self.metrics.exported.inc_by((spans - rejected) as u64);
        self.metrics.dropped.inc_by(rejected as u64);
        let dropped = self.metrics.dropped.get();
        let is_new = dropped > self.reported.load(Ordering::Relaxed);
        if (is_new || !reason.is_empty()) && self.warnings.is_due() {
            let lost = dropped - self.reported.swap(dropped, Ordering::Relaxed);
            let reason = match reason {
                "" => "they ended faster than they could be sent",
                reason => reason,
            };
            log::warn!(spans_dropped = lost; "not all spans reached the collector: {reason}");
        }
    }
}

/// The SDK's batch processor behind a bound that counts dropped spans.
#[derive(Debug)]
pub(super) struct Processor {
    inner: BatchSpanProcessor,
    client: Client,
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
        self.client.stop_retries();
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[derive(Debug)]
struct Exporter {
    client: Client,
    resource: ResourceAttributesWithSchema,
    counts: Arc<Counts>,
}

impl SpanExporter for Exporter {
    /// Blocks the processor's thread; the future is ready.
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let spans = batch.len();
        self.counts.waiting.fetch_sub(spans, Ordering::Relaxed);
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        let result = self.client.export::<Traces>(&request);
        self.counts.exported(spans, &result);
        future::ready(result.map(drop).map_err(OTelSdkError::InternalFailure))
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}
