//! Conformance: h2spec's cases for HTTP/2 and HPACK, and gRPC's interoperability suite against grpc-go and, for the cases
//! with compression, gRPC's Python library; in both directions.
//!
//! The tools come from `scripts/fetch`, which builds or installs them once.

#![cfg(feature = "tls")]

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tbd_grpc::tls::{ClientTls, ServerTls};
use tbd_grpc::{Channel, Server};

#[path = "../examples/interop/mod.rs"]
mod interop;
use interop::{cases, service};

/// The cases that grpc-go has. Its client and its server leave the two with compression out.
const CASES_OF_GO: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
];

/// What `scripts/fetch` has fetched.
struct Tools {
    /// A folder with h2spec and grpc-go's programs.
    bin: PathBuf,
    /// A Python with gRPC's library.
    python: PathBuf,
}

fn tools() -> &'static Tools {
    static TOOLS: OnceLock<Tools> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let script =
            "set -euo pipefail; source scripts/lib.sh; scripts/fetch h2spec grpc-interop grpcio >&2
            printf '%s\n' \"$CACHE/bin\" \"$GRPCIO_HOME/bin/python\"";
        let mut command = Command::new("bash");
        let output = command
            .args(["-c", script])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "scripts/fetch failed");
        let paths = String::from_utf8(output.stdout).unwrap();
        let (bin, python) = paths.trim().split_once('\n').unwrap();
        Tools {
            bin: bin.into(),
            python: python.into(),
        }
    })
}

/// gRPC's Python library, as client or as server.
fn grpcio(arguments: &[&str]) -> Command {
    let mut command = Command::new(&tools().python);
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpcio/compressed.py"))
        .args(arguments);
    command
}

/// A certificate for localhost and its key, as PEM. It is its own CA.
fn certificate() -> (String, String) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let signed = rcgen::generate_simple_self_signed(names).unwrap();
    (signed.cert.pem(), signed.signing_key.serialize_pem())
}

fn start(tls: Option<ServerTls>) -> Server {
    let mut builder = Server::builder(service::router());
    if let Some(tls) = tls {
        builder = builder.tls(tls);
    }
    builder
        .start(TcpListener::bind("127.0.0.1:0").unwrap())
        .unwrap()
}

/// Runs h2spec, which has to pass all of its cases, and leaves its report in the target folder.
fn run_h2spec(server: &Server, name: &str, more: &[&str]) {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("h2spec-{name}.xml"));
    let port = server.local_addr().port().to_string();
    let mut command = Command::new(tools().bin.join("h2spec"));
    command
        .args([
            "--host",
            "127.0.0.1",
            "--port",
            &port,
            "--timeout",
            "10",
            "--junit-report",
        ])
        .arg(&report)
        .args(more);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text
        .lines()
        .rev()
        .find(|line| line.contains(" passed, "))
        .unwrap_or_default();
    eprintln!("h2spec, {name}: {summary} ({})", report.display());
    let total: usize = summary
        .split(' ')
        .next()
        .and_then(|total| total.parse().ok())
        .unwrap_or(0);
    assert!(total >= 145, "{text}");
    assert_eq!(
        summary,
        format!("{total} tests, {total} passed, 0 skipped, 0 failed"),
        "{text}"
    );
}

#[test]
fn every_case_of_h2spec_passes() {
    run_h2spec(&start(None), "cleartext", &[]);
}

#[test]
fn every_case_of_h2spec_passes_over_tls() {
    let (certificate, key) = certificate();
    let tls = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes(), None).unwrap();
    run_h2spec(&start(Some(tls)), "tls", &["--tls", "--insecure"]);
}

#[test]
fn the_client_of_grpc_go_is_content_with_our_server() {
    let server = start(None);
    let port = server.local_addr().port().to_string();
    for case in CASES_OF_GO {
        let output = Command::new(tools().bin.join("grpc-interop-client"))
            .args([
                "-server_host",
                "127.0.0.1",
                "-server_port",
                &port,
                "-test_case",
                case,
            ])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{case}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_client_of_the_c_core_compresses_with_our_server() {
    let server = start(None);
    let output = grpcio(&["client", &server.local_addr().port().to_string()])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn our_client_compresses_with_the_server_of_the_c_core() {
    let mut command = grpcio(&["server"]);
    let mut server = Running(
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut port = String::new();
    BufReader::new(server.0.stdout.as_mut().unwrap())
        .read_line(&mut port)
        .unwrap();
    let channel = Channel::builder(&format!("127.0.0.1:{}", port.trim())).build();
    cases::server_compressed_unary(&channel).unwrap();
    // A request that this server could not unpack would be refused.
    let request = cases::large_request();
    channel
        .call(interop::UNARY_CALL)
        .gzip()
        .send(&request)
        .unwrap();
}

/// Ends the process with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn our_client_is_content_with_the_server_of_grpc_go() {
    // A port that was free a moment ago: the server does not tell which one it took.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server = Command::new(tools().bin.join("grpc-interop-server"))
        .args(["-port", &port.to_string()])
        .spawn();
    let _server = Running(server.unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            Instant::now() < deadline,
            "grpc-go's server does not listen"
        );
        std::thread::yield_now();
    }
    let channel = Channel::builder(&format!("127.0.0.1:{port}")).build();
    for (name, case) in cases::CASES {
        if CASES_OF_GO.contains(&name) {
            case(&channel).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn our_client_and_our_server_are_content_with_each_other() {
    let (certificate, key) = certificate();
    let server_tls = ServerTls::from_pem(certificate.as_bytes(), key.as_bytes(), None).unwrap();
    let client_tls = ClientTls::from_pem(certificate.as_bytes(), None).unwrap();
    let (plain, secure) = (start(None), start(Some(server_tls)));
    let channels = [
        Channel::builder(&plain.local_addr().to_string()).build(),
        Channel::builder(&format!("localhost:{}", secure.local_addr().port()))
            .tls(client_tls)
            .build(),
    ];
    for channel in &channels {
        for (name, case) in cases::CASES {
            case(channel).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}
