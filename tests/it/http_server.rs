//! The guarantees of the HTTP server, tested over real sockets.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tbd::metrics::Metrics;
use tbd::wiring::observers;
use tbd_deadline::Deadline;
use tbd_http::{Problem, Request, Response, Router, Server, ServerConfig, StillBusy};

/// Longer than any step here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct House {
    server: Server,
    metrics: Metrics,
    fatal: mpsc::Receiver<String>,
}

impl House {
    fn addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    fn connect(&self) -> Client {
        Client::connect(self.addr())
    }

    fn shutdown(self) -> Result<(), StillBusy> {
        self.server.shutdown(Deadline::after(PATIENCE))
    }
}

fn config() -> ServerConfig {
    ServerConfig {
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        workers: 4,
        memory_limit_bytes: 1 << 40,
        ..ServerConfig::default()
    }
}

fn start(config: ServerConfig, router: Router) -> House {
    let metrics = Metrics::new();
    let (tell, fatal) = mpsc::channel();
    let tell = Mutex::new(tell);
    let on_fatal = Box::new(move |reason: &str| {
        let _ = tell.lock().unwrap().send(reason.to_owned());
    });
    let observers = observers(metrics.http.clone(), config.workers);
    let server = Server::start(config, router, observers, on_fatal).unwrap();
    House {
        server,
        metrics,
        fatal,
    }
}

/// `/hello`, `/echo` (the body), `/ignore` (the body unread), `/panic`, `/healthz`.
fn router() -> Router {
    Router::new()
        .get("/hello", |_| Ok(Response::text(200, "hello")))
        .get("/hello/{name}", |request| {
            let name = request.param("name").unwrap_or_default().to_owned();
            Ok(Response::text(200, name)
                .header("X-Query", request.query().unwrap_or("-").to_owned()))
        })
        .post("/echo", echo)
        .post("/ignore", |_| Ok(Response::text(200, "ignored")))
        .get("/panic", |_| panic!("on purpose"))
        .probe_get("/healthz", |_| Ok(Response::json(200, "{}")))
}

fn echo(request: &mut Request) -> Result<Response, Problem> {
    Ok(Response::text(200, request.body()?.to_vec()))
}

const SLOW: &str = "GET /slow HTTP/1.1\r\nHost: t\r\n\r\n";

/// A server that answers one request while another waits, and has room for no third.
fn full(refusals_at_once: u32) -> (House, Gate, [Client; 2]) {
    let (gate, handler) = gated();
    let config = ServerConfig {
        workers: 1,
        queue: 1,
        burst: PATIENCE,
        refusals_at_once,
        ..config()
    };
    let house = start(config, router().get("/slow", handler));
    let mut running = house.connect();
    running.send(SLOW);
    gate.wait_entered();
    let mut queued = house.connect();
    queued.send(SLOW);
    wait_until("the second request waits", || {
        house.metrics.http.queue_depth.get() == 1
    });
    (house, gate, [running, queued])
}

/// Requests refused because the queue was full.
fn shed(house: &House) -> u64 {
    let shed = &house.metrics.http.shed;
    shed.with_label_values(&["queue_full"]).get()
}

/// A handler that reports when it runs and waits for permission to continue.
struct Gate {
    entered: mpsc::Receiver<()>,
    open: mpsc::Sender<()>,
}

fn gated() -> (
    Gate,
    impl Fn(&mut Request) -> Result<Response, Problem> + Send + Sync,
) {
    let (enter, entered) = mpsc::channel();
    let (open, opened) = mpsc::channel();
    let (enter, opened) = (Mutex::new(enter), Mutex::new(opened));
    let handler = move |_: &mut Request| {
        let _ = enter.lock().unwrap().send(());
        let _ = opened.lock().unwrap().recv_timeout(PATIENCE);
        Ok(Response::text(200, "through"))
    };
    (Gate { entered, open }, handler)
}

impl Gate {
    fn wait_entered(&self) {
        self.entered.recv_timeout(PATIENCE).expect("handler runs");
    }

    fn let_one_through(&self) {
        self.open.send(()).unwrap();
    }
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (other, value) = line.split_once(": ")?;
            other.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn problem(&self) -> serde_json::Value {
        assert_eq!(
            self.header("Content-Type"),
            Some("application/problem+json")
        );
        let problem: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["status"], self.status);
        assert_eq!(problem["trace_id"].as_str().unwrap().len(), 32);
        assert_eq!(problem["span_id"].as_str().unwrap().len(), 16);
        problem
    }
}

impl Client {
    fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    /// Sends bytes to a server that may close before it has read all of them.
    fn send_all_it_takes(&mut self, text: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(text.as_ref());
    }

    fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n"));
        self.answer()
    }

    fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    fn answer_to(&mut self, method: &str) -> Answer {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
            assert!(self.read_more(), "no answer: {:?}", self.text());
        };
        let head = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer {
            status,
            head,
            body: String::new(),
        };
        let length: usize = match answer.header("Content-Length") {
            Some(length) if method != "HEAD" => length.parse().unwrap(),
            _ => 0,
        };
        while self.buffer.len() < length {
            assert!(self.read_more(), "the body is cut short");
        }
        answer.body = String::from_utf8(self.buffer.drain(..length).collect()).unwrap();
        answer
    }

    /// Sends a byte every 20 ms until an answer arrives.
    fn drip_until_answered(&mut self) {
        let pause = Some(Duration::from_millis(20));
        self.stream.set_read_timeout(pause).unwrap();
        while self.stream.peek(&mut [0]).is_err() {
            self.send_all_it_takes("x");
        }
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// Expects the connection to end without another byte.
    fn assert_closed(&mut self) {
        while self.read_more() {}
        assert_eq!(self.text(), "");
    }

    fn read_more(&mut self) -> bool {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                read > 0
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer and no end: {error}"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_connection_answers_one_request_after_the_other() {
    let house = start(config(), router());
    let mut client = house.connect();
    for _ in 0..3 {
        let answer = client.get("/hello");
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
        assert_eq!(answer.header("Connection"), None);
        assert!(answer.header("Date").unwrap().ends_with(" GMT"));
    }
    let answer = client.get("/hello/world?a=b");
    assert_eq!(answer.body, "world");
    assert_eq!(answer.header("X-Query"), Some("a=b"));
}

#[test]
fn http_1_1_needs_one_host() {
    let house = start(config(), router());
    for hosts in ["", "Host: a\r\nHost: a\r\n", "Host: a\r\nhost: b\r\n"] {
        let mut client = house.connect();
        client.send(["GET /hello HTTP/1.1\r\n", hosts, "\r\n"].concat());
        let answer = client.answer();
        assert_eq!(answer.status, 400, "{hosts:?}");
        assert_eq!(
            answer.problem()["type"],
            "urn:tbd:problem:malformed-request"
        );
        client.assert_closed();
    }
}

#[test]
fn http_1_0_closes_unless_asked_to_stay() {
    let house = start(config(), router());
    let mut client = house.connect();
    client.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.answer().header("Connection"), Some("keep-alive"));
    client.send("GET /hello HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().header("Connection"), Some("close"));
    client.assert_closed();
}

#[test]
fn head_is_get_without_the_body() {
    let house = start(config(), router());
    let mut client = house.connect();
    client.send("HEAD /hello HTTP/1.1\r\nHost: t\r\n\r\n");
    let answer = client.answer_to("HEAD");
    assert_eq!(
        (answer.status, answer.header("Content-Length")),
        (200, Some("5"))
    );
    assert_eq!(client.get("/hello").body, "hello");
}

#[test]
fn unknown_paths_and_methods_are_problems() {
    let house = start(config(), router());
    let mut client = house.connect();
    let answer = client.get("/nowhere");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.problem()["type"], "urn:tbd:problem:not-found");
    client.send("DELETE /hello HTTP/1.1\r\nHost: t\r\n\r\n");
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.header("Allow")),
        (405, Some("GET, HEAD"))
    );
    assert_eq!(
        answer.problem()["type"],
        "urn:tbd:problem:method-not-allowed"
    );
    client.send("BREW /healthz HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_eq!(client.answer().status, 405);
    // Counted once the answer is being sent.
    for counted in [
        r#"http_requests_total{method="GET",route="unmatched",status="404"} 1"#,
        r#"http_requests_total{method="OTHER",route="/healthz",status="405"} 1"#,
    ] {
        wait_until(counted, || house.metrics.render().contains(counted));
    }
}

#[test]
fn a_sane_request_id_is_kept_and_any_other_replaced_by_the_trace_id() {
    let house = start(config(), router());
    let mut client = house.connect();
    client.send("GET /hello HTTP/1.1\r\nHost: t\r\nX-Request-ID: my-id_7\r\n\r\n");
    assert_eq!(client.answer().header("X-Request-Id"), Some("my-id_7"));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    for id in ["", "two words", &"x".repeat(129)] {
        client.send(format!(
            "GET /hello HTTP/1.1\r\nHost: t\r\nX-Request-Id: {id}\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\n\r\n"
        ));
        assert_eq!(client.answer().header("X-Request-Id"), Some(trace));
    }
}

#[test]
fn a_panic_is_a_500_and_the_thread_lives_on() {
    let house = start(
        ServerConfig {
            workers: 1,
            ..config()
        },
        router(),
    );
    let mut client = house.connect();
    for _ in 0..3 {
        let answer = client.get("/panic");
        assert_eq!(answer.status, 500);
        assert!(!answer.problem().to_string().contains("on purpose"));
    }
    assert_eq!(client.get("/hello").status, 200);
    assert_eq!(house.metrics.http.panics.get(), 3);
}

#[test]
fn a_full_queue_refuses_at_once_while_probes_answer() {
    let (house, gate, [mut running, mut queued]) = full(1_000);

    let mut refused: Vec<_> = (0..20).map(|_| house.connect()).collect();
    for client in &mut refused {
        client.send(SLOW);
    }
    for client in &mut refused {
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.header("Retry-After")),
            (503, Some("1"))
        );
        assert_eq!(answer.problem()["type"], "urn:tbd:problem:overloaded");
        assert_eq!(client.get("/healthz").status, 200);
    }
    // Neither refusals nor probes change the counters.
    let pool = &house.metrics.http;
    let counted = (
        pool.threads.get(),
        pool.threads_busy.get(),
        pool.queue_depth.get(),
    );
    assert_eq!(counted, (1, 1, 1));

    gate.let_one_through();
    assert_eq!(running.answer().status, 200);
    gate.let_one_through();
    assert_eq!(queued.answer().status, 200);
    assert_eq!(refused[0].get("/hello").status, 200);
}

#[test]
fn refusals_beyond_those_of_a_second_are_held_while_others_are_answered() {
    const HELD: Duration = Duration::from_secs(1);
    let (house, gate, [mut running, mut queued]) = full(0);

    let mut refused: Vec<_> = (0..20).map(|_| house.connect()).collect();
    let start = Instant::now();
    for client in &mut refused {
        client.send(SLOW);
    }
    wait_until("all are refused", || shed(&house) == 20);
    assert_eq!(house.connect().get("/healthz").status, 200);
    gate.let_one_through();
    assert_eq!(running.answer().status, 200);
    for client in &mut refused {
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.header("Retry-After")),
            (503, Some("1"))
        );
        assert!(start.elapsed() >= HELD);
    }
    gate.let_one_through();
    assert_eq!(queued.answer().status, 200);
    assert_eq!(refused[0].get("/hello").status, 200);
}

#[test]
fn shutdown_answers_the_refusals_that_are_held() {
    let (house, gate, [mut running, mut queued]) = full(0);
    let mut refused = house.connect();
    refused.send(SLOW);
    wait_until("the third is refused", || shed(&house) == 1);
    gate.let_one_through();
    gate.let_one_through();
    house.shutdown().unwrap();
    assert_eq!(running.answer().status, 200);
    assert_eq!(queued.answer().status, 200);
    assert_eq!(refused.answer().status, 503);
}

#[test]
fn a_request_that_waited_too_long_is_refused_unhandled() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let router = router().get("/count", move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(Response::text(200, ""))
    });
    let config = ServerConfig {
        request_timeout: Duration::ZERO,
        ..config()
    };
    let house = start(config, router);
    let answer = house.connect().get("/count");
    assert_eq!(
        (answer.status, answer.header("Retry-After")),
        (503, Some("1"))
    );
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (gate, handler) = gated();
    let house = start(config(), router().get("/slow", handler));
    let mut client = house.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: t\r\n\r\nGET /hello/2 HTTP/1.1\r\nHost: t\r\n\r\nGET /healthz HTTP/1.1\r\nHost: t\r\n\r\nGET /hello/4 HTTP/1.1\r\nHost: t\r\n\r\n");
    gate.wait_entered();
    // The probe behind the slow request holds no probe thread.
    for _ in 0..5 {
        assert_eq!(house.connect().get("/healthz").status, 200);
    }
    gate.let_one_through();
    let bodies: Vec<_> = (0..4).map(|_| client.answer().body).collect();
    assert_eq!(bodies, ["through", "2", "{}", "4"]);
}

#[test]
fn no_answer_follows_one_that_the_client_did_not_take() {
    // More than fits into the sockets' buffers.
    let large = |_: &mut Request| Ok(Response::text(200, vec![b'x'; 32 << 20]));
    let house = start(config(), router().get("/large", large));
    let mut client = house.connect();
    let request = |path| format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n");
    client.send(request("/large") + &request("/hello"));
    // The server gives up once the socket has taken nothing for 10 s, which is after the last buffer is full.
    thread::sleep(PATIENCE);
    let requests = &house.metrics.http.requests;
    wait_until("the server gives up", || {
        requests.with_label_values(&["GET", "/large", "200"]).get() == 1
    });
    while client.read_more() {}
    assert_eq!(client.text().matches("HTTP/1.1 ").count(), 1);
}

#[test]
fn a_client_that_never_waits_for_answers_gets_those_to_what_was_taken() {
    const TAKEN: usize = 32;
    // The last of them has a body that never arrives.
    let held_back = "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 99999\r\n\r\n";
    for (ahead, end) in [(49, ""), (1000, ""), (TAKEN, held_back), (49, held_back)] {
        let (gate, handler) = gated();
        let house = start(config(), router().get("/slow", handler));
        let mut client = house.connect();
        client.send(SLOW);
        gate.wait_entered();
        let request = |n| format!("GET /hello/{n} HTTP/1.1\r\nHost: t\r\n\r\n");
        client.send_all_it_takes((1..=ahead).map(request).collect::<String>() + end);
        let shed = &house.metrics.http.shed;
        wait_until("there are too many", || {
            shed.with_label_values(&["pipeline"]).get() == 1
        });
        // No other client waits for this one.
        for _ in 0..10 {
            assert_eq!(house.connect().get("/hello").status, 200);
        }
        gate.let_one_through();
        assert_eq!(client.answer().body, "through");
        for n in 1..=TAKEN {
            let answer = client.answer();
            assert_eq!(answer.body, n.to_string());
            let close = (n == TAKEN).then_some("close");
            assert_eq!(answer.header("Connection"), close, "{n}");
        }
        client.assert_closed();
        house.shutdown().unwrap();
    }
}

#[test]
fn connections_that_come_in_a_burst_are_all_answered() {
    let house = start(config(), router());
    for _ in 0..5 {
        let mut clients: Vec<_> = (0..100).map(|_| house.connect()).collect();
        for client in &mut clients {
            client.send("GET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
        }
        for client in &mut clients {
            assert_eq!(client.answer().status, 200);
        }
    }
}

#[test]
fn bodies_arrive_whole_in_every_framing() {
    let house = start(config(), router());
    let mut client = house.connect();
    for length in [0, 1, 1024, 1025, 65_536] {
        let body = "x".repeat(length);
        client.send(format!(
            "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        assert_eq!(client.answer().body, body);
    }
    let chunk = "y".repeat(5000);
    client.send(format!(
        "POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{chunk}\r\n3;x=y\r\nend\r\n0\r\n\r\n"
    ));
    assert_eq!(client.answer().body, format!("{chunk}end"));
    assert_eq!(client.get("/hello").status, 200);
}

#[test]
fn a_client_that_expects_100_continue_gets_it() {
    let house = start(config(), router());
    let mut client = house.connect();
    client.send(
        "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.answer_to("HEAD").status, 100);
    client.send("hello");
    assert_eq!(client.answer().body, "hello");
    // A handler that does not want the body answers without asking for it.
    client.send(
        "POST /ignore HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.header("Connection")),
        (200, Some("close"))
    );
    client.assert_closed();
}

#[test]
fn a_body_over_the_limit_is_a_413_and_the_end() {
    let house = start(config(), router());
    for (head, body) in [
        ("Content-Length: 65537", "x".repeat(65_537)),
        ("Content-Length: 300000", "x".repeat(1000)),
        (
            "Transfer-Encoding: chunked",
            format!("20000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x20000)),
        ),
    ] {
        let mut client = house.connect();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: t\r\n{head}\r\n\r\n"));
        client.send_all_it_takes(body);
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.header("Connection")),
            (413, Some("close"))
        );
        answer.problem();
        client.assert_closed();
    }
}

#[test]
fn a_body_that_stalls_is_a_408_and_the_end() {
    let config = ServerConfig {
        request_timeout: Duration::from_millis(300),
        ..config()
    };
    let house = start(config, router());
    for head in [
        "Content-Length: 2000",
        "Transfer-Encoding: chunked",
        "Content-Length: 9\r\nExpect: 100-continue",
    ] {
        let mut client = house.connect();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: t\r\n{head}\r\n\r\n"));
        if head.contains("Expect") {
            assert_eq!(client.answer_to("HEAD").status, 100);
        }
        client.send("5");
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.header("Connection")),
            (408, Some("close")),
            "{head}"
        );
        client.assert_closed();
    }
}

#[test]
fn of_many_bodies_that_stall_at_once_each_is_a_408() {
    const CLIENTS: usize = 200;
    let config = ServerConfig {
        request_timeout: Duration::from_millis(300),
        workers: CLIENTS,
        ..config()
    };
    let house = start(config, router());
    for _ in 0..4 {
        // Connections that end meanwhile: the server's descriptors get low numbers in any order.
        let idle: Vec<Client> = (0..CLIENTS).map(|_| house.connect()).collect();
        let stall = |idle| {
            drop::<Client>(idle);
            let mut client = house.connect();
            client.send("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 5000\r\n\r\n5");
            client
        };
        let clients: Vec<Client> = idle.into_iter().map(stall).collect();
        for mut client in clients {
            assert_eq!(client.answer().status, 408);
        }
    }
}

#[test]
fn a_request_that_does_not_become_complete_is_a_408_and_the_end() {
    let config = ServerConfig {
        request_timeout: Duration::from_millis(300),
        ..config()
    };
    let house = start(config, router());
    for unfinished in [
        "GET /hello HTTP/1.1\r\nHost",
        "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\nshort",
    ] {
        let mut fresh = house.connect();
        fresh.send(unfinished);
        // A body that trickles in is no better than one that stops.
        let mut used = house.connect();
        assert_eq!(used.get("/hello").status, 200);
        used.send(unfinished);
        used.drip_until_answered();
        for client in [&mut fresh, &mut used] {
            assert_eq!(client.answer().status, 408);
            client.assert_closed();
        }
    }
    let mut idle = house.connect();
    assert_eq!(idle.get("/hello").status, 200);
}

#[test]
fn a_header_line_without_end_costs_no_memory() {
    let house = start(config(), router());
    let mut client = house.connect();
    // Nothing reads the rest: the kernel may keep the client waiting.
    let patience = Some(Duration::from_secs(1));
    client.stream.set_write_timeout(patience).unwrap();
    client.send("GET /hello HTTP/1.1\r\nHost: t\r\nX: ");
    let line = [b'x'; 64 * 1024];
    let mut sent = 0;
    while client.stream.write_all(&line).is_ok() {
        sent += line.len();
        assert!(sent < 400 << 20, "nobody stops it");
    }
    assert_eq!(house.connect().get("/hello").status, 200);
}

#[test]
fn a_body_that_ends_early_or_is_malformed_is_a_400_and_the_end() {
    let house = start(config(), router());
    let mut client = house.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 2000\r\n\r\nshort");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.answer().status, 400);
    client.assert_closed();
    let mut client = house.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\nGET /hello HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    client.assert_closed();
}

#[test]
fn contradicting_lengths_are_a_400_and_the_end() {
    let house = start(config(), router());
    for heads in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 4",
        "Content-Length: +4",
        "Content-Length: four",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    ] {
        let mut client = house.connect();
        client.send(format!(
            "POST /echo HTTP/1.1\r\nHost: t\r\n{heads}\r\n\r\n0\r\n\r\nGET /hello HTTP/1.1\r\nHost: t\r\n\r\nGET /hello HTTP/1.1\r\nHost: t\r\n\r\n"
        ));
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.header("Connection")),
            (400, Some("close")),
            "{heads}"
        );
        answer.problem();
        client.assert_closed();
    }
}

#[test]
fn a_body_nobody_read_is_never_taken_for_a_request() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let router = router().get("/smuggled", move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(Response::text(200, "smuggled"))
    });
    let house = start(config(), router);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n";
    let long = smuggled.repeat(100);
    for (head, body) in [
        (format!("Content-Length: {}", long.len()), long.clone()),
        (
            "Transfer-Encoding: chunked".to_owned(),
            format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len()),
        ),
        ("Transfer-Encoding: chunked".to_owned(), smuggled.to_owned()),
        (
            format!("Connection: upgrade\r\nContent-Length: {}", smuggled.len()),
            smuggled.to_owned(),
        ),
    ] {
        let mut client = house.connect();
        client.send(format!(
            "POST /ignore HTTP/1.1\r\nHost: t\r\n{head}\r\n\r\n"
        ));
        client.send_all_it_takes(body);
        assert_eq!(client.answer().body, "ignored");
        client.assert_closed();
    }
    // tiny_http has read a short body already, so it is out of the way.
    let mut client = house.connect();
    client.send(format!(
        "POST /ignore HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    ));
    assert_eq!(client.answer().body, "ignored");
    assert_eq!(client.get("/hello").body, "hello");
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[test]
fn hostile_requests_never_end_the_server() {
    let house = start(config(), router());
    let long = "a".repeat(100_000);
    let mut requests: Vec<Vec<u8>> = [
        "\r\n\r\n",
        "GET\r\n\r\n",
        "GET /hello\r\n\r\n",
        "GET /hello HTTP/9.9\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\nno colon\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\n: \r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\nA B: c\r\n\r\n",
        "GET /hello HTTP/1.1\r\nHost: t\r\n folded\r\n\r\n",
        "GET  HTTP/1.1\r\nHost: t\r\n\r\n",
        "GET ? HTTP/1.1\r\nHost: t\r\n\r\n",
        "GET :// HTTP/1.1\r\nHost: t\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n",
        "CONNECT host:1 HTTP/1.1\r\nHost: t\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: t\r\nExpect: nothing\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 18446744073709551615\r\n\r\nx",
        "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 9223372036854775807\r\n\r\nx",
        "POST /ignore HTTP/1.1\r\nHost: t\r\nContent-Length: 4611686018427387904\r\n\r\nx",
        "POST /ignore HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000000000000\r\n\r\nx",
        "POST /ignore HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000000000\r\nContent-Length: 3\r\n\r\nx",
        "POST /ignore HTTP/1.1\r\nHost: t\r\nContent-Length: 18446744073709551616\r\n\r\nx",
        "POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
        "POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx",
        "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\nshort",
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    requests.push(format!("GET /{long} HTTP/1.1\r\nHost: t\r\n\r\n").into_bytes());
    requests.push(format!("GET /hello HTTP/1.1\r\nHost: t\r\nX: {long}\r\n\r\n").into_bytes());
    requests.push(format!("{long} /hello HTTP/1.1\r\nHost: t\r\n\r\n").into_bytes());
    requests.push(
        format!(
            "GET /hello HTTP/1.1\r\nHost: t\r\n{}\r\n",
            "X: y\r\n".repeat(10_000)
        )
        .into_bytes(),
    );
    requests.push(b"GET /\xff\xfe HTTP/1.1\r\nHost: t\r\n\r\n".to_vec());
    requests.push(b"GET /hello HTTP/1.1\r\nHost: t\r\nX: \x00\x01\x7f\r\n\r\n".to_vec());
    requests.push((0..=255).cycle().take(10_000).collect());
    for request in requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(120)]).into_owned();
        let mut client = house.connect();
        client.send_all_it_takes(&request);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        while client.read_more() {}
        assert!(
            !client.text().contains(" 500 "),
            "a fault of ours: {shown:?} -> {:?}",
            client.text()
        );
        assert_eq!(house.connect().get("/hello").status, 200, "after {shown:?}");
    }
}

#[test]
fn shutdown_finishes_what_is_in_flight_and_leaves_idle_connections() {
    let (gate, handler) = gated();
    let house = start(config(), router().get("/slow", handler));
    let addr = house.addr();
    let mut idle = house.connect();
    assert_eq!(idle.get("/hello").status, 200);
    let mut running = house.connect();
    running.send("GET /slow HTTP/1.1\r\nHost: t\r\n\r\n");
    gate.wait_entered();

    let shutdown = thread::spawn(move || house.shutdown());
    wait_until("no connection is accepted", || {
        TcpStream::connect(addr).is_err()
    });
    gate.let_one_through();
    let answer = running.answer();
    assert_eq!((answer.status, answer.body.as_str()), (200, "through"));
    assert_eq!(answer.header("Connection"), Some("close"));
    running.assert_closed();
    shutdown.join().unwrap().unwrap();
}

#[test]
fn shutdown_answers_open_connections_until_the_last_request_is_done() {
    let (gate, handler) = gated();
    let house = start(config(), router().get("/slow", handler));
    let addr = house.addr();
    let mut other = house.connect();
    assert_eq!(other.get("/hello").status, 200);
    let mut running = house.connect();
    running.send("GET /slow HTTP/1.1\r\nHost: t\r\n\r\n");
    gate.wait_entered();
    let shutdown = thread::spawn(move || house.shutdown());
    wait_until("no connection is accepted", || {
        TcpStream::connect(addr).is_err()
    });
    let answer = other.get("/hello");
    assert_eq!(
        (answer.status, answer.header("Connection")),
        (200, Some("close"))
    );
    other.assert_closed();
    gate.let_one_through();
    assert_eq!(running.answer().status, 200);
    shutdown.join().unwrap().unwrap();
}

#[test]
fn shutdown_does_not_wait_for_a_body_that_nobody_reads() {
    let house = start(config(), router());
    let mut client = house.connect();
    client.send("POST /ignore HTTP/1.1\r\nHost: t\r\nContent-Length: 99999\r\n\r\nx");
    assert_eq!(client.answer().body, "ignored");
    house.shutdown().unwrap();
    client.assert_closed();
}

#[test]
fn shutdown_says_so_when_a_handler_does_not_end() {
    let (gate, handler) = gated();
    let house = start(config(), router().get("/slow", handler));
    let mut client = house.connect();
    client.send(SLOW);
    gate.wait_entered();
    let result = house
        .server
        .shutdown(Deadline::after(Duration::from_millis(50)));
    assert_eq!(result.unwrap_err().threads, 1);
    gate.let_one_through();
    assert_eq!(client.answer().status, 200);
}

#[test]
fn memory_beyond_the_limit_is_fatal_with_a_reason() {
    let house = start(
        ServerConfig {
            memory_limit_bytes: 1,
            ..config()
        },
        router(),
    );
    let reason = house.fatal.recv_timeout(PATIENCE).unwrap();
    assert!(reason.contains("beyond its limit of 0 MiB"), "{reason}");
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let house = start(config(), router());
    let config = ServerConfig {
        addr: house.addr(),
        ..config()
    };
    let metrics = Metrics::new();
    let error = Server::start(
        config,
        router(),
        observers(metrics.http, 1),
        Box::new(|_| {}),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains(&house.addr().to_string()),
        "{error}"
    );
}
