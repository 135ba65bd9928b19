//! Export to a collector: both protocols, with and without TLS, and collectors that are away or silent.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::support::certificates::{Authority, Validity};
use crate::support::eventually;
use crate::support::http::get;
use crate::support::observers::Collector;
use crate::support::program::{Program, Stack, free_port};

const SOON: Duration = Duration::from_secs(60);

/// A stack whose programs send spans to `endpoint`.
fn exporting(endpoint: &str) -> Stack {
    Stack::new()
        .set("OTEL_SDK_DISABLED", "false")
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
}

/// Sends a request that begins a trace. Returns the trace's id.
fn traced_request(api: &Program) -> String {
    let trace_id = Uuid::now_v7().simple().to_string();
    let response = get("/v1/orders")
        .header("traceparent", format!("00-{trace_id}-00f067aa0ba902b7-01"))
        .send(&api.address());
    assert_eq!(response.status, 200);
    trace_id
}

/// Settings of a collector with TLS: a certificate of `authority` for 127.0.0.1.
fn tls(authority: &Authority) -> Vec<String> {
    let files = authority.issue("127.0.0.1", Validity::Now);
    let settings = ["grpc", "http"].into_iter().flat_map(|protocol| {
        let tls = format!("receivers.otlp.protocols.{protocol}.tls");
        let cert = format!("{tls}.cert_file={}", files.certificate.display());
        [cert, format!("{tls}.key_file={}", files.key.display())]
    });
    settings.collect()
}

#[test]
fn spans_arrive_over_both_protocols_with_tls_and_only_at_a_trusted_collector() {
    let authority = Authority::new("collector");
    let ca_file = authority.ca_file().display().to_string();
    let collector = Collector::with(&tls(&authority));
    for (address, protocol) in [
        (collector.grpc_address(), "grpc"),
        (collector.http_address(), "http/protobuf"),
    ] {
        let stack = exporting(&format!("https://{address}"))
            .set("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .set("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca_file);
        let api = stack.api();
        collector.wait_for(&traced_request(&api), &["GET /v1/orders"]);
        drop(api);

        // The system's authorities did not sign this certificate.
        let stack = stack.set("OTEL_EXPORTER_OTLP_CERTIFICATE", "");
        let api = stack.api();
        traced_request(&api);
        eventually(SOON, "the spans to be dropped", || {
            (api.metric("otel_spans_dropped_total")? >= 1.0).then_some(())
        });
        assert_eq!(api.metric("otel_spans_exported_total"), Some(0.0));
    }
}

#[test]
fn spans_wait_for_a_collector_that_restarts() {
    let collector = Collector::start();
    // A bare address speaks gRPC, and a URL HTTP.
    let http = format!("http://{}", collector.http_address());
    for endpoint in [collector.grpc_address(), http] {
        let stack = exporting(&endpoint);
        let api = stack.api();
        collector.wait_for(&traced_request(&api), &["GET /v1/orders"]);
        collector.stop();
        let meanwhile = traced_request(&api);
        collector.resume();
        collector.wait_for(&meanwhile, &["GET /v1/orders"]);
        assert_eq!(api.metric("otel_spans_dropped_total"), Some(0.0));
    }
}

#[test]
fn a_collector_that_is_away_or_silent_slows_no_request_and_what_it_loses_is_counted() {
    // The kernel accepts connections, and nothing ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("its address");
    let away = free_port();
    for endpoint in [
        format!("http://{silent}"),
        format!("{silent}"),
        format!("127.0.0.1:{away}"),
    ] {
        let stack = exporting(&endpoint);
        let api = stack.api();
        for _ in 0..50 {
            let start = Instant::now();
            api.accepted_order();
            // An export may take 10 s; nothing waits for it.
            assert!(start.elapsed() < Duration::from_secs(4), "{endpoint}");
        }
        eventually(SOON, "the losses to be counted", || {
            let dropped = api.metric("otel_spans_dropped_total")?;
            (dropped >= 50.0).then_some(())
        });
        assert_eq!(api.metric("otel_spans_exported_total"), Some(0.0));
    }
}
