//! The settings that servers and channels share.

use std::time::Duration;

use crate::h2::Limits;

/// How each connection of a server or a channel is kept: one number for each limit and each timeout.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionConfig {
    /// Limits of HTTP/2.
    pub limits: Limits,
    /// Octets of a message, before and after decompression. Default: 4 MiB.
    pub message_bytes_max: usize,
    /// Octets of received messages that the calls of a connection may hold in memory together; the call that goes beyond
    /// ends with RESOURCE_EXHAUSTED. Default: 16 MiB at a server, 64 MiB at a channel.
    pub buffered_bytes_max: usize,
    /// Octets that may wait to be sent on a connection before senders wait. Default: 16 MiB.
    pub unsent_bytes_max: usize,
    /// How long the peer may take from the connection to its SETTINGS, TLS included. Default: 10 s.
    pub handshake_timeout: Duration,
    /// How long the peer may read nothing of what it is sent, or its system confirm nothing of that (Linux). Default: 20 s.
    pub write_timeout: Duration,
    /// PINGs to a silent peer. Default at a server: after 2 min, for 20 s. Default at a channel: none, since servers of
    /// grpc-go allow one in five minutes unless configured otherwise, and end the connection of a client that sends more.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may be without calls. Default: 15 min at a server, 30 min at a channel.
    pub idle_max: Option<Duration>,
    /// How old a connection may become, give or take a tenth: then the client connects again, maybe to another server.
    /// Default: none.
    pub age_max: Option<Duration>,
    /// How long running calls may take to end after GOAWAY. Default: 30 s at a server, 5 min at a channel.
    pub drain_timeout: Duration,
}

impl ConnectionConfig {
    /// The defaults of a server that strangers reach.
    pub(crate) fn server() -> Self {
        Self {
            limits: Limits::default(),
            message_bytes_max: 4 * 1024 * 1024,
            buffered_bytes_max: 16 * 1024 * 1024,
            unsent_bytes_max: 16 * 1024 * 1024,
            handshake_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(20),
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

    /// The defaults of a channel.
    pub(crate) fn channel() -> Self {
        Self {
            buffered_bytes_max: 64 * 1024 * 1024,
            keepalive: None,
            idle_max: Some(Duration::from_secs(1800)),
            drain_timeout: Duration::from_secs(300),
            ..Self::server()
        }
    }
}

/// PINGs that find out whether the peer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// A PING is sent when nothing was received for so long.
    pub interval: Duration,
    /// The connection is over when nothing is received for so long after it.
    pub timeout: Duration,
    /// Whether a connection without calls is asked, too. Many servers allow their clients a PING only every five minutes
    /// without calls, and close the connection otherwise.
    pub without_calls: bool,
}
