//! Ends reads that go on for too long.
//!
//! A blocked read knows only the socket's time-out, which starts anew with
//! every byte. Whoever reads from a client therefore enters its deadline here,
//! and the self-check thread stops what is over: the read then sees the end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::socket::Connection;
use tbd_deadline::Deadline;

/// The reads under way.
pub(crate) struct Watch {
    local_port: u16,
    reads: Mutex<HashMap<SocketAddr, Deadline>>,
}

/// A read under way, until dropped.
pub(crate) struct Watched {
    watch: Arc<Watch>,
    peer: SocketAddr,
}

impl Watch {
    pub(crate) fn new(local_port: u16) -> Self {
        Self {
            local_port,
            reads: Mutex::new(HashMap::new()),
        }
    }

    /// Lets reads from `peer` end at `deadline`. The caller holds the
    /// connection's request for longer than the result lives.
    pub(crate) fn until(
        self: &Arc<Self>,
        peer: Option<&SocketAddr>,
        deadline: Deadline,
    ) -> Option<Watched> {
        let peer = *peer?;
        self.lock().insert(peer, deadline);
        Some(Watched {
            watch: self.clone(),
            peer,
        })
    }

    /// Stops every read whose deadline has passed. Keeps the lock meanwhile, so
    /// that each connection is still the one that was entered.
    pub(crate) fn stop_overdue(&self) {
        let mut reads = self.lock();
        reads.retain(|peer, deadline| {
            if !deadline.is_past() {
                return true;
            }
            if let Some(connection) = Connection::find(*peer, self.local_port) {
                connection.stop_reading();
            }
            false
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Deadline>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.lock().remove(&self.peer);
    }
}
