//! A tiny_http request that is safe to drop.
//!
//! The fault: tiny_http's request, when dropped, answers 500 if there was no answer. It also
//! allocates the rest of an unread body at its declared length. The process aborts when the system
//! refuses that memory (`Content-Length: 1000000000000000`).
//!
//! Skip this file if this suffices: `Incoming` dereferences to tiny_http's request, and dropping it
//! sends nothing.

use std::io::Write;
use std::ops::{Deref, DerefMut};

/// A declared length, in bytes, up to which tiny_http may discard an unread body.
const CLEANED_UP_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Wraps tiny_http's request and contains its drop.
///
/// Dropping it sends nothing. It waits for the rest of an unread body, so the connection is ended
/// first (see `serve`).
pub(crate) struct Incoming(Option<tiny_http::Request>);

impl Incoming {
    pub(crate) fn new(request: tiny_http::Request) -> Self {
        Self(Some(request))
    }

    /// Whether the declared length is so large that the body must be neither read to its end nor
    /// dropped.
    pub(crate) fn is_absurd(&self) -> bool {
        self.body_length()
            .is_some_and(|length| length > CLEANED_UP_BYTES_MAX)
    }

    /// The writer for the response. Dropping it releases the connection's next response; no bytes
    /// of the body may be outstanding.
    pub(crate) fn into_writer(mut self) -> Box<dyn Write + Send> {
        match self.0.take() {
            Some(request) => request.into_writer(),
            None => Box::new(std::io::sink()),
        }
    }
}

const TAKEN: &str = "taken only by into_writer and drop, which end the wrapper";

impl Deref for Incoming {
    type Target = tiny_http::Request;

    fn deref(&self) -> &tiny_http::Request {
        self.0.as_ref().expect(TAKEN)
    }
}

impl DerefMut for Incoming {
    fn deref_mut(&mut self) -> &mut tiny_http::Request {
        self.0.as_mut().expect(TAKEN)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.0.is_none() {
            return;
        }
        let absurd = self.is_absurd();
        let Some(request) = self.0.take() else { return };
        if absurd {
            // A client that declares such a length costs one of tiny_http's threads and two
            // descriptors. An abort would cost more.
            log::warn!(target: "tbd::http", "a client declared an absurd body length: its connection is never used again");
            std::mem::forget(request);
        } else {
            drop(request.into_writer());
        }
    }
}
