//! The test service of gRPC's interoperability suite, as server and client share it.

#![allow(dead_code)] // each program uses its part

pub mod cases;
#[allow(missing_docs, clippy::all)]
mod messages {
    include!("grpc.testing.rs");
}
pub mod service;

pub use messages::*;

pub use messages::test_service::*;

/// Metadata that the server returns before its response.
pub const INITIAL_KEY: &str = "x-grpc-test-echo-initial";
/// Metadata that the server returns after its response.
pub const TRAILING_KEY: &str = "x-grpc-test-echo-trailing-bin";

/// A payload of `size` zeros.
pub fn payload(size: usize) -> Payload {
    Payload {
        r#type: PayloadType::Compressable.into(),
        body: vec![0; size],
    }
}

/// The value after `--name`, if there is one.
pub fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args();
    arguments.find(|argument| argument.strip_prefix("--") == Some(name))?;
    arguments.next()
}
