//! The api's own port under clients that a proxy would have kept away: what it survives, and when it
//! exits with a reason so that its supervisor restarts it.

use std::io::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::support::http::{Connection, get};
use super::support::program::{Program, Stack};
use super::support::{allow_descriptors, eventually};

/// How long the self-check may take to notice a fault, on a busy machine.
const NOTICED: Duration = Duration::from_secs(20);

/// The exit code of a process that cannot continue and must be restarted.
const SELF_CHECK_FAILED: i32 = 70;

/// Waits for an api to exit, and expects it to log the reason.
#[track_caller]
fn ends_because(api: &mut Program, reason: &str) {
    let status = api.wait(NOTICED);
    assert_eq!(status.code(), Some(SELF_CHECK_FAILED));
    let said = api.log().iter().any(|line| {
        line.contains("self-check failed") && line.contains(reason) && line.contains("\"error\"")
    });
    assert!(said, "it does not say {reason:?}");
}

fn connect(api: &Program) -> TcpStream {
    let stream = TcpStream::connect(api.address()).expect("connect to the api");
    let patience = Some(Duration::from_secs(1));
    stream.set_write_timeout(patience).expect("set a time-out");
    stream
}

#[test]
fn headers_without_end_are_cut_off_before_they_cost_memory() {
    let stack = Stack::new().set("HTTP_MEMORY_LIMIT", "128MiB");
    let api = stack.api();
    let line = [b'x'; 64 * 1024];
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = connect(&api);
                let begun = client.write_all(b"GET /healthz HTTP/1.1\r\nX-Endless: ");
                begun.expect("the api takes the first bytes");
                let mut sent = 0;
                while client.write_all(&line).is_ok() {
                    sent += line.len();
                    assert!(sent < 400 << 20, "nobody stops it");
                }
            });
        }
    });
    assert_eq!(get("/healthz").send(&api.address()).status, 200);
}

#[test]
fn memory_beyond_the_limit_ends_the_program_with_a_reason() {
    allow_descriptors(4096);
    let stack = Stack::new().set("HTTP_MEMORY_LIMIT", "64MiB");
    let mut api = stack.api();
    // Each head is valid so far.
    let head = format!("GET /healthz HTTP/1.1\r\nX-Long: {}", "x".repeat(100_000));
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let Ok(mut client) = TcpStream::connect(api.address()) else {
            break;
        };
        let _ = client.write_all(head.as_bytes());
        clients.push(client);
    }
    ends_because(&mut api, "beyond its limit of 64 MiB");
}

#[test]
fn descriptors_that_run_out_end_the_program_with_a_reason() {
    allow_descriptors(4096);
    let stack = Stack::new();
    let mut api = stack.start_api_after("ulimit -n 200").ready();
    let clients = (0..400).map_while(|_| TcpStream::connect(api.address()).ok());
    let clients: Vec<TcpStream> = clients.collect();
    ends_because(&mut api, "Too many open files");
    drop(clients);
}

#[test]
fn what_is_not_complete_after_30_s_is_refused_and_its_connection_closed() {
    const AGREED: Duration = Duration::from_secs(30);
    let stack = Stack::new();
    let api = stack.api();
    let post = "POST /v1/orders HTTP/1.1\r\nHost: tbd\r\nIdempotency-Key: k\r\nContent-Type: application/json\r\n";
    let start = Instant::now();
    let open = |bytes: String| {
        let mut client = Connection::open(&api.address());
        client.write(bytes.as_bytes());
        client
    };
    let bodies = [
        "Content-Length: 5000",
        "Content-Length: 50",
        "Transfer-Encoding: chunked",
    ]
    .map(|framing| open(format!("{post}{framing}\r\n\r\n1")));
    let head = open(post.to_owned());
    for mut client in bodies.into_iter().chain([head]) {
        assert_eq!(client.read().status, 408);
        assert!(client.is_closed_by_server());
    }
    let took = start.elapsed();
    assert!(
        took >= AGREED - Duration::from_secs(1),
        "already after {took:?}"
    );
    assert!(
        took < AGREED + Duration::from_secs(20), // an idle connection may stay for 75 s
        "only after {took:?}"
    );
}

#[test]
fn http_2_is_not_spoken_and_disturbs_nobody() {
    let stack = Stack::new();
    let api = stack.api();
    let mut clients: Vec<Connection> = (0..20).map(|_| Connection::open(&api.address())).collect();
    for client in &mut clients {
        client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    }
    // A known cost: each holds one of tiny_http's threads.
    eventually(NOTICED, "honest clients to be served", || {
        let served = (0..20).all(|_| get("/healthz").send(&api.address()).status == 200);
        served.then_some(())
    });
    assert_eq!(api.accepted_order()["status"], "pending");
    drop(clients);
}
