//! nginx with this repository's configuration in front of two real apis: the answers to hostile and
//! odd clients, and the effect on other clients (none).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use socket2::{Domain, Socket, Type};

use super::support::edge::Edge;
use super::support::http::{Connection, Request, Response, get, is_lower_hex, post};
use super::support::program::{Program, Stack, free_port, id, new_order};
use super::support::{allow_descriptors, eventually, unique};

/// How long nginx may take to drop a hostile client: its time-outs are 10 s, and the machine is busy.
const LIMIT: Duration = Duration::from_secs(40);

struct House {
    stack: Stack,
    apis: [Program; 2],
    edge: Edge,
}

impl House {
    fn new() -> House {
        let stack = Stack::new();
        let apis = [stack.start_api(), stack.start_api()].map(Program::ready);
        let edge = Edge::in_front_of(&apis);
        House { stack, apis, edge }
    }

    /// Sends bytes on a new connection; the answer.
    #[track_caller]
    fn ask(&self, request: &[u8]) -> Response {
        let mut connection = Connection::open(&self.edge.address());
        connection.write(request);
        connection.read()
    }

    /// The sum of a metric over the two apis.
    fn sum(&self, sample: &str) -> f64 {
        let value = |api: &Program| api.metric(sample).unwrap_or(0.0);
        self.apis.iter().map(value).sum()
    }
}

const ORDER: &str = r#"{"customer_email":"user@example.com","amount_cents":1299}"#;

/// A request for an order with these header lines, each with its line end.
fn order_with(headers: &[u8]) -> Vec<u8> {
    let length = ORDER.len();
    let head = format!(
        "POST /v1/orders HTTP/1.1\r\nHost: tbd\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    );
    [head.as_bytes(), headers, b"\r\n", ORDER.as_bytes()].concat()
}

fn key() -> Vec<u8> {
    format!("Idempotency-Key: {}\r\n", unique("key")).into_bytes()
}

/// A problem document made by nginx.
#[track_caller]
fn assert_refused_by_nginx(answer: &Response, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    let media_type = answer.header("Content-Type");
    assert_eq!(media_type, Some("application/problem+json"), "{what}");
    let problem = answer.json();
    assert_eq!(problem["type"], "about:blank", "{what}");
    assert_eq!(problem["status"], status, "{what}");
    assert_ne!(problem["title"], "Error", "{what}");
    let id = answer.header("X-Request-Id");
    assert!(id.is_some_and(|id| is_lower_hex(id, 32)), "{what}: {id:?}");
}

#[test]
fn what_nginx_refuses_by_itself_is_a_problem() {
    let house = House::new();
    let long = "x".repeat(9000);
    for (request, status) in [
        ("GET / HTTP/2.0\r\nHost: tbd\r\n\r\n", 505),
        ("GET / HTTP/9.9\r\nHost: tbd\r\n\r\n", 505),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /%zz HTTP/1.1\r\nHost: tbd\r\n\r\n", 400),
        ("GET /../x HTTP/1.1\r\nHost: tbd\r\n\r\n", 400),
        ("CONNECT tbd:80 HTTP/1.1\r\nHost: tbd\r\n\r\n", 400),
        ("no request at all\r\n\r\n", 400),
        (&format!("GET /{long} HTTP/1.1\r\n\r\n"), 414),
        (&format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"), 431),
        (
            "POST / HTTP/1.1\r\nHost: tbd\r\nContent-Length: 2000000\r\n\r\n",
            413,
        ),
        (
            "POST / HTTP/1.1\r\nHost: tbd\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
        ),
    ] {
        let what = &request[..request.len().min(60)];
        assert_refused_by_nginx(&house.ask(request.as_bytes()), status, what);
    }
    let refused = "GET / HTTP/1.1\r\nX-Request-Id: mine\r\nHost: tbd\r\nContent-Length: x\r\n\r\n";
    let refused = house.ask(refused.as_bytes());
    assert_eq!(
        (refused.status, refused.header("X-Request-Id")),
        (400, Some("mine"))
    );

    let nobody = Edge::before(&[(free_port(), free_port())]);
    let answer = get("/healthz").send(&nobody.address());
    assert_refused_by_nginx(&answer, 502, "no api");
    assert_eq!(answer.header("Retry-After"), Some("1"));
}

#[test]
fn the_api_answers_what_nginx_would_refuse_for_the_method_or_hide() {
    let house = House::new();
    for (path, allowed) in [
        ("/v1/orders", "POST, GET, HEAD"),
        ("/v1/orders/x/cancel", "POST"),
        ("/healthz", "GET, HEAD"),
    ] {
        let answer = Request::new("TRACE", path).send(&house.edge.address());
        answer.problem(405, "method-not-allowed");
        assert_eq!(answer.header("Allow"), Some(allowed), "{path}");
    }
    let odd = house.ask("TRACE /ü HTTP/1.1\r\nHost: tbd\r\n\r\n".as_bytes());
    assert_refused_by_nginx(&odd, 400, "a path beyond ASCII");
    for path in ["/.problem", "//problem", "/%2fproblem", "/problem"] {
        let answer = get(path).send(&house.edge.address());
        answer.problem(404, "not-found");
    }
}

#[test]
fn a_client_of_http_1_0_needs_no_host() {
    let house = House::new();
    assert_eq!(house.ask(b"GET /healthz HTTP/1.0\r\n\r\n").status, 200);
}

#[test]
fn a_cancel_whose_api_is_killed_is_answered_by_another_unless_it_has_a_condition() {
    for (condition, status, state) in [(None, 200, "canceled"), (Some("*"), 502, "pending")] {
        let mut house = House::new();
        let order = house.apis[0].accepted_order();
        let path = format!("/v1/orders/{}", id(&order));
        let mut request = post(format!("{path}/cancel"));
        if let Some(condition) = condition {
            request = request.header("If-Match", condition);
        }
        let address = house.edge.address();
        let mut holder = house.stack.database.holding_orders();
        let answer = thread::scope(|scope| {
            let answer = scope.spawn(|| request.send(&address));
            let busy = eventually(LIMIT, "an api to hold the request", || {
                let is_busy = |api: &Program| api.metric("http_threads_busy") == Some(1.0);
                house.apis.iter().position(is_busy)
            });
            house.apis[busy].kill();
            holder.batch_execute("ROLLBACK").expect("unlock the table");
            answer.join().expect("no panic")
        });
        assert_eq!(answer.status, status, "{}", answer.text());
        let order = get(path).send(&address).json();
        assert_eq!(order["status"], state);
    }
}

#[test]
fn bytes_beyond_ascii_are_refused_or_kept_from_the_api() {
    let house = House::new();
    let beyond: [&[u8]; 2] = ["ü".as_bytes(), b"\xff"];
    for bytes in beyond {
        // Headers that the api needs.
        for name in [
            "Idempotency-Key",
            "If-Match",
            "If-None-Match",
            "Authorization",
            "Content-Encoding",
        ] {
            let line = [name.as_bytes(), b": k", bytes, b"\r\n"].concat();
            assert_refused_by_nginx(&house.ask(&order_with(&line)), 400, name);
        }
        for path in ["/healthz", "/v1/orders", "/v1/orders/"] {
            let target = [path.as_bytes(), b"?", bytes].concat();
            let request = [b"GET ", &target[..], b" HTTP/1.1\r\nHost: tbd\r\n\r\n"].concat();
            assert_eq!(house.ask(&request).status, 400, "{path}");
        }
        // Headers that it does not need.
        for name in [
            "User-Agent",
            "X-Request-Id",
            "traceparent",
            "tracestate",
            "X-Forwarded-For",
            "Cookie",
            "X-Unheard-Of",
        ] {
            let line = [name.as_bytes(), b": ", bytes, b"\r\n"].concat();
            let answer = house.ask(&order_with(&[key(), line.clone()].concat()));
            assert_eq!(answer.status, 202, "{name}: {}", answer.text());
            let request = [
                b"GET /v1/orders/x HTTP/1.1\r\nHost: tbd\r\n",
                &line[..],
                b"\r\n",
            ];
            house
                .ask(&request.concat())
                .problem(400, "validation-failed");
        }
    }
    // Closed connections took no instance out of service.
    let orders = house.sum("orders_created_total");
    assert_eq!(orders, 14.0);
}

#[test]
fn a_second_idempotency_key_is_seen_through_the_proxy() {
    let house = House::new();
    let one = key();
    for keys in [[one.clone(), one], [key(), key()]] {
        let answer = house.ask(&order_with(&keys.concat()));
        answer.problem(400, "idempotency-key-invalid");
    }
    assert_eq!(house.stack.count("orders"), 0);
}

/// The delay that hostile clients may cause an honest one, apart from the machine's other work.
const PROMPT: Duration = Duration::from_secs(2);

/// The pause between two rounds of a bystander.
const PAUSE: Duration = Duration::from_millis(50);

#[test]
fn hostile_clients_disturb_nobody() {
    allow_descriptors(4096);
    let house = House::new();
    let edge: SocketAddr = house.edge.address().parse().expect("an address");
    let memory_before = house.memory();
    let (over, running) = bounded::<()>(0);
    thread::scope(|scope| {
        let bystanders = [0, 1].map(|at| {
            let running = running.clone();
            let (edge, api) = (house.edge.address(), house.apis[at].address());
            scope.spawn(move || orders_and_looks(&edge, &api, running))
        });
        // The bystanders end even if an attack panics.
        let attacks = move || {
            let _over = over;
            thread::scope(|scope| {
                scope.spawn(|| clients_that_say_nothing(edge));
                scope.spawn(|| heads_that_drip(edge));
                scope.spawn(|| bodies_that_drip(edge));
                scope.spawn(|| heads_without_end(edge));
                scope.spawn(|| bodies_without_end(edge));
                scope.spawn(|| clients_that_never_read(edge));
                scope.spawn(|| bytes_that_are_not_http(edge));
            });
        };
        attacks();
        for bystander in bystanders {
            let [slowest, direct] = bystander.join().expect("every bystander was served");
            assert!(
                slowest < PROMPT + direct,
                "a bystander waited {slowest:?}, and {direct:?} where nobody is hostile"
            );
        }
    });
    for (before, after) in memory_before.iter().zip(house.memory()) {
        let growth = after - before;
        assert!(
            growth < 64e6,
            "an api grew by {growth} bytes to {after} bytes"
        );
    }
}

impl House {
    /// Resident bytes of each api; fails if one has ended.
    fn memory(&self) -> [f64; 2] {
        [0, 1].map(|at| {
            let resident = self.apis[at].metric("process_resident_memory_bytes");
            resident.expect("the kernel tells the size of a process")
        })
    }
}

/// Orders and looks the order up, through nginx and at an api directly, until `running` ends. Returns
/// the longest time of any request on each path.
fn orders_and_looks(edge: &str, api: &str, running: Receiver<()>) -> [Duration; 2] {
    let mut slowest = [Duration::ZERO; 2];
    while running
        .recv_timeout(PAUSE)
        .is_err_and(|error| error.is_timeout())
    {
        for (address, slowest) in [edge, api].into_iter().zip(&mut slowest) {
            let mut timed = |request: Request, status| {
                let start = Instant::now();
                let answer = request.send(address);
                *slowest = start.elapsed().max(*slowest);
                assert_eq!(answer.status, status, "{}", answer.text());
                answer
            };
            let order = timed(new_order(&unique("key"), 5), 202).json();
            timed(get(format!("/v1/orders/{}", id(&order))), 200);
        }
    }
    slowest
}

/// A connection from an address other than the bystanders', as in production.
fn hostile(edge: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    // A small buffer fills soon, so that a client that does not read is noticed soon.
    socket.set_recv_buffer_size(4096).expect("set its size");
    let own = SocketAddr::from(([127, 0, 0, 66], 0));
    socket.bind(&own.into()).expect("an address of our own");
    socket.connect(&edge.into()).expect("connect to nginx");
    let stream = TcpStream::from(socket);
    let limit = Some(LIMIT);
    stream.set_read_timeout(limit).expect("set a time-out");
    stream.set_write_timeout(limit).expect("set a time-out");
    stream
}

/// All bytes that still arrive until nginx ends the connection.
fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => all.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("nginx does not end the connection: {error}"),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The bytes that arrive until nginx ends the connection or falls silent, waiting for the rest of a
/// request.
fn all_answers(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let patience = if all.is_empty() { 1000 } else { 50 };
        let patience = Some(Duration::from_millis(patience));
        stream.set_read_timeout(patience).expect("set a time-out");
        match stream.read(&mut piece) {
            Ok(count) if count > 0 => all.extend_from_slice(&piece[..count]),
            _ => return String::from_utf8_lossy(&all).into_owned(),
        }
    }
}

/// Sends the same piece repeatedly until nginx ends the connection; the bytes that it accepted.
fn pour(stream: &mut TcpStream, piece: &[u8]) -> usize {
    let start = Instant::now();
    let mut sent = 0;
    while let Ok(count) = stream.write(piece) {
        sent += count;
        assert!(
            start.elapsed() < LIMIT,
            "nginx still reads after {sent} bytes"
        );
    }
    sent
}

fn clients_that_say_nothing(edge: SocketAddr) {
    let mut clients: Vec<TcpStream> = (0..1200).map(|_| hostile(edge)).collect();
    for client in &mut clients {
        assert_eq!(rest(client), "");
    }
}

/// Slowloris: a byte of the head at long intervals.
fn heads_that_drip(edge: SocketAddr) {
    let mut clients: Vec<TcpStream> = (0..300).map(|_| hostile(edge)).collect();
    for client in &mut clients {
        let begun = client.write_all(b"GET /v1/orders HTTP/1.1\r\nHost: tbd\r\nX-Slow: ");
        begun.expect("nginx takes the first bytes");
    }
    let (_pace, paced) = bounded::<()>(0);
    let start = Instant::now();
    while !clients.is_empty() {
        assert!(start.elapsed() < LIMIT, "{} drip still", clients.len());
        let _ = paced.recv_timeout(Duration::from_millis(500));
        clients.retain_mut(|client| client.write_all(b"x").is_ok());
    }
}

/// A byte of the body at long intervals: nginx alone waits for it, and no api sees the request.
fn bodies_that_drip(edge: SocketAddr) {
    let mut clients: Vec<TcpStream> = (0..100).map(|_| hostile(edge)).collect();
    for client in &mut clients {
        let head = "POST /v1/orders HTTP/1.1\r\nHost: tbd\r\nContent-Length: 1000\r\n\r\n";
        client.write_all(head.as_bytes()).expect("nginx takes it");
    }
    let (_pace, paced) = bounded::<()>(0);
    for _ in 0..20 {
        let _ = paced.recv_timeout(Duration::from_millis(500));
        for client in &mut clients {
            client.write_all(b"x").expect("nginx takes it");
        }
    }
}

fn heads_without_end(edge: SocketAddr) {
    let many = "X-A: b\r\n".repeat(10_000);
    let endless = "x".repeat(1 << 16);
    thread::scope(|scope| {
        for (start, piece) in [("X-Endless: ", &endless), ("", &many)] {
            scope.spawn(move || {
                let mut client = hostile(edge);
                let head = format!("GET /v1/orders HTTP/1.1\r\nHost: tbd\r\n{start}");
                client.write_all(head.as_bytes()).expect("nginx takes it");
                pour(&mut client, piece.as_bytes());
            });
        }
    });
    // A client that stops after too many bytes gets the reason.
    let mut client = hostile(edge);
    let head = format!("GET /v1/orders HTTP/1.1\r\nHost: tbd\r\n{many}\r\n");
    let _ = client.write_all(head.as_bytes());
    let answer = rest(&mut client);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
}

fn bodies_without_end(edge: SocketAddr) {
    let start = "POST /v1/orders HTTP/1.1\r\nHost: tbd\r\n";
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
    for (framing, piece) in [
        ("Transfer-Encoding: chunked", chunk.as_str()),
        ("Content-Length: 1000000000", &chunk),
    ] {
        let mut client = hostile(edge);
        let head = format!("{start}{framing}\r\n\r\n");
        client.write_all(head.as_bytes()).expect("nginx takes it");
        pour(&mut client, piece.as_bytes());
        // A client that stops gets the reason.
        let mut client = hostile(edge);
        client.write_all(head.as_bytes()).expect("nginx takes it");
        for _ in 0..20 {
            let _ = client.write_all(piece.as_bytes());
        }
        let answer = rest(&mut client);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{framing}: {answer}");
    }
}

/// Clients that request more than the sockets' buffers hold, and read none of it.
fn clients_that_never_read(edge: SocketAddr) {
    let mut clients: Vec<TcpStream> = (0..20).map(|_| hostile(edge)).collect();
    for client in &mut clients {
        client.set_nonblocking(true).expect("set non-blocking");
        let request = "GET /metrics HTTP/1.1\r\nHost: tbd\r\n\r\n".repeat(500);
        let _ = client.write(request.as_bytes());
    }
    let (_pace, paced) = bounded::<()>(0);
    let start = Instant::now();
    while !clients.is_empty() {
        assert!(start.elapsed() < LIMIT, "{} are still there", clients.len());
        let _ = paced.recv_timeout(Duration::from_millis(100));
        clients.retain_mut(|client| match client.write(b"x") {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
    }
}

fn bytes_that_are_not_http(edge: SocketAddr) {
    let client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n";
    let http_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut random = 1_u32;
    let noise: Vec<u8> = (0..1 << 16)
        .map(|_| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8
        })
        .collect();
    let noise = noise.chunks(512).map(|bytes| [bytes, b"\r\n\r\n"].concat());
    for bytes in noise.chain([client_hello.to_vec(), http_2.to_vec()]) {
        let mut client = hostile(edge);
        let _ = client.write_all(&bytes);
        let answer = rest(&mut client);
        let refused = answer.is_empty() || answer.contains("400 Bad Request");
        assert!(refused, "{bytes:?}: {answer}");
    }
}

/// A smuggled request: it must never get an answer of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: tbd\r\n\r\n";
const SMUGGLED_COUNT: &str = r#"http_requests_total{method="GET",route="unmatched",status="404"}"#;

#[test]
fn a_smuggled_request_never_reaches_an_api() {
    let house = House::new();
    let edge: SocketAddr = house.edge.address().parse().expect("an address");

    let after_last_chunk = format!("0\r\n\r\n{SMUGGLED}");
    let in_a_chunk = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    let whole = format!("Content-Length: {}", after_last_chunk.len());
    let mut attempts: Vec<String> = Vec::new();
    let mut attempt = |head: &str, body: &str| {
        for path in ["/v1/orders", "/healthz"] {
            attempts.push(format!(
                "POST {path} HTTP/1.1\r\nHost: tbd\r\nContent-Type: application/json\r\n{head}\r\n\r\n{body}"
            ));
        }
    };
    // One side believes the length, the other the chunks.
    attempt(
        &format!("{whole}\r\nTransfer-Encoding: chunked"),
        &after_last_chunk,
    );
    attempt(
        &format!("Transfer-Encoding: chunked\r\n{whole}"),
        &after_last_chunk,
    );
    attempt(
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        &in_a_chunk,
    );
    attempt(
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        &in_a_chunk,
    );
    // Only one side recognises the chunks.
    for coding in [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\tchunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding: chunked\x0b",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "X: x\nTransfer-Encoding: chunked",
        "X: x\rTransfer-Encoding: chunked",
        "X: x\r\n Transfer-Encoding: chunked",
        "X: x\r\n\tTransfer-Encoding: chunked",
        "Transfer-Encoding\0: chunked",
        "Transfer_Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Connection: close, Transfer-Encoding\r\nTransfer-Encoding: chunked",
    ] {
        attempt(&format!("{coding}\r\n{whole}"), &after_last_chunk);
        attempt(&format!("{whole}\r\n{coding}"), &after_last_chunk);
    }
    // Two lengths.
    let length = SMUGGLED.len();
    for lengths in [
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nContent-Length: 0"),
        format!("Content-Length: 0, {length}"),
        format!("Content-Length : 0\r\nContent-Length: {length}"),
        format!("Content_Length: 0\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\nContent-Length: 0"),
        format!("X: x\rContent-Length: 0\r\nContent-Length: {length}"),
        "Content-Length: +0".into(),
        "Content-Length: -1".into(),
        "Content-Length: 0x0".into(),
        "Content-Length:\x0b0".into(),
        "Content-Length: 18446744073709551616".into(),
        // Valid requests, with a body that an api does not read to its end, or waits for.
        format!("Content-Length: {length}"),
        format!("Content-Length: {length}\r\nExpect: 100-continue"),
    ] {
        attempt(&lengths, SMUGGLED);
    }
    // Ambiguous chunks.
    let size = format!("{:x}", SMUGGLED.len());
    for chunks in [
        format!("0x0\r\n\r\n{SMUGGLED}"),
        format!("-1\r\n\r\n{SMUGGLED}"),
        format!("10000000000000000\r\n\r\n{SMUGGLED}"),
        format!("\r\n\r\n{SMUGGLED}"),
        format!("{size};x\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("{size}\n{SMUGGLED}\n0\n\n"),
        format!("{size};{SMUGGLED}"),
        in_a_chunk.clone(),
    ] {
        attempt("Transfer-Encoding: chunked", &chunks);
    }

    for (number, bytes) in attempts.iter().enumerate() {
        let mut client = hostile(edge);
        let _ = client.write_all(bytes.as_bytes());
        let answer = all_answers(&mut client);
        let answers = answer.matches("HTTP/1.1 ").count();
        let expected = answers - answer.matches("HTTP/1.1 100 ").count() <= 1;
        assert!(expected, "{bytes:?}: {answer}");
        // The next answer on the apis' connections goes to the right client.
        let name = format!("request-{number}");
        let honest = get("/v1/orders/x").header("X-Request-Id", &name);
        let answer = honest.send(&house.edge.address());
        assert_eq!(
            answer.header("X-Request-Id"),
            Some(&*name),
            "after {bytes:?}"
        );
    }
    assert_eq!(house.sum(SMUGGLED_COUNT), 0.0);

    // Sent openly the request does reach them, so the count of 0 is meaningful.
    let openly = get("/smuggled").send(&house.edge.address());
    assert_eq!((openly.status, house.sum(SMUGGLED_COUNT)), (404, 1.0));
}
