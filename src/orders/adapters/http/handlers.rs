//! Handlers of the endpoints: parse the request, call the use case, build the response.

use std::sync::Arc;

use jiff::Timestamp;

use crate::orders::app::commands::{CancelOrder, CreateOrder, NewOrder};
use crate::orders::app::queries::list_orders;
use crate::orders::domain::Order;
use crate::orders::ports::{Caller, OrderReader, SagaStore, StoredAnswer};
use tbd_http::{Identity, Problem, Request, Response, Router};
use tbd_telemetry::{semconv, tracing};

use super::conditional::{client_has, etag, if_match};
use super::contract::{
    body_problem, cancel_problem, create_problem, idempotency_key, invalid, no_saga, not_found,
    order_id, require_json, require_unencoded, store_problem,
};
use super::dto;
use super::query;
use super::saga::saga_body;

/// What the API offers.
pub struct Api {
    /// `POST /v1/orders`
    pub create: CreateOrder,
    /// `POST /v1/orders/{id}/cancel`
    pub cancel: CancelOrder,
    /// `GET /v1/orders/{id}` and `GET /v1/orders`
    pub orders: Arc<dyn OrderReader>,
    /// `GET /v1/orders/{id}/saga`
    pub sagas: Arc<dyn SagaStore>,
}

/// Adds the API's routes to `router`.
pub fn routes(router: Router, api: impl Into<Arc<Api>>) -> Router {
    let api = api.into();
    let on = |handler: fn(&Api, &mut Request) -> Result<Response, Problem>| {
        let api = Arc::clone(&api);
        move |request: &mut Request| handler(&api, request)
    };
    router
        .post("/v1/orders", on(Api::create_order))
        .get("/v1/orders", on(Api::list_orders))
        .get("/v1/orders/{id}", on(Api::get_order))
        .get("/v1/orders/{id}/saga", on(Api::get_saga))
        .post("/v1/orders/{id}/cancel", on(Api::cancel_order))
}

impl Api {
    fn create_order(&self, request: &mut Request) -> Result<Response, Problem> {
        require_json(request.header("Content-Type"))?;
        require_unencoded(request.headers("Content-Encoding"))?;
        let key = idempotency_key(request.headers("Idempotency-Key"))?;
        let (customer_email, amount) =
            dto::parse_new_order(request.body()?).map_err(body_problem)?;
        let order = Order::create(customer_email, amount, Timestamp::now());
        let new_order = NewOrder {
            caller: caller(request.identity()),
            key,
            body: dto::order_body(&order),
            order,
        };
        let accepted = self
            .create
            .handle(new_order, request.deadline())
            .map_err(create_problem)?;
        let StoredAnswer { body, order_id } = accepted.answer;
        tracing::annotate(semconv::ORDER_ID, order_id.to_string());
        let response =
            Response::json(202, body).header("Location", format!("/v1/orders/{order_id}"));
        Ok(match accepted.replayed {
            true => response.header("Idempotent-Replayed", "true"),
            false => response,
        })
    }

    fn get_order(&self, request: &mut Request) -> Result<Response, Problem> {
        let id = order_id(request.param("id").unwrap_or_default())?;
        let order = self
            .orders
            .get(id, request.deadline())
            .map_err(store_problem)?
            .ok_or_else(not_found)?;
        let tag = etag(&order);
        let response = match client_has(list(request, "If-None-Match").as_deref(), &tag) {
            true => Response::new(304),
            false => Response::json(200, dto::order_body(&order)),
        };
        Ok(response.header("ETag", tag))
    }

    fn get_saga(&self, request: &mut Request) -> Result<Response, Problem> {
        let id = order_id(request.param("id").unwrap_or_default())?;
        let saga = self
            .sagas
            .find(id, request.deadline())
            .map_err(store_problem)?
            .ok_or_else(no_saga)?;
        Ok(Response::json(200, saga_body(&saga)))
    }

    fn list_orders(&self, request: &mut Request) -> Result<Response, Problem> {
        let query = query::parse(request.query().unwrap_or_default()).map_err(invalid)?;
        let listed =
            list_orders(&*self.orders, &query.page, request.deadline()).map_err(store_problem)?;
        let body = dto::list_body(&listed, query.number, query.page.limit);
        Ok(Response::json(200, body))
    }

    fn cancel_order(&self, request: &mut Request) -> Result<Response, Problem> {
        let id = order_id(request.param("id").unwrap_or_default())?;
        let condition = list(request, "If-Match");
        let expected = |order: &Order| if_match(condition.as_deref(), &etag(order));
        let order = self
            .cancel
            .handle(id, expected, request.deadline())
            .map_err(cancel_problem)?;
        Ok(Response::json(200, dto::order_body(&order)).header("ETag", etag(&order)))
    }
}

/// The owner of the Idempotency-Keys of requests by `identity`.
pub fn caller(identity: Option<&Identity>) -> Caller {
    identity.map_or(Caller::ANONYMOUS, |identity| {
        Caller::new(identity.issuer.as_deref(), identity.subject.as_deref())
    })
}

/// A list header: several lines form one list (RFC 9110, section 5.3).
fn list(request: &Request, name: &str) -> Option<String> {
    let lines: Vec<&str> = request.headers(name).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}
