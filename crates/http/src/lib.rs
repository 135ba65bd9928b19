//! A bounded thread-pool HTTP/1.1 server on tiny_http.
//!
//! # Path of a request
//!
//! tiny_http accepts a connection and reads heads (and bodies up to 1 KiB) on a
//! thread per connection. An *acceptor* takes the complete request and enters
//! it in the order of its connection (`connections`), then hands it over through
//! a bounded channel to one of the *workers*, which runs the handler and writes
//! the whole response with one system call (`serve`). A full channel means 503
//! with `Retry-After` at once, written by the acceptor, and so does one that stands
//! (`admission`). Probe routes go through a channel of their own to threads of their
//! own.
//!
//! | Thread | Number | Blocks on | Ends when |
//! |---|---|---|---|
//! | `http-acceptor-N` | [`ServerConfig::acceptors`] | tiny_http's queue | told so, after the last request |
//! | `http-worker-N` | [`ServerConfig::workers`] | the queue; whatever a handler waits for | a stop message arrives |
//! | `http-probe-N` | 2 | the probes' queue | a stop message arrives |
//! | `http-linger` | 1 | unread bodies, 0.5 s each | a stop message arrives |
//! | `http-self-check` | 1 | its stop channel, 0.2 s; the kernel | told so |
//! | `http-ping` | 1 | its stop channel, 5 s; an answer of this server, 5 s | the self-check ends |
//! | (unnamed, tiny_http's) | 1 + one per connection | `accept`; `read` | the listener is shut down; its connection ends |
//!
//! A panic in a handler is a 500, and its thread goes on. tiny_http's threads are
//! the one exception to "every thread is named and joined": it does not give
//! them out. They hold nothing but their connection, and end with it.
//!
//! # What is promised
//!
//! - 30 s ([`ServerConfig::request_timeout`]) from the moment a request is
//!   complete: in the queue (503 unhandled), while its body is read (408), and
//!   for the handler by [`Request::deadline`]. An acceptor sees the request well
//!   under a millisecond after the head's last byte, unless the machine is out
//!   of CPU.
//! - A body is at most [`ServerConfig::body_limit`] long (413). Lengths that
//!   contradict each other are 400. After these, and after a response to a body
//!   that did not arrive with its head and that nobody read, the connection is
//!   closed and what it still sends is never answered.
//! - Requests a client sends ahead are answered in order, one at a time; with
//!   more than 32 ahead its connection is closed once those 32 are answered.
//! - HTTP/1.1 without a `Host`, or any version with two or a malformed one, is 400.
//! - Every response has `X-Request-Id`, every error is a problem detail, except
//!   what tiny_http or the self-check answers on their own (400 to a malformed
//!   head, 408 and 431 to an unfinished one, 417, 505): status and no body.
//! - A percent-encoded unreserved character in a path is the character itself.
//! - The server ends by itself only through [`OnFatal`]: when its accept thread
//!   has died, when it does not answer itself for 15 s, or when the process's
//!   memory is beyond [`ServerConfig::memory_limit_bytes`].
//!
//! # What tiny_http 0.12 does, and what is done about it here
//!
//! Read from its source and seen in tests; each has its place in the folder `containment`.
//!
//! | tiny_http | here |
//! |---|---|
//! | no time-outs | `SO_RCVTIMEO`, `SO_SNDTIMEO` and `TCP_NODELAY` on the listener, which accepted sockets inherit (`socket`); a connection that sends nothing is closed after [`ServerConfig::idle_timeout`] |
//! | that time-out ends its `accept`, too | the server connects to itself every 5 s, so that `accept` never waits so long (`self_check`) |
//! | the accept thread dies of any error: `EMFILE`, or a thread that cannot be started | noticed within a second: [`OnFatal`] |
//! | a head has no limit in size or time | the kernel's byte counts show heads that take over 30 s or 128 KiB: 408, 431, closed (`diag`, `unfinished`); an endless line is seen at the next look or the one after, 0.4 s at most |
//! | connections that come in a burst can all be promised to one idle thread and then wait, unread, until another connection ends | such connections are seen, and connections of our own made and ended to free a thread (`self_check`): rescued at the next look, where a test had waited 20 s in vain |
//! | an unread body is cleaned up by allocating its *declared* length: `Content-Length: 1000000000000000` aborts the process | never dropped (`incoming`) |
//! | an unread chunked body is taken for the next requests | the connection is ended and the rest ignored (`serve`, `connections`) |
//! | `Content-Length` that is malformed, repeated, or beside `Transfer-Encoding` is accepted somehow | refused (`framing`) |
//! | answers to pipelined requests wait for each other inside `write` | one at a time per connection, and no thread waits (`connections`) |
//! | there is no way to close a connection | found among the process's descriptors by its client's address and shut down (`socket`) |
//! | large responses are chunked, small ones are several writes | responses are written past it, in one write (`response`) |
//!
//! # What remains for the proxy in front
//!
//! - The number of connections is bounded by the descriptor limit alone; each
//!   costs a thread, some 25 KiB and two descriptors.
//! - A request line with `HTTP/2.0` or `HTTP/3.0` blocks its thread in tiny_http
//!   for good, and so does a declared body over 64 MiB here: each costs one
//!   thread and two descriptors until the process ends.
//! - A head with a byte outside ASCII gets no answer, only a closed connection.
//! - `100 Continue` has a `Content-Length: 0`, which no 1xx may have (RFC 9110,
//!   section 8.6): tiny_http writes it, and gives the body out only after that.
//! - Chunk-size lines have no limit but the request's time and the process's
//!   memory.
//! - TLS, HTTP/2, compression, limits per client.
//! - nginx has to give up its idle upstream connections (`keepalive_timeout` of
//!   the upstream, 60 s by default) before we close them (75 s).
//!
//! `/proc` and `sock_diag` are Linux's. Without `/proc` a connection that must
//! end lives on until its time-out; without `sock_diag` unfinished heads do.

#![forbid(unsafe_code)]

mod admission;
mod containment;
mod observer;
pub mod problem;
mod request;
mod response;
mod router;
mod serve;
mod server;

pub use observer::{Arrival, Observer, Observers};
pub use problem::{FieldError, Problem, TYPE_PREFIX};
pub use request::Request;
pub use response::Response;
pub use router::{Guard, Handler, Identity, Router};
pub use serve::{SHED, is_sane_request_id};
pub use server::{OnFatal, Server, ServerConfig, StartError, StillBusy};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
