//! A server for unit tests, and a channel to it.

use std::net::TcpListener;

use crate::{Channel, Method, Router, Server};

pub(crate) const ECHO: Method<String, String> = Method::new("/test.v1.TestService/Echo");

/// A server that returns what it gets.
pub(crate) fn server() -> (Server, Channel) {
    let mut router = Router::new();
    router.unary(ECHO, |_, text| Ok(text));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::builder(router).start(listener).unwrap();
    let channel = Channel::builder(&server.local_addr().to_string()).build();
    (server, channel)
}
