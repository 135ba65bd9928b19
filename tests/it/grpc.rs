//! The gRPC API: it mirrors REST, shares its keys, its limits and its shutdown.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tbd::proto::orders::{
    CancelOrderRequest, CreateOrderRequest, CreateOrderResponse, GetOrderRequest,
    ListOrdersRequest, Order, OrderStatus, order_service as service,
};
use tbd_deadline::Deadline;
use tbd_grpc::proto::google::rpc::{BadRequest, ErrorInfo, RetryInfo};
use tbd_grpc::proto::grpc::health::{HealthCheckRequest, health};
use tbd_grpc::server::ServingStatus;
use tbd_grpc::tls::{ClientTls, Identity, Roots};
use tbd_grpc::{Channel, Code, Metadata, Method, Status};

use crate::support::certificates::{Authority, Validity};
use crate::support::http::get;
use crate::support::observers::Collector;
use crate::support::program::{API, Program, Stack, id, new_order, run};
use crate::support::token::{SECRET, claims, hs256};
use crate::support::{SetOnDrop, eventually, postgres, unique};
use crate::tracing::{PARENT_ID, assert_attributes, new_trace, traced};

const LIMIT: Duration = Duration::from_secs(30);

/// An api with gRPC on a port of its own.
struct Server {
    api: Program,
    address: String,
    channel: Channel,
}

impl Server {
    fn started(stack: Stack) -> (Stack, Server) {
        let api = stack.start_api();
        let address = format!("127.0.0.1:{}", api.grpc_port());
        let channel = Channel::builder(&address).build();
        let server = Server {
            api,
            address,
            channel,
        };
        (stack, server)
    }

    fn ready(stack: Stack) -> (Stack, Server) {
        let (stack, mut server) = Server::started(stack);
        server.api.become_ready(LIMIT * 2);
        (stack, server)
    }

    fn create(&self, key: &str, amount_cents: i64) -> Result<Order, Status> {
        create(&self.channel, key, amount_cents)
    }

    fn get(&self, id: &str) -> Result<Order, Status> {
        let request = GetOrderRequest { id: id.to_owned() };
        let got = self.channel.call(service::GET_ORDER).send(&request)?;
        Ok(got.order.expect("an order"))
    }

    fn cancel(&self, id: &str, etag: &str) -> Result<Order, Status> {
        let request = CancelOrderRequest {
            id: id.to_owned(),
            etag: etag.to_owned(),
        };
        let canceled = self.channel.call(service::CANCEL_ORDER).send(&request)?;
        Ok(canceled.order.expect("an order"))
    }

    fn is_serving(&self) -> bool {
        let request = HealthCheckRequest::default();
        let answer = self.channel.call(health::CHECK).send(&request);
        answer.expect("an answer").status() == ServingStatus::Serving
    }

    fn handled(&self, method: &str, code: &str) -> String {
        let service = "tbd.orders.v1.OrderService";
        format!(
            "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"{method}\",grpc_service=\"{service}\"}}"
        )
    }
}

fn create(channel: &Channel, key: &str, amount_cents: i64) -> Result<Order, Status> {
    let call = channel
        .call(service::CREATE_ORDER)
        .metadata(metadata(&[("idempotency-key", key)]))
        .deadline(Deadline::after(LIMIT));
    Ok(call.send(&order(amount_cents))?.order.expect("an order"))
}

fn order(amount_cents: i64) -> CreateOrderRequest {
    CreateOrderRequest {
        customer_email: "user@example.com".to_owned(),
        amount_cents,
    }
}

fn metadata(entries: &[(&str, &str)]) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in entries {
        metadata.insert_text(key, *value).expect("valid metadata");
    }
    metadata
}

/// Checks code, domain, reason, trace id and request id; the status.
#[track_caller]
fn assert_status<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
) -> Status {
    let status = result.expect_err(reason);
    assert_eq!(status.code(), code, "{status:?}");
    let info: ErrorInfo = status.detail().expect("an ErrorInfo");
    assert_eq!((&*info.domain, &*info.reason), ("tbd", reason));
    let trace_id = &*info.metadata["trace_id"];
    assert_eq!(trace_id.len(), 32);
    assert_eq!(request_ids(&status), [trace_id]);
    status
}

/// The request ids in the answer.
fn request_ids(status: &Status) -> Vec<&str> {
    let entries = status.metadata().iter();
    let ids = entries.filter(|(key, _)| *key == "x-request-id");
    ids.map(|(_, id)| str::from_utf8(id).unwrap()).collect()
}

fn faulty_fields(status: &Status) -> Vec<String> {
    let bad: BadRequest = status.detail().expect("a BadRequest");
    let violations = bad.field_violations.into_iter();
    violations.map(|violation| violation.field).collect()
}

/// The JSON that REST shows for the same order.
fn json_of(order: &Order) -> serde_json::Value {
    let time = |time: Option<prost_types::Timestamp>| {
        let time = time.expect("a time");
        let time = jiff::Timestamp::new(time.seconds, time.nanos).expect("a time");
        format!("{time:.6}")
    };
    let status = order.status().as_str_name();
    json!({
        "id": order.id,
        "customer_email": order.customer_email,
        "amount_cents": order.amount_cents,
        "status": status.trim_start_matches("ORDER_STATUS_").to_lowercase(),
        "created_at": time(order.created_at),
        "updated_at": time(order.updated_at),
    })
}

#[test]
fn each_call_means_what_its_rest_request_means() {
    let (stack, server) = Server::ready(Stack::new());
    let address = server.api.address();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let call = server.channel.call(service::CREATE_ORDER).gzip();
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let metadata = metadata(&[("idempotency-key", "first"), ("traceparent", &parent)]);
    let created = call
        .metadata(metadata)
        .send_for_response(&order(700))
        .unwrap();
    assert!(created.is_compressed);
    assert_eq!(created.headers.text("x-request-id"), Some(trace));
    assert_eq!(created.headers.text("idempotent-replayed"), None);
    let created = created.message.order.unwrap();

    let rest = get(format!("/v1/orders/{}", created.id)).send(&address);
    assert_eq!(rest.json(), json_of(&created));
    assert_eq!(rest.header("ETag"), Some(&*created.etag));
    assert_eq!(server.get(&created.id).unwrap(), created);

    let others: Vec<Order> = (1..=4)
        .map(|amount| server.create(&unique("key"), amount).unwrap())
        .collect();
    let mut request = ListOrdersRequest {
        page_size: 2,
        ..ListOrdersRequest::default()
    };
    let mut listed = Vec::new();
    loop {
        let page = server.channel.call(service::LIST_ORDERS).send(&request);
        let page = page.unwrap();
        assert!(page.orders.len() <= 2);
        listed.extend(page.orders);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let newest_first: Vec<_> = others.iter().rev().chain([&created]).cloned().collect();
    assert_eq!(listed, newest_first);

    let canceled = server.cancel(&created.id, &created.etag).unwrap();
    assert_eq!(canceled.status(), OrderStatus::Canceled);
    assert_eq!(server.cancel(&created.id, "").unwrap(), canceled);
    let of_status = ListOrdersRequest {
        status: OrderStatus::Canceled.into(),
        ..ListOrdersRequest::default()
    };
    let page = server.channel.call(service::LIST_ORDERS).send(&of_status);
    assert_eq!(page.unwrap().orders, [canceled]);
    server
        .api
        .metric_becomes(&server.handled("CreateOrder", "OK"), 5.0);
    assert_eq!(stack.count("orders"), 5);
}

#[test]
fn one_trace_leads_from_the_caller_to_the_published_event() {
    let collector = Collector::start();
    let (stack, server) = Server::ready(traced(Stack::new(), &collector.grpc_address()));
    let (trace_id, traceparent) = new_trace();
    let entries = [
        ("idempotency-key", "traced"),
        ("traceparent", &*traceparent),
    ];
    let call = server.channel.call(service::CREATE_ORDER);
    let created = call.metadata(metadata(&entries)).send(&order(5)).unwrap();
    let name = "tbd.orders.v1.OrderService/CreateOrder";
    let send = format!("send {}", stack.topics.created);
    let trace = collector.wait_for(&trace_id, &[name, "INSERT order", &send]);
    let span = trace.one(name);
    assert_eq!((span.kind(), span.parent()), (2, PARENT_ID));
    let expected = [
        ("rpc.system.name", "grpc"),
        ("rpc.method", name),
        ("rpc.response.status_code", "OK"),
        ("tbd.order.id", &*created.order.unwrap().id),
    ];
    assert_attributes(span, &expected);
    for child in ["wait for a thread", "INSERT order", &send] {
        assert_eq!(trace.below(span, child).count(), 1, "{child}");
    }
}

#[test]
fn each_error_has_its_code_and_its_reason() {
    const UNKNOWN: Method<GetOrderRequest, CreateOrderResponse> =
        Method::new("/tbd.orders.v1.OrderService/Forget");
    let (stack, server) = Server::ready(Stack::new());
    let channel = &server.channel;
    let created = server.create("used", 5).unwrap();

    let no_key = channel.call(service::CREATE_ORDER).send(&order(5));
    let status = assert_status(no_key, Code::InvalidArgument, "IDEMPOTENCY_KEY_MISSING");
    assert_eq!(faulty_fields(&status), ["idempotency-key"]);
    assert_status(
        server.create("a b", 5),
        Code::InvalidArgument,
        "IDEMPOTENCY_KEY_INVALID",
    );
    let nothing = channel
        .call(service::CREATE_ORDER)
        .metadata(metadata(&[("idempotency-key", "k")]))
        .send(&CreateOrderRequest::default());
    let status = assert_status(nothing, Code::InvalidArgument, "VALIDATION_FAILED");
    assert_eq!(faulty_fields(&status), ["customer_email", "amount_cents"]);
    assert_status(
        server.create("used", 6),
        Code::InvalidArgument,
        "IDEMPOTENCY_KEY_REUSED",
    );
    let status = assert_status(server.get("7"), Code::InvalidArgument, "VALIDATION_FAILED");
    assert_eq!(faulty_fields(&status), ["id"]);
    let absent = uuid::Uuid::now_v7().to_string();
    assert_status(server.get(&absent), Code::NotFound, "ORDER_NOT_FOUND");
    assert_status(
        server.cancel(&absent, ""),
        Code::NotFound,
        "ORDER_NOT_FOUND",
    );
    let changed = server.cancel(&created.id, "\"another\"");
    assert_status(changed, Code::Aborted, "PRECONDITION_FAILED");
    let bad_page = channel.call(service::LIST_ORDERS).send(&ListOrdersRequest {
        status: 99,
        page_size: 101,
        page_token: "x".to_owned(),
    });
    let status = assert_status(bad_page, Code::InvalidArgument, "VALIDATION_FAILED");
    assert_eq!(
        faulty_fields(&status),
        ["status", "page_size", "page_token"]
    );
    stack.execute("UPDATE orders SET status = 'processing'");
    assert_status(
        server.cancel(&created.id, ""),
        Code::FailedPrecondition,
        "ORDER_NOT_CANCELABLE",
    );

    let mut large = order(5);
    large.customer_email = "x".repeat(70_000);
    let (trace_id, traceparent) = new_trace();
    let trace = metadata(&[("traceparent", &traceparent)]);
    let large = channel
        .call(service::CREATE_ORDER)
        .metadata(trace.clone())
        .send(&large);
    let unknown = channel
        .call(UNKNOWN)
        .metadata(trace)
        .send(&GetOrderRequest::default());
    for status in [
        assert_status(large, Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
        assert_status(unknown, Code::Unimplemented, "UNIMPLEMENTED"),
    ] {
        let info: ErrorInfo = status.detail().expect("an ErrorInfo");
        assert_eq!(info.metadata["trace_id"], trace_id);
    }
    let untraced = channel.call(UNKNOWN).send(&GetOrderRequest::default());
    assert_status(untraced, Code::Unimplemented, "UNIMPLEMENTED");
    // Whether the library refuses a call or the service does, the client's own id comes back.
    let named = || metadata(&[("x-request-id", "seven")]);
    let unknown = channel.call(UNKNOWN).metadata(named());
    let unknown = unknown.send(&GetOrderRequest::default()).unwrap_err();
    let no_key = channel.call(service::CREATE_ORDER).metadata(named());
    let no_key = no_key.send(&order(5)).unwrap_err();
    assert_eq!(
        (request_ids(&unknown), request_ids(&no_key)),
        (vec!["seven"], vec!["seven"])
    );
    let metrics = get("/metrics").send(&server.api.address()).text();
    assert!(!metrics.contains("Forget"));
    server
        .api
        .metric_becomes(&server.handled("CreateOrder", "ResourceExhausted"), 1.0);
}

#[test]
fn a_key_is_one_key_in_both_protocols() {
    let (stack, server) = Server::ready(Stack::new());
    let posted = server.api.order("posted-first", 5);
    let call = server.channel.call(service::CREATE_ORDER);
    let replayed = call
        .metadata(metadata(&[("idempotency-key", "posted-first")]))
        .send_for_response(&order(5))
        .unwrap();
    assert_eq!(replayed.headers.text("idempotent-replayed"), Some("true"));
    assert_eq!(json_of(&replayed.message.order.unwrap()), posted.json());

    let created = server.create("called-first", 6).unwrap();
    let shown = get(format!("/v1/orders/{}", created.id)).send(&server.api.address());
    stack.execute("UPDATE orders SET status = 'completed'");
    let replayed = server.api.order("called-first", 6);
    assert_eq!(replayed.status, 202);
    assert_eq!(replayed.header("Idempotent-Replayed"), Some("true"));
    assert_eq!(replayed.body, shown.body, "byte for byte");

    let ids: Vec<String> = thread::scope(|scope| {
        let server = &server;
        let calls: Vec<_> = (0..32)
            .map(|number| {
                scope.spawn(move || match number % 2 {
                    0 => server.create("at-once", 7).unwrap().id,
                    _ => id(&server.api.order("at-once", 7).json()).to_owned(),
                })
            })
            .collect();
        let ids = calls.into_iter().map(|call| call.join().unwrap());
        ids.collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(stack.count("orders"), 3);
}

#[test]
fn calls_share_the_pool_and_its_limits_with_requests() {
    let stack = Stack::new()
        .set("HTTP_WORKERS", "1")
        .set("HTTP_QUEUE", "1")
        .set("DB_COALESCE", "off");
    let (stack, server) = Server::ready(stack);
    eventually(LIMIT, "health to follow", || {
        server.is_serving().then_some(())
    });
    let mut holder = stack.database.holding_orders();
    thread::scope(|scope| {
        let server = &server;
        let running = scope.spawn(move || server.create("running", 5));
        let depth = |name: &str, value| server.api.metric_becomes(name, value);
        depth("http_threads_busy", 1.0);
        // All that follows has to happen before the thread counts as stuck, after half a second.
        let deadline = Deadline::after(Duration::from_millis(50));
        let late = server.channel.call(service::GET_ORDER).deadline(deadline);
        let late = late.send(&GetOrderRequest::default()).unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded);
        // The late call keeps its place until a thread takes it.
        depth("http_queue_depth", 1.0);
        let refused = assert_status(server.create("refused", 5), Code::Unavailable, "OVERLOADED");
        assert!(refused.detail::<RetryInfo>().is_some());
        new_order("too", 5)
            .send(&server.api.address())
            .problem(503, "overloaded");
        assert!(server.is_serving(), "health does not wait for the pool");
        holder.batch_execute("ROLLBACK").unwrap();
        running.join().unwrap().unwrap();
    });
    server
        .api
        .metric_becomes(&server.handled("GetOrder", "DeadlineExceeded"), 1.0);
    assert_eq!(stack.count("orders"), 1);
}

#[test]
fn without_kafka_or_database_calls_are_unavailable_and_health_says_so() {
    // Nothing listens on port 1: the order is committed, and its event is not published.
    let stack = Stack::on(postgres(), "127.0.0.1:1".to_owned());
    let (stack, server) = Server::started(stack);
    eventually(LIMIT, "the schema", || {
        server
            .create("schema", 5)
            .is_err_and(|status| {
                let info = status.detail::<ErrorInfo>();
                info.is_some() && status.message().contains("The order is safe")
            })
            .then_some(())
    });
    let status = assert_status(
        server.create("schema", 5),
        Code::Unavailable,
        "DEPENDENCY_UNAVAILABLE",
    );
    assert!(status.detail::<RetryInfo>().is_some());
    assert!(!server.is_serving());
    assert_eq!(stack.count("orders"), 1);
}

#[test]
fn certificates_and_tokens_admit_a_caller() {
    let authority = Authority::new("grpc");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let ours = authority.issue("localhost", Validity::Now);
    let stack = Stack::new()
        .set("API_GRPC_TLS_CERT_FILE", &text(&ours.certificate))
        .set("API_GRPC_TLS_KEY_FILE", &text(&ours.key))
        .set("API_GRPC_TLS_CLIENT_CA_FILE", &text(&authority.ca_file()))
        .set("AUTH_JWT_HS256_SECRET", SECRET);
    let (_stack, server) = Server::ready(stack);
    let address = server.address.replace("127.0.0.1", "localhost");
    let channel = |identity: Option<Identity>| {
        let tls = ClientTls::from_files(Roots::File(authority.ca_file()), identity).unwrap();
        Channel::builder(&address).tls(tls).build()
    };
    let client = authority.issue("client", Validity::Now);
    let known = channel(Some(Identity::new(client.certificate, client.key)));
    let check = |channel: &Channel| {
        channel
            .call(health::CHECK)
            .send(&HealthCheckRequest::default())
    };
    assert!(check(&known).is_ok(), "health needs no token");
    assert_eq!(check(&channel(None)).unwrap_err().code(), Code::Unavailable);

    assert_status(
        create(&known, "k", 5),
        Code::Unauthenticated,
        "UNAUTHORIZED",
    );
    let token = hs256(&json!({ "alg": "HS256" }), &claims(), SECRET.as_bytes());
    let bearer = format!("Bearer {token}");
    let admitted = known
        .call(service::CREATE_ORDER)
        .metadata(metadata(&[
            ("authorization", &bearer),
            ("idempotency-key", "k"),
        ]))
        .send(&order(5));
    let created = admitted.unwrap().order.unwrap();
    // The key belongs to the token's subject over REST, too.
    let replayed = new_order("k", 5).header("Authorization", &bearer);
    let replayed = replayed.send(&server.api.address());
    assert_eq!(id(&replayed.json()), created.id);
}

#[test]
fn tls_files_that_do_not_fit_are_refused_at_start() {
    let mut command = Stack::new().command(API);
    command
        .env("API_GRPC_PORT", "65536")
        .env("API_GRPC_TLS_CERT_FILE", "/nowhere/cert.pem")
        .env("API_GRPC_TLS_CLIENT_CA_FILE", "/nowhere/ca.pem");
    let output = run(command);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for name in [
        "PORT",
        "TLS_CERT_FILE",
        "TLS_KEY_FILE",
        "TLS_CLIENT_CA_FILE",
    ] {
        assert!(said.contains(&format!("API_GRPC_{name}")), "{name}: {said}");
    }
}

#[test]
fn sigterm_fails_health_first_and_drops_no_accepted_call() {
    let (stack, server) = Server::ready(Stack::new().set("SHUTDOWN_DRAIN", "1s"));
    eventually(LIMIT, "health to follow readiness", || {
        server.is_serving().then_some(())
    });
    let watch = server.channel.call(health::WATCH);
    let request = HealthCheckRequest {
        service: "tbd.orders.v1.OrderService".to_owned(),
    };
    let mut changes = watch.send_for_stream(&request).unwrap();
    let mut next = || {
        changes
            .next_message()
            .unwrap()
            .map(|change| change.status())
    };
    assert_eq!(next(), Some(ServingStatus::Serving));

    let accepted = AtomicI64::new(0);
    let (is_draining, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let Server {
        mut api, address, ..
    } = server;
    thread::scope(|scope| {
        let over = SetOnDrop(&is_over);
        for _ in 0..4 {
            scope.spawn(|| {
                let channel = Channel::builder(&address).build();
                while !is_over.load(Ordering::Relaxed) {
                    match create(&channel, &unique("key"), 5) {
                        Ok(_) => accepted.fetch_add(1, Ordering::Relaxed),
                        Err(status) => {
                            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                            assert!(is_draining.load(Ordering::Relaxed), "{status:?}");
                            return;
                        }
                    };
                }
            });
        }
        eventually(LIMIT, "load", || {
            (accepted.load(Ordering::Relaxed) > 20).then_some(())
        });
        is_draining.store(true, Ordering::Relaxed);
        api.terminate();
        assert_eq!(next(), Some(ServingStatus::NotServing));
        let before = accepted.load(Ordering::Relaxed);
        eventually(LIMIT, "calls while it drains", || {
            (accepted.load(Ordering::Relaxed) > before).then_some(())
        });
        assert_eq!(api.wait(LIMIT).code(), Some(0));
        drop(over);
    });
    assert_eq!(stack.count("orders"), accepted.load(Ordering::Relaxed));
}

/// Runs grpcurl, which `scripts/fetch` builds; its standard output.
fn grpcurl(arguments: &[&str]) -> String {
    let script = "set -euo pipefail; source scripts/lib.sh; scripts/fetch grpcurl >&2; exec \"$CACHE/bin/grpcurl\" \"$@\"";
    let output = Command::new("bash")
        .args(["-c", script, "grpcurl"])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .stderr(Stdio::inherit())
        .output()
        .expect("run grpcurl");
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn grpcurl_finds_and_calls_the_service_without_a_file() {
    let (_stack, server) = Server::ready(Stack::new());
    let address = &*server.address;
    let services = grpcurl(&["-plaintext", address, "list"]);
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "tbd.orders.v1.OrderService",
    ];
    assert_eq!(services.lines().collect::<Vec<_>>(), expected);
    let described = grpcurl(&["-plaintext", address, "describe", "tbd.orders.v1.Order"]);
    assert!(described.contains("google.protobuf.Timestamp created_at = 5;"));
    let created = grpcurl(&[
        "-plaintext",
        "-H",
        "idempotency-key: by-grpcurl",
        "-d",
        r#"{"customer_email":"a@b.co","amount_cents":5}"#,
        address,
        "tbd.orders.v1.OrderService/CreateOrder",
    ]);
    let created: serde_json::Value = serde_json::from_str(&created).expect("JSON");
    let shown = get(format!("/v1/orders/{}", id(&created["order"]))).send(&server.api.address());
    assert_eq!(shown.json()["customer_email"], "a@b.co");
    // Both are RFC 3339, but protobuf's JSON leaves out digits that are zero.
    let moment = |text: &serde_json::Value| -> jiff::Timestamp {
        text.as_str()
            .and_then(|it| it.parse().ok())
            .expect("a time")
    };
    assert_eq!(
        moment(&created["order"]["createdAt"]),
        moment(&shown.json()["created_at"])
    );
}
