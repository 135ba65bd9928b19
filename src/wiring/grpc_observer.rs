//! Observer of gRPC calls: span, metrics and log line of each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::metrics::{GrpcMetrics, Metrics};
use crate::orders::adapters::grpc::{REQUEST_ID, complete, late, request_id, status, values};
use tbd_grpc::server::Job;
use tbd_grpc::{Call, Code, Status};
use tbd_http::{Problem, Turn, problem};
use tbd_telemetry::metrics::IntCounter;
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, KeyValue, SpanGuard, SpanKind};

use super::http_observer::milliseconds;

/// A service that is observed.
pub struct GrpcService {
    /// Its full name.
    pub name: &'static str,
    /// The paths that are label values. Other paths have none, so that a client cannot invent them.
    pub paths: &'static [&'static str],
    /// The largest message of a request, in bytes.
    pub message_bytes_max: usize,
}

/// The codes as label values, by number: the names that the metrics of other gRPC servers have.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The observer of all calls.
pub(super) struct GrpcObserver {
    service: &'static str,
    paths: &'static [&'static str],
    metrics: GrpcMetrics,
    panics: IntCounter,
}

impl GrpcObserver {
    /// Starts every counter at 0.
    pub(super) fn new(metrics: &Metrics, service: &GrpcService) -> Self {
        for path in service.paths {
            for code in CODES {
                let labels = [service.name, method(path), code];
                metrics.grpc.handled.with_label_values(&labels);
            }
        }
        Self {
            service: service.name,
            paths: service.paths,
            metrics: metrics.grpc.clone(),
            panics: metrics.http.panics.clone(),
        }
    }

    /// Runs a call on a thread of the pool, or refuses it if there is no capacity or no time.
    pub(super) fn take(&self, job: Job, turn: Turn) {
        if turn == Turn::Refused {
            refuse(job, &problem::overloaded());
        } else if job.call().deadline().is_past() {
            refuse(job, &late());
        } else {
            job.run();
        }
    }

    /// Runs a handler within the call's span. A panic of it is INTERNAL.
    pub(super) fn observe(
        &self,
        call: &Call,
        run: impl FnOnce() -> Result<(), Status>,
    ) -> Result<(), Status> {
        let taken = Instant::now();
        let span = begin(call);
        let trace_id = span.trace_id();
        let request_id = request_id(call.metadata(), &trace_id);
        let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            self.panics.inc();
            log::error!(target: "tbd::grpc", "a handler panicked");
            Err(status(&problem::internal()))
        });
        // Here, since the span knows the trace id of a call without a traceparent.
        let outcome = outcome.map_err(|status| complete(call.metadata(), status));
        if outcome.is_ok() {
            call.headers(|headers| {
                // A sane id is valid metadata.
                let _ = headers.insert_text(REQUEST_ID, request_id);
            });
        }
        let code = outcome.as_ref().map_or_else(Status::code, |()| Code::Ok);
        end(&span, code);
        let duration = call.received_at().elapsed();
        self.count(call.path(), code);
        let labels = [self.service, method(call.path())];
        let handling = self.metrics.handling.with_label_values(&labels);
        handling.observe(duration.as_secs_f64());
        log::info!(
            target: "tbd::grpc",
            method = call.path(),
            code = code.name(),
            duration_ms = milliseconds(duration),
            queue_ms = milliseconds(taken.duration_since(call.received_at())),
            request_id = request_id;
            "call answered"
        );
        outcome
    }

    /// Counts and logs a call that no handler saw.
    pub(super) fn refused(&self, path: &str, status: &Status) {
        let known = self.paths.iter().find(|known| **known == path);
        if known.is_some() {
            self.count(path, status.code());
        }
        log::info!(
            target: "tbd::grpc",
            method = known.copied().unwrap_or("unmatched"),
            code = status.code().name(),
            request_id = status.metadata().text(REQUEST_ID).unwrap_or_default();
            "call refused"
        );
    }

    fn count(&self, path: &str, code: Code) {
        let labels = [
            self.service,
            method(path),
            CODES[usize::from(code.number())],
        ];
        self.metrics.handled.with_label_values(&labels).inc();
    }
}

/// Answers within the call's span, in place of the handler.
fn refuse(job: Job, problem: &Problem) {
    let span = begin(job.call());
    let status = status(problem);
    end(&span, status.code());
    job.refuse(status);
}

/// Begins the server span and makes it the thread's current one. It includes the wait for a thread.
fn begin(call: &Call) -> SpanGuard {
    let metadata = call.metadata();
    let parent = tracing::extract(
        values(metadata, "traceparent"),
        values(metadata, "tracestate"),
    );
    let method = call.path().trim_start_matches('/').to_owned();
    let queued = call.received_at().elapsed();
    let attributes = || {
        let peer = call.peer();
        vec![
            KeyValue::new(semconv::RPC_SYSTEM_NAME, semconv::GRPC),
            KeyValue::new(semconv::RPC_METHOD, method.clone()),
            KeyValue::new(semconv::NETWORK_PEER_ADDRESS, peer.ip().to_string()),
            KeyValue::new(semconv::NETWORK_PEER_PORT, i64::from(peer.port())),
        ]
    };
    let span = tracing::span_since(
        queued,
        &parent,
        method.clone(),
        SpanKind::Server,
        attributes,
    );
    drop(tracing::waited("wait for a thread", queued, Vec::new()));
    span
}

fn end(span: &SpanGuard, code: Code) {
    if !span.is_recording() {
        return;
    }
    span.set(semconv::RPC_RESPONSE_STATUS_CODE, code.name());
    let is_server_error = matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    if is_server_error {
        span.fail(code.name(), "the answer is a server error");
    }
}

/// `Method` of `/package.Service/Method`.
fn method(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}
