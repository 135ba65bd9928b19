//! A server with one method, which returns its request.
//!
//!     cargo run -p tbd-grpc --example echo_server
//!
//! It listens on 127.0.0.1:50051 until its standard input ends (Ctrl-D), and then lets calls end.

use std::error::Error;
use std::io::Read as _;
use std::net::TcpListener;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_grpc::{Code, Method, Router, Server, Status};

const ECHO: Method<String, String> = Method::new("/example.v1.EchoService/Echo");

fn main() -> Result<(), Box<dyn Error>> {
    let mut router = Router::new();
    router.unary(ECHO, |call, text| match text.as_str() {
        "" => Err(Status::new(
            Code::InvalidArgument,
            "there is nothing to return",
        )),
        _ => {
            println!("{} from {}", text, call.peer());
            Ok(text)
        }
    });
    let server = Server::builder(router).start(TcpListener::bind("127.0.0.1:50051")?)?;
    println!("listening on {}", server.local_addr());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop(Deadline::after(Duration::from_secs(10)));
    Ok(())
}
