//! The health service (`grpc.health.v1`).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};

use tbd_deadline::lock;

use super::call::{Call, CallWaker};
use super::router::{Responses, Router};
use crate::code::Code;
use crate::proto::grpc::health::{self as proto, health};
use crate::status::Status;

pub use crate::proto::grpc::health::health_check_response::ServingStatus;

/// How many services `List` names at most, as the protocol says.
const LISTED_MAX: usize = 100;

/// The health of a server's services; clones share it.
///
/// ```
/// use tbd_grpc::Router;
/// use tbd_grpc::server::{Health, ServingStatus};
///
/// let (health, mut router) = (Health::new(), Router::new());
/// health.add_to(&mut router);
/// health.set("", ServingStatus::Serving); // the server as a whole
/// health.set("example.v1.EchoService", ServingStatus::NotServing);
/// // ... start the server; before its end:
/// health.shut_down();
/// ```
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    statuses: BTreeMap<String, ServingStatus>,
    watchers: HashMap<u64, CallWaker>,
    next_watcher: u64,
    is_shut_down: bool,
}

impl Health {
    /// Knows no service yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `Check`, `List` and `Watch` to `router`. Interceptors do not see these calls and the executor does not run
    /// them, so a server that is full still answers.
    ///
    /// `Check` and `List` run on the connection's thread. Each `Watch` occupies a thread, up to
    /// [`ServerConfig::own_threads_max`](super::ServerConfig::own_threads_max); one beyond ends with RESOURCE_EXHAUSTED.
    pub fn add_to(&self, router: &mut Router) {
        let health = self.clone();
        router
            .unary(health::CHECK, move |_, request| health.check(&request))
            .mark_own(health::CHECK.path());
        let health = self.clone();
        router
            .unary(health::LIST, move |_, _| health.list())
            .mark_own(health::LIST.path());
        let health = self.clone();
        router
            .server_streaming(health::WATCH, move |call, request, responses| {
                health.watch(call, &request.service, responses)
            })
            .mark_own(health::WATCH.path());
    }

    /// Sets the status of a service, and sends it to its watchers. `""` is the server as a whole. Does not block.
    pub fn set(&self, service: &str, status: ServingStatus) {
        let mut state = lock(&self.0);
        if state.is_shut_down || state.statuses.get(service) == Some(&status) {
            return;
        }
        state.statuses.insert(service.to_owned(), status);
        wake_all(state);
    }

    /// Sets all services to NOT_SERVING for good: a later [`Health::set`] changes nothing. Does not block.
    pub fn shut_down(&self) {
        let mut state = lock(&self.0);
        state.is_shut_down = true;
        for status in state.statuses.values_mut() {
            *status = ServingStatus::NotServing;
        }
        wake_all(state);
    }

    fn check(
        &self,
        request: &proto::HealthCheckRequest,
    ) -> Result<proto::HealthCheckResponse, Status> {
        let status = lock(&self.0).statuses.get(&request.service).copied();
        let unknown = || Status::new(Code::NotFound, "unknown service");
        status.map(response).ok_or_else(unknown)
    }

    fn list(&self) -> Result<proto::HealthListResponse, Status> {
        let state = lock(&self.0);
        if state.statuses.len() > LISTED_MAX {
            return Err(Status::new(Code::ResourceExhausted, "too many services"));
        }
        let statuses = state
            .statuses
            .iter()
            .map(|(service, status)| (service.clone(), response(*status)));
        Ok(proto::HealthListResponse {
            statuses: statuses.collect(),
        })
    }

    /// Sends the status now and after each change, until the call or the connection ends.
    fn watch(
        &self,
        call: &Call,
        service: &str,
        mut responses: Responses<'_, proto::HealthCheckResponse>,
    ) -> Result<(), Status> {
        let _registered = Registered::new(self, call.waker());
        let mut sent = None;
        loop {
            let known = lock(&self.0).statuses.get(service).copied();
            let status = known.unwrap_or(ServingStatus::ServiceUnknown);
            if sent != Some(status) {
                responses.send(&response(status))?;
                sent = Some(status);
            }
            call.wait()?;
        }
    }
}

/// Wakes the watchers once the lock is free: a connection's lock is not taken under another one.
fn wake_all(state: std::sync::MutexGuard<'_, State>) {
    let watchers: Vec<CallWaker> = state.watchers.values().cloned().collect();
    drop(state);
    watchers.iter().for_each(CallWaker::wake);
}

fn response(status: ServingStatus) -> proto::HealthCheckResponse {
    proto::HealthCheckResponse {
        status: status.into(),
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&lock(&self.0).statuses).finish()
    }
}

/// A watcher that is woken by changes until it is dropped.
struct Registered<'a> {
    health: &'a Health,
    number: u64,
}

impl<'a> Registered<'a> {
    fn new(health: &'a Health, waker: CallWaker) -> Self {
        let mut state = lock(&health.0);
        let number = state.next_watcher;
        state.next_watcher += 1;
        state.watchers.insert(number, waker);
        Self { health, number }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(&self.health.0).watchers.remove(&self.number);
    }
}
