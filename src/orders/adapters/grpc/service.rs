//! Handlers of the four methods: check the call, call the use case, build the response.

use std::sync::Arc;

use jiff::Timestamp;

use crate::orders::adapters::http::conditional::{etag, if_match};
use crate::orders::adapters::http::contract::{
    cancel_problem, create_problem, idempotency_key, invalid, not_found, order_id, store_problem,
};
use crate::orders::adapters::http::{Api, caller, cursor, dto};
use crate::orders::app::commands::NewOrder;
use crate::orders::app::queries::list_orders;
use crate::orders::domain::{AmountCents, CustomerEmail, Order};
use crate::orders::ports::Caller;
use crate::proto::orders as proto;
use crate::proto::orders::order_service;
use tbd_grpc::{Call, Metadata, Router, Status};
use tbd_http::{FieldError, Identity, Problem};
use tbd_telemetry::{semconv, tracing};

use super::convert;
use super::status::{late, status};

/// Admits a caller by the values of `authorization`, or refuses it.
pub type Guard = Box<dyn Fn(&[&str]) -> Result<Identity, Problem> + Send + Sync>;

/// Adds the service to `router`. Without a guard every caller is admitted.
pub fn routes(router: &mut Router, api: Arc<Api>, guard: Option<Guard>) {
    let service = Arc::new(OrderService { api, guard });
    let [create, get, list, cancel] = std::array::from_fn(|_| Arc::clone(&service));
    router
        .unary(order_service::CREATE_ORDER, move |call, request| {
            create.answer(call, |caller| create.create_order(call, caller, request))
        })
        .unary(order_service::GET_ORDER, move |call, request| {
            get.answer(call, |_| get.get_order(call, &request))
        })
        .unary(order_service::LIST_ORDERS, move |call, request| {
            list.answer(call, |_| list.list_orders(call, &request))
        })
        .unary(order_service::CANCEL_ORDER, move |call, request| {
            cancel.answer(call, |_| cancel.cancel_order(call, &request))
        });
}

/// All values of a metadata key that are text.
pub fn values<'a>(metadata: &'a Metadata, key: &'static str) -> impl Iterator<Item = &'a str> {
    let entries = metadata.iter();
    entries
        .filter(move |(name, _)| *name == key)
        .filter_map(|(_, value)| std::str::from_utf8(value).ok())
}

struct OrderService {
    api: Arc<Api>,
    guard: Option<Guard>,
}

impl OrderService {
    /// Admits the caller and runs `handler`; turns its problem into a status.
    fn answer<T>(
        &self,
        call: &Call,
        handler: impl FnOnce(Caller) -> Result<T, Problem>,
    ) -> Result<T, Status> {
        let authorization: Vec<&str> = values(call.metadata(), "authorization").collect();
        let admitted = self.guard.as_ref().map(|guard| guard(&authorization));
        let identity = admitted.transpose();
        let outcome = identity.and_then(|identity| handler(caller(identity.as_ref())));
        outcome.map_err(|problem| {
            // Whatever was waited for: the client's time was over first.
            match problem.status() >= 500 && call.deadline().is_past() {
                true => status(&late()),
                false => status(&problem),
            }
        })
    }

    fn create_order(
        &self,
        call: &Call,
        caller: Caller,
        request: proto::CreateOrderRequest,
    ) -> Result<proto::CreateOrderResponse, Problem> {
        let key = idempotency_key(values(call.metadata(), "idempotency-key"))?;
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: String| faults.push(FieldError::new(field, message));
        let email = CustomerEmail::new(request.customer_email)
            .map_err(|error| fault("customer_email", error.to_string()))
            .ok();
        let amount = AmountCents::new(request.amount_cents)
            .map_err(|error| fault("amount_cents", error.to_string()))
            .ok();
        let (Some(email), Some(amount)) = (email, amount) else {
            return Err(invalid(faults));
        };
        let order = Order::create(email, amount, Timestamp::now());
        let message = convert::order(&order);
        let new_order = NewOrder {
            caller,
            key,
            // The key may be used over REST next, so the stored answer is that of REST.
            body: dto::order_body(&order),
            order,
        };
        let accepted = self
            .api
            .create
            .handle(new_order, call.deadline())
            .map_err(create_problem)?;
        tracing::annotate(semconv::ORDER_ID, accepted.answer.order_id.to_string());
        if !accepted.replayed {
            let order = Some(message);
            return Ok(proto::CreateOrderResponse { order });
        }
        call.headers(|headers| {
            // Key and value are valid metadata.
            let _ = headers.insert_text("idempotent-replayed", "true");
        });
        let order = Some(convert::stored_order(&accepted.answer.body)?);
        Ok(proto::CreateOrderResponse { order })
    }

    fn get_order(
        &self,
        call: &Call,
        request: &proto::GetOrderRequest,
    ) -> Result<proto::GetOrderResponse, Problem> {
        let id = order_id(&request.id)?;
        let order = self
            .api
            .orders
            .get(id, call.deadline())
            .map_err(store_problem)?
            .ok_or_else(not_found)?;
        Ok(proto::GetOrderResponse {
            order: Some(convert::order(&order)),
        })
    }

    fn list_orders(
        &self,
        call: &Call,
        request: &proto::ListOrdersRequest,
    ) -> Result<proto::ListOrdersResponse, Problem> {
        let page = convert::page(request).map_err(invalid)?;
        let listed =
            list_orders(&*self.api.orders, &page, call.deadline()).map_err(store_problem)?;
        let last = listed.orders.last().filter(|_| listed.has_more);
        Ok(proto::ListOrdersResponse {
            next_page_token: last.map(|order| cursor(order.id)).unwrap_or_default(),
            orders: listed.orders.iter().map(convert::order).collect(),
        })
    }

    fn cancel_order(
        &self,
        call: &Call,
        request: &proto::CancelOrderRequest,
    ) -> Result<proto::CancelOrderResponse, Problem> {
        let id = order_id(&request.id)?;
        let condition = Some(request.etag.as_str()).filter(|etag| !etag.is_empty());
        let expected = |order: &Order| if_match(condition, &etag(order));
        let order = self
            .api
            .cancel
            .handle(id, expected, call.deadline())
            .map_err(cancel_problem)?;
        Ok(proto::CancelOrderResponse {
            order: Some(convert::order(&order)),
        })
    }
}
