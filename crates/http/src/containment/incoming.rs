//! A request of tiny_http, safe to drop.

use std::io::Write;
use std::ops::{Deref, DerefMut};

/// A declared length up to which tiny_http may clean up after itself.
const CLEANED_UP_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Wraps tiny_http's request, whose own drop does two things we must not let
/// happen: it answers 500 when there was no answer, and it allocates as many
/// bytes as are still to come of a body nobody read, which aborts the process
/// when the system refuses them (`Content-Length: 1000000000000000`).
///
/// Dropping it sends nothing. It waits for the rest of an unread body, so the
/// connection is ended before (see `serve`).
pub(crate) struct Incoming(Option<tiny_http::Request>);

impl Incoming {
    pub(crate) fn new(request: tiny_http::Request) -> Self {
        Self(Some(request))
    }

    /// Whether the declared length is so large that the body must be neither
    /// read to its end nor dropped.
    pub(crate) fn is_absurd(&self) -> bool {
        self.body_length()
            .is_some_and(|length| length > CLEANED_UP_BYTES_MAX)
    }

    /// What the response is written to. Dropping that lets the connection's next
    /// response go; nothing of the body may be outstanding.
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
            // One of tiny_http's threads and two descriptors are lost to a
            // client that declares such a length; an abort would cost more.
            log::warn!(target: "tbd::http", "a client declared an absurd body length: its connection is set aside for good");
            std::mem::forget(request);
        } else {
            drop(request.into_writer());
        }
    }
}
