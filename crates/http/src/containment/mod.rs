//! Everything against the faults of tiny_http. A reader of the server may skip this folder: without those faults, the
//! server would read the same and these files would not be needed.

pub(crate) mod connections;
mod diag;
pub(crate) mod framing;
pub(crate) mod incoming;
pub(crate) mod self_check;
pub(crate) mod socket;
pub(crate) mod unfinished;
pub(crate) mod watch;
