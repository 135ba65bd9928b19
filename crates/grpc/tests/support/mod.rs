//! What the tests of server and client share.

#![allow(dead_code)] // each test binary uses its part

use std::net::TcpListener;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_grpc::client::ChannelConfig;
use tbd_grpc::server::{ServerBuilder, ServerConfig};
use tbd_grpc::{Channel, Method, Router, Server};

/// Returns its request.
pub const ECHO: Method<String, String> = Method::new("/test.v1.TestService/Echo");
/// Returns each message of its request.
pub const CHAT: Method<String, String> = Method::new("/test.v1.TestService/Chat");
/// Returns many messages.
pub const LIST: Method<String, String> = Method::new("/test.v1.TestService/List");

/// Long enough for a loaded machine, and short enough to end a test that hangs.
pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

pub fn start(router: Router) -> Server {
    Server::builder(router).start(listener()).unwrap()
}

pub fn start_with(router: Router, change: impl FnOnce(&mut ServerConfig)) -> Server {
    builder_with(router, change).start(listener()).unwrap()
}

pub fn builder_with(router: Router, change: impl FnOnce(&mut ServerConfig)) -> ServerBuilder {
    let mut config = ServerConfig::default();
    change(&mut config);
    Server::builder(router).config(config)
}

pub fn channel(server: &Server) -> Channel {
    Channel::builder(&server.local_addr().to_string()).build()
}

pub fn channel_with(target: &str, change: impl FnOnce(&mut ChannelConfig)) -> Channel {
    let mut config = ChannelConfig::default();
    config.reconnect.initial = Duration::from_millis(10);
    config.reconnect.max = Duration::from_millis(50);
    change(&mut config);
    Channel::builder(target).config(config).build()
}

/// A router with the echo.
pub fn echo() -> Router {
    let mut router = Router::new();
    router.unary(ECHO, |_, request| Ok(request));
    router.bidirectional(CHAT, |_, requests, mut responses| {
        for request in requests {
            responses.send(&request?)?;
        }
        Ok(())
    });
    router
}
