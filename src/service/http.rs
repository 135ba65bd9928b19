//! The HTTP server as both programs use it.

use std::process;

use crate::config::HttpConfig;
use crate::http_server::{Router, Server, ServerConfig, StartError};
use crate::metrics::Metrics;

/// `EX_SOFTWARE` of sysexits.h: the supervisor should start us anew.
const EXIT_SELF_CHECK: i32 = 70;

/// Listens and answers from now on. When the server's self-check fails, the process says
/// why and ends with code 70, so that its supervisor starts it anew.
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
        ..ServerConfig::default()
    };
    let on_fatal = |reason: &str| {
        log::error!("self-check failed, ending so that the supervisor restarts us: {reason}");
        process::exit(EXIT_SELF_CHECK);
    };
    Server::start(config, router, metrics.http.clone(), Box::new(on_fatal))
}
