//! gRPC on plain threads: a server and a client that block, over an HTTP/2 of their own.
//!
//! It is made for programs whose requests each own a thread. There is no async runtime, no C library and no `unsafe`
//! below it; messages are [prost](https://docs.rs/prost)'s.
//!
//! ```
//! use std::net::TcpListener;
//! use tbd_grpc::{Channel, Method, Router, Server};
//!
//! const ECHO: Method<String, String> = Method::new("/example.v1.EchoService/Echo");
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut router = Router::new();
//! router.unary(ECHO, |_call, text| Ok(text));
//! let server = Server::builder(router).start(TcpListener::bind("127.0.0.1:0")?)?;
//!
//! let channel = Channel::builder(&server.local_addr().to_string()).build();
//! assert_eq!(channel.call(ECHO).send(&"Hello".to_owned())?, "Hello");
//! # Ok(())
//! # }
//! ```
//!
//! # The parts
//!
//! | Module | What it holds |
//! | --- | --- |
//! | [`server`] | [`Server`], [`Router`], [`Call`], and where handlers run |
//! | [`client`] | [`Channel`], calls, retries |
//! | [`tls`] | TLS and mutual TLS (feature `tls`, on by default) |
//! | [`server::Health`], [`server::add_reflection`] | the services `grpc.health.v1` and `grpc.reflection` |
//! | [`proto`] | the details of a status, health, reflection |
//! | [`h2`] | HTTP/2 without I/O (RFC 9113) |
//! | [`hpack`] | header compression (RFC 7541) |
//!
//! # Threads
//!
//! | Thread | How many | What it waits for | What ends it |
//! | --- | --- | --- | --- |
//! | `grpc-acceptor` | one for each server | connections | [`Server::stop`], its drop |
//! | `grpc-conn-N` | one for each accepted connection | its socket, its timers, handlers | the connection's end |
//! | `grpc-worker-N` | those of a [`WorkerPool`](server::WorkerPool), unless you bring your own | calls | the pool's drop |
//! | `grpc-own-stream` | one for each open `Watch` or reflection call, 64 at most | changes, requests | the call's or its connection's end; GOAWAY |
//! | `grpc-client-ADDRESS` | one for each connection of a channel | its socket, its timers, callers | the connection's end |
//! | `grpc-resolver` | at most one for each channel | the system's resolver | the answer |
//!
//! Each has an owner that joins it: the server, the pool, the channel.
//!
//! # Guarantees
//!
//! - Every call has a deadline, and every wait ends with it. The exceptions are the operating system's resolver and its
//!   TCP connect, which run on threads of their own and make nobody else wait; the end of a channel waits for them.
//! - No thread blocks with a lock held. A connection's thread reads on, whatever handlers and peers do.
//! - What a peer can make the program keep is bounded: [`Limits`](h2::Limits), [`ConnectionConfig`],
//!   [`ServerConfig`](server::ServerConfig) and [`ChannelConfig`](client::ChannelConfig) name each limit. A queue that is full answers UNAVAILABLE.
//! - A call cancelled before it runs does not run. A handler sees at its next step that nobody waits any more.
//! - A call is repeated only if no server has seen it, or if the retry policy says so and no response has begun.
//! - [`Status::is_transient`] is true for UNAVAILABLE alone.
//!
//! # What it does not do
//!
//! HTTP/1.1, server push and priorities; encodings besides gzip; hedging; load-balancing policies besides round robin;
//! resolvers besides the system's; service configurations as JSON. Generated stubs and traits: `tbd-grpc-build` writes a
//! [`Method`] constant for each method, which [`Router`] and [`Channel`] take. A streaming call occupies a thread as long as it lasts.
//!
//! Linux and other Unix systems only: connections wait by `poll`.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

// Generated code names this crate so.
extern crate self as tbd_grpc;

pub mod client;
mod code;
#[cfg(test)]
mod echo;
pub mod h2;
pub mod hpack;
mod link;
mod message;
mod metadata;
mod method;
pub mod proto;
pub mod server;
mod status;
#[cfg(feature = "tls")]
pub mod tls;

pub use client::Channel;
pub use code::Code;
pub use link::{ConnectionConfig, Keepalive};
pub use metadata::{Metadata, MetadataError};
pub use method::{Method, MethodKind};
pub use server::{Call, Router, Server};
pub use status::Status;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
