//! OpenTelemetry traces for synchronous code.
//!
//! The *current* context belongs to the thread. A [`SpanGuard`] makes its span current while it
//! lives, and spans begun meanwhile become its children. Work that moves to another thread takes
//! [`DetachedSpan::context`] along and begins its spans there with [`span_in`]. Work that moves to
//! another process takes along the results of [`inject`] and [`inject_state`], or of [`serialize`].
//!
//! Every span has trace and span ids, even when nothing is exported or the trace is not sampled:
//! logs, error bodies and `X-Request-Id` use them. In those cases a span costs only its ids, and
//! attributes given as a closure are not built.
//!
//! ```
//! use tbd_telemetry::tracing::{KeyValue, SpanKind, span};
//!
//! let span = span("INSERT orders", SpanKind::Client, || {
//!     vec![KeyValue::new("db.system.name", "postgresql")]
//! });
//! span.set("db.response.status_code", "23505");
//! span.fail("23505", "the key is taken");
//! ```

mod export;
mod propagation;

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanId, Status, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{ContextGuard, InstrumentationScope};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

pub use opentelemetry::trace::{SpanContext, SpanKind, TraceContextExt};
pub use opentelemetry::{Context, Key, KeyValue, Value};
pub use opentelemetry_sdk::Resource;
pub use opentelemetry_sdk::trace::Sampler;
pub use propagation::{
    TRACEPARENT, TRACESTATE, deserialize, extract, headers, inject, inject_state, serialize,
};

use super::metrics::TracingMetrics;
use super::otlp::Client;
use super::semconv;
use tbd_deadline::Deadline;

/// The instrumentation scope of tbd's spans.
pub(crate) const SCOPE: &str = "tbd";
/// The longest text of an attribute, in bytes; the rest is cut off. Together with the SDK's limit
/// of 128 attributes it bounds the size of a span.
const VALUE_BYTES_MAX: usize = 1024;

/// The sampler that `OTEL_TRACES_SAMPLER` calls `name`, with `OTEL_TRACES_SAMPLER_ARG` as its ratio. After
/// `parentbased_`, the name says what applies to traces without a caller; a caller decides about its own.
pub fn sampler(name: &str, ratio: f64) -> Option<Sampler> {
    let (is_parent_based, root) = match name.strip_prefix("parentbased_") {
        Some(root) => (true, root),
        None => (false, name),
    };
    let root = match root {
        "always_on" => Sampler::AlwaysOn,
        "always_off" => Sampler::AlwaysOff,
        "traceidratio" => Sampler::TraceIdRatioBased(ratio),
        _ => return None,
    };
    Some(match is_parent_based {
        true => Sampler::ParentBased(Box::new(root)),
        false => root,
    })
}

/// The configuration for [`init`].
#[derive(Clone, Debug)]
pub struct TracingConfig {
    /// The process, from [`resource`].
    pub resource: Resource,
    /// The version of the instrumentation scope.
    pub version: String,
    /// The collector. `None`: nothing is recorded or exported.
    pub collector: Option<Client>,
    /// Which traces are recorded.
    pub sampler: Sampler,
}

/// Owner of the export: spans are recorded while it lives. Dropped without
/// [`shutdown`](Tracing::shutdown), it waits up to 5 s for the collector.
#[derive(Debug)]
#[must_use = "spans are exported only while their owner lives"]
pub struct Tracing {
    provider: SdkTracerProvider,
    scope: InstrumentationScope,
}

/// The process's tracer; `None` before [`init`].
static TRACER: RwLock<Option<SdkTracer>> = RwLock::new(None);

/// Sets up the process's tracing; `main` calls it once. Starts the export's thread; does no I/O
/// itself.
pub fn init(config: TracingConfig, metrics: &TracingMetrics) -> Tracing {
    let tracing = Tracing::start(config, metrics);
    *TRACER.write().unwrap_or_else(PoisonError::into_inner) = Some(tracing.tracer());
    tracing
}

impl Tracing {
    fn start(config: TracingConfig, metrics: &TracingMetrics) -> Self {
        let builder = SdkTracerProvider::builder().with_resource(config.resource);
        let provider = match config.collector {
            None => builder.with_sampler(Sampler::AlwaysOff),
            Some(client) => builder
                .with_sampler(config.sampler)
                .with_span_processor(export::processor(client, metrics.clone())),
        }
        .build();
        let scope = InstrumentationScope::builder(SCOPE)
            .with_version(config.version)
            .build();
        Self { provider, scope }
    }

    fn tracer(&self) -> SdkTracer {
        self.provider.tracer_with_scope(self.scope.clone())
    }

    /// Sends the spans that have ended, and ends the export's thread. Spans that end later are
    /// lost. Waits for the collector until `deadline`, and returns whether everything was sent by
    /// then.
    pub fn shutdown(self, deadline: Deadline) -> bool {
        self.provider
            .shutdown_with_timeout(deadline.remaining())
            .is_ok()
    }
}

/// The attributes of this process, for its spans and metrics: name and version of the service, a new
/// `service.instance.id`, and `attributes`, which override all but the name.
pub fn resource(name: &str, version: &str, attributes: &[(String, String)]) -> Resource {
    let given = attributes.iter().cloned();
    // The SDK's default builder would read the environment again.
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new(semconv::SERVICE_VERSION, version.to_owned()),
            KeyValue::new(
                semconv::SERVICE_INSTANCE_ID,
                uuid::Uuid::now_v7().to_string(),
            ),
            KeyValue::new(semconv::PROCESS_PID, i64::from(std::process::id())),
            KeyValue::new(semconv::TELEMETRY_SDK_NAME, "opentelemetry"),
            KeyValue::new(semconv::TELEMETRY_SDK_LANGUAGE, "rust"),
        ])
        .with_attributes(given.map(|(key, value)| KeyValue::new(key, value)))
        .with_service_name(name.to_owned())
        .build()
}

/// Attributes for a new span: a list, or a closure that makes one. The closure is called only if
/// the span is recorded.
pub trait Attributes {
    /// The attributes.
    fn build(self) -> impl IntoIterator<Item = KeyValue>;
}

impl Attributes for Vec<KeyValue> {
    fn build(self) -> impl IntoIterator<Item = KeyValue> {
        self
    }
}

impl<const N: usize> Attributes for [KeyValue; N] {
    fn build(self) -> impl IntoIterator<Item = KeyValue> {
        self
    }
}

impl<F, I> Attributes for F
where
    F: FnOnce() -> I,
    I: IntoIterator<Item = KeyValue>,
{
    fn build(self) -> impl IntoIterator<Item = KeyValue> {
        self()
    }
}

/// Begins a span as a child of the thread's current one and makes it current.
pub fn span(
    name: impl Into<Cow<'static, str>>,
    kind: SpanKind,
    attributes: impl Attributes,
) -> SpanGuard {
    span_in(&Context::current(), name, kind, attributes, Vec::new())
}

/// Begins a span as a child of `parent` (a context from elsewhere), linked to `links`, and makes it
/// current. `Context::new()` as the parent begins a new trace.
pub fn span_in(
    parent: &Context,
    name: impl Into<Cow<'static, str>>,
    kind: SpanKind,
    attributes: impl Attributes,
    links: Vec<SpanContext>,
) -> SpanGuard {
    start(&tracer(), parent, name.into(), kind, attributes, links).into_current()
}

/// Like [`span_in`], for work that began `age` ago, before a span could be begun.
pub fn span_since(
    age: Duration,
    parent: &Context,
    name: impl Into<Cow<'static, str>>,
    kind: SpanKind,
    attributes: impl Attributes,
) -> SpanGuard {
    let builder = SpanBuilder::from_name(name)
        .with_kind(kind)
        .with_start_time(ago(age));
    build(&tracer(), parent, builder, attributes).into_current()
}

/// Like [`span_in`], but the span does not become the thread's current one. For work on many items
/// at once, each with its own trace.
pub fn detached_span_in(
    parent: &Context,
    name: impl Into<Cow<'static, str>>,
    kind: SpanKind,
    attributes: impl Attributes,
    links: Vec<SpanContext>,
) -> DetachedSpan {
    start(&tracer(), parent, name.into(), kind, attributes, links)
}

/// A finished wait of this thread that took `time`: a child of the current span. It ends when
/// dropped, so it can still be marked as failed.
pub fn waited(name: &'static str, time: Duration, links: Vec<SpanContext>) -> DetachedSpan {
    let builder = SpanBuilder::from_name(name)
        .with_kind(SpanKind::Internal)
        .with_start_time(ago(time))
        .with_links(links.into_iter().map(Link::with_context).collect());
    build(&tracer(), &Context::current(), builder, [])
}

/// Sets an attribute of the thread's current span; text beyond 1 KiB is cut off.
pub fn annotate(key: impl Into<Key>, value: impl Into<Value>) {
    Context::map_current(|context| {
        let span = context.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(key.into(), bounded(value.into())));
        }
    });
}

/// The thread's current span, as the target of another span's link; `None` outside of any span.
pub fn current() -> Option<SpanContext> {
    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| span.clone())
    })
}

/// The parent for periodic work that no caller requested. It has ids like any other, but is
/// recorded only under the `always_on` sampler.
pub fn unsampled() -> Context {
    let [ids, span_id] = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
    Context::new().with_remote_span_context(SpanContext::new(
        TraceId::from(ids.as_u128()),
        SpanId::from(span_id.as_u64_pair().0),
        TraceFlags::NOT_SAMPLED,
        true,
        TraceState::NONE,
    ))
}

fn ago(time: Duration) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(time).unwrap_or(now)
}

/// A span in progress that is not any thread's current one. Ends when dropped.
#[derive(Debug)]
pub struct DetachedSpan(Context);

impl DetachedSpan {
    /// Makes the span the thread's current one for as long as the guard lives.
    pub fn enter(&self) -> ContextGuard {
        self.0.clone().attach()
    }

    fn into_current(self) -> SpanGuard {
        SpanGuard {
            attached: Some(self.0.clone().attach()),
            span: self,
            not_send: PhantomData,
        }
    }
}

fn start(
    tracer: &SdkTracer,
    parent: &Context,
    name: Cow<'static, str>,
    kind: SpanKind,
    attributes: impl Attributes,
    links: Vec<SpanContext>,
) -> DetachedSpan {
    let mut builder = SpanBuilder::from_name(name).with_kind(kind);
    if !links.is_empty() {
        builder = builder.with_links(links.into_iter().map(Link::with_context).collect());
    }
    build(tracer, parent, builder, attributes)
}

fn build(
    tracer: &SdkTracer,
    parent: &Context,
    builder: SpanBuilder,
    attributes: impl Attributes,
) -> DetachedSpan {
    let mut span = tracer.build_with_context(builder, parent);
    if span.is_recording() {
        for mut attribute in attributes.build() {
            attribute.value = bounded(attribute.value);
            span.set_attribute(attribute);
        }
    }
    DetachedSpan(parent.with_span(span))
}

/// The process's tracer.
fn tracer() -> SdkTracer {
    let tracer = TRACER.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(tracer) = tracer.as_ref() {
        return tracer.clone();
    }
    drop(tracer);
    let mut tracer = TRACER.write().unwrap_or_else(PoisonError::into_inner);
    tracer
        .get_or_insert_with(|| {
            // Before `init`, mostly in tests: ids alone.
            SdkTracerProvider::builder()
                .with_resource(Resource::builder_empty().build())
                .with_sampler(Sampler::AlwaysOff)
                .build()
                .tracer(SCOPE)
        })
        .clone()
}

impl DetachedSpan {
    /// Whether attributes and events are kept; if not, do not compute them.
    pub fn is_recording(&self) -> bool {
        self.0.span().is_recording()
    }

    /// Sets an attribute; text beyond 1 KiB is cut off.
    pub fn set(&self, key: impl Into<Key>, value: impl Into<Value>) {
        let span = self.0.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(key.into(), bounded(value.into())));
        }
    }

    /// Links to a related span.
    pub fn link(&self, other: SpanContext) {
        self.0.span().add_link(other, Vec::new());
    }

    /// Renames the span, once more is known than at its beginning.
    pub fn rename(&self, name: impl Into<Cow<'static, str>>) {
        self.0.span().update_name(name);
    }

    /// Marks the span as failed: status `Error` with `message`, `error.type` (of low cardinality: a
    /// code, a kind) and an `exception` event.
    pub fn fail(&self, error_type: &str, message: &str) {
        let span = self.0.span();
        if !span.is_recording() {
            return;
        }
        let error_type = || bounded(Value::from(error_type.to_owned()));
        let message = || bounded(Value::from(message.to_owned()));
        span.set_attribute(KeyValue::new(semconv::ERROR_TYPE, error_type()));
        span.add_event(
            "exception",
            vec![
                KeyValue::new(semconv::EXCEPTION_TYPE, error_type()),
                KeyValue::new(semconv::EXCEPTION_MESSAGE, message()),
            ],
        );
        span.set_status(Status::error(message().as_str().into_owned()));
    }

    /// The context to pass to another thread ([`span_in`]) or process ([`inject`]).
    pub fn context(&self) -> Context {
        self.0.clone()
    }

    /// Trace id, span id and flags, as the target of another span's link.
    pub fn span_context(&self) -> SpanContext {
        self.0.span().span_context().clone()
    }

    /// The trace's id: 32 lower-case hexadecimal digits.
    pub fn trace_id(&self) -> String {
        self.0.span().span_context().trace_id().to_string()
    }

    /// The span's id: 16 lower-case hexadecimal digits.
    pub fn span_id(&self) -> String {
        self.0.span().span_context().span_id().to_string()
    }
}

/// A span in progress, current on this thread until dropped, which ends it.
///
/// Guards of one thread end in the reverse order of their beginning.
#[derive(Debug)]
pub struct SpanGuard {
    // Dropped in this order: no longer current, then ended.
    attached: Option<ContextGuard>,
    span: DetachedSpan,
    /// The current context belongs to the thread, so a guard must stay on it.
    not_send: PhantomData<*const ()>,
}

impl Deref for SpanGuard {
    type Target = DetachedSpan;

    fn deref(&self) -> &DetachedSpan {
        &self.span
    }
}

impl Drop for DetachedSpan {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail("panic", "the thread panicked within this span");
        }
        // Others may still hold the context, but the span ends here.
        self.0.span().end();
    }
}

impl Drop for SpanGuard {
    fn drop(&mut self) {
        self.attached = None;
    }
}

/// The ids of the thread's current span: `(trace_id, span_id)`.
pub fn current_ids() -> Option<(String, String)> {
    Context::map_current(|context| {
        let span = context.span();
        let ids = span.span_context();
        ids.is_valid()
            .then(|| (ids.trace_id().to_string(), ids.span_id().to_string()))
    })
}

/// `value`, cut at a character boundary if it is a text longer than [`VALUE_BYTES_MAX`].
fn bounded(value: Value) -> Value {
    match value {
        Value::String(text) if text.as_str().len() > VALUE_BYTES_MAX => {
            let text = text.as_str();
            let mut end = VALUE_BYTES_MAX;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            Value::from(text[..end].to_owned())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
