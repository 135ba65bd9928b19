//! What a server does for calls and against clients that misbehave.

#![cfg(feature = "tls")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tbd_deadline::Deadline;
use tbd_grpc::proto::google::rpc::{ErrorInfo, RetryInfo};
use tbd_grpc::server::{Executor as _, Job, ServerBuilder, WorkerPool};
use tbd_grpc::tls::{ClientTls, ServerTls};
use tbd_grpc::{Channel, Code, Keepalive, Metadata, Method, Router, Server, Status};

mod support;
use support::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Reads until the other end closes; fails when it does not.
fn read_to_end(mut socket: &TcpStream) -> Vec<u8> {
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut received = Vec::new();
    socket.read_to_end(&mut received).unwrap();
    received
}

#[test]
fn metadata_details_and_trailers_travel_both_ways() {
    let mut router = Router::new();
    router.unary(ECHO, |call, request| {
        let value = call
            .metadata()
            .text("x-request-id")
            .unwrap_or("none")
            .to_owned();
        call.headers(|headers| headers.insert_text("x-before", &*value).unwrap());
        call.trailers(|trailers| trailers.insert_text("x-after", &*value).unwrap());
        if request == "fail" {
            return Err(
                Status::new(Code::Aborted, "as you like").with_detail(&RetryInfo::default())
            );
        }
        Ok(request)
    });
    let server = start(router);
    let channel = channel(&server);
    let mut metadata = Metadata::new();
    metadata.insert_text("x-request-id", "7").unwrap();
    let call = || channel.call(ECHO).metadata(metadata.clone());
    let response = call().send_for_response(&"a".to_owned()).unwrap();
    assert_eq!(response.headers.text("x-before"), Some("7"));
    assert_eq!(response.trailers.text("x-after"), Some("7"));
    let status = call().send(&"fail".to_owned()).unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Aborted, "as you like")
    );
    assert_eq!(status.detail::<RetryInfo>(), Some(RetryInfo::default()));
    assert_eq!(status.metadata().text("x-after"), Some("7"));
}

#[test]
fn interceptors_run_around_each_handler_and_may_answer_instead() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut router = echo();
    for name in ["outer", "inner"] {
        let order = Arc::clone(&order);
        router.intercept(move |call, next| {
            order.lock().unwrap().push(name);
            if name == "inner" && call.metadata().text("x-token").is_none() {
                return Err(Status::new(Code::Unauthenticated, "who are you?"));
            }
            next.run()
        });
    }
    let server = start(router);
    let channel = channel(&server);
    let status = channel.call(ECHO).send(&String::new()).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut metadata = Metadata::new();
    metadata.insert_text("x-token", "a").unwrap();
    assert!(
        channel
            .call(ECHO)
            .metadata(metadata)
            .send(&String::new())
            .is_ok()
    );
    assert_eq!(*order.lock().unwrap(), ["outer", "inner", "outer", "inner"]);
}

#[test]
fn calls_without_a_place_or_a_method_are_refused_and_reported() {
    const UNKNOWN: Method<String, String> = Method::new("/test.v1.TestService/Unknown");
    let (sender, refused) = mpsc::channel();
    let sender = Mutex::new(sender);
    let mut router = echo();
    router.on_refused(move |path, status| {
        sender
            .lock()
            .unwrap()
            .send((path.to_owned(), status.code()))
            .unwrap()
    });
    let server = Server::builder(router)
        .executor(Arc::new(|_job: Job| {}))
        .start(listener())
        .unwrap();
    let channel = channel(&server);
    for (method, code) in [(ECHO, Code::Unavailable), (UNKNOWN, Code::Unimplemented)] {
        assert_eq!(
            channel
                .call(method)
                .send(&String::new())
                .unwrap_err()
                .code(),
            code
        );
        assert_eq!(
            refused.recv_timeout(soon().remaining()).unwrap(),
            (method.path().to_owned(), code)
        );
    }
}

/// Errors of the handler and of the server carry the id of their request.
fn failing() -> Router {
    let mut router = Router::new();
    router.unary(ECHO, |_, request| match &*request {
        "panic" => panic!("in a handler, on purpose"),
        _ => Err(Status::new(Code::Aborted, "by the handler")),
    });
    router.unary(LIST, |_, request| Ok(request));
    router.map_errors(|metadata, status| {
        let reason = metadata.text("x-request-id").unwrap_or("none").to_owned();
        status.with_detail(&ErrorInfo {
            reason,
            ..ErrorInfo::default()
        })
    });
    router
}

#[track_caller]
fn assert_mapped(server: &Server, method: Method<String, String>, request: &str, code: Code) {
    let mut metadata = Metadata::new();
    metadata.insert_text("x-request-id", code.name()).unwrap();
    let channel = channel(server);
    let call = channel.call(method).metadata(metadata);
    let status = call.send(&request.to_owned()).unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    let info = status.detail::<ErrorInfo>().expect("an ErrorInfo");
    assert_eq!(info.reason, code.name());
}

#[test]
fn every_error_passes_through_the_map_with_the_metadata_of_its_request() {
    const UNKNOWN: Method<String, String> = Method::new("/test.v1.TestService/Unknown");
    let pool = WorkerPool::new(1, 10).unwrap();
    let server = builder_with(failing(), |config| {
        config.connection.message_bytes_max = 1000
    })
    .executor(Arc::new(move |job: Job| {
        if job.call().path() == ECHO.path() {
            pool.execute(job);
        }
    }))
    .start(listener())
    .unwrap();
    let large = "x".repeat(1001);
    for (method, request, code) in [
        (ECHO, "", Code::Aborted),
        (ECHO, "panic", Code::Internal),
        (ECHO, &large, Code::ResourceExhausted),
        (LIST, "without a place", Code::Unavailable),
        (UNKNOWN, "", Code::Unimplemented),
    ] {
        assert_mapped(&server, method, request, code);
    }

    let (sender, queue) = mpsc::channel();
    let sender = Mutex::new(sender);
    let late = builder_with(failing(), |config| {
        config.call_duration_max = Duration::from_millis(1)
    });
    let server = late
        .executor(Arc::new(move |job: Job| {
            let _ = sender.lock().unwrap().send(job);
        }))
        .start(listener())
        .unwrap();
    assert_mapped(&server, ECHO, "in the queue", Code::DeadlineExceeded);
    drop(queue);
}

#[test]
fn a_hook_that_panics_changes_nothing() {
    const OTHER: Method<String, String> = Method::new("/test.v1.TestService/Other");
    let mut router = Router::new();
    router.unary(ECHO, |_, _| {
        Err::<String, _>(Status::new(Code::NotFound, "nothing"))
    });
    router.map_errors(|_, _| panic!("on purpose"));
    router.on_refused(|_, _| panic!("on purpose"));
    let server = start(router);
    let channel = channel(&server);
    // More often than the pool has threads.
    for _ in 0..20 {
        for (method, code) in [(ECHO, Code::NotFound), (OTHER, Code::Unimplemented)] {
            let call = channel.call(method).deadline(soon());
            assert_eq!(call.send(&String::new()).unwrap_err().code(), code);
        }
    }
}

#[test]
fn a_call_cancelled_in_the_queue_is_not_run() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let mut router = echo();
    router.bidirectional(CHAT, move |_, _, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let (sender, jobs) = mpsc::channel();
    let sender = Mutex::new(sender);
    let executor = move |job: Job| sender.lock().unwrap().send(job).unwrap();
    let server = Server::builder(router)
        .executor(Arc::new(executor))
        .start(listener())
        .unwrap();
    let channel = channel(&server);
    let (_sending, receiving) = channel.call(CHAT).open().unwrap();
    let job = jobs.recv_timeout(soon().remaining()).unwrap();
    receiving.cancel();
    wait_for(|| job.call().is_cancelled());
    job.run();
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

/// Looks again and again: for what changes on another thread and tells nobody.
fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(!deadline.is_past(), "nothing changed");
        thread::yield_now();
    }
}

#[test]
fn a_running_call_sees_its_cancellation() {
    let (sender, outcome) = mpsc::channel();
    let sender = Mutex::new(sender);
    let mut router = Router::new();
    router.bidirectional(CHAT, move |call, mut requests, mut responses| {
        responses.send(&"begun".to_owned())?;
        let status = requests.next_message().unwrap_err();
        sender
            .lock()
            .unwrap()
            .send((call.is_cancelled(), status.code()))
            .unwrap();
        Err(status)
    });
    let server = start(router);
    let (_sending, mut receiving) = channel(&server).call(CHAT).open().unwrap();
    receiving.next_message().unwrap();
    receiving.cancel();
    assert_eq!(
        outcome.recv_timeout(soon().remaining()).unwrap(),
        (true, Code::Cancelled)
    );
}

#[test]
fn the_clients_deadline_reaches_the_handler_and_ends_the_call() {
    let (sender, outcome) = mpsc::channel();
    let sender = Mutex::new(sender);
    let mut router = Router::new();
    router.bidirectional(CHAT, move |call, mut requests, _| {
        let left = call.deadline().remaining();
        let status = requests.next_message().unwrap_err();
        sender.lock().unwrap().send((left, status.code())).unwrap();
        Err(status)
    });
    let server = start(router);
    let deadline = Deadline::after(Duration::from_millis(200));
    let (_sending, mut receiving) = channel(&server)
        .call(CHAT)
        .deadline(deadline)
        .open()
        .unwrap();
    assert_eq!(
        receiving.next_message().unwrap_err().code(),
        Code::DeadlineExceeded
    );
    let (left, code) = outcome.recv_timeout(soon().remaining()).unwrap();
    assert!(left <= Duration::from_millis(200), "{left:?}");
    assert!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{code}"
    );
}

#[test]
fn a_message_beyond_the_limit_is_refused_in_both_directions() {
    let server = start_with(echo(), |config| {
        config.connection.message_bytes_max = 10_000
    });
    let status = channel(&server)
        .call(ECHO)
        .send(&"x".repeat(10_000))
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let status = channel(&server)
        .call(ECHO)
        .gzip()
        .send(&"x".repeat(1_000_000))
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);

    let server = start(echo());
    let channel = channel_with(&server.local_addr().to_string(), |config| {
        config.connection.message_bytes_max = 10_000
    });
    let status = channel.call(ECHO).send(&"x".repeat(10_000)).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[test]
fn messages_that_no_connection_may_hold_together_are_refused() {
    let server = start_with(echo(), |config| {
        config.connection.buffered_bytes_max = 200_000
    });
    let channel = channel(&server);
    let status = channel.call(ECHO).send(&"x".repeat(1_000_000)).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(channel.call(ECHO).send(&"x".repeat(100_000)).is_ok());
}

#[test]
fn stopping_lets_calls_end_and_joins_every_thread() {
    let (begun_sender, begun) = mpsc::channel();
    let (go, going) = mpsc::channel::<()>();
    let (begun_sender, going) = (Mutex::new(begun_sender), Mutex::new(going));
    let mut router = Router::new();
    router.unary(ECHO, move |_, request| {
        begun_sender.lock().unwrap().send(()).unwrap();
        going
            .lock()
            .unwrap()
            .recv_timeout(soon().remaining())
            .unwrap();
        Ok(request)
    });
    let server = start(router);
    let channel = channel(&server);
    let caller = thread::spawn(move || channel.call(ECHO).send(&"late".to_owned()));
    begun.recv_timeout(soon().remaining()).unwrap();
    let stopping = thread::spawn(move || server.stop(soon()));
    go.send(()).unwrap();
    assert_eq!(caller.join().unwrap().unwrap(), "late");
    assert!(stopping.join().unwrap());
}

#[test]
fn a_call_that_outlasts_the_stop_is_cut_off() {
    let (begun_sender, begun) = mpsc::channel();
    let begun_sender = Mutex::new(begun_sender);
    let mut router = Router::new();
    router.bidirectional(CHAT, move |_, mut requests, _| {
        begun_sender.lock().unwrap().send(()).unwrap();
        requests.next_message().map(|_| ())
    });
    let server = start(router);
    let (_sending, mut receiving) = channel(&server).call(CHAT).open().unwrap();
    begun.recv_timeout(soon().remaining()).unwrap();
    assert!(!server.stop(Deadline::after(Duration::from_millis(100))));
    assert_eq!(
        receiving.next_message().unwrap_err().code(),
        Code::Unavailable
    );
}

#[test]
fn a_client_that_begins_slowly_is_left() {
    let server = start_with(echo(), |config| {
        config.connection.handshake_timeout = Duration::from_millis(100)
    });
    for beginning in [&b""[..], &PREFACE[..10], PREFACE] {
        let mut socket = TcpStream::connect(server.local_addr()).unwrap();
        socket.write_all(beginning).unwrap();
        read_to_end(&socket);
    }
    wait_for(|| server.connections() == 0);
}

#[test]
fn a_client_that_is_idle_or_silent_is_left() {
    let idle = start_with(echo(), |config| {
        config.connection.idle_max = Some(Duration::from_millis(100))
    });
    let mut socket = TcpStream::connect(idle.local_addr()).unwrap();
    socket.write_all(&[PREFACE, SETTINGS].concat()).unwrap();
    // It never answers the PING between two GOAWAY frames, and is left all the same.
    let received = read_to_end(&socket);
    let goaways = received
        .windows(4)
        .filter(|window| *window == [0, 0, 8, 7])
        .count();
    assert_eq!(goaways, 2);

    let keepalive = Keepalive {
        interval: Duration::from_millis(50),
        timeout: Duration::from_millis(50),
        without_calls: true,
    };
    let silent = start_with(echo(), |config| {
        config.connection.keepalive = Some(keepalive)
    });
    let mut socket = TcpStream::connect(silent.local_addr()).unwrap();
    socket.write_all(&[PREFACE, SETTINGS].concat()).unwrap();
    read_to_end(&socket);
    wait_for(|| silent.connections() == 0);
}

/// HEADERS of a call to ECHO, as a client without compression writes them.
fn call_headers(stream: u32, is_end: bool) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", ECHO.path()),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for part in [name, value] {
            block.push(u8::try_from(part.len()).unwrap());
            block.extend_from_slice(part.as_bytes());
        }
    }
    frame(1, if is_end { 5 } else { 4 }, stream, &block)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Reads until `expected` was among what came.
fn read_until(mut socket: &TcpStream, expected: &[u8]) {
    let patience = Some(Duration::from_secs(20));
    socket.set_read_timeout(patience).unwrap();
    let mut all = Vec::new();
    let mut received = [0; 1000];
    while !all.windows(expected.len()).any(|window| window == expected) {
        let length = socket.read(&mut received).unwrap();
        assert!(length > 0, "the connection was closed");
        all.extend_from_slice(&received[..length]);
    }
}

#[test]
fn a_client_that_reads_nothing_is_left_and_takes_no_memory() {
    let server = start_with(echo(), |config| {
        config.connection.write_timeout = Duration::from_millis(300)
    });
    let mut socket = TcpStream::connect(server.local_addr()).unwrap();
    socket.write_all(&[PREFACE, SETTINGS].concat()).unwrap();
    socket
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // Each call is answered by an error of 100 octets, which nobody reads. The server stops reading before it takes much.
    let begun = Instant::now();
    for stream in (1..).step_by(2) {
        if socket.write_all(&call_headers(stream, true)).is_err() {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the server never stops reading"
        );
    }
    wait_for(|| server.connections() == 0);
}

#[test]
fn a_client_that_never_opens_its_window_gets_its_stream_reset() {
    let mut router = Router::new();
    router.unary(ECHO, |_, _| Ok("x".repeat(100_000)));
    let server = start_with(router, |config| {
        config.connection.write_timeout = Duration::from_millis(200)
    });
    let mut socket = TcpStream::connect(server.local_addr()).unwrap();
    let call = [call_headers(1, false), frame(0, 1, 1, &[0; 5])].concat();
    socket
        .write_all(&[PREFACE, SETTINGS, &call].concat())
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut all = Vec::new();
    let mut received = [0; 16_384];
    // RST_STREAM with CANCEL on stream 1.
    let reset = frame(3, 0, 1, &[0, 0, 0, 8]);
    while !all.windows(reset.len()).any(|window| window == reset) {
        let length = socket.read(&mut received).unwrap();
        assert!(length > 0, "the connection was closed");
        all.extend_from_slice(&received[..length]);
    }
    assert!(all.len() < 70_000, "{}", all.len());
}

#[test]
fn a_request_that_never_ends_gets_an_answer() {
    let server = start_with(echo(), |config| {
        config.request_timeout = Duration::from_millis(100)
    });
    let mut socket = TcpStream::connect(server.local_addr()).unwrap();
    socket
        .write_all(&[PREFACE, SETTINGS, &call_headers(1, false)].concat())
        .unwrap();
    // The server has answered and wants no more: RST_STREAM with NO_ERROR.
    read_until(&socket, &frame(3, 0, 1, &[0; 4]));
}

#[test]
fn a_slow_reader_holds_up_the_handler_and_not_the_memory() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let mut router = Router::new();
    router.server_streaming(LIST, move |_, _: String, mut responses| {
        for _ in 0..1000 {
            responses.send(&"x".repeat(10_000))?;
            counted.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let server = start(router);
    let channel = channel(&server);
    let mut receiving = channel.call(LIST).send_for_stream(&String::new()).unwrap();
    receiving.next_message().unwrap();
    // A second call completes while the first one waits.
    assert_eq!(
        channel
            .call(LIST)
            .send_for_stream(&String::new())
            .unwrap()
            .next_message()
            .unwrap()
            .unwrap()
            .len(),
        10_000
    );
    assert!(
        sent.load(Ordering::SeqCst) < 200,
        "{}",
        sent.load(Ordering::SeqCst)
    );
    assert_eq!(receiving.map(Result::unwrap).count(), 999);
}

#[test]
fn a_request_that_is_not_grpc_gets_a_text() {
    let server = start(echo());
    let mut socket = TcpStream::connect(server.local_addr()).unwrap();
    let get = frame(1, 5, 1, &[0x82, 0x84, 0x86]); // GET / http
    socket
        .write_all(&[PREFACE, SETTINGS, &get].concat())
        .unwrap();
    read_until(&socket, b"This is a gRPC server");
}

#[test]
fn a_request_that_is_not_grpc_keeps_no_stream_open() {
    let server = start_with(echo(), |config| {
        config.connection.write_timeout = Duration::from_millis(200)
    });
    let mut socket = TcpStream::connect(server.local_addr()).unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE of 0: the text never leaves.
    let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let get = frame(1, 5, 1, &[0x82, 0x84, 0x86]); // GET / http
    socket
        .write_all(&[PREFACE, &settings, &get].concat())
        .unwrap();
    // RST_STREAM with CANCEL on stream 1.
    read_until(&socket, &frame(3, 0, 1, &[0, 0, 0, 8]));
}

#[test]
fn the_metadata_before_a_response_goes_out_at_once() {
    let mut router = Router::new();
    router.bidirectional(CHAT, |call, requests, _| {
        call.send_head();
        for request in requests {
            request?;
        }
        Ok(())
    });
    let server = start(router);
    let channel = channel(&server);
    let call = channel.call(CHAT).deadline(soon());
    let (sending, mut receiving) = call.open().unwrap();
    // The client speaks only after this.
    receiving.headers().unwrap();
    sending.finish();
    assert_eq!(receiving.next_message(), Ok(None));
}

/// A CA, and a certificate of it for `name` with its key, as PEM.
struct Identity {
    ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Identity {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self {
            ca: rcgen::CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (
            params.signed_by(&key, &self.ca).unwrap().pem(),
            key.serialize_pem(),
        )
    }
}

#[test]
fn mutual_tls_lets_in_whom_the_ca_knows() {
    let (identity, stranger) = (Identity::new(), Identity::new());
    let ca = identity.ca.pem();
    let (certificate, key) = identity.issue("localhost");
    let tls =
        ServerTls::from_pem(certificate.as_bytes(), key.as_bytes(), Some(ca.as_bytes())).unwrap();
    let mut router = Router::new();
    router.unary(ECHO, |call, _| {
        Ok(call.peer_certificates().len().to_string())
    });
    let server = Server::builder(router).tls(tls).start(listener()).unwrap();
    let target = format!("localhost:{}", server.local_addr().port());
    let call = |issued: Option<(String, String)>| {
        let issued = issued
            .as_ref()
            .map(|(certificate, key)| (certificate.as_bytes(), key.as_bytes()));
        let tls = ClientTls::from_pem(ca.as_bytes(), issued).unwrap();
        Channel::builder(&target)
            .tls(tls)
            .build()
            .call(ECHO)
            .send(&String::new())
    };
    assert_eq!(call(Some(identity.issue("client"))).unwrap(), "1");
    assert_eq!(
        call(Some(stranger.issue("client"))).unwrap_err().code(),
        Code::Unavailable
    );
    assert_eq!(call(None).unwrap_err().code(), Code::Unavailable);
    // A client that does not know the server's CA does not talk to it either.
    let tls = ClientTls::from_pem(stranger.ca.pem().as_bytes(), None).unwrap();
    let status = Channel::builder(&target)
        .tls(tls)
        .build()
        .call(ECHO)
        .send(&String::new())
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

/// A server with TLS, and a client's session with it that has shaken hands.
fn tls_session(
    builder: ServerBuilder,
) -> (
    Server,
    rustls::StreamOwned<rustls::ClientConnection, TcpStream>,
) {
    let identity = Identity::new();
    let (certificate, key) = identity.issue("localhost");
    let tls = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes(), None).unwrap();
    let server = builder.tls(tls).start(listener()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = "localhost".try_into().unwrap();
    let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(server.local_addr()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream.write_all(&[PREFACE, SETTINGS].concat()).unwrap();
    // The server's SETTINGS: it has understood.
    stream.read_exact(&mut [0; 9]).unwrap();
    (server, stream)
}

#[test]
fn a_client_that_ends_its_tls_session_is_left() {
    let (server, mut stream) = tls_session(Server::builder(echo()));
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    wait_for(|| server.connections() == 0);
}

#[test]
fn octets_behind_the_end_of_a_tls_session_cost_nothing() {
    let (server, mut stream) = tls_session(Server::builder(echo()));
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    let _ = stream.sock.write_all(&[23, 3, 3, 0, 1, 0]);
    // Neither this nor the server's end waits for ever.
    wait_for(|| server.connections() == 0);
}

#[test]
fn a_client_hears_over_tls_why_it_is_left() {
    let keepalive = Keepalive {
        interval: Duration::from_millis(50),
        timeout: Duration::from_millis(50),
        without_calls: true,
    };
    let (_server, mut stream) = tls_session(builder_with(echo(), |config| {
        config.connection.keepalive = Some(keepalive)
    }));
    let mut received = Vec::new();
    // Fails without close_notify.
    stream.read_to_end(&mut received).unwrap();
    let reason = b"the peer does not answer";
    assert!(received.ends_with(reason), "{}", received.escape_ascii());
}

#[test]
fn an_old_connection_is_replaced_without_a_failed_call() {
    let server = start_with(echo(), |config| {
        config.connection.age_max = Some(Duration::from_millis(50))
    });
    let channel = channel(&server);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        channel.call(ECHO).send(&String::new()).unwrap();
    }
}

#[test]
fn a_pool_runs_what_waits_before_it_ends() {
    let pool = WorkerPool::new(1, 10).unwrap();
    let server = Server::builder(echo())
        .executor(Arc::new(pool))
        .start(listener())
        .unwrap();
    assert_eq!(
        channel(&server).call(ECHO).send(&"a".to_owned()).unwrap(),
        "a"
    );
    assert!(server.stop(soon()));
}

#[test]
fn unknown_services_and_methods_are_unimplemented() {
    const SERVICE: Method<String, String> = Method::new("/other.v1.OtherService/Echo");
    const METHOD: Method<String, String> = Method::new("/test.v1.TestService/Other");
    let server = start(echo());
    for (method, what) in [(SERVICE, "service"), (METHOD, "method")] {
        let status = channel(&server)
            .call(method)
            .send(&String::new())
            .unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains(what), "{status}");
    }
}

#[test]
fn handlers_of_cancelled_calls_count_against_the_limit() {
    let (go, going) = mpsc::channel::<()>();
    let going = Mutex::new(going);
    let mut router = echo();
    router.unary(ECHO, move |_, request| {
        let _ = going.lock().unwrap().recv_timeout(soon().remaining());
        Ok(request)
    });
    let server = start_with(router, |config| {
        config.connection.limits.concurrent_streams_max = 2
    });
    let channel = channel(&server);
    // No more than two are open at a time, yet five would be at work.
    let deadline = || Deadline::after(Duration::from_millis(50));
    let codes: Vec<Code> = (0..5)
        .map(|_| {
            channel
                .call(ECHO)
                .deadline(deadline())
                .send(&String::new())
                .unwrap_err()
                .code()
        })
        .collect();
    assert_eq!(codes[..4], [Code::DeadlineExceeded; 4]);
    assert!(
        matches!(codes[4], Code::Unavailable | Code::DeadlineExceeded),
        "{codes:?}"
    );
    let (sending, mut receiving) = channel.call(CHAT).open().unwrap();
    assert_eq!(
        receiving.next_message().unwrap_err().code(),
        Code::Unavailable
    );
    drop((sending, go));
    wait_for(|| channel.call(ECHO).send(&String::new()).is_ok());
}

#[test]
fn a_connection_too_many_waits_until_another_one_ends() {
    let server = start_with(echo(), |config| config.connections_max = 1);
    let first = channel(&server);
    first.call(ECHO).send(&String::new()).unwrap();
    let second = channel(&server);
    let deadline = Deadline::after(Duration::from_millis(100));
    let status = second
        .call(ECHO)
        .deadline(deadline)
        .send(&String::new())
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    drop(first);
    second
        .call(ECHO)
        .deadline(soon())
        .send(&String::new())
        .unwrap();
}
