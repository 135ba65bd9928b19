//! Request requirements and problem responses, independent of the server: the async twin in
//! `loadtest/` shares them.

use uuid::Uuid;

use crate::orders::app::commands::{CancelError, CreateError};
use crate::orders::domain::OrderId;
use crate::orders::ports::{IdempotencyKey, StoreError};
use tbd_http::{FieldError, Problem, problem};
use tbd_telemetry::{semconv, tracing};

use super::dto::BodyError;

/// Seconds until a client may retry after a dependency failed: about as long as the pool and
/// the producer need to reconnect.
const RETRY_AFTER_SECONDS: u64 = 1;

/// What a client should do about a 503.
const RETRY: &str = "Try again.";

/// The same for POST /v1/orders, the only request with a key.
const RETRY_WITH_KEY: &str = "Try again; with the same Idempotency-Key this is safe.";

/// The body must be JSON; `content_type` is the header's value.
///
/// # Errors
/// 415.
pub fn require_json(content_type: Option<&str>) -> Result<(), Problem> {
    let media_type = content_type
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "Send the order as Content-Type: application/json.";
    Err(Problem::new(
        415,
        "unsupported-media-type",
        "Unsupported Media Type",
        detail,
    ))
}

/// The body must not be encoded: nothing here decodes one. `values` are the values of all
/// `Content-Encoding` headers.
///
/// # Errors
/// 415, with the `Accept-Encoding` to use (RFC 9110, section 15.5.16).
pub fn require_unencoded<'a>(values: impl Iterator<Item = &'a str>) -> Result<(), Problem> {
    let mut codings = values.flat_map(|value| value.split(',')).map(str::trim);
    if codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity")) {
        return Ok(());
    }
    let detail = "Send the order without Content-Encoding.";
    let problem = Problem::new(
        415,
        "unsupported-content-encoding",
        "Unsupported Content Encoding",
        detail,
    );
    Err(problem.header("Accept-Encoding", "identity"))
}

/// The key, from all `Idempotency-Key` headers of a request.
///
/// # Errors
/// 400 if there is no such header, more than one, or an invalid key.
pub fn idempotency_key<'a>(
    mut values: impl Iterator<Item = &'a str>,
) -> Result<IdempotencyKey, Problem> {
    let bad = |slug, title, detail| Err(Problem::new(400, slug, title, detail));
    let Some(value) = values.next() else {
        return bad(
            "idempotency-key-missing",
            "Idempotency-Key Missing",
            "Send an Idempotency-Key header, a fresh UUID for each new order, so that repeating the request cannot order twice.",
        );
    };
    match (IdempotencyKey::parse(value), values.next()) {
        (Some(key), None) => Ok(key),
        _ => bad(
            "idempotency-key-invalid",
            "Idempotency-Key Invalid",
            "Send one Idempotency-Key header of 1 to 255 visible ASCII characters.",
        ),
    }
}

/// The id in a path; also annotates the current span with it.
///
/// # Errors
/// 400.
pub fn order_id(text: &str) -> Result<OrderId, Problem> {
    // Of the ways to write a UUID only the canonical one is accepted.
    const CANONICAL_CHARS: usize = 36;
    match Uuid::parse_str(text) {
        Ok(id) if text.len() == CANONICAL_CHARS => {
            tracing::annotate(semconv::ORDER_ID, id.to_string());
            Ok(OrderId(id))
        }
        _ => Err(invalid(vec![FieldError::new("id", "must be a UUID")])),
    }
}

/// 400, with the invalid fields.
pub fn invalid(errors: Vec<FieldError>) -> Problem {
    let detail = "The request is not valid; see errors.";
    Problem::new(400, "validation-failed", "Validation Failed", detail).with_errors(errors)
}

/// 400 for a body that is not an order.
pub fn body_problem(error: BodyError) -> Problem {
    match error {
        BodyError::Fields(errors) => invalid(errors),
        BodyError::Syntax(reason) => Problem::new(
            400,
            "malformed-json",
            "Malformed JSON",
            format!("The body is not JSON: {reason}."),
        ),
    }
}

/// 404 for an unknown order.
pub fn not_found() -> Problem {
    Problem::new(
        404,
        "order-not-found",
        "Order Not Found",
        "There is no order with this id.",
    )
}

/// 404 for an order without a saga, known or not.
pub fn no_saga() -> Problem {
    Problem::new(
        404,
        "saga-not-found",
        "Saga Not Found",
        "No order with this id has a saga: workers begin one for each order with WORKER_WORKFLOW=saga.",
    )
}

/// 503 or 500 for a store error. Logs the details, which the client does not get.
pub fn store_problem(error: StoreError) -> Problem {
    store_problem_with_hint(error, RETRY)
}

fn store_problem_with_hint(error: StoreError, hint: &str) -> Problem {
    match error {
        StoreError::Unavailable(_) => {
            log::warn!("{error}");
            unavailable("The database is not available.", hint)
        }
        StoreError::Internal(_) => {
            log::error!("{error}");
            problem::internal()
        }
    }
}

fn unavailable(reason: &str, hint: &str) -> Problem {
    let detail = format!("{reason} {hint}");
    Problem::new(503, "dependency-unavailable", "Service Unavailable", detail)
        .retry_after(RETRY_AFTER_SECONDS)
}

/// The problem for an order that was not accepted.
pub fn create_problem(error: CreateError) -> Problem {
    match error {
        CreateError::OtherRequest => Problem::new(
            422,
            "idempotency-key-reused",
            "Idempotency-Key Reused",
            "This Idempotency-Key was used for another order; take a new key for a new order.",
        ),
        CreateError::Running => Problem::new(
            409,
            "idempotency-key-in-progress",
            "Request In Progress",
            "The first request with this Idempotency-Key is still running; try again.",
        )
        .retry_after(RETRY_AFTER_SECONDS),
        CreateError::NotPublished(_) => {
            log::warn!("{error}");
            let reason = "The order is safe, but the event bus is not available.";
            unavailable(reason, RETRY_WITH_KEY)
        }
        CreateError::Store(error) => store_problem_with_hint(error, RETRY_WITH_KEY),
    }
}

/// The problem for an order that was not canceled.
pub fn cancel_problem(error: CancelError) -> Problem {
    match error {
        CancelError::NotFound => not_found(),
        CancelError::PreconditionFailed => Problem::new(
            412,
            "precondition-failed",
            "Precondition Failed",
            "The order is no longer as the ETag describes it; get it again.",
        ),
        CancelError::NotPending(reason) => Problem::new(
            409,
            "order-not-cancelable",
            "Order Not Cancelable",
            format!("Only a pending order can be canceled; {reason}."),
        ),
        CancelError::Store(error) => store_problem(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::ports::PublishError;

    fn mentions_key(problem: Problem) -> bool {
        assert_eq!(problem.status(), 503);
        problem.detail().contains("Idempotency-Key")
    }

    #[test]
    fn only_the_503_of_a_new_order_mentions_the_idempotency_key() {
        let away = || StoreError::Unavailable("away".into());
        let not_published = PublishError::Unavailable("away".into());
        assert!(mentions_key(create_problem(CreateError::Store(away()))));
        assert!(mentions_key(create_problem(CreateError::NotPublished(
            not_published
        ))));
        assert!(!mentions_key(store_problem(away())));
        assert!(!mentions_key(cancel_problem(CancelError::Store(away()))));
    }
}
