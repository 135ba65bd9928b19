//! The four endpoints: read the request, call the use case, write the answer.

use std::sync::Arc;

use uuid::Uuid;

use crate::http_server::{FieldError, Problem, Request, Response, Router};
use crate::orders::app::commands::{CancelError, CancelOrder, CreateError, CreateOrder, NewOrder};
use crate::orders::app::queries::{GetOrder, ListOrders};
use crate::orders::domain::{Order, OrderId};
use crate::orders::ports::{IdempotencyKey, StoreError, StoredResponse};
use crate::telemetry::{semconv, tracing};

use super::conditional::{client_has, etag, if_match};
use super::dto::{self, BodyError};
use super::query;

/// Seconds after which a client may try again when a dependency was away: about
/// as long as the pool and the producer need to reconnect.
const RETRY_AFTER_SECONDS: u64 = 1;

/// The use cases that the API offers.
pub struct Api {
    /// `POST /v1/orders`
    pub create: CreateOrder,
    /// `POST /v1/orders/{id}/cancel`
    pub cancel: CancelOrder,
    /// `GET /v1/orders/{id}`
    pub get: GetOrder,
    /// `GET /v1/orders`
    pub list: ListOrders,
}

/// Adds the API's routes to `router`.
pub fn routes(router: Router, api: Api) -> Router {
    let api = Arc::new(api);
    let on = |handler: fn(&Api, &mut Request) -> Result<Response, Problem>| {
        let api = Arc::clone(&api);
        move |request: &mut Request| handler(&api, request)
    };
    router
        .post("/v1/orders", on(Api::create_order))
        .get("/v1/orders", on(Api::list_orders))
        .get("/v1/orders/{id}", on(Api::get_order))
        .post("/v1/orders/{id}/cancel", on(Api::cancel_order))
}

impl Api {
    fn create_order(&self, request: &mut Request) -> Result<Response, Problem> {
        require_json(request)?;
        let key = idempotency_key(request)?;
        let (customer_email, amount) =
            dto::parse_new_order(request.body()?).map_err(body_problem)?;
        let new_order = NewOrder {
            key,
            customer_email,
            amount,
        };
        let respond = |order: &Order| StoredResponse {
            status: 202,
            body: dto::order_body(order),
            order_id: order.id,
        };
        let accepted = self
            .create
            .handle(new_order, respond, request.deadline())
            .map_err(create_problem)?;
        let StoredResponse {
            status,
            body,
            order_id,
        } = accepted.response;
        tracing::annotate(semconv::ORDER_ID, order_id.to_string());
        let response =
            Response::json(status, body).header("Location", format!("/v1/orders/{order_id}"));
        Ok(match accepted.replayed {
            true => response.header("Idempotent-Replayed", "true"),
            false => response,
        })
    }

    fn get_order(&self, request: &mut Request) -> Result<Response, Problem> {
        let id = order_id(request)?;
        let order = self
            .get
            .handle(id, request.deadline())
            .map_err(store_problem)?
            .ok_or_else(not_found)?;
        let tag = etag(&order);
        let response = match client_has(list(request, "If-None-Match").as_deref(), &tag) {
            true => Response::new(304),
            false => Response::json(200, dto::order_body(&order)),
        };
        Ok(response.header("ETag", tag))
    }

    fn list_orders(&self, request: &mut Request) -> Result<Response, Problem> {
        let query = query::parse(request.query().unwrap_or_default()).map_err(invalid)?;
        let listed = self
            .list
            .handle(&query.page, request.deadline())
            .map_err(store_problem)?;
        let body = dto::list_body(&listed, query.number, query.page.limit);
        Ok(Response::json(200, body))
    }

    fn cancel_order(&self, request: &mut Request) -> Result<Response, Problem> {
        let id = order_id(request)?;
        let condition = list(request, "If-Match");
        let expected = |order: &Order| if_match(condition.as_deref(), &etag(order));
        let order = self
            .cancel
            .handle(id, expected, request.deadline())
            .map_err(cancel_problem)?;
        Ok(Response::json(200, dto::order_body(&order)).header("ETag", etag(&order)))
    }
}

fn require_json(request: &Request) -> Result<(), Problem> {
    let content_type = request.header("Content-Type").unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
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

fn idempotency_key(request: &Request) -> Result<IdempotencyKey, Problem> {
    let bad = |slug, title, detail| Err(Problem::new(400, slug, title, detail));
    let mut values = request.headers("Idempotency-Key");
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

fn order_id(request: &Request) -> Result<OrderId, Problem> {
    // Of the ways to write a UUID only the canonical one is a path of ours.
    const CANONICAL_CHARS: usize = 36;
    let text = request.param("id").unwrap_or_default();
    match Uuid::parse_str(text) {
        Ok(id) if text.len() == CANONICAL_CHARS => {
            tracing::annotate(semconv::ORDER_ID, id.to_string());
            Ok(OrderId(id))
        }
        _ => Err(invalid(vec![FieldError {
            field: "id".into(),
            message: "must be a UUID".into(),
        }])),
    }
}

/// A header that holds a list: several lines are one list (RFC 9110, section 5.3).
fn list(request: &Request, name: &str) -> Option<String> {
    let lines: Vec<&str> = request.headers(name).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

fn invalid(errors: Vec<FieldError>) -> Problem {
    let detail = "The request is not valid; see errors.";
    Problem::new(400, "validation-failed", "Validation Failed", detail).with_errors(errors)
}

fn body_problem(error: BodyError) -> Problem {
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

fn not_found() -> Problem {
    Problem::new(
        404,
        "order-not-found",
        "Order Not Found",
        "There is no order with this id.",
    )
}

fn store_problem(error: StoreError) -> Problem {
    match error {
        StoreError::Unavailable(_) => {
            log::warn!("{error}");
            unavailable("The database is not available.")
        }
        StoreError::Internal(_) => {
            log::error!("{error}");
            let detail = "Something went wrong on our side.";
            Problem::new(500, "internal-error", "Internal error", detail)
        }
    }
}

fn unavailable(reason: &str) -> Problem {
    let detail = format!("{reason} Try again; with the same Idempotency-Key this is safe.");
    Problem::new(503, "dependency-unavailable", "Service Unavailable", detail)
        .retry_after(RETRY_AFTER_SECONDS)
}

fn create_problem(error: CreateError) -> Problem {
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
            unavailable("The order is safe, but the event bus is not available.")
        }
        CreateError::Store(error) => store_problem(error),
    }
}

fn cancel_problem(error: CancelError) -> Problem {
    match error {
        CancelError::NotFound => not_found(),
        CancelError::PreconditionFailed => Problem::new(
            412,
            "precondition-failed",
            "Precondition Failed",
            "The order is no longer as If-Match describes it; get it again.",
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
