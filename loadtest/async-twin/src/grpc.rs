//! The OrderService on tonic: REST's rules and errors, translated to gRPC statuses.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::trace::FutureExt as _;
use tbd::orders::adapters::http::conditional::etag;
use tbd::orders::adapters::http::contract::{
    cancel_problem, create_problem, idempotency_key, invalid, not_found, order_id, store_problem,
};
use tbd::orders::adapters::http::query::{self, ListQuery};
use tbd::orders::domain::{self, AmountCents, CustomerEmail, Status as OrderState};
use tbd::proto::orders::{
    CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse,
    GetOrderRequest, GetOrderResponse, ListOrdersRequest, ListOrdersResponse, Order, OrderStatus,
};
use tbd_deadline::Deadline;
use tbd_http::{FieldError, Problem, is_sane_request_id, problem};
use tbd_telemetry::tracing::{self, DetachedSpan, SpanKind};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::http::{Api, REQUEST_TIMEOUT};

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    tonic::include_proto!("tbd.orders.v1");
}

use generated::order_service_server::{OrderService, OrderServiceServer};

/// Answers calls as tbd's REST API answers requests; both share the limit of requests in flight.
pub struct Orders {
    /// The handlers' state.
    pub api: Arc<Api>,
    /// Places for requests in flight.
    pub places: Arc<Semaphore>,
}

/// Serves calls until `stop` is true, then finishes those in flight.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    orders: Orders,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .timeout(REQUEST_TIMEOUT)
        .add_service(OrderServiceServer::new(orders))
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
        .map_err(io::Error::other)
}

/// A call in progress: its span, its place and its id.
struct Call {
    method: &'static str,
    begun: Instant,
    span: DetachedSpan,
    request_id: String,
    place: Option<OwnedSemaphorePermit>,
}

impl Orders {
    /// Begins a call.
    ///
    /// # Errors
    /// UNAVAILABLE if too many are in flight.
    fn begin(&self, method: &'static str, metadata: &MetadataMap) -> Result<Call, Box<Status>> {
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let parent = tracing::extract(text("traceparent"), text("tracestate"));
        let name = format!("tbd.orders.v1.OrderService/{method}");
        let span = tracing::detached_span_in(&parent, name, SpanKind::Server, Vec::new, Vec::new());
        let request_id = text("x-request-id")
            .filter(|id| is_sane_request_id(id))
            .map_or_else(|| span.trace_id(), str::to_owned);
        let call = Call {
            method,
            begun: Instant::now(),
            span,
            request_id,
            place: Arc::clone(&self.places).try_acquire_owned().ok(),
        };
        match call.place {
            Some(_) => Ok(call),
            None => Err(Box::new(call.refused(&problem::overloaded()))),
        }
    }
}

impl Call {
    /// Ends the call: its log line, its status, its id.
    fn end<T>(self, outcome: Result<T, Problem>) -> Result<Response<T>, Status> {
        let answer = outcome.map_err(|problem| self.refused(&problem));
        let _entered = self.span.enter();
        let duration = self.begun.elapsed().as_secs_f64();
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        log::info!(
            target: "tbd::grpc", method = self.method, code = code as i32,
            duration_ms = (duration * 1e6).round() / 1e3, request_id = self.request_id;
            "call answered"
        );
        let mut response = Response::new(answer?);
        self.name(response.metadata_mut());
        Ok(response)
    }

    fn name(&self, metadata: &mut MetadataMap) {
        if let Ok(id) = MetadataValue::try_from(&self.request_id) {
            metadata.insert("x-request-id", id);
        }
    }

    /// The status of a problem, with the details of the contract.
    fn refused(&self, problem: &Problem) -> Status {
        let trace = HashMap::from([("trace_id".to_owned(), self.span.trace_id())]);
        let reason = problem.slug().to_uppercase().replace('-', "_");
        let mut details = ErrorDetails::with_error_info(reason, "tbd", trace);
        let code = match (problem.status(), problem.slug()) {
            (503, _) => Code::Unavailable,
            (409, "order-not-cancelable") => Code::FailedPrecondition,
            (409 | 412, _) => Code::Aborted,
            (404, _) => Code::NotFound,
            (413, _) => Code::ResourceExhausted,
            (400..500, _) => Code::InvalidArgument,
            _ => Code::Internal,
        };
        if code == Code::Unavailable || problem.slug() == "idempotency-key-in-progress" {
            details.set_retry_info(Some(Duration::from_secs(1)));
        }
        if problem.status() == 400 {
            details.set_bad_request(violations(problem));
        }
        let mut status = Status::with_error_details(code, problem.detail(), details);
        self.name(status.metadata_mut());
        status
    }
}

fn violations(problem: &Problem) -> Vec<FieldViolation> {
    match problem.slug() {
        "idempotency-key-missing" | "idempotency-key-invalid" => {
            vec![FieldViolation::new("idempotency-key", problem.detail())]
        }
        _ => problem
            .errors()
            .iter()
            .map(|error| FieldViolation::new(&error.field, &error.message))
            .collect(),
    }
}

fn new_order(request: CreateOrderRequest) -> Result<(CustomerEmail, AmountCents), Problem> {
    let fault = |field: &str, error: String| FieldError::new(field, error);
    let email = CustomerEmail::new(request.customer_email)
        .map_err(|error| fault("customer_email", error.to_string()));
    let amount = AmountCents::new(request.amount_cents)
        .map_err(|error| fault("amount_cents", error.to_string()));
    match (email, amount) {
        (Ok(email), Ok(amount)) => Ok((email, amount)),
        (email, amount) => Err(invalid(
            email.err().into_iter().chain(amount.err()).collect(),
        )),
    }
}

/// The list's parameters, by the rules of REST's query string.
fn list_query(request: &ListOrdersRequest) -> Result<ListQuery, Problem> {
    let mut raw = form_urlencoded::Serializer::new(String::new());
    if request.page_size != 0 {
        raw.append_pair("page_size", &request.page_size.to_string());
    }
    if !request.page_token.is_empty() {
        raw.append_pair("cursor", &request.page_token);
    }
    match request.status() {
        OrderStatus::Unspecified if request.status == 0 => {}
        OrderStatus::Unspecified => drop(raw.append_pair("status", "unknown")),
        status => {
            let name = status.as_str_name().trim_start_matches("ORDER_STATUS_");
            raw.append_pair("status", &name.to_lowercase());
        }
    }
    query::parse(&raw.finish()).map_err(|errors| {
        let renamed = errors.into_iter().map(|error| match &*error.field {
            "cursor" => FieldError::new("page_token", error.message),
            _ => error,
        });
        invalid(renamed.collect())
    })
}

fn timestamp(time: jiff::Timestamp) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    })
}

fn message(order: &domain::Order) -> Order {
    let status = match order.status {
        OrderState::Pending => OrderStatus::Pending,
        OrderState::Processing => OrderStatus::Processing,
        OrderState::Completed => OrderStatus::Completed,
        OrderState::Failed => OrderStatus::Failed,
        OrderState::Canceled => OrderStatus::Canceled,
    };
    Order {
        id: order.id.to_string(),
        customer_email: order.customer_email.as_str().to_owned(),
        amount_cents: order.amount.get(),
        status: status.into(),
        created_at: timestamp(order.created_at),
        updated_at: timestamp(order.updated_at),
        etag: etag(order),
    }
}

/// The order of a stored answer, which is REST's body.
fn first_answer(body: &[u8]) -> Option<Order> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = |name: &str| answer.get(name)?.as_str();
    Some(message(&domain::Order {
        id: domain::OrderId(text("id")?.parse().ok()?),
        customer_email: CustomerEmail::accepted_before(text("customer_email")?.to_owned()),
        amount: AmountCents::new(answer.get("amount_cents")?.as_i64()?).ok()?,
        status: text("status")?.parse().ok()?,
        created_at: text("created_at")?.parse().ok()?,
        updated_at: text("updated_at")?.parse().ok()?,
    }))
}

#[tonic::async_trait]
impl OrderService for Orders {
    async fn create_order(
        &self,
        request: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let call = self
            .begin("CreateOrder", &metadata)
            .map_err(|status| *status)?;
        let created = async {
            let keys = metadata.get_all("idempotency-key").into_iter();
            let key = idempotency_key(keys.map(|key| key.to_str().unwrap_or("\u{fffd}")))?;
            let (email, amount) = new_order(request)?;
            let order = domain::Order::create(email, amount, jiff::Timestamp::now());
            let deadline = Deadline::after(REQUEST_TIMEOUT);
            let accepted = self.api.accept_once(key, order.clone(), deadline).await;
            let accepted = accepted.map_err(create_problem)?;
            let order = match accepted.replayed {
                false => Some(message(&order)),
                true => first_answer(&accepted.answer.body),
            };
            Ok((order, accepted.replayed))
        };
        let created = created.with_context(call.span.context()).await;
        let replayed = created.as_ref().is_ok_and(|(_, replayed)| *replayed);
        let mut response = call.end(created.map(|(order, _)| CreateOrderResponse { order }))?;
        if replayed {
            let yes = MetadataValue::from_static("true");
            response.metadata_mut().insert("idempotent-replayed", yes);
        }
        Ok(response)
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let call = self
            .begin("GetOrder", request.metadata())
            .map_err(|status| *status)?;
        let found = async {
            let id = order_id(&request.get_ref().id)?;
            let found = self
                .api
                .store
                .get(id, Deadline::after(REQUEST_TIMEOUT))
                .await;
            found.map_err(store_problem)?.ok_or_else(not_found)
        };
        let found = found.with_context(call.span.context()).await;
        call.end(found.map(|order| GetOrderResponse {
            order: Some(message(&order)),
        }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let call = self
            .begin("ListOrders", request.metadata())
            .map_err(|status| *status)?;
        let listed = async {
            let query = list_query(request.get_ref())?;
            let deadline = Deadline::after(REQUEST_TIMEOUT);
            let listed = self
                .api
                .page(&query, deadline)
                .await
                .map_err(store_problem)?;
            let last = listed.orders.last().filter(|_| listed.has_more);
            Ok(ListOrdersResponse {
                next_page_token: last
                    .map(|order| query::cursor(order.id))
                    .unwrap_or_default(),
                orders: listed.orders.iter().map(message).collect(),
            })
        };
        let listed = listed.with_context(call.span.context()).await;
        call.end(listed)
    }

    async fn cancel_order(
        &self,
        request: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        let call = self
            .begin("CancelOrder", request.metadata())
            .map_err(|status| *status)?;
        let canceled = async {
            let CancelOrderRequest { id, etag } = request.get_ref();
            let condition = Some(etag.as_str()).filter(|etag| !etag.is_empty());
            let deadline = Deadline::after(REQUEST_TIMEOUT);
            let canceled = self.api.cancel_if(order_id(id)?, condition, deadline).await;
            canceled.map_err(cancel_problem)
        };
        let canceled = canceled.with_context(call.span.context()).await;
        call.end(canceled.map(|order| CancelOrderResponse {
            order: Some(message(&order)),
        }))
    }
}
