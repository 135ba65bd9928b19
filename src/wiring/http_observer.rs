//! Observer of HTTP requests: span, metrics and log line of each.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tbd_http::{Arrival, Observer};
use tbd_telemetry::metrics::{Histogram, IntCounter};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, KeyValue, SpanGuard, SpanKind};

use crate::metrics::HttpMetrics;

/// The route of a request that matches no template.
const UNMATCHED: &str = "unmatched";

/// The methods that are label values. Any other method is `OTHER` in metrics and `_OTHER` on spans,
/// so that a client cannot invent label values.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

/// The observer of one thread. It caches metrics, since a look-up by labels costs more than the
/// counting.
pub(super) struct HttpObserver {
    metrics: Arc<HttpMetrics>,
    known: HashMap<(&'static str, &'static str, u16), (Histogram, IntCounter)>,
    current: Option<Observed>,
}

/// The thread's current request. Dropping it ends its span.
struct Observed {
    span: SpanGuard,
    method: &'static str,
    route: &'static str,
    arrived: Instant,
    taken: Instant,
    /// Whether its log line is at level debug: one of very many.
    quiet: bool,
}

impl HttpObserver {
    pub(super) fn new(metrics: Arc<HttpMetrics>) -> Self {
        Self {
            metrics,
            known: HashMap::new(),
            current: None,
        }
    }

    fn count(&mut self, observed: &Observed, status: u16, seconds: f64) {
        let key = (observed.method, observed.route, status);
        let metrics = &self.metrics;
        let (duration, requests) = self.known.entry(key).or_insert_with(|| {
            let status = status.to_string();
            let labels = [key.0, key.1, status.as_str()];
            (
                metrics.duration.with_label_values(&labels),
                metrics.requests.with_label_values(&labels),
            )
        });
        duration.observe(seconds);
        requests.inc();
    }
}

impl Observer for HttpObserver {
    /// Begins the server span and makes it the thread's current one.
    fn begin(&mut self, arrival: &Arrival<'_>) {
        // Drops a request that was never ended: its span must not become the new one's parent.
        self.current = None;
        self.current = Some(Observed::begin(arrival));
    }

    fn trace_id(&self) -> String {
        let current = self.current.as_ref();
        current.map(|it| it.span.trace_id()).unwrap_or_default()
    }

    fn span_id(&self) -> String {
        let current = self.current.as_ref();
        current.map(|it| it.span.span_id()).unwrap_or_default()
    }

    fn end(&mut self, status: u16, request_id: &str) {
        let Some(observed) = self.current.take() else {
            return;
        };
        let duration = observed.arrived.elapsed();
        self.count(&observed, status, duration.as_secs_f64());
        observed.end(status, duration, request_id);
    }

    fn shed(&mut self, reason: &'static str) {
        self.metrics.shed.with_label_values(&[reason]).inc();
    }

    fn panicked(&mut self) {
        self.metrics.panics.inc();
    }

    fn queued(&mut self) {
        self.metrics.queue_depth.inc();
    }

    fn dequeued(&mut self) {
        self.metrics.queue_depth.dec();
    }

    fn busy(&mut self, waited: Duration) {
        self.metrics.threads_busy.inc();
        self.metrics.queue_wait.observe(waited.as_secs_f64());
    }

    fn free(&mut self) {
        self.metrics.threads_busy.dec();
    }
}

impl Observed {
    fn begin(arrival: &Arrival<'_>) -> Self {
        let sent = arrival.method();
        let method = METHODS.into_iter().find(|known| *known == sent);
        let route = arrival.route;
        let name: Cow<'static, str> = match (method, route) {
            (Some(method), Some(route)) => format!("{method} {route}").into(),
            (Some(method), None) => method.into(),
            (None, _) => "HTTP".into(),
        };
        let parent = match arrival.header("traceparent") {
            // Supervisors and scrapers come every few seconds: their traces would hide the others.
            None if arrival.is_probe || arrival.refused => tracing::unsampled(),
            _ => tracing::extract(
                arrival.headers("traceparent"),
                arrival.headers("tracestate"),
            ),
        };
        let attributes = || attributes(arrival, method, route);
        let taken = Instant::now();
        let queued = taken.duration_since(arrival.at);
        let span = tracing::span_since(queued, &parent, name, SpanKind::Server, attributes);
        drop(tracing::waited("wait for a thread", queued, Vec::new()));
        Self {
            span,
            method: method.unwrap_or("OTHER"),
            route: route.unwrap_or(UNMATCHED),
            arrived: arrival.at,
            taken,
            quiet: arrival.is_probe || arrival.refused,
        }
    }

    /// Logs probes at debug level: supervisors and scrapers send very many. So do clients whose requests
    /// are refused; the metrics count them, and the start of an overload has a line of its own.
    fn end(self, status: u16, duration: Duration, request_id: &str) {
        if self.span.is_recording() {
            self.span
                .set(semconv::HTTP_RESPONSE_STATUS_CODE, i64::from(status));
            if status >= 500 {
                self.span
                    .fail(&status.to_string(), "the answer is a server error");
            }
        }
        let level = match self.quiet {
            true => log::Level::Debug,
            false => log::Level::Info,
        };
        log::log!(
            target: "tbd::http",
            level,
            method = self.method,
            route = self.route,
            status = status,
            duration_ms = milliseconds(duration),
            queue_ms = milliseconds(self.taken.duration_since(self.arrived)),
            request_id = request_id;
            "request answered"
        );
    }
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    // Readers need no more than microseconds.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn attributes(
    arrival: &Arrival<'_>,
    method: Option<&'static str>,
    route: Option<&'static str>,
) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new(semconv::HTTP_REQUEST_METHOD, method.unwrap_or("_OTHER")),
        KeyValue::new(semconv::URL_SCHEME, "http"),
        KeyValue::new(semconv::URL_PATH, arrival.path().to_owned()),
    ];
    if method.is_none() {
        attributes.push(KeyValue::new(
            semconv::HTTP_REQUEST_METHOD_ORIGINAL,
            arrival.method().to_owned(),
        ));
    }
    if let Some(route) = route {
        attributes.push(KeyValue::new(semconv::HTTP_ROUTE, route));
    }
    if let Some(query) = arrival.query() {
        attributes.push(KeyValue::new(semconv::URL_QUERY, query.to_owned()));
    }
    if let Some(peer) = arrival.peer() {
        attributes.push(KeyValue::new(
            semconv::NETWORK_PEER_ADDRESS,
            peer.ip().to_string(),
        ));
        attributes.push(KeyValue::new(
            semconv::NETWORK_PEER_PORT,
            i64::from(peer.port()),
        ));
    }
    if let Some(agent) = arrival.header("user-agent") {
        attributes.push(KeyValue::new(
            semconv::USER_AGENT_ORIGINAL,
            agent.to_owned(),
        ));
    }
    attributes
}
