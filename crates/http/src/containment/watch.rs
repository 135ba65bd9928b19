//! Ends reads that go on for too long.
//!
//! A blocked read knows only the socket's time-out, which starts anew with
//! every byte. Whoever reads from a client therefore enters its deadline here,
//! and the self-check thread stops what is over: the read then sees the end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::socket::DescriptorNumber;
use tbd_deadline::{Deadline, lock};

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
        lock(&self.reads).insert(peer, deadline);
        Some(Watched {
            watch: self.clone(),
            peer,
        })
    }

    /// Stops every read whose deadline has passed.
    ///
    /// Finding a socket walks `/proc`, so it runs without the lock. The entry is then checked
    /// again: while it is there, its request keeps the descriptor that was found open.
    pub(crate) fn stop_overdue(&self) {
        let overdue: Vec<(SocketAddr, Deadline)> = lock(&self.reads)
            .iter()
            .filter(|(_, deadline)| deadline.is_past())
            .map(|(peer, deadline)| (*peer, *deadline))
            .collect();
        for (peer, deadline) in overdue {
            let descriptor = DescriptorNumber::find(peer, self.local_port);
            let mut reads = lock(&self.reads);
            if reads.get(&peer) != Some(&deadline) {
                continue;
            }
            reads.remove(&peer);
            // shutdown(2) does not block, and under the lock it cannot hit a successor.
            if let Some(descriptor) = descriptor {
                descriptor.stop_reading();
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        lock(&self.watch.reads).remove(&self.peer);
    }
}
