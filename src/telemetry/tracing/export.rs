//! Finished spans, gathered and sent to the collector by one thread.
//!
//! [`Queue::on_end`] runs on whatever thread ends a span, a request's included:
//! it moves the span into a bounded queue, or drops and counts it, and never
//! waits for more than that queue's lock, which is held for moves alone. The
//! thread `otel-export` takes batches out, encodes them and posts them. It
//! blocks on the queue's condition variable (woken by a full batch or by the
//! end) and on the collector, never longer than [`EXPORT_TIMEOUT`].
//!
//! A batch that cannot be delivered is dropped: a trace is worth no memory and
//! no second attempt. While the collector is away, one batch is tried every
//! [`PAUSE_AFTER_FAILURE`] and one warning a minute says how much was lost.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use opentelemetry::Context;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message;

use super::otlp;
use crate::deadline::Deadline;
use crate::telemetry::metrics::TracingMetrics;

/// Spans that wait for the thread at most. At about 2 KiB a span this is
/// 16 MiB, and nearly a second of spans under full load.
pub const QUEUE_SPANS_MAX: usize = 8192;
/// Spans in one request to the collector.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others before it is sent.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// The longest one request to the collector may take, all in all.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a collector that failed is left alone.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Time between two warnings about lost spans.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// What is read of a collector's answer at most.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// The way from ended spans to the export thread.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    metrics: TracingMetrics,
}

#[derive(Debug, Default)]
struct State {
    spans: VecDeque<SpanData>,
    /// Set once, by the end: until when what is left may be sent.
    closed: Option<Deadline>,
}

impl Queue {
    fn new(metrics: TracingMetrics) -> Self {
        Self {
            state: Mutex::default(),
            wake: Condvar::new(),
            metrics,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, span: SpanData) {
        let mut state = self.state();
        if state.closed.is_some() || state.spans.len() >= QUEUE_SPANS_MAX {
            drop(state);
            self.metrics.dropped.inc();
            return;
        }
        state.spans.push_back(span);
        // Waking the thread for every span would cost more than the span.
        let is_batch = state.spans.len() == BATCH_SPANS_MAX;
        drop(state);
        if is_batch {
            self.wake.notify_one();
        }
    }

    /// Moves the next batch into `batch` once it is full, [`BATCH_DELAY`] is
    /// over or the queue closed, not before `not_before` unless it is closed.
    fn take(&self, batch: &mut Vec<SpanData>, not_before: Instant) -> Option<Deadline> {
        let mut state = self.state();
        let latest = (Instant::now() + BATCH_DELAY).max(not_before);
        loop {
            let now = Instant::now();
            let is_full = state.spans.len() >= BATCH_SPANS_MAX && now >= not_before;
            if state.closed.is_some() || is_full || now >= latest {
                break;
            }
            let until = if state.spans.len() >= BATCH_SPANS_MAX {
                not_before
            } else {
                latest
            };
            (state, _) = self
                .wake
                .wait_timeout(state, until.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner);
        }
        let count = state.spans.len().min(BATCH_SPANS_MAX);
        batch.extend(state.spans.drain(..count));
        state.closed
    }

    fn close(&self, deadline: Deadline) {
        self.state().closed.get_or_insert(deadline);
        self.wake.notify_one();
    }
}

/// The processor that the SDK hands every ended span to.
#[derive(Clone, Debug)]
pub struct Processor(Arc<Queue>);

impl SpanProcessor for Processor {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.0.push(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Err(OTelSdkError::InternalFailure(
            "spans are flushed by Tracing::shutdown alone".to_owned(),
        ))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.close(Deadline::after(timeout));
        Ok(())
    }
}

/// The thread `otel-export` and its owner's end of it.
#[derive(Debug)]
pub struct Exporter {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
}

impl Exporter {
    /// Starts the thread that posts to `url`.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn start(
        url: String,
        resource: otlp::Resource,
        scope: otlp::Scope,
        metrics: TracingMetrics,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(metrics));
        let (ending, ended) = crossbeam_channel::bounded(1);
        let mut sender = Sender {
            queue: Arc::clone(&queue),
            collector: Collector::new(url, resource, scope),
            warnings: Warnings::default(),
        };
        let thread = std::thread::Builder::new()
            .name("otel-export".to_owned())
            .spawn(move || {
                sender.run();
                // The owner may have given up waiting; then nobody hears.
                let _ = ending.try_send(());
            })?;
        Ok(Self {
            queue,
            thread: Some(thread),
            ended,
        })
    }

    /// The processor to register with the SDK.
    pub fn processor(&self) -> Processor {
        Processor(Arc::clone(&self.queue))
    }

    /// Sends what is queued until `deadline`, then joins the thread. Waits for
    /// the thread until `deadline`; `false` means that it was still talking to
    /// a collector then, and ends by itself within [`EXPORT_TIMEOUT`].
    pub fn close(&mut self, deadline: Deadline) -> bool {
        self.queue.close(deadline);
        // A thread that panicked has dropped its end: that wakes us as well.
        let has_ended = !matches!(
            self.ended.recv_deadline(deadline.instant()),
            Err(crossbeam_channel::RecvTimeoutError::Timeout)
        );
        if has_ended
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread otel-export panicked; spans were lost");
        }
        has_ended
    }

    /// Drops what is queued and joins the thread, which may first have to end
    /// a request: waits for [`EXPORT_TIMEOUT`] at most.
    pub fn abandon(&mut self) {
        self.queue.close(Deadline::after(Duration::ZERO));
        self.close(Deadline::after(EXPORT_TIMEOUT));
    }
}

struct Sender {
    queue: Arc<Queue>,
    collector: Collector,
    warnings: Warnings,
}

impl Sender {
    fn run(&mut self) {
        // Nothing done here is to be traced.
        let _suppressed = Context::enter_telemetry_suppressed_scope();
        let mut batch = Vec::with_capacity(BATCH_SPANS_MAX);
        let mut not_before = Instant::now();
        loop {
            let closed = self.queue.take(&mut batch, not_before);
            if let Some(reason) = self.send(&batch, closed) {
                not_before = Instant::now() + PAUSE_AFTER_FAILURE;
                self.warnings.reason = Some(reason);
            }
            let was_empty = batch.is_empty();
            batch.clear();
            self.warnings.report(self.queue.metrics.dropped.get());
            if closed.is_some() && was_empty {
                return;
            }
        }
    }

    /// Sends a batch and counts its fate; the reason, if it was a bad one.
    fn send(&mut self, batch: &[SpanData], closed: Option<Deadline>) -> Option<String> {
        if batch.is_empty() {
            return None;
        }
        let count = batch.len() as u64;
        let time = closed.map_or(EXPORT_TIMEOUT, |deadline| {
            deadline.remaining().min(EXPORT_TIMEOUT)
        });
        let metrics = &self.queue.metrics;
        match self.collector.post(batch, time) {
            Ok(rejected) => {
                let rejected = rejected.min(count);
                metrics.exported.inc_by(count - rejected);
                metrics.dropped.inc_by(rejected);
                (rejected > 0).then(|| "the collector rejected them".to_owned())
            }
            Err(reason) => {
                metrics.dropped.inc_by(count);
                Some(reason)
            }
        }
    }
}

/// The other end: where to post, and what every request begins with.
struct Collector {
    url: String,
    resource: otlp::Resource,
    scope: otlp::Scope,
    agent: ureq::Agent,
    /// Kept, so that encoding allocates nothing once it has grown.
    body: Vec<u8>,
}

impl Collector {
    fn new(url: String, resource: otlp::Resource, scope: otlp::Scope) -> Self {
        let agent = ureq::Agent::config_builder()
            // The collector is a neighbour; HTTP_PROXY is for the world.
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("tbd/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self {
            url,
            resource,
            scope,
            agent,
            body: Vec::new(),
        }
    }

    /// Posts one batch within `time`; the number of spans the collector
    /// accepted the request without.
    fn post(&mut self, batch: &[SpanData], time: Duration) -> Result<u64, String> {
        if time.is_zero() {
            return Err("no time was left to send them".to_owned());
        }
        self.body.clear();
        otlp::export_request(&self.resource, &self.scope, batch)
            .encode(&mut self.body)
            .map_err(|error| error.to_string())?;
        let mut response = self
            .agent
            .post(&self.url)
            .config()
            .timeout_global(Some(time))
            .build()
            .header("content-type", "application/x-protobuf")
            .send(&self.body[..])
            .map_err(|error| error.to_string())?;
        // Read to its end, so that the connection can be used again.
        let answer = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec()
            .map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("the collector answered {}", response.status()));
        }
        let rejected = otlp::ExportResponse::decode(&answer[..])
            .ok()
            .and_then(|response| response.partial_success)
            .map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }
}

/// One warning a minute about lost spans.
#[derive(Default)]
struct Warnings {
    reported: u64,
    latest: Option<Instant>,
    reason: Option<String>,
}

impl Warnings {
    fn report(&mut self, dropped: u64) {
        let is_due = self
            .latest
            .is_none_or(|latest| latest.elapsed() >= WARNING_INTERVAL);
        if dropped == self.reported || !is_due {
            return;
        }
        let reason = self.reason.take();
        log::warn!(
            spans_dropped = dropped - self.reported;
            "spans were dropped: {}",
            reason.as_deref().unwrap_or("they ended faster than they could be sent")
        );
        self.reported = dropped;
        self.latest = Some(Instant::now());
    }
}
