//! A client of `echo_server`.
//!
//!     cargo run -p tbd-grpc --example echo_client -- Hello

use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_grpc::client::{ChannelConfig, RetryPolicy};
use tbd_grpc::{Channel, Method, Status};

const ECHO: Method<String, String> = Method::new("/example.v1.EchoService/Echo");

fn main() -> Result<(), Status> {
    let mut config = ChannelConfig::default();
    config.retry = Some(RetryPolicy::default());
    let channel = Channel::builder("localhost:50051").config(config).build();
    for text in std::env::args().skip(1) {
        let deadline = Deadline::after(Duration::from_secs(2));
        println!("{}", channel.call(ECHO).deadline(deadline).send(&text)?);
    }
    Ok(())
}
