//! The queries of dashboards and alerts, answered by a real Prometheus that watches real processes.

use std::time::Duration;

use serde_json::Value;

use crate::support::http::get;
use crate::support::observers::{Collector, Prometheus};
use crate::support::program::{Program, Stack, free_port, new_order};
use crate::support::topic::{self, Record};
use crate::support::{dashboards, eventually, read, unique};

const SOON: Duration = Duration::from_secs(60);

/// Every `expr` of a dashboard, with its panel's title.
fn questions(dashboard: &Value) -> Vec<(String, String)> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let title = |value: &Value| value["title"].as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for panel in array(&dashboard["panels"]) {
        for target in array(&panel["targets"]) {
            let query = target["expr"].as_str().expect("an expression");
            let name = format!("{}: {}", title(dashboard), title(&panel));
            found.push((name, query.replace("$__rate_interval", "30s")));
        }
    }
    found
}

/// One of every counted event, failures included.
fn traffic(stack: &Stack, api: &Program) {
    let key = unique("key");
    for _ in 0..5 {
        api.accepted_order();
        assert_eq!(api.order(&key, 1).status, 202, "at first, then replayed");
        assert_eq!(get("/v1/orders/x").send(&api.address()).status, 400);
    }
    topic::write(
        &stack.kafka,
        &stack.topics.created,
        &[Record::new("k", Some("no event"))],
    );
    stack.execute("ALTER TABLE orders RENAME TO away");
    assert_eq!(get("/v1/orders").send(&api.address()).status, 503);
    stack.execute("ALTER TABLE away RENAME TO orders");
}

#[test]
fn every_panel_and_every_alert_gets_an_answer() {
    let collector = Collector::start();
    let stack = Stack::new()
        .set("OTEL_SDK_DISABLED", "false")
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url());
    let (api, worker) = (stack.api(), stack.worker());
    let prometheus = Prometheus::start(&[
        ("api", vec![api.address()]),
        ("worker", vec![worker.address()]),
        ("spans", vec![collector.metrics_address()]),
    ]);
    // A rate needs an earlier sample.
    eventually(SOON, "a first look at both", || {
        let seen = prometheus.query(r#"count(http_threads{job=~"api|worker"})"#);
        (seen == Ok(vec![2.0])).then_some(())
    });
    traffic(&stack, &api);
    // The collector's counters start at their first count, so only a second one makes a rate.
    eventually(SOON, "the spans to be counted", || {
        let seen = prometheus.query("count(traces_span_metrics_calls_total)");
        (seen != Ok(Vec::new())).then_some(())
    });
    traffic(&stack, &api);

    let mut asked = 0;
    for file in dashboards() {
        let dashboard: Value = serde_json::from_str(&read(&file)).expect("JSON");
        let questions = questions(&dashboard);
        assert!(!questions.is_empty(), "{} asks for nothing", file.display());
        for (panel, query) in questions {
            asked += 1;
            eventually(SOON, &format!("{panel} to show something: {query}"), || {
                let values = prometheus.query(&query);
                let values = values.unwrap_or_else(|error| panic!("{panel}: {error}: {query}"));
                (!values.is_empty()).then_some(())
            });
        }
    }
    assert!(asked > 40, "{asked}");

    let alerts = prometheus.alerts();
    assert!(alerts.len() > 8, "{alerts:?}");
    for (name, query, health) in alerts {
        assert_eq!(health, "ok", "{name}");
        // Not whether the alert fires, only that it has data.
        let mut judged = query;
        for operator in ["==", ">=", ">", "<"] {
            judged = judged.replace(&format!(" {operator} "), &format!(" {operator} bool "));
        }
        let what = format!("{name} to have something to judge by: {judged}");
        eventually(SOON, &what, || {
            let values = prometheus.query(&judged);
            let values = values.unwrap_or_else(|error| panic!("{name}: {error}: {judged}"));
            (!values.is_empty()).then_some(())
        });
    }

    for (query, least) in [
        (
            r#"max(increase(orders_dead_lettered_total{reason="undecodable"}[1m]))"#,
            0.5,
        ),
        ("sum(order_end_to_end_seconds_count)", 6.0),
        ("sum(order_processing_duration_seconds_count)", 6.0),
        (
            r#"ALERTS{alertname="DeadLetters", alertstate="firing"}"#,
            1.0,
        ),
        (
            r#"sum(traces_span_metrics_calls_total{service_name="tbd-worker"})"#,
            6.0,
        ),
    ] {
        eventually(SOON, query, || {
            let values = prometheus.query(query).expect(query);
            values
                .first()
                .is_some_and(|value| *value >= least)
                .then_some(())
        });
    }
}

#[test]
fn an_instance_that_is_gone_raises_an_alert() {
    let stack = Stack::new();
    let mut api = stack.api();
    let nobody = format!("127.0.0.1:{}", free_port());
    let prometheus = Prometheus::start(&[("api", vec![api.address()]), ("worker", vec![nobody])]);
    let pending = |job: &str| {
        let query = format!(r#"ALERTS{{alertname="NoInstance", job="{job}"}}"#);
        prometheus.query(&query).expect(&query).len()
    };
    eventually(SOON, "the worker alone to be missed", || {
        ((pending("worker"), pending("api")) == (1, 0)).then_some(())
    });
    assert_eq!(
        new_order(&unique("key"), 1).send(&api.address()).status,
        202
    );
    api.kill();
    eventually(SOON, "the api to be missed", || {
        (pending("api") == 1).then_some(())
    });
}
