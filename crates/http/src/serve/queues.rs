//! The queues of a server, and what its threads share.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};
use uuid::Uuid;

use super::refusals::{Held, Refusals};
use super::{Linger, ServerShared, Work};
use crate::admission::Admission;
use crate::containment::connections::Connections;
use crate::containment::watch::Watch;
use crate::router::Router;
use crate::server::ServerConfig;

/// Probes that may wait for a thread.
const PROBE_QUEUE: usize = 64;

/// Connections that may wait for the lingering thread; more are closed at once.
const LINGER_QUEUE: usize = 64;

/// The receiving ends of a server's queues.
pub(crate) struct Queues {
    pub(crate) pool: Receiver<Work>,
    pub(crate) probes: Receiver<Work>,
    pub(crate) lingering: Receiver<Linger>,
    pub(crate) held: Receiver<Held>,
    /// Has a message after a new client's first request.
    pub(crate) newcomers: Receiver<()>,
}

impl ServerShared {
    /// The state of a server that listens on `local_port`, and its queues.
    pub(crate) fn new(
        config: &ServerConfig,
        router: Router,
        local_port: u16,
    ) -> (Arc<ServerShared>, Queues) {
        let (queue, pool) = bounded(config.queue.max(1));
        let (probes, probe_work) = bounded(PROBE_QUEUE);
        let (lingering, linger_work) = bounded(LINGER_QUEUE);
        let (arrivals, newcomers) = bounded(1);
        let now = Instant::now();
        let (refusals, held) = Refusals::new(config.refusals_at_once, now);
        let shared = ServerShared {
            router,
            request_timeout: config.request_timeout,
            body_limit: config.body_limit,
            local_port,
            intake: Mutex::new(()),
            connections: Connections::new(arrivals),
            admission: Admission::new(config.workers.max(1), config.burst, now),
            refusals,
            watch: Arc::new(Watch::new(local_port)),
            ping: format!("/{}", Uuid::now_v7()),
            stopping: AtomicBool::new(false),
            queue,
            probes,
            lingering,
        };
        let queues = Queues {
            pool,
            probes: probe_work,
            lingering: linger_work,
            held,
            newcomers,
        };
        (Arc::new(shared), queues)
    }
}
