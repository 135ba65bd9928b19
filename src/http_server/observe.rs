//! What is seen of a request from outside: its span, its metrics, its log line.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Instant;

use tbd_telemetry::metrics::{Histogram, IntCounter};

use super::request::{header, headers, path_range};
use crate::metrics::HttpMetrics;
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, KeyValue, SpanGuard, SpanKind};

/// The route of a request no template fits.
pub(super) const UNMATCHED: &str = "unmatched";

/// The methods that are label values; any other is `OTHER` in metrics and
/// `_OTHER` on spans, so that a client cannot invent label values.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

/// One thread's way to the metrics. Keeps what it looked up, since a look-up
/// by labels costs more than the counting.
pub(super) struct Recorder {
    pub(super) metrics: HttpMetrics,
    known: HashMap<(&'static str, &'static str, u16), (Histogram, IntCounter)>,
}

/// One request under observation; ends its span when dropped.
pub(super) struct Observation {
    span: SpanGuard,
    method: &'static str,
    route: &'static str,
    arrived: Instant,
    taken: Instant,
}

impl Recorder {
    pub(super) fn new(metrics: HttpMetrics) -> Self {
        Self {
            metrics,
            known: HashMap::new(),
        }
    }

    fn record(&mut self, observation: &Observation, status: u16, seconds: f64) {
        let key = (observation.method, observation.route, status);
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

impl Observation {
    /// Begins the server span, which is current on this thread from now on.
    pub(super) fn begin(
        request: &tiny_http::Request,
        route: Option<&'static str>,
        arrived: Instant,
        probe: bool,
    ) -> Self {
        let sent = request.method().as_str();
        let method = METHODS.into_iter().find(|known| *known == sent);
        let name: Cow<'static, str> = match (method, route) {
            (Some(method), Some(route)) => format!("{method} {route}").into(),
            (Some(method), None) => method.into(),
            (None, _) => "HTTP".into(),
        };
        let parent = match header(request, "traceparent") {
            // Supervisors and scrapers come every few seconds: their traces would bury all others.
            None if probe => tracing::unsampled(),
            _ => {
                let values = |name| headers(request, name);
                tracing::extract(values("traceparent"), values("tracestate"))
            }
        };
        let attributes = || attributes(request, method, route);
        let taken = Instant::now();
        let queued = taken.duration_since(arrived);
        let span = tracing::span_since(queued, &parent, name, SpanKind::Server, attributes);
        drop(tracing::waited("wait for a thread", queued, Vec::new()));
        Self {
            span,
            method: method.unwrap_or("OTHER"),
            route: route.unwrap_or(UNMATCHED),
            arrived,
            taken,
        }
    }

    pub(super) fn trace_id(&self) -> String {
        self.span.trace_id()
    }

    pub(super) fn span_id(&self) -> String {
        self.span.span_id()
    }

    /// Notes the response, once it is written. `probe` keeps the many requests
    /// of supervisors and scrapers out of the log at its usual level.
    pub(super) fn end(self, recorder: &mut Recorder, status: u16, request_id: &str, probe: bool) {
        let duration = self.arrived.elapsed();
        recorder.record(&self, status, duration.as_secs_f64());
        if self.span.is_recording() {
            self.span
                .set(semconv::HTTP_RESPONSE_STATUS_CODE, i64::from(status));
            if status >= 500 {
                self.span
                    .fail(&status.to_string(), "the answer is a server error");
            }
        }
        let level = if probe {
            log::Level::Debug
        } else {
            log::Level::Info
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

fn milliseconds(duration: std::time::Duration) -> f64 {
    // Microseconds are as exact as a reader needs it.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn attributes(
    request: &tiny_http::Request,
    method: Option<&'static str>,
    route: Option<&'static str>,
) -> Vec<KeyValue> {
    let target = request.url();
    let path = path_range(target);
    let query = target[path.end..].strip_prefix('?');
    let mut attributes = vec![
        KeyValue::new(semconv::HTTP_REQUEST_METHOD, method.unwrap_or("_OTHER")),
        KeyValue::new(semconv::URL_SCHEME, "http"),
        KeyValue::new(semconv::URL_PATH, target[path].to_owned()),
    ];
    if method.is_none() {
        attributes.push(KeyValue::new(
            semconv::HTTP_REQUEST_METHOD_ORIGINAL,
            request.method().as_str().to_owned(),
        ));
    }
    if let Some(route) = route {
        attributes.push(KeyValue::new(semconv::HTTP_ROUTE, route));
    }
    if let Some(query) = query {
        attributes.push(KeyValue::new(semconv::URL_QUERY, query.to_owned()));
    }
    if let Some(peer) = request.remote_addr() {
        attributes.push(KeyValue::new(
            semconv::NETWORK_PEER_ADDRESS,
            peer.ip().to_string(),
        ));
        attributes.push(KeyValue::new(
            semconv::NETWORK_PEER_PORT,
            i64::from(peer.port()),
        ));
    }
    if let Some(agent) = header(request, "user-agent") {
        attributes.push(KeyValue::new(
            semconv::USER_AGENT_ORIGINAL,
            agent.to_owned(),
        ));
    }
    attributes
}
