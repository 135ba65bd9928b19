//! A server's settings: one for each limit and each timeout.

use std::time::Duration;

use crate::link::ConnectionConfig;

/// How a server treats its clients. The defaults suit a service that strangers reach.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerConfig {
    /// How each connection is kept.
    pub connection: ConnectionConfig,
    /// Connections at a time; more wait in the kernel's queue. Default: 1024.
    pub connections_max: usize,
    /// Streaming calls of health and reflection at a time, each of which has a thread; one more is refused with
    /// RESOURCE_EXHAUSTED. Default: 64.
    pub own_threads_max: usize,
    /// How long a client may take from a request's header list to its last octet, unless requests are streamed.
    /// Default: 30 s.
    pub request_timeout: Duration,
    /// How long a call may take, also without `grpc-timeout`. Calls of health and reflection may take 1 h. Default: 1 h.
    pub call_duration_max: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            connection: ConnectionConfig::server(),
            connections_max: 1024,
            own_threads_max: 64,
            request_timeout: Duration::from_secs(30),
            call_duration_max: Duration::from_secs(3600),
        }
    }
}
