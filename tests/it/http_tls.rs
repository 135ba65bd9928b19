//! The HTTP server behind TLS, and the programs with it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use tbd::metrics::Metrics;
use tbd::wiring::observers;
use tbd_deadline::Deadline;
use tbd_grpc::Channel;
use tbd_http::{Response, Router, Server, ServerConfig, StartError, TlsConfig};
use tbd_tls::{ClientFiles, Identity};

use super::orders_client::create_order;
use super::support::certificates::{Authority, Files, Validity};
use super::support::edge::Edge;
use super::support::http::{Request, get, post};
use super::support::program::{
    API, PARTICIPANT, Program, READY, Stack, WORKER, free_port, new_order, run,
};
use super::support::{eventually, unique};

/// Longer than any step here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with a certificate for `localhost`.
struct House {
    server: Server,
    authority: Authority,
    files: Files,
}

impl House {
    fn new(router: Router) -> House {
        House::with(router, |_| {})
    }

    fn with(router: Router, change: impl Fn(&mut TlsConfig)) -> House {
        let authority = Authority::new("tests");
        let files = authority.issue("localhost", Validity::Now);
        let mut tls = TlsConfig::new(Identity::new(&files.certificate, &files.key));
        change(&mut tls);
        let server = start(tls, router).expect("a server");
        House {
            server,
            authority,
            files,
        }
    }

    fn connect(&self) -> Client {
        let config = trusting(&self.authority.ca_file());
        connect(self.server.local_addr(), config)
    }
}

fn start(tls: TlsConfig, router: Router) -> Result<Server, StartError> {
    let config = ServerConfig {
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        workers: 4,
        body_limit: 8 << 20,
        memory_limit_bytes: 1 << 40,
        tls: Some(tls),
        ..ServerConfig::default()
    };
    let observers = observers(Metrics::new().http, config.workers);
    Server::start(
        config,
        router,
        observers,
        Box::new(|reason| panic!("{reason}")),
    )
}

/// `/hello`, and `/echo`, which answers with the body.
fn router() -> Router {
    Router::new()
        .get("/hello", |_| Ok(Response::text(200, "hello")))
        .post("/echo", |request| {
            Ok(Response::text(200, request.body()?.to_vec()))
        })
}

type Client = StreamOwned<ClientConnection, TcpStream>;

fn trusting(ca_file: &Path) -> Arc<ClientConfig> {
    Arc::new(ClientFiles::trusting(ca_file).load().expect("a CA"))
}

fn connect(addr: SocketAddr, config: Arc<ClientConfig>) -> Client {
    let socket = TcpStream::connect(addr).expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(config, name).expect("a session");
    StreamOwned::new(session, socket)
}

/// Sends a request and reads to the end, which only close_notify makes a good one.
fn ask(client: &mut Client, request: Request) -> io::Result<String> {
    let request = request.header("Connection", "close");
    client.write_all(&request.to_bytes())?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    Ok(String::from_utf8(answer).expect("UTF-8"))
}

#[track_caller]
fn assert_hello(house: &House) {
    let answer = ask(&mut house.connect(), get("/hello")).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
}

/// The next answer to a GET without an end of the connection.
fn next(client: &mut Client) -> String {
    client
        .write_all(&get("/hello").to_bytes())
        .expect("a request");
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        let mut piece = [0; 512];
        let length = client.read(&mut piece).expect("an answer");
        assert!(length > 0, "the connection ended");
        answer.extend_from_slice(&piece[..length]);
    }
    String::from_utf8(answer).expect("UTF-8")
}

#[test]
fn large_bodies_go_both_ways_on_many_connections_at_a_time() {
    let house = House::new(router());
    thread::scope(|scope| {
        for number in 0..8 {
            let house = &house;
            scope.spawn(move || {
                // Larger than every buffer on the way.
                let body = format!("{number:07}\n").repeat(512 * 1024);
                let mut client = house.connect();
                let answer = ask(&mut client, post("/echo").body(body.clone()));
                let answer = answer.expect("an answer");
                let (head, echo) = answer.split_once("\r\n\r\n").expect("a head");
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                assert!(echo == body, "{} bytes", echo.len());
            });
        }
    });
}

#[test]
fn a_connection_serves_many_requests() {
    let house = House::new(router());
    let mut client = house.connect();
    for _ in 0..20 {
        next(&mut client);
    }
    assert_eq!(client.conn.alpn_protocol(), None);
    assert_hello(&house);
}

#[test]
fn a_client_that_ends_its_half_is_answered_and_sees_the_servers_end() {
    let house = House::new(router());
    let mut client = house.connect();
    client.write_all(&get("/hello").to_bytes()).expect("write");
    client.conn.send_close_notify();
    client.flush().expect("close_notify");
    let mut answer = String::new();
    let read = client.read_to_string(&mut answer);
    assert!(read.is_ok(), "no close_notify: {read:?} {answer}");
    assert!(answer.ends_with("hello"), "{answer}");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_request_is_not_waited_for() {
    let house = House::new(router());
    let mut client = house.connect();
    next(&mut client);
    // One TCP segment, so that the server's side of the bridge has nothing more to wait for.
    let mut half = client.conn.writer();
    half.write_all(b"GET /hello HTTP/1.1\r\nHo").expect("half");
    client.conn.send_close_notify();
    client.flush().expect("half and close_notify");
    assert_eq!(client.read(&mut [0]).expect("the server's end"), 0);
}

#[test]
fn a_client_without_tls_is_turned_away_and_harms_nobody() {
    let house = House::new(router());
    let mut open = house.connect();
    next(&mut open);
    let mut plain = TcpStream::connect(house.server.local_addr()).expect("connect");
    plain.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let _ = plain.write_all(&get("/hello").to_bytes());
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    // An alert, if the reset does not overtake it.
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    next(&mut open);
    assert_hello(&house);
}

#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let timeout = Duration::from_millis(200);
    let house = House::with(router(), |tls| tls.handshake_timeout = timeout);
    let begun = Instant::now();
    let mut silent = TcpStream::connect(house.server.local_addr()).expect("connect");
    silent.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    // The beginning of a record.
    silent.write_all(&[22, 3, 1, 2]).expect("write");
    assert_ends(&mut silent);
    assert!(begun.elapsed() >= timeout);
}

#[track_caller]
fn assert_ends(socket: &mut TcpStream) {
    match socket.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connection_beyond_the_limit_is_closed_until_another_has_ended() {
    let house = House::with(router(), |tls| tls.connections_max = 1);
    let mut first = house.connect();
    next(&mut first);
    let mut second = TcpStream::connect(house.server.local_addr()).expect("connect");
    second.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    assert_ends(&mut second);
    next(&mut first);
    drop(first);
    eventually(PATIENCE, "room for a connection", || {
        ask(&mut house.connect(), get("/hello")).ok()
    });
}

#[test]
fn a_new_certificate_is_shown_without_a_restart_and_a_broken_one_is_not() {
    let house = House::new(router());
    let mut open = house.connect();
    next(&mut open);
    let shown = |client: &Client| {
        let chain = client.conn.peer_certificates().expect("a certificate");
        chain[0].to_vec()
    };
    let old = shown(&open);
    let new = house.authority.issue("localhost", Validity::Now);
    house.files.become_those_of(&new);
    let mut client = house.connect();
    next(&mut client);
    let current = shown(&client);
    assert_ne!(current, old);
    std::fs::write(&house.files.certificate, "no certificate").expect("write");
    let mut client = house.connect();
    next(&mut client);
    assert_eq!(shown(&client), current);
    next(&mut open);
}

#[test]
fn a_server_without_a_usable_certificate_does_not_start() {
    let nowhere = Identity::new("/nowhere/cert.pem", "/nowhere/key.pem");
    let error = start(TlsConfig::new(nowhere), router()).expect_err("no file");
    assert!(matches!(error, StartError::Tls(_)), "{error}");
    assert!(error.to_string().contains("/nowhere/cert.pem"), "{error}");
}

#[test]
fn a_shutdown_answers_what_is_in_flight_and_ends_idle_connections() {
    let (enter, entered) = mpsc::channel();
    let (open, opened) = mpsc::channel::<()>();
    let opened = Mutex::new(opened);
    let router = router().get("/wait", move |_| {
        enter.send(()).expect("the test waits");
        let _ = opened.lock().unwrap().recv_timeout(PATIENCE);
        Ok(Response::text(200, "x".repeat(1 << 20)))
    });
    let house = House::new(router);
    let mut idle = house.connect();
    next(&mut idle);
    let mut busy = house.connect();
    // Without `Connection: close`: the server ends the connection by itself.
    busy.write_all(&get("/wait").to_bytes()).expect("a request");
    entered.recv_timeout(PATIENCE).expect("a request in flight");
    let addr = house.server.local_addr();
    let stopping = thread::spawn(move || house.server.shutdown(Deadline::after(PATIENCE)));
    // Nobody accepts any more.
    eventually(PATIENCE, "the listener's end", || {
        TcpStream::connect(addr).is_err().then_some(())
    });
    open.send(()).expect("the handler waits");
    let mut answer = String::new();
    busy.read_to_string(&mut answer).expect("close_notify");
    assert!(answer.len() > 1 << 20, "{}", answer.len());
    assert_eq!(idle.read(&mut [0]).expect("close_notify"), 0);
    drop((busy, idle));
    let ended = stopping.join().expect("no panic");
    ended.expect("every thread has ended");
}

/// The authority and a stack whose HTTP ports show a certificate of it for `tbd-api`.
fn site() -> (Authority, Stack) {
    let authority = Authority::new("tests");
    let files = authority.issue("tbd-api", Validity::Now);
    let [certificate, key] = [&files.certificate, &files.key].map(|it| text(it));
    let stack = Stack::new()
        .set("HTTP_TLS_CERT_FILE", &certificate)
        .set("HTTP_TLS_KEY_FILE", &key)
        .set("API_GRPC_TLS_CERT_FILE", &certificate)
        .set("API_GRPC_TLS_KEY_FILE", &key);
    (authority, stack)
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// Waits until the program's own health check says that it is ready.
#[track_caller]
fn healthy(stack: &Stack, program: &str, port_variable: &str, running: &Program) {
    eventually(READY, "a good health check", || {
        let mut check = stack.command(program);
        check.env(port_variable, running.port().to_string());
        check.arg("healthcheck");
        run(check).status.success().then_some(())
    });
}

#[test]
fn an_order_is_placed_by_https_and_health_checks_work() {
    let (authority, stack) = site();
    let (api, worker) = (stack.start_api(), stack.start_worker());
    healthy(&stack, API, "API_PORT", &api);
    healthy(&stack, WORKER, "WORKER_PORT", &worker);
    let curl = |more: &[&str]| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail-with-body"])
            .args(["--cacert", &text(&authority.ca_file())])
            .args(["--connect-to", &format!("tbd-api:8080:{}", api.address())])
            .args(more)
            .output()
            .expect("run curl");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{more:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let order = curl(&[
        "https://tbd-api:8080/v1/orders",
        "--header",
        &format!("Idempotency-Key: {}", unique("key")),
        "--json",
        r#"{"customer_email":"user@example.com","amount_cents":1299}"#,
    ]);
    let order: Value = serde_json::from_str(&order).expect("JSON");
    stack.all_become("completed", 1, READY);
    let id = order["id"].as_str().expect("an id");
    let found = curl(&[&format!("https://tbd-api:8080/v1/orders/{id}")]);
    assert!(found.contains("\"completed\""), "{found}");
}

#[test]
fn a_participant_answers_audits_by_https() {
    let authority = Authority::new("tests");
    let files = authority.issue("localhost", Validity::Now);
    let port = free_port();
    let stack = Stack::new();
    let mut command = stack.command(PARTICIPANT);
    command
        .env("PARTICIPANT", "inventory")
        .env("PARTICIPANT_HOST", "127.0.0.1")
        .env("HTTP_PORT", port.to_string())
        .env("GRPC_PORT", free_port().to_string())
        .env("HTTP_TLS_CERT_FILE", &files.certificate)
        .env("HTTP_TLS_KEY_FILE", &files.key);
    let _participant = Program::start(command, port);
    let config = trusting(&authority.ca_file());
    eventually(READY, "the stock", || {
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        TcpStream::connect(addr).ok()?;
        let mut client = connect(addr, Arc::clone(&config));
        let answer = ask(&mut client, get("/v1/stock")).ok()?;
        // 503 until the tables exist.
        answer.starts_with("HTTP/1.1 200 OK\r\n").then_some(())
    });
}

#[test]
fn nginx_speaks_tls_to_both_ports_of_the_api() {
    let (authority, stack) = site();
    let apis = [stack.start_api()];
    healthy(&stack, API, "API_PORT", &apis[0]);
    let edge = Edge::by_tls(&apis, &authority.ca_file());
    for _ in 0..3 {
        let answer = new_order(&unique("key"), 1299).send(&edge.address());
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    let channel = Channel::builder(&edge.grpc_address()).build();
    let order = create_order(&channel, &unique("key")).expect("an order");
    let found = get(format!("/v1/orders/{}", order.id)).send(&edge.address());
    assert_eq!(found.status, 200, "{}", found.text());
    assert_eq!(stack.count("orders"), 4);

    // Certificates of another authority: nginx trusts none of them.
    let stranger = Edge::by_tls(&apis, &Authority::new("another").ca_file());
    let refused = get("/healthz").send(&stranger.address());
    assert_eq!(refused.status, 502, "{}", refused.text());
    let channel = Channel::builder(&stranger.grpc_address()).build();
    create_order(&channel, "key").expect_err("nginx does not trust the api");
    assert_eq!(stack.count("orders"), 4);
}
