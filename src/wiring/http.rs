//! HTTP server setup of the programs.

use std::process;
use std::sync::Arc;

use crate::config::HttpConfig;
use crate::metrics::{HttpMetrics, Metrics};
use tbd_http::{Observers, Router, SHED, Server, ServerConfig, StartError, TlsConfig};

use super::http_observer::HttpObserver;

/// `EX_SOFTWARE` of sysexits.h: the supervisor should restart us.
const EXIT_SELF_CHECK: i32 = 70;

/// Starts the server. If its self-check fails, the process logs the reason and exits with code 70,
/// so that its supervisor restarts it.
///
/// # Errors
/// [`StartError`]; nothing is left running.
pub fn http_server(
    config: &HttpConfig,
    router: Router,
    metrics: &Metrics,
) -> Result<Server, StartError> {
    let config = ServerConfig {
        addr: config.address(),
        acceptors: config.acceptors,
        workers: config.workers,
        queue: config.queue,
        memory_limit_bytes: config.memory_limit_bytes,
        tls: config.tls.clone().map(TlsConfig::new),
        ..ServerConfig::default()
    };
    let on_fatal = |reason: &str| {
        log::error!("self-check failed, ending so that the supervisor restarts us: {reason}");
        process::exit(EXIT_SELF_CHECK);
    };
    let observers = observers(metrics.http.clone(), config.workers);
    Server::start(config, router, observers, Box::new(on_fatal))
}

/// Observers for the threads of a server with `workers` workers: spans, metrics and log lines.
pub fn observers(metrics: HttpMetrics, workers: usize) -> Observers {
    metrics
        .threads
        .set(i64::try_from(workers).unwrap_or(i64::MAX));
    for reason in SHED {
        metrics.shed.with_label_values(&[reason]);
    }
    // One is made for each gRPC call, too, so they share the metrics.
    let metrics = Arc::new(metrics);
    Arc::new(move || Box::new(HttpObserver::new(Arc::clone(&metrics))))
}
