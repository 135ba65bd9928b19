//! Containment of tiny_http's faults.
//!
//! A reader of the server may skip this folder. Each file names the fault it contains and the
//! sentence that its callers may rely on; without those faults the files would not exist.

pub(crate) mod connections;
mod descriptors;
mod diag;
pub(crate) mod framing;
pub(crate) mod incoming;
pub(crate) mod self_check;
pub(crate) mod socket;
pub(crate) mod unfinished;
pub(crate) mod watch;
