//! A server's settings: one for each limit and each timeout.

use std::time::Duration;

use crate::h2::Limits;
use crate::link::{Keepalive, LinkConfig};

/// How a server treats its clients. The defaults suit a service that strangers reach.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Limits of each connection's HTTP/2.
    pub limits: Limits,
    /// Connections at a time; more wait in the kernel's queue. Default: 1024.
    pub connections_max: usize,
    /// Octets of a message, before and after decompression. Default: 4 MiB.
    pub message_bytes_max: usize,
    /// Octets of messages that a connection's calls may hold in memory together; the call that goes beyond ends with
    /// RESOURCE_EXHAUSTED. Default: 16 MiB.
    pub buffered_bytes_max: usize,
    /// Octets of responses that may wait for a connection's client before handlers wait. Default: 16 MiB.
    pub unsent_bytes_max: usize,
    /// How long a client may take from the connection to its SETTINGS, TLS included. Default: 10 s.
    pub handshake_timeout: Duration,
    /// How long a client may take from a request's header list to its last octet, unless requests are streamed.
    /// Default: 30 s.
    pub request_timeout: Duration,
    /// How long a client may read nothing of what it is sent. Default: 20 s.
    pub write_timeout: Duration,
    /// How long a call may take, also without `grpc-timeout`. Default: 1 h.
    pub call_duration_max: Duration,
    /// PINGs to silent clients. Default: after 2 min, for 20 s.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may be without calls. Default: 15 min.
    pub idle_max: Option<Duration>,
    /// How old a connection may become, give or take a tenth: then its client connects again, maybe to another server.
    /// Default: none.
    pub age_max: Option<Duration>,
    /// How long running calls may take to end after GOAWAY. Default: 30 s.
    pub drain_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            connections_max: 1024,
            message_bytes_max: 4 * 1024 * 1024,
            buffered_bytes_max: 16 * 1024 * 1024,
            unsent_bytes_max: 16 * 1024 * 1024,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(20),
            call_duration_max: Duration::from_secs(3600),
            keepalive: Some(Keepalive {
                interval: Duration::from_secs(120),
                timeout: Duration::from_secs(20),
                without_calls: true,
            }),
            idle_max: Some(Duration::from_secs(900)),
            age_max: None,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl ServerConfig {
    pub(super) fn link(&self) -> LinkConfig {
        LinkConfig {
            limits: self.limits.clone(),
            message_bytes_max: self.message_bytes_max,
            buffered_bytes_max: self.buffered_bytes_max,
            unsent_bytes_max: self.unsent_bytes_max,
            handshake_timeout: self.handshake_timeout,
            write_timeout: self.write_timeout,
            keepalive: self.keepalive,
            idle_max: self.idle_max,
            age_max: self.age_max,
            drain_timeout: self.drain_timeout,
        }
    }
}
