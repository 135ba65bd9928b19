//! Time limits and stop signals for threads that block.
//!
//! - [`Deadline`]: the one moment by which a piece of work must end, passed down with it.
//! - [`StopSignal`]: tells many threads to end, and wakes those that wait.
//! - [`lock()`]: locks a mutex even if another thread panicked while it held it.
//! ```
//! use std::time::Duration;
//! use tbd_deadline::{Deadline, StopSignal};
//!
//! let stop = StopSignal::new();
//! let worker = {
//!     let stop = stop.clone();
//!     std::thread::spawn(move || while !stop.wait_for(Duration::from_secs(60)) { /* work */ })
//! };
//! let deadline = Deadline::after(Duration::from_secs(5));
//! assert!(deadline.remaining() <= Duration::from_secs(5));
//! stop.stop();
//! worker.join().unwrap();
//! ```
//!
//! # Threads and guarantees
//!
//! The crate starts no thread and does no I/O. Only [`StopSignal::wait_for`] and
//! [`StopSignal::wait_until`] block, and both take a limit.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

mod deadline;
mod lock;
mod stop;

pub use deadline::Deadline;
pub use lock::lock;
pub use stop::StopSignal;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
