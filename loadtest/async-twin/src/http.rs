//! The HTTP API on axum, by tbd's rules (`tbd::orders::adapters::http::contract`).

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, MatchedPath, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::FutureExt;
use jiff::Timestamp;
use opentelemetry::trace::FutureExt as _;
use tbd::metrics::{HttpMetrics, Metrics};
use tbd::orders::adapters::http::conditional::{client_has, etag, if_match};
use tbd::orders::adapters::http::contract::{
    body_problem, cancel_problem, create_problem, idempotency_key, invalid, not_found, order_id,
    require_json, require_unencoded, store_problem,
};
use tbd::orders::adapters::http::dto;
use tbd::orders::adapters::http::query::{self, ListQuery};
use tbd::orders::app::commands::{
    Accepted, CancelError, CreateError, NewOrder, interpret_outcome, request_fingerprint,
};
use tbd::orders::app::queries::Listed;
use tbd::orders::domain::{Order, OrderEvent};
use tbd::orders::ports::{Caller, IdempotencyKey, Page, StoreError, StoredAnswer, Submission};
use tbd::wiring::Checks;
use tbd_deadline::Deadline;
use tbd_http::problem::{self, CONTENT_TYPE};
use tbd_http::{Problem, is_sane_request_id};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, DetachedSpan, KeyValue, SpanKind};
use tokio::sync::Semaphore;
use tokio::time::timeout_at;
use tokio_util::task::TaskTracker;

use crate::delivery::Delivery;
use crate::store::Store;

/// A request's time limit, from its head to its answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The size limit of a body, in bytes.
const BODY_LIMIT: usize = 64 * 1024;
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// State of the API's handlers.
pub struct Api {
    /// Orders and keys.
    pub store: Store,
    /// Events.
    pub delivery: Delivery,
    /// How long keys are kept.
    pub ttl: Duration,
}

/// State of every route.
struct Server {
    metrics: Metrics,
    checks: Checks,
    /// The limit of requests in flight or waiting: tbd's threads and queue together.
    places: Arc<Semaphore>,
    /// The requests in flight, for which the shutdown waits.
    requests: TaskTracker,
    instance: String,
}

/// Data from the middleware for the handler.
#[derive(Clone)]
struct Arrival {
    deadline: Deadline,
}

/// The routes; `api` only in tbd-api. A request in flight has one of the `places`, except probes;
/// `requests` counts all of them. The probes report `instance`.
pub fn router(
    api: Option<Arc<Api>>,
    checks: Checks,
    metrics: Metrics,
    (places, instance): (Arc<Semaphore>, String),
    requests: TaskTracker,
) -> Router {
    metrics
        .http
        .threads
        .set(i64::try_from(tokio::runtime::Handle::current().metrics().num_workers()).unwrap_or(0));
    let server = Arc::new(Server {
        metrics,
        checks,
        places,
        requests,
        instance,
    });
    let probes = Router::new()
        .route(
            "/healthz",
            get(async || json(StatusCode::OK, br#"{"status":"ok"}"#.to_vec())),
        )
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(Arc::clone(&server));
    let routes = match api {
        None => probes,
        Some(api) => probes.merge(
            Router::new()
                .route("/v1/orders", post(create_order).get(list_orders))
                .route("/v1/orders/{id}", get(get_order))
                .route("/v1/orders/{id}/cancel", post(cancel_order))
                .with_state(api),
        ),
    };
    routes
        .fallback(async || refuse(problem::not_found()))
        .method_not_allowed_fallback(async |request: Request| refuse(not_allowed(&request)))
        .layer(from_fn_with_state(server, observe))
}

fn not_allowed(request: &Request) -> Problem {
    let allow = match request
        .extensions()
        .get::<MatchedPath>()
        .map(MatchedPath::as_str)
    {
        Some("/v1/orders") => "POST, GET, HEAD",
        Some("/v1/orders/{id}/cancel") => "POST",
        _ => "GET, HEAD",
    };
    problem::method_not_allowed(allow)
}

/// A problem to send; the middleware, which knows the span, writes its body.
#[derive(Clone)]
struct Refused(Problem);

fn refuse(problem: Problem) -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(Refused(problem));
    response
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// The middleware's view of a request.
struct Seen {
    span: DetachedSpan,
    method: Option<&'static str>,
    route: Option<MatchedPath>,
    probe: bool,
    request_id: String,
}

/// Starts the server span.
fn see(request: &Request) -> Seen {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let probe = matches!(
        route.as_ref().map(MatchedPath::as_str),
        Some("/healthz" | "/readyz" | "/metrics")
    );
    let method = METHODS
        .into_iter()
        .find(|known| *known == request.method().as_str());
    let name = match (method, &route) {
        (Some(method), Some(route)) => format!("{method} {}", route.as_str()),
        (Some(method), None) => method.to_owned(),
        (None, _) => "HTTP".to_owned(),
    };
    let text = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let parent = match text("traceparent") {
        // As in tbd: supervisors and scrapers come every few seconds.
        None if probe => tracing::unsampled(),
        _ => {
            let values = |name| values(request.headers(), name);
            tracing::extract(values("traceparent"), values("tracestate"))
        }
    };
    let span = tracing::detached_span_in(
        &parent,
        name,
        SpanKind::Server,
        || {
            let mut attributes = vec![
                KeyValue::new(semconv::HTTP_REQUEST_METHOD, method.unwrap_or("_OTHER")),
                KeyValue::new(semconv::URL_SCHEME, "http"),
                KeyValue::new(semconv::URL_PATH, request.uri().path().to_owned()),
            ];
            if let Some(route) = &route {
                attributes.push(KeyValue::new(
                    semconv::HTTP_ROUTE,
                    route.as_str().to_owned(),
                ));
            }
            if method.is_none() {
                let original = request.method().to_string();
                attributes.push(KeyValue::new(
                    semconv::HTTP_REQUEST_METHOD_ORIGINAL,
                    original,
                ));
            }
            if let Some(query) = request.uri().query() {
                attributes.push(KeyValue::new(semconv::URL_QUERY, query.to_owned()));
            }
            if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() {
                let address = peer.ip().to_string();
                attributes.push(KeyValue::new(semconv::NETWORK_PEER_ADDRESS, address));
                let port = i64::from(peer.port());
                attributes.push(KeyValue::new(semconv::NETWORK_PEER_PORT, port));
            }
            if let Some(agent) = text("user-agent") {
                attributes.push(KeyValue::new(
                    semconv::USER_AGENT_ORIGINAL,
                    agent.to_owned(),
                ));
            }
            attributes
        },
        Vec::new(),
    );
    let request_id = text("x-request-id")
        .filter(|id| is_sane_request_id(id))
        .map_or_else(|| span.trace_id(), str::to_owned);
    Seen {
        span,
        method,
        route,
        probe,
        request_id,
    }
}

/// Counts a request in flight, including one that is dropped because its client has disconnected.
struct Busy<'a>(&'a HttpMetrics);

impl<'a> Busy<'a> {
    fn new(http: &'a HttpMetrics) -> Self {
        http.threads_busy.inc();
        Self(http)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.threads_busy.dec();
    }
}

/// Span, metrics, log line, deadline, overload and panics of every request.
async fn observe(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    let _token = server.requests.token();
    let Seen {
        span,
        method,
        route,
        probe,
        request_id,
    } = see(&request);
    request.extensions_mut().insert(Arrival {
        deadline: Deadline::after_instant(arrived, REQUEST_TIMEOUT),
    });

    let http = &server.metrics.http;
    let place = (!probe).then(|| server.places.try_acquire());
    let mut response = if matches!(place, Some(Err(_))) {
        http.shed.with_label_values(&["queue_full"]).inc();
        refuse(problem::overloaded())
    } else {
        let _busy = place.is_some().then(|| Busy::new(http));
        let answered = AssertUnwindSafe(next.run(request)).catch_unwind();
        let answered = answered.with_context(span.context()).await;
        answered.unwrap_or_else(|_| {
            http.panics.inc();
            refuse(problem::internal())
        })
    };
    if let Some(Refused(problem)) = response.extensions_mut().remove::<Refused>() {
        *response.status_mut() =
            StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.body_mut() = Body::from(problem.body(&span.trace_id(), &span.span_id()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        for (name, value) in problem.headers() {
            if let (Ok(name), Ok(value)) = (
                HeaderName::try_from(&**name),
                HeaderValue::try_from(&**value),
            ) {
                headers.insert(name, value);
            }
        }
    }
    if let Ok(value) = HeaderValue::try_from(&request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }

    let status = response.status();
    let label = status.as_str();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let labels = [method.unwrap_or("OTHER"), route, label];
    let duration = arrived.elapsed();
    http.duration
        .with_label_values(&labels)
        .observe(duration.as_secs_f64());
    http.requests.with_label_values(&labels).inc();
    if span.is_recording() {
        span.set(
            semconv::HTTP_RESPONSE_STATUS_CODE,
            i64::from(status.as_u16()),
        );
        if status.is_server_error() {
            span.fail(label, "the answer is a server error");
        }
    }
    let _entered = span.enter();
    log::log!(
        target: "tbd::http", if probe { log::Level::Debug } else { log::Level::Info },
        method = labels[0], route = route, status = status.as_u16(),
        duration_ms = (duration.as_secs_f64() * 1e6).round() / 1e3, queue_ms = 0.0, request_id = request_id;
        "request answered"
    );
    response
}

async fn ready(State(server): State<Arc<Server>>) -> Response {
    let (status, body) = server.checks.readiness();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    named(json(status, body), &server.instance)
}

/// Adds the instance header.
fn named(mut response: Response, instance: &str) -> Response {
    if let Ok(instance) = HeaderValue::try_from(instance) {
        response.headers_mut().insert("tbd-instance", instance);
    }
    response
}

async fn scrape(State(server): State<Arc<Server>>) -> Response {
    let mut response = Response::new(Body::from(server.metrics.render()));
    let media_type = HeaderValue::from_static(tbd_telemetry::metrics::CONTENT_TYPE);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    named(response, &server.instance)
}

type Answer = Result<Response, Problem>;

fn answer(result: Answer) -> Response {
    result.unwrap_or_else(refuse)
}

/// All values of a header; a value beyond ASCII is ignored.
fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().unwrap_or("\u{fffd}"))
}

/// A header that holds a list: several lines are one list.
fn list(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<&str> = values(headers, name).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

fn deadline(request: &Parts) -> Deadline {
    let arrival = request.extensions.get::<Arrival>();
    arrival.map_or_else(
        || Deadline::after(REQUEST_TIMEOUT),
        |arrival| arrival.deadline,
    )
}

async fn read(head: &Parts, body: Body, deadline: Deadline) -> Result<Bytes, Problem> {
    let announced = values(&head.headers, "content-length")
        .next()
        .and_then(|length| length.parse().ok());
    if announced.is_some_and(|length: u64| length > BODY_LIMIT as u64) {
        return Err(problem::body_too_large(BODY_LIMIT));
    }
    match timeout_at(deadline.instant().into(), to_bytes(body, BODY_LIMIT)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if error.to_string().contains("length limit") => {
            Err(problem::body_too_large(BODY_LIMIT))
        }
        Ok(Err(_)) => Err(problem::malformed("The body ended before its length.")),
        Err(_) => Err(problem::body_timeout()),
    }
}

async fn create_order(State(api): State<Arc<Api>>, request: Request) -> Response {
    answer(api.create(request).await)
}

async fn get_order(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    answer(api.get(&id, &request.into_parts().0).await)
}

async fn list_orders(State(api): State<Arc<Api>>, request: Request) -> Response {
    answer(api.list(&request.into_parts().0).await)
}

async fn cancel_order(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    answer(api.cancel(&id, &request.into_parts().0).await)
}

impl Api {
    async fn create(self: &Arc<Self>, request: Request) -> Answer {
        let (head, body) = request.into_parts();
        let deadline = deadline(&head);
        require_json(values(&head.headers, "content-type").next())?;
        require_unencoded(values(&head.headers, "content-encoding"))?;
        let key = idempotency_key(values(&head.headers, "idempotency-key"))?;
        let body = read(&head, body, deadline).await?;
        let (customer_email, amount) = dto::parse_new_order(&body).map_err(body_problem)?;
        let order = Order::create(customer_email, amount, Timestamp::now());
        let accepted = self.accept_once(key, order, deadline).await;
        let Accepted { answer, replayed } = accepted.map_err(create_problem)?;
        let StoredAnswer { body, order_id } = answer;
        tracing::annotate(semconv::ORDER_ID, order_id.to_string());
        let location = HeaderValue::try_from(format!("/v1/orders/{order_id}"));
        let mut answer = json(StatusCode::ACCEPTED, body);
        if let Ok(location) = location {
            answer.headers_mut().insert(header::LOCATION, location);
        }
        if replayed {
            answer
                .headers_mut()
                .insert("idempotent-replayed", HeaderValue::from_static("true"));
        }
        Ok(answer)
    }

    /// As [`accept`](Self::accept), in a task of its own: hyper drops a handler at any await once its client has
    /// disconnected. An order that is stored but not published would then count as a failure of Kafka.
    pub(crate) async fn accept_once(
        self: &Arc<Self>,
        key: IdempotencyKey,
        order: Order,
        deadline: Deadline,
    ) -> Result<Accepted, CreateError> {
        let new_order = NewOrder {
            caller: Caller::ANONYMOUS,
            key,
            body: dto::order_body(&order),
            order,
        };
        let accepting = Arc::clone(self).accept(new_order, deadline);
        let accepted = tokio::spawn(accepting.with_current_context()).await;
        accepted.unwrap_or_else(|error| resume_unwind(error.into_panic()))
    }

    /// tbd's `CreateOrder`.
    async fn accept(
        self: Arc<Self>,
        new_order: NewOrder,
        deadline: Deadline,
    ) -> Result<Accepted, CreateError> {
        let event = OrderEvent::Created(new_order.order.clone());
        let submission = Arc::new(Submission {
            key: new_order.key,
            fingerprint: request_fingerprint(&new_order.order),
            message: self.delivery.bus().topics.message(&event),
            order: new_order.order,
            body: new_order.body,
            ttl: self.ttl,
        });
        let outcome = self.store.submit(&submission, deadline).await?;
        let (accepted, unpublished) =
            interpret_outcome(outcome, &submission, self.delivery.meter())?;
        if let Some(message) = unpublished {
            self.delivery
                .deliver(message, deadline)
                .await
                .map_err(CreateError::NotPublished)?;
        }
        Ok(accepted)
    }

    async fn get(&self, id: &str, request: &Parts) -> Answer {
        let order = self.store.get(order_id(id)?, deadline(request)).await;
        let order = order.map_err(store_problem)?.ok_or_else(not_found)?;
        let tag = etag(&order);
        let response = match client_has(list(&request.headers, "if-none-match").as_deref(), &tag) {
            true => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                response
            }
            false => json(StatusCode::OK, dto::order_body(&order)),
        };
        Ok(tagged(response, tag))
    }

    async fn list(&self, request: &Parts) -> Answer {
        let query = query::parse(request.uri.query().unwrap_or_default()).map_err(invalid)?;
        let listed = self.page(&query, deadline(request)).await;
        let body = dto::list_body(
            &listed.map_err(store_problem)?,
            query.number,
            query.page.limit,
        );
        Ok(json(StatusCode::OK, body))
    }

    /// The orders of a page.
    pub(crate) async fn page(
        &self,
        query: &ListQuery,
        deadline: Deadline,
    ) -> Result<Listed, StoreError> {
        let limit = query.page.limit;
        // One order more than requested shows whether more exist.
        let probe = Page {
            limit: limit + 1,
            ..query.page
        };
        let mut orders = self.store.list(&probe, deadline).await?;
        let has_more = orders.len() > limit as usize;
        orders.truncate(limit as usize);
        Ok(Listed { orders, has_more })
    }

    async fn cancel(&self, id: &str, request: &Parts) -> Answer {
        let (id, deadline) = (order_id(id)?, deadline(request));
        let condition = list(&request.headers, "if-match");
        let order = self
            .cancel_if(id, condition.as_deref(), deadline)
            .await
            .map_err(cancel_problem)?;
        Ok(tagged(
            json(StatusCode::OK, dto::order_body(&order)),
            etag(&order),
        ))
    }

    /// tbd's `CancelOrder`.
    pub(crate) async fn cancel_if(
        &self,
        id: tbd::orders::domain::OrderId,
        condition: Option<&str>,
        deadline: Deadline,
    ) -> Result<Order, CancelError> {
        let mut attempted = None;
        loop {
            let old = self
                .store
                .get(id, deadline)
                .await?
                .ok_or(CancelError::NotFound)?;
            if attempted.as_ref() == Some(&old) {
                return Ok(old);
            }
            if !if_match(condition, &etag(&old)) {
                return Err(CancelError::PreconditionFailed);
            }
            let new = old.cancel(Timestamp::now())?;
            if new == old || self.store.replace(&old, &new, deadline).await? {
                return Ok(new);
            }
            attempted = Some(new);
        }
    }
}

fn tagged(mut response: Response, tag: String) -> Response {
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
