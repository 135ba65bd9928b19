//! The REST API's problems as gRPC statuses.

use std::collections::HashMap;

use tbd_grpc::proto::google::rpc::bad_request::FieldViolation;
use tbd_grpc::proto::google::rpc::{BadRequest, ErrorInfo, RetryInfo};
use tbd_grpc::{Code, Metadata, Status};
use tbd_http::{Problem, is_sane_request_id};
use tbd_telemetry::tracing::{self, TraceContextExt as _};

use super::values;

/// Whose reasons the `ErrorInfo`s give.
const DOMAIN: &str = "tbd";
/// Where an `ErrorInfo` has the trace's id.
const TRACE_ID: &str = "trace_id";
/// The metadata key of a request's id, in both directions.
pub const REQUEST_ID: &str = "x-request-id";

/// The problem of a call whose deadline has passed.
pub fn late() -> Problem {
    let detail = "The call's time was over before it was answered.";
    Problem::new(504, "deadline-exceeded", "Deadline Exceeded", detail)
}

/// The status that says what `problem` says. `ErrorInfo` has the problem's type as the reason, such
/// as `IDEMPOTENCY_KEY_REUSED`, and the current trace's id; `BadRequest` has the faulty fields, and
/// `RetryInfo` the value of `Retry-After`.
pub fn status(problem: &Problem) -> Status {
    let trace_id = tracing::current_ids().map(|(trace_id, _)| trace_id);
    let reason = problem.slug().to_uppercase().replace('-', "_");
    let info = error_info(reason, trace_id.unwrap_or_default());
    let mut status = Status::new(code(problem), problem.detail()).with_detail(&info);
    let violations = violations(problem);
    if !violations.is_empty() {
        status = status.with_detail(&BadRequest {
            field_violations: violations,
        });
    }
    let retry_after = problem
        .headers()
        .iter()
        .find(|(name, _)| name == "Retry-After");
    if let Some(seconds) = retry_after.and_then(|(_, value)| value.parse().ok()) {
        status = status.with_detail(&retry_info(seconds));
    }
    status
}

/// Adds what a status lacks if [`status`] did not make it. `ErrorInfo` has the code's name as the
/// reason, and the trace id of the current span, else of the request's `traceparent`, else a new
/// one. UNAVAILABLE gets a `RetryInfo` of 1 s. Every status gets an `x-request-id`: the client's if
/// it is sane, else the trace id.
pub fn complete(metadata: &Metadata, mut status: Status) -> Status {
    let info = match status.detail::<ErrorInfo>() {
        Some(info) => info,
        None => {
            let trace_id = tracing::current_ids().map(|(trace_id, _)| trace_id);
            let trace_id = trace_id.unwrap_or_else(|| trace_id_for(metadata));
            let info = error_info(status.code().name().to_owned(), trace_id);
            status = status.with_detail(&info);
            info
        }
    };
    if status.code() == Code::Unavailable && status.detail::<RetryInfo>().is_none() {
        status = status.with_detail(&retry_info(1));
    }
    if status.metadata().text(REQUEST_ID).is_none() {
        let trace_id = info.metadata.get(TRACE_ID).map_or("", String::as_str);
        let mut trailers = status.metadata().clone();
        // Both kinds of id are valid metadata.
        let _ = trailers.insert_text(REQUEST_ID, request_id(metadata, trace_id));
        status = status.with_metadata(trailers);
    }
    status
}

/// The client's `x-request-id` if it is sane, else the trace's id.
pub fn request_id<'a>(metadata: &'a Metadata, trace_id: &'a str) -> &'a str {
    let sent = metadata.text(REQUEST_ID);
    sent.filter(|id| is_sane_request_id(id)).unwrap_or(trace_id)
}

fn trace_id_for(metadata: &Metadata) -> String {
    let mut context = tracing::extract(values(metadata, "traceparent"), None);
    if !context.has_active_span() {
        context = tracing::unsampled();
    }
    context.span().span_context().trace_id().to_string()
}

fn error_info(reason: String, trace_id: String) -> ErrorInfo {
    ErrorInfo {
        reason,
        domain: DOMAIN.to_owned(),
        metadata: HashMap::from([(TRACE_ID.to_owned(), trace_id)]),
    }
}

fn retry_info(seconds: i64) -> RetryInfo {
    RetryInfo {
        retry_delay: Some(prost_types::Duration { seconds, nanos: 0 }),
    }
}

fn code(problem: &Problem) -> Code {
    match (problem.slug(), problem.status()) {
        ("order-not-cancelable", _) => Code::FailedPrecondition,
        ("precondition-failed" | "idempotency-key-in-progress", _) => Code::Aborted,
        (_, 400 | 422) => Code::InvalidArgument,
        (_, 401) => Code::Unauthenticated,
        (_, 404) => Code::NotFound,
        (_, 503) => Code::Unavailable,
        (_, 504) => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

fn violations(problem: &Problem) -> Vec<FieldViolation> {
    let violation = |field: &str, description: &str| FieldViolation {
        field: field.to_owned(),
        description: description.to_owned(),
        ..FieldViolation::default()
    };
    match problem.slug() {
        "idempotency-key-missing" | "idempotency-key-invalid" => {
            vec![violation("idempotency-key", problem.detail())]
        }
        _ => problem
            .errors()
            .iter()
            .map(|error| violation(&error.field, &error.message))
            .collect(),
    }
}
