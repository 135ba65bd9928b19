use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prost::Message;

use super::*;
use crate::metrics::{Registry, TracingMetrics};
use crate::otlp::OtlpConfig;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest as ExportRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue as ProtoKeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::trace::v1::Span;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn metrics() -> TracingMetrics {
    TracingMetrics::new(&Registry::new())
}

fn tracing(url: Option<String>, metrics: &TracingMetrics) -> Tracing {
    let client = |url| {
        Client::new(&OtlpConfig {
            is_grpc: false,
            url,
            headers: Vec::new(),
            ca_file: None,
        })
    };
    let attributes = [("host.name".to_owned(), "h".to_owned())];
    let config = TracingConfig {
        resource: resource("tbd-test", "1.2.3", &attributes),
        version: "1.2.3".to_owned(),
        collector: url.map(|url| client(url).unwrap()),
        sampler: sampler("parentbased_always_on", 1.0).unwrap(),
    };
    Tracing::start(config, metrics)
}

/// A tracer of the test's own: all tests share the process's tracer.
fn span_of(
    tracing: &Tracing,
    parent: &Context,
    kind: SpanKind,
    attributes: impl Attributes,
    links: Vec<SpanContext>,
) -> SpanGuard {
    start(
        &tracing.tracer(),
        parent,
        "test".into(),
        kind,
        attributes,
        links,
    )
    .into_current()
}

/// A collector that accepts everything, one connection after another, until its test drops it. It
/// hands over what it received.
struct Collector {
    requests: mpsc::Receiver<(String, ExportRequest)>,
    address: String,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, requests) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if !serve(stream.unwrap(), status, &sender) {
                    return;
                }
            }
        });
        Self {
            requests,
            address,
            thread: Some(thread),
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // An empty connection ends the thread.
        drop(TcpStream::connect(&self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Serves one connection; `false` if it carried no bytes.
fn serve(stream: TcpStream, status: &str, sender: &mpsc::Sender<(String, ExportRequest)>) -> bool {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    let mut has_served = false;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return has_served;
            }
        }
        let length = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            })
            .unwrap();
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        sender
            .send((head, ExportRequest::decode(&body[..]).unwrap()))
            .unwrap();
        writer
            .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
            .unwrap();
        has_served = true;
    }
}

fn spans(request: &ExportRequest) -> &[Span] {
    &request.resource_spans[0].scope_spans[0].spans
}

fn texts(attributes: &[ProtoKeyValue]) -> HashMap<&str, String> {
    attributes
        .iter()
        .map(|attribute| {
            let value = match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
                Any::StringValue(text) => text.clone(),
                other => format!("{other:?}"),
            };
            (attribute.key.as_str(), value)
        })
        .collect()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

#[test]
fn a_collector_gets_spans_with_parents_links_attributes_and_failures() {
    let collector = Collector::start("200 OK");
    let metrics = metrics();
    let tracing = tracing(Some(collector.url()), &metrics);
    let remote = extract(Some(TRACEPARENT), Some("vendor=1"));
    let link = span_of(&tracing, &Context::new(), SpanKind::Producer, [], vec![]).span_context();

    let server = span_of(&tracing, &remote, SpanKind::Server, [], vec![]);
    server.rename("GET /v1/orders/{id}");
    let client = span_of(
        &tracing,
        &server.context(),
        SpanKind::Client,
        || vec![KeyValue::new(semconv::DB_SYSTEM_NAME, semconv::POSTGRESQL)],
        vec![link.clone()],
    );
    client.set("rows", 3);
    client.fail("57014", "the statement took too long");
    drop(client);
    drop(server);
    assert!(tracing.shutdown(soon()));

    let (head, request) = collector.requests.recv().unwrap();
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    assert!(
        head.contains("content-type: application/x-protobuf\r\n"),
        "{head}"
    );
    let resource = texts(
        &request.resource_spans[0]
            .resource
            .as_ref()
            .unwrap()
            .attributes,
    );
    assert_eq!(resource["service.name"], "tbd-test");
    assert_eq!(resource["service.version"], "1.2.3");
    assert_eq!(resource["host.name"], "h");
    assert_eq!(resource["service.instance.id"].len(), 36);

    let [producer, client, server] = spans(&request) else {
        panic!("three spans, not {}", spans(&request).len());
    };
    assert_eq!((producer.kind, server.kind, client.kind), (4, 2, 3));
    assert_eq!(producer.parent_span_id, Vec::<u8>::new());
    assert_eq!(server.name, "GET /v1/orders/{id}");
    assert_eq!(
        server.trace_id,
        0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes()
    );
    assert_eq!(
        server.parent_span_id,
        0xb7ad_6b71_6920_3331_u64.to_be_bytes()
    );
    assert_eq!(server.trace_state, "vendor=1");
    assert_eq!(server.flags, 0x301, "sampled, with a remote parent");
    assert_eq!(server.status.as_ref().map_or(0, |status| status.code), 0);
    assert_eq!(
        (&client.trace_id, &client.parent_span_id),
        (&server.trace_id, &server.span_id)
    );
    assert!(client.start_time_unix_nano >= server.start_time_unix_nano);
    assert!(client.end_time_unix_nano <= server.end_time_unix_nano);
    let attributes = texts(&client.attributes);
    assert_eq!(attributes["db.system.name"], "postgresql");
    assert_eq!(attributes["rows"], "IntValue(3)");
    assert_eq!(attributes["error.type"], "57014");
    let status = client.status.as_ref().unwrap();
    assert_eq!(
        (status.code, status.message.as_str()),
        (2, "the statement took too long")
    );
    assert_eq!(client.events[0].name, "exception");
    assert_eq!(client.links[0].span_id, link.span_id().to_bytes());
    assert_eq!(metrics.exported.get(), 3);
    assert_eq!(metrics.dropped.get(), 0);
}

#[test]
fn many_spans_go_in_batches_over_one_connection() {
    let collector = Collector::start("200 OK");
    let metrics = metrics();
    let tracing = tracing(Some(collector.url()), &metrics);
    for _ in 0..1200 {
        span_of(&tracing, &Context::new(), SpanKind::Internal, [], vec![]);
    }
    assert!(tracing.shutdown(soon()));
    assert_eq!(metrics.exported.get(), 1200);
    let sizes: Vec<usize> = collector
        .requests
        .try_iter()
        .map(|(_, request)| spans(&request).len())
        .collect();
    assert!(sizes.iter().all(|size| *size <= 512), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 1200);
}

#[test]
fn a_collector_that_says_no_costs_the_batch_alone() {
    let collector = Collector::start("503 Service Unavailable");
    let metrics = metrics();
    let tracing = tracing(Some(collector.url()), &metrics);
    drop(span_of(
        &tracing,
        &Context::new(),
        SpanKind::Internal,
        [],
        vec![],
    ));
    assert!(tracing.shutdown(soon()));
    assert_eq!(metrics.dropped.get(), 1);
    assert_eq!(metrics.exported.get(), 0);
}

/// Ends more spans than the queue holds. Returns how long that took.
fn flood(tracing: &Tracing) -> Duration {
    let start = Instant::now();
    for _ in 0..2 * export::QUEUE_SPANS_MAX {
        drop(span_of(
            tracing,
            &Context::new(),
            SpanKind::Internal,
            [],
            vec![],
        ));
    }
    start.elapsed()
}

#[test]
fn a_collector_that_refuses_blocks_nobody_and_fills_no_memory() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let metrics = metrics();
    let url = format!("http://127.0.0.1:{port}");
    let tracing = tracing(Some(url), &metrics);
    let longest = flood(&tracing);
    assert!(
        longest < Duration::from_secs(1),
        "one span took {longest:?}"
    );
    assert!(metrics.dropped.get() >= export::QUEUE_SPANS_MAX as u64 - 512);
    assert!(tracing.shutdown(soon()));
    assert_eq!(metrics.dropped.get(), 2 * export::QUEUE_SPANS_MAX as u64);
}

#[test]
fn a_collector_that_hangs_blocks_nobody_and_shutdown_keeps_its_deadline() {
    // The kernel accepts connections, and nobody answers them.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = metrics();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tracing = tracing(Some(url), &metrics);
    let longest = flood(&tracing);
    assert!(
        longest < Duration::from_secs(1),
        "one span took {longest:?}"
    );
    let start = Instant::now();
    tracing.shutdown(Deadline::after(Duration::from_millis(300)));
    let time = start.elapsed();
    assert!(time < crate::otlp::EXPORT_TIMEOUT, "shutdown took {time:?}");
}

#[test]
fn a_span_that_a_panic_ends_has_failed() {
    let collector = Collector::start("200 OK");
    let metrics = metrics();
    let tracing = tracing(Some(collector.url()), &metrics);
    let tracer = tracing.tracer();
    let panicked = std::thread::spawn(move || {
        let parent = Context::new();
        let _span = start(
            &tracer,
            &parent,
            "test".into(),
            SpanKind::Internal,
            [],
            vec![],
        );
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert!(tracing.shutdown(soon()));
    let (_, request) = collector.requests.recv().unwrap();
    assert_eq!(spans(&request)[0].status.as_ref().unwrap().code, 2);
}

#[test]
fn without_export_ids_exist_and_attributes_are_not_built() {
    let tracing = tracing(None, &metrics());
    let unbuilt = || -> Vec<KeyValue> { panic!("nobody records this span") };
    let span = span_of(&tracing, &Context::new(), SpanKind::Server, unbuilt, vec![]);
    assert!(!span.is_recording());
    assert_eq!((span.trace_id().len(), span.span_id().len()), (32, 16));
    assert_ne!(span.trace_id(), "0".repeat(32));
    assert_eq!(current_ids(), Some((span.trace_id(), span.span_id())));
    let inside = span_of(
        &tracing,
        &Context::current(),
        SpanKind::Client,
        unbuilt,
        vec![],
    );
    assert_eq!(inside.trace_id(), span.trace_id());
}

#[test]
fn the_callers_decision_not_to_sample_is_kept() {
    let metrics = metrics();
    let tracing = tracing(Some("http://127.0.0.1:9".to_owned()), &metrics);
    let unsampled = TRACEPARENT.replace("-01", "-00");
    let span = span_of(
        &tracing,
        &extract(Some(&*unsampled), None),
        SpanKind::Server,
        [],
        vec![],
    );
    assert!(!span.is_recording());
    assert!(inject(&span.context()).unwrap().ends_with("-00"));
    drop(span);
    assert!(tracing.shutdown(soon()));
    assert_eq!(metrics.dropped.get(), 0);
}

#[test]
fn the_current_span_is_the_innermost_one_of_this_thread() {
    assert_eq!(current_ids(), None);
    let outer = span("outer", SpanKind::Server, []);
    {
        let inner = span("inner", SpanKind::Client, []);
        assert_eq!(inner.trace_id(), outer.trace_id());
        assert_eq!(current_ids().unwrap().1, inner.span_id());
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(current_ids(), None));
        });
    }
    assert_eq!(current_ids().unwrap().1, outer.span_id());
    drop(outer);
    assert_eq!(current_ids(), None);
}

#[test]
fn work_on_another_thread_joins_the_trace_it_was_given() {
    let server = span("server", SpanKind::Server, []);
    let (context, trace_id) = (server.context(), server.trace_id());
    std::thread::spawn(move || {
        let span = span_in(&context, "elsewhere", SpanKind::Internal, [], vec![]);
        assert_eq!(span.trace_id(), trace_id);
    })
    .join()
    .unwrap();
}

#[test]
fn work_that_nobody_asked_for_has_a_trace_of_its_own_that_is_not_recorded() {
    let metrics = metrics();
    let url = Some("http://127.0.0.1:9".to_owned());
    let tracing = tracing(url, &metrics);
    let span = |parent: Context| span_of(&tracing, &parent, SpanKind::Server, [], vec![]);
    let (one, other) = (span(unsampled()), span(unsampled()));
    assert!(!one.is_recording());
    assert_ne!(one.trace_id(), other.trace_id());
    assert!(one.span_context().is_valid());
    assert!(span(Context::new()).is_recording());
}

#[test]
fn a_long_attribute_is_cut_at_a_character() {
    let long = bounded(Value::from("é".repeat(2000)));
    assert_eq!(long.as_str().len(), 1024);
    let odd = bounded(Value::from(format!("x{}", "é".repeat(2000))));
    assert_eq!(odd.as_str().len(), 1023);
    assert_eq!(bounded(Value::from(7)), Value::from(7));
}
