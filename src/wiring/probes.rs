//! Probes: `/healthz`, `/readyz` and `/metrics`, answered from memory and outside the pool.

use std::collections::BTreeMap;

use rustix::system::uname;
use serde::Serialize;

use crate::metrics::Metrics;
use crate::wiring::health::Monitor;
use tbd_deadline::StopSignal;
use tbd_http::{Response, Router};
use tbd_telemetry::metrics::CONTENT_TYPE;

/// The conditions of readiness.
#[derive(Clone)]
pub struct Checks {
    /// The services that the program needs, by name.
    pub monitors: Vec<(&'static str, Monitor)>,
    /// Readiness fails once this is given.
    pub stop: StopSignal,
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    checks: BTreeMap<&'static str, String>,
}

impl Checks {
    /// Whether `/readyz` answers 200. Does not block.
    pub fn is_ready(&self) -> bool {
        !self.stop.is_stopped() && self.verdicts().values().all(Result::is_ok)
    }

    fn verdicts(&self) -> BTreeMap<&'static str, Result<(), String>> {
        let monitors = self.monitors.iter();
        monitors.map(|(name, it)| (*name, it.health())).collect()
    }

    /// Status and body of the response to `/readyz`. Does not block.
    pub fn readiness(&self) -> (u16, Vec<u8>) {
        let verdicts = self.verdicts();
        let healthy = verdicts.values().all(Result::is_ok);
        let status = match (self.stop.is_stopped(), healthy) {
            (true, _) => "stopping",
            (false, true) => "ready",
            (false, false) => "unready",
        };
        let word = |verdict: Result<(), String>| verdict.err().unwrap_or_else(|| "ok".into());
        let readiness = Readiness {
            status,
            checks: verdicts
                .into_iter()
                .map(|(name, verdict)| (name, word(verdict)))
                .collect(),
        };
        let code = if status == "ready" { 200 } else { 503 };
        // Strings and a map of strings cannot fail to serialize.
        (code, serde_json::to_vec(&readiness).unwrap_or_default())
    }
}

/// The header that names the instance behind a shared address.
const INSTANCE: &str = "Tbd-Instance";

/// The name of this machine or container, with `port`.
pub fn instance(port: u16) -> String {
    let host = uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{port}")
}

/// Adds the probes to `router`. `/readyz` and `/metrics` name the [`instance`] in a header.
pub fn probes(router: Router, checks: Checks, metrics: Metrics, port: u16) -> Router {
    let instance = instance(port);
    let same_instance = instance.clone();
    router
        .probe_get("/healthz", |_| {
            Ok(Response::json(200, r#"{"status":"ok"}"#))
        })
        .probe_get("/readyz", move |_| {
            let (status, body) = checks.readiness();
            Ok(Response::json(status, body).header(INSTANCE, instance.clone()))
        })
        .probe_get("/metrics", move |_| {
            Ok(Response::new(200)
                .header("Content-Type", CONTENT_TYPE)
                .header(INSTANCE, same_instance.clone())
                .body(metrics.render()))
        })
}
