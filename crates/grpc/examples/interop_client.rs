//! The client of gRPC's interoperability suite.
//!
//!     cargo run -p tbd-grpc --example interop_client -- --server 127.0.0.1:10000 --case large_unary,ping_pong [--ca FILE]
//!
//! It prints each case that passes, and ends with the first that does not.

use std::error::Error;

use tbd_grpc::Channel;

mod interop;
use interop::argument;
use interop::cases::CASES;

fn main() -> Result<(), Box<dyn Error>> {
    let server = argument("server").ok_or("--server host:port is missing")?;
    let builder = Channel::builder(&server);
    #[cfg(feature = "tls")]
    let builder = match argument("ca") {
        Some(ca) => builder.tls(tbd_grpc::tls::ClientTls::from_pem(
            &std::fs::read(ca)?,
            None,
        )?),
        None => builder,
    };
    let channel = builder.build();
    for name in argument("case").ok_or("--case is missing")?.split(',') {
        let (_, case) = CASES
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| format!("no case {name}"))?;
        case(&channel).map_err(|error| format!("{name}: {error}"))?;
        println!("{name}: passed");
    }
    Ok(())
}
