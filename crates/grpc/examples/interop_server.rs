//! The server of gRPC's interoperability suite.
//!
//!     cargo run -p tbd-grpc --example interop_server -- --port 10000 [--cert FILE --key FILE]
//!
//! It prints the address on which it listens, and ends with its standard input.

use std::error::Error;
use std::io::Read as _;
use std::net::TcpListener;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_grpc::Server;

mod interop;
use interop::{argument, service};

fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = argument("port").map_or(Ok(0), |port| port.parse())?;
    let builder = Server::builder(service::router());
    #[cfg(feature = "tls")]
    let builder = match (argument("cert"), argument("key")) {
        (Some(certificate), Some(key)) => {
            let (certificate, key) = (std::fs::read(certificate)?, std::fs::read(key)?);
            builder.tls(tbd_grpc::tls::ServerTls::from_pem(
                &certificate,
                &key,
                None,
            )?)
        }
        _ => builder,
    };
    let server = builder.start(TcpListener::bind(("127.0.0.1", port))?)?;
    println!("{}", server.local_addr());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop(Deadline::after(Duration::from_secs(5)));
    Ok(())
}
