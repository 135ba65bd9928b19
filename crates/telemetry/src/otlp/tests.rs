//! What is sent again, and what is not. Real collectors are in `tests/it/otlp.rs`.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::{Mutex, mpsc};
use std::thread;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;
use tbd_grpc::proto::google::rpc;
use tbd_grpc::{Code, Router, Server, Status};

use super::*;
use crate::metrics::Registry;
use crate::tracing::resource;

type Answer<S> = Result<<S as Signal>::Response, Status>;

/// A collector over gRPC with prepared answers; then it accepts everything. Hands over what it received.
fn collector<S>(answers: Vec<Answer<S>>) -> (Server, Client, mpsc::Receiver<S::Request>)
where
    S: Signal,
    S::Request: Default + Send + 'static,
    S::Response: Send + 'static,
{
    let (sender, requests) = mpsc::channel();
    let answers = Mutex::new(VecDeque::from(answers));
    let sender = Mutex::new(sender);
    let mut router = Router::new();
    router.unary(S::METHOD, move |call, request| {
        assert_eq!(call.metadata().text("x-tenant"), Some("a"));
        lock(&sender).send(request).expect("a test that listens");
        lock(&answers)
            .pop_front()
            .unwrap_or_else(|| Ok(S::Response::default()))
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::builder(router).start(listener).unwrap();
    let config = OtlpConfig {
        is_grpc: true,
        url: format!("http://{}", server.local_addr()),
        headers: vec![("X-Tenant".to_owned(), "a".to_owned())],
        ca_file: None,
    };
    (server, Client::new(&config).unwrap(), requests)
}

fn exhausted(retry: Option<Duration>) -> Status {
    let status = Status::new(Code::ResourceExhausted, "too much");
    match retry {
        None => status,
        Some(retry) => status.with_detail(&rpc::RetryInfo {
            retry_delay: retry.try_into().ok(),
        }),
    }
}

#[test]
fn headers_do_not_show() {
    let config = OtlpConfig {
        is_grpc: false,
        url: "http://c:4318".to_owned(),
        headers: vec![("authorization".to_owned(), "secret".to_owned())],
        ca_file: None,
    };
    assert!(!format!("{config:?}").contains("secret"));
}

#[test]
fn failures_that_may_pass_are_sent_again_when_the_collector_says() {
    let delay = Duration::from_millis(1);
    let (_server, client, requests) = collector::<Traces>(vec![
        Err(exhausted(Some(delay))),
        Err(Status::new(Code::Unavailable, "")),
        Err(exhausted(None)),
    ]);
    let error = client.export::<Traces>(&Default::default()).unwrap_err();
    assert_eq!(error, "RESOURCE_EXHAUSTED: too much");
    assert_eq!(requests.try_iter().count(), 3);
}

#[test]
fn a_collector_that_asks_for_no_pause_gets_one() {
    let never = || Err(exhausted(Some(Duration::ZERO)));
    let (_server, client, requests) =
        collector::<Traces>(std::iter::repeat_with(never).take(10_000).collect());
    let exported = thread::scope(|scope| {
        let export = scope.spawn(|| client.export::<Traces>(&Default::default()));
        thread::sleep(Duration::from_millis(300));
        client.stop_retries();
        export.join().unwrap()
    });
    assert!(exported.is_err());
    let count = requests.try_iter().count();
    assert!(count < 5, "{count} requests");
}

#[test]
fn a_part_that_is_refused_is_not_sent_again() {
    let partial = ExportTracePartialSuccess {
        rejected_spans: 3,
        error_message: "too old".to_owned(),
    };
    let answer = ExportTraceServiceResponse {
        partial_success: Some(partial),
    };
    let (_server, client, requests) = collector::<Traces>(vec![Ok(answer)]);
    let partial = client.export::<Traces>(&Default::default()).unwrap();
    assert_eq!(partial, Partial::new(3, "too old".to_owned()));
    assert_eq!(requests.try_iter().count(), 1);
}

#[test]
fn at_the_end_of_the_program_nothing_is_sent_again() {
    let (_server, client, requests) =
        collector::<Traces>(vec![Err(exhausted(Some(Duration::from_secs(9))))]);
    client.stop_retries();
    assert!(client.export::<Traces>(&Default::default()).is_err());
    assert_eq!(requests.try_iter().count(), 1);
}

#[test]
fn at_the_end_of_the_program_what_waits_is_sent_a_last_time() {
    let later = Err(exhausted(Some(EXPORT_TIMEOUT / 2)));
    let (_server, client, requests) = collector::<Traces>(vec![later]);
    let start = Instant::now();
    let exported = thread::scope(|scope| {
        let export = scope.spawn(|| client.export::<Traces>(&Default::default()));
        requests.recv_timeout(Duration::from_secs(20)).unwrap();
        client.stop_retries();
        export.join().unwrap()
    });
    assert_eq!(exported, Ok(Partial::default()));
    assert!(start.elapsed() < EXPORT_TIMEOUT / 2, "at once");
}

#[test]
fn headers_that_cannot_be_sent_are_refused_at_the_start() {
    for is_grpc in [true, false] {
        for (name, value) in [("a b", "c"), ("a", "c\nd")] {
            let config = OtlpConfig {
                is_grpc,
                url: "http://127.0.0.1:9".to_owned(),
                headers: vec![(name.to_owned(), value.to_owned())],
                ca_file: None,
            };
            assert!(Client::new(&config).is_err(), "{name:?}: {value:?}");
        }
    }
}

#[test]
fn metrics_are_exported_periodically_and_once_more_at_the_end() {
    let (_server, client, requests) = collector::<Metrics>(Vec::new());
    let registry = Registry::new();
    let seen = registry.counter("seen_total", "Seen.");
    let process = resource("tbd-test", "1", &[]);
    let long = Duration::from_secs(3600);
    let often = Duration::from_millis(1);
    let export = MetricsExport::start(registry.clone(), &process, client.clone(), often).unwrap();
    for _ in 0..2 {
        requests.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    assert!(export.shutdown(Deadline::after(Duration::from_secs(20))));

    let export = MetricsExport::start(registry, &process, client, long).unwrap();
    seen.inc_by(7);
    assert!(export.shutdown(Deadline::after(Duration::from_secs(20))));
    let last = requests.try_iter().last().unwrap();
    let last = &last.resource_metrics[0];
    assert!(format!("{:?}", last.resource).contains("service.instance.id"));
    let metrics = &last.scope_metrics[0].metrics;
    let seen = metrics.iter().find(|metric| metric.name == "seen_total");
    assert!(format!("{seen:?}").contains("AsDouble(7.0)"), "{seen:?}");
}

#[test]
fn one_warning_a_minute() {
    let limit = WarningLimit::default();
    assert!(limit.is_due());
    assert!(!limit.is_due());
}
