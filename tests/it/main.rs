//! Tests from outside, in one binary.

mod http_server;
