//! The client: a channel is a pool of connections, and calls on it block the calling thread.

mod call;
mod config;
mod pool;
mod response;
mod retry;
mod side;

use std::sync::{Arc, Mutex};

use prost::Message;
use tbd_deadline::StopSignal;

pub use call::CallBuilder;
pub use config::{Backoff, ChannelConfig};
pub use response::{Canceller, Receiving, Response, Sending};
pub use retry::{RetryPolicy, RetryThrottling};

use crate::method::Method;
#[cfg(feature = "tls")]
use crate::tls::ClientTls;
use pool::{Pool, Target};
use retry::Throttle;

/// Connections to the servers of a service. Clones share them, and calls keep them open; the last one of both that is
/// dropped closes them.
///
/// Nothing is connected before the first call. A thread `grpc-client-ADDRESS` reads from each connection, and a short-lived
/// thread `grpc-resolver` looks names up.
#[derive(Clone, Debug)]
pub struct Channel(Arc<Shared>);

/// What the calls of a channel share.
#[derive(Debug)]
pub(crate) struct Shared {
    pool: Arc<Pool>,
    throttle: Mutex<Throttle>,
    closing: StopSignal,
    authority: String,
    scheme: &'static str,
}

/// Collects what a channel needs.
#[derive(Debug)]
pub struct ChannelBuilder {
    target: Target,
    config: ChannelConfig,
    authority: Option<String>,
}

impl ChannelBuilder {
    /// Other settings than the defaults.
    pub fn config(mut self, config: ChannelConfig) -> Self {
        self.config = config;
        self
    }

    /// Speaks TLS.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.target.tls = Some(tls);
        self
    }

    /// Names the service so to servers and proxies (`:authority`), and not by the first name that is dialled.
    pub fn authority(mut self, authority: impl Into<String>) -> Self {
        self.authority = Some(authority.into());
        self
    }

    /// The channel. Does not connect, and does not block.
    pub fn build(self) -> Channel {
        #[cfg(feature = "tls")]
        let is_secure = self.target.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let is_secure = false;
        let authority = self
            .authority
            .or_else(|| self.target.names.first().cloned())
            .unwrap_or_default();
        Channel(Arc::new(Shared {
            throttle: Mutex::new(Throttle::new(self.config.retry_throttling.clone())),
            pool: Pool::new(self.target, self.config),
            closing: StopSignal::new(),
            authority,
            scheme: if is_secure { "https" } else { "http" },
        }))
    }
}

impl Channel {
    /// A channel to `host:port`, or to several of them, separated by commas. Calls take turns among all their addresses.
    pub fn builder(target: &str) -> ChannelBuilder {
        let names = target
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty());
        ChannelBuilder {
            target: Target {
                names: names.collect(),
                #[cfg(feature = "tls")]
                tls: None,
            },
            config: ChannelConfig::default(),
            authority: None,
        }
    }

    /// Begins a call.
    pub fn call<Req: Message, Res: Message + Default>(
        &self,
        method: Method<Req, Res>,
    ) -> CallBuilder<'_, Req, Res> {
        CallBuilder::new(&self.0, method)
    }

    /// The `:authority` of its calls: the builder's, or else the first `host:port` of the target.
    pub fn authority(&self) -> &str {
        &self.0.authority
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closing.stop();
        self.pool.close();
    }
}
