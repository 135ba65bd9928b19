//! Deadlines for blocked reads.
//!
//! The fault: tiny_http hands out no way to stop a read. A blocked read knows only the socket's
//! time-out, which restarts with every byte.
//!
//! Skip this file if this suffices: a thread that reads from a client enters its deadline here. The
//! self-check thread stops reads that are overdue, and they then return the end of the stream.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::socket::with_connection;
use tbd_deadline::{Deadline, lock};

/// The reads in progress.
pub(crate) struct Watch {
    local_port: u16,
    reads: Mutex<HashMap<SocketAddr, Deadline>>,
}

/// A read in progress, until dropped.
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

    /// Ends reads from `peer` at `deadline`. The caller must hold the connection's request for
    /// longer than the result lives.
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
    /// Finding a socket walks `/proc`, so it happens without the lock. The entry is then checked
    /// again. While it is there, its request holds the connection's descriptors open.
    pub(crate) fn stop_overdue(&self) {
        let overdue: Vec<(SocketAddr, Deadline)> = lock(&self.reads)
            .iter()
            .filter(|(_, deadline)| deadline.is_past())
            .map(|(peer, deadline)| (*peer, *deadline))
            .collect();
        for (peer, deadline) in overdue {
            // One that cannot be stopped now is tried again at the next check.
            let _ = with_connection(peer, self.local_port, |connection| {
                let mut reads = lock(&self.reads);
                if reads.get(&peer) == Some(&deadline) {
                    // shutdown(2) does not block. Under the lock it cannot hit the connection's successor.
                    connection.stop_reading()?;
                    reads.remove(&peer);
                }
                Ok(())
            });
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        lock(&self.watch.reads).remove(&self.peer);
    }
}
