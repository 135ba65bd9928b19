//! gRPC server setup: calls run on the HTTP server's pool.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::TokenCheck;
use crate::config::GrpcConfig;
use crate::metrics::Metrics;
use crate::orders::adapters::grpc::{Guard, complete, routes};
use crate::orders::adapters::http::Api;
use crate::proto::DESCRIPTORS;
use crate::proto::orders::order_service;
use tbd_deadline::Deadline;
use tbd_grpc::Router;
use tbd_grpc::server::{Health, Job, Server, ServerConfig, ServingStatus, add_reflection};
use tbd_grpc::tls::ServerTls;
use tbd_http::Pool;
use tbd_tls::Reloading;

use super::AnyError;
use super::background::Background;
use super::grpc_observer::{GrpcObserver, GrpcService};
use super::probes::Checks;

/// The limit of a call, from its arrival to its response; `grpc-timeout` can only shorten it.
const CALL_DURATION_MAX: Duration = Duration::from_secs(30);
/// As of a body over REST.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

const ORDER_PATHS: [&str; 4] = [
    order_service::CREATE_ORDER.path(),
    order_service::GET_ORDER.path(),
    order_service::LIST_ORDERS.path(),
    order_service::CANCEL_ORDER.path(),
];

/// A running gRPC server.
pub struct GrpcServer {
    server: Server,
    health: Health,
}

/// Starts the api's server. With `token_check` calls need a token. The rest is as for [`serve_grpc`].
///
/// # Errors
/// As for [`serve_grpc`].
pub fn grpc_server(
    config: &GrpcConfig,
    api: Arc<Api>,
    token_check: Option<Arc<Reloading<TokenCheck>>>,
    pool: Pool,
    checks: Checks,
    metrics: &Metrics,
    background: &mut Background,
) -> Result<GrpcServer, AnyError> {
    let guard = token_check.map(|check| {
        Box::new(move |values: &[&str]| check.get().admit(values.iter().copied())) as Guard
    });
    let service = GrpcService {
        name: "tbd.orders.v1.OrderService",
        paths: &ORDER_PATHS,
        message_bytes_max: MESSAGE_BYTES_MAX,
    };
    let add = |router: &mut Router| {
        routes(router, api, guard);
    };
    serve_grpc(config, &service, add, pool, checks, metrics, background)
}

/// Starts the server and the thread `grpc-health`, which sets the health service to what `checks`
/// say. Calls run on `pool`. `add_routes` adds the methods of `service`.
///
/// # Errors
/// The address cannot be listened on, a certificate or key cannot be used, or the system refuses a thread.
/// Nothing is left running.
pub fn serve_grpc(
    config: &GrpcConfig,
    service: &GrpcService,
    add_routes: impl FnOnce(&mut Router),
    pool: Pool,
    checks: Checks,
    metrics: &Metrics,
    background: &mut Background,
) -> Result<GrpcServer, AnyError> {
    let observer = Arc::new(GrpcObserver::new(metrics, service));
    let mut router = Router::new();
    let (running, refusing) = (Arc::clone(&observer), Arc::clone(&observer));
    router.intercept(move |call, next| running.observe(call, || next.run()));
    router.on_refused(move |path, status| refusing.refused(path, status));
    router.map_errors(complete);
    add_routes(&mut router);
    let health = Health::new();
    health.add_to(&mut router);
    // A test holds the descriptors.
    add_reflection(&mut router, &[DESCRIPTORS])
        .map_err(|error| format!("the descriptors of the gRPC services are damaged: {error}"))?;

    let mut server_config = ServerConfig::default();
    server_config.connection.message_bytes_max = service.message_bytes_max;
    server_config.call_duration_max = CALL_DURATION_MAX;
    let mut server = Server::builder(router)
        .config(server_config)
        .executor(Arc::new(move |job: Job| {
            let observer = Arc::clone(&observer);
            pool.submit(Box::new(move |turn| observer.take(job, turn)));
        }));
    if let Some(files) = &config.tls {
        let files = files.clone();
        let tls = ServerTls::from_files(files.identity, files.client_ca)
            .map_err(|error| format!("TLS of the gRPC server: {error}"))?;
        server = server.tls(tls);
    }
    let address = config.address;
    let listener = TcpListener::bind(address)
        .map_err(|error| format!("cannot listen for gRPC on {address}: {error}"))?;
    let no_thread = |error: io::Error| format!("the gRPC server cannot start: {error}");
    let server = server.start(listener).map_err(no_thread)?;
    log::info!(target: "tbd::grpc", tls = config.tls.is_some(); "listening on {address}");

    let (set, name) = (health.clone(), service.name);
    let follow = move || {
        let (is_ready, status) = match checks.is_ready() {
            true => (Ok(()), ServingStatus::Serving),
            false => (Err("not ready".to_owned()), ServingStatus::NotServing),
        };
        set.set("", status);
        set.set(name, status);
        is_ready
    };
    let followed = background.monitor("grpc-health", follow);
    followed.map_err(no_thread)?;
    Ok(GrpcServer { server, health })
}

impl GrpcServer {
    /// Sets the health service to NOT_SERVING for good. New calls are still answered.
    pub fn fail_health(&self) {
        self.health.shut_down();
    }

    /// Says GOAWAY, and waits until the calls in flight have ended, until `deadline` at most. The pool
    /// must run until then.
    pub fn stop(self, deadline: Deadline) {
        if !self.server.stop(deadline) {
            log::warn!("shutdown: gRPC calls were cut off at the deadline");
        }
    }
}
