//! A bounded thread-pool HTTP/1.1 server on tiny_http.
//!
//! # Path of a request
//!
//! tiny_http accepts a connection and reads heads, and bodies up to 1 KiB, on a thread per
//! connection. An *acceptor* takes the complete request and enters it in the order of its
//! connection (`connections`). It hands the request through a bounded channel to a *worker*, which
//! runs the handler and writes the whole response with one system call (`serve`). If the channel is
//! full, the acceptor answers 503 with `Retry-After` at once. It does the same while the queue does
//! not drain (`admission`). Refusals beyond [`ServerConfig::refusals_at_once`] are sent a second later
//! (`refusals`). Probe routes have a channel and threads to themselves.
//!
//! | Thread | Number | Blocks on | Ends when |
//! |---|---|---|---|
//! | `http-acceptor-N` | [`ServerConfig::acceptors`] | tiny_http's queue | its quit flag is set, after the last request |
//! | `http-worker-N` | [`ServerConfig::workers`] | the queue; the handler's own waits | a stop message arrives |
//! | `http-probe-N` | 2 | the probes' queue | a stop message arrives |
//! | `http-refuser` | 1 | held refusals, 1 s each; the clients' sockets | a stop message arrives |
//! | `http-linger` | 1 | unread bodies, 0.5 s each | a stop message arrives |
//! | `http-self-check` | 1 | its next check, 5 ms to 0.5 s; the kernel | a stop message arrives |
//! | `http-ping` | 1 | its stop channel, 5 s; an answer of this server, 5 s | the self-check ends |
//! | (unnamed, tiny_http's) | 1 + one per connection | `accept`; `read` | the listener is shut down; its connection ends |
//!
//! | `http-tls-accept` | 1, with [`TlsConfig`] | `accept`; 0.1 s after an error | the listener is shut down |
//! | `http-tls-N` | 1 per connection over TLS | `poll` on its two sockets | both halves have ended; the server has stopped and sent its last byte |
//!
//! Another server of the process may share queue and workers: [`Server::pool`].
//!
//! A panic in a handler is a 500, and its thread continues. tiny_http's threads are the one
//! exception to "every thread is named and joined", since tiny_http does not hand them out. They
//! hold nothing but their connection, and end with it.
//!
//! # TLS
//!
//! With the feature `tls` and [`ServerConfig::tls`], a bridge decrypts each connection and passes it on
//! to the server, which then listens on a port of the loopback (`tls`). So everything below holds for
//! TLS, too. The price of a connection: a thread more, two descriptors, some 80 KiB, and two more
//! copies of each byte. An unfinished handshake ends after 10 s, and beyond 2048 connections
//! ([`TlsConfig::connections_max`]) a new one is closed at once. Every process on the same loopback
//! can reach the server's port in plain text. [`Arrival::peer`] is the bridge's address.
//!
//! # Guarantees
//!
//! - A request has 30 s ([`ServerConfig::request_timeout`]) from the moment it is complete. The
//!   limit covers the queue (503, unhandled), reading the body (408), and the handler, through
//!   [`Request::deadline`]. An acceptor sees the request well under a millisecond after the head's
//!   last byte, unless the machine is out of CPU.
//! - A body has at most [`ServerConfig::body_limit`] bytes (413). Lengths that contradict each
//!   other are 400. After these, and after a response to a body that neither arrived with its head
//!   nor was read, the connection is closed. Later bytes on it are never answered.
//! - Pipelined requests are answered in order, one at a time. With more than 32 waiting, the
//!   connection is closed once those 32 are answered.
//! - HTTP/1.1 without a `Host`, or any version with two or a malformed one, is 400.
//! - Every response has `X-Request-Id`, and every error is a problem detail. The exceptions are the
//!   answers of tiny_http and of the self-check: 400 to a malformed head, 408 and 431 to an
//!   unfinished one, 417, 505. They have a status and no body.
//! - A percent-encoded unreserved character in a path means the character itself.
//! - The server ends by itself only through [`OnFatal`]. The reasons: its accept thread has died,
//!   it has not answered its own requests for 15 s, or the process's memory exceeds
//!   [`ServerConfig::memory_limit_bytes`].
//!
//! # Faults of tiny_http 0.12 and how they are contained
//!
//! Each was read in its source and seen in tests; most are contained by a file in `containment`.
//!
//! | tiny_http | here |
//! |---|---|
//! | no time-outs | `SO_RCVTIMEO`, `SO_SNDTIMEO` and `TCP_NODELAY` on the listener, which accepted sockets inherit (`socket`); a connection that sends nothing is closed after [`ServerConfig::idle_timeout`] |
//! | that time-out ends its `accept`, too | the server connects to itself every 5 s, so that `accept` never waits so long (`self_check`) |
//! | the accept thread dies of any error: `EMFILE`, or a thread that cannot be started | noticed within a second: [`OnFatal`] |
//! | a head has no limit in size or time | the kernel's byte counts show heads that take over 30 s or exceed 128 KiB: 408, 431, closed (`diag`, `unfinished`); an endless line is seen within 0.4 s, or 0.7 s after a rest |
//! | connections that come in a burst can all be promised to one idle thread and then wait, unread, until another connection ends | such connections are detected, and the server makes and ends connections of its own to free a thread (`self_check`): rescued within milliseconds, where a test had waited 20 s in vain |
//! | an unread body is cleaned up by allocating its *declared* length: `Content-Length: 1000000000000000` aborts the process | never dropped (`incoming`) |
//! | an unread chunked body is taken for the next requests | the connection is ended and the rest ignored (`serve`, `connections`) |
//! | `Content-Length` that is malformed, repeated, or sent together with `Transfer-Encoding` is accepted somehow | refused (`framing`) |
//! | answers to pipelined requests wait for each other inside `write` | one at a time per connection, and no thread waits (`connections`) |
//! | there is no way to close a connection | found among the process's descriptors by its client's address and shut down (`socket`) |
//! | large responses are chunked, small ones take several writes | responses bypass its encoder and take one write (`response`) |
//!
//! # What is left to the proxy in front
//!
//! - Without TLS, only the descriptor limit bounds the number of connections; each costs a thread,
//!   some 25 KiB and two descriptors.
//! - A request line with `HTTP/2.0` or `HTTP/3.0` blocks its thread in tiny_http for good, and so
//!   does a declared body over 64 MiB. Each costs one thread and two descriptors until the process
//!   ends.
//! - A request that begins within 50 ms of the answer before it, and then stalls in its first packet, gets no
//!   408 after 30 s: tiny_http closes the connection after 75 s.
//! - A head with a byte outside ASCII gets no answer, only a closed connection.
//! - `100 Continue` has a `Content-Length: 0`, which no 1xx may have (RFC 9110,
//!   section 8.6): tiny_http writes it, and hands out the body only after that.
//! - Only the request's time and the process's memory limit chunk-size lines.
//! - HTTP/2, compression and per-client limits are absent here.
//! - nginx must close its idle upstream connections (`keepalive_timeout` of the upstream, 60 s by
//!   default) before this server closes them (75 s).
//!
//! `/proc` and `sock_diag` exist on Linux only. Without `/proc`, a connection that must end stays
//! open until its time-out. Without `sock_diag`, unfinished heads do.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

mod admission;
mod containment;
mod observer;
pub mod problem;
mod request;
mod response;
mod router;
mod serve;
mod server;
#[cfg(feature = "tls")]
mod tls;

pub use observer::{Arrival, Observer, Observers};
pub use problem::{FieldError, Problem, TYPE_PREFIX};
pub use request::Request;
pub use response::Response;
pub use router::{Guard, Handler, Identity, Router};
pub use serve::{SHED, Task, Turn, is_sane_request_id};
pub use server::{OnFatal, Pool, Server, ServerConfig, StartError, StillBusy};
#[cfg(feature = "tls")]
pub use tls::TlsConfig;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
