//! A server that answers a POST with its own body, until the input ends (Ctrl-D): `cargo run --example echo`, then
//! `curl -d hello localhost:8080/echo/3`.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_http::{FieldError, Observer, Problem, Response, Router, Server, ServerConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let router = Router::new()
        .probe_get("/healthz", |_request| Ok(Response::new(204)))
        .post("/echo/{times}", |request| {
            let times = request.param("times").and_then(|times| times.parse().ok());
            let times: usize = times.filter(|times| *times <= 9).ok_or_else(|| {
                Problem::new(400, "bad-times", "Bad Request", "The path is not valid.")
                    .with_errors(vec![FieldError::new("times", "must be 0 to 9")])
            })?;
            Ok(Response::text(200, request.body()?.repeat(times)))
        });
    // An observer sees each request: for logs, metrics and traces.
    let observers = Arc::new(|| Box::new(()) as Box<dyn Observer>);
    let on_fatal = Box::new(|reason: &str| {
        eprintln!("{reason}");
        std::process::exit(70);
    });
    let server = Server::start(ServerConfig::default(), router, observers, on_fatal)?;
    println!("listening on {}", server.local_addr());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.shutdown(Deadline::after(Duration::from_secs(30)))?;
    Ok(())
}
