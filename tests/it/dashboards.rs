//! The queries of dashboards and alerts, answered by a real Prometheus that watches real processes.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tbd_grpc::Channel;

use crate::orders_client::create_order;
use crate::support::http::get;
use crate::support::observers::{Collector, Prometheus};
use crate::support::program::{Program, Stack, free_port, new_order};
use crate::support::services::Site;
use crate::support::topic::{self, Record};
use crate::support::{dashboards, eventually, read, unique};

const SOON: Duration = Duration::from_secs(60);

/// Grafana's `$__rate_interval` of a panel that shows a quarter of an hour: four times the data source's `timeInterval`.
fn rate_interval() -> String {
    let sources = read("docker/grafana/provisioning/datasources/datasources.yaml");
    let (_, rest) = sources.split_once("timeInterval: ").expect("timeInterval");
    let (seconds, _) = rest.split_once('s').expect("seconds");
    format!("{}s", 4 * seconds.parse::<u32>().expect("a number"))
}

/// The panels of all dashboards. Each query is there once for each source of metrics to choose.
fn panels() -> Vec<Panel> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let title = |value: &Value| value["title"].as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for file in dashboards() {
        let dashboard: Value = serde_json::from_str(&read(&file)).expect("JSON");
        let sources = array(&dashboard["templating"]["list"][0]["options"]);
        assert_eq!(sources.len(), 2, "scraped, and by OTLP");
        let queries = |target: &Value| -> BTreeSet<String> {
            let query = target["expr"].as_str().expect("an expression");
            let query = query.replace("$__rate_interval", &rate_interval());
            let source = |it: &Value| it["value"].as_str().expect("a pattern").to_owned();
            let of = |it: &Value| query.replace("$source", &source(it));
            sources.iter().map(of).collect()
        };
        for panel in array(&dashboard["panels"]) {
            found.push(Panel {
                name: format!("{}: {}", title(&dashboard), title(&panel)),
                queries: array(&panel["targets"]).iter().flat_map(queries).collect(),
                says_when_empty: panel["fieldConfig"]["defaults"]["noValue"].is_string(),
            });
        }
    }
    found.retain(|panel| !panel.queries.is_empty()); // a heading asks for nothing
    found
}

struct Panel {
    name: String,
    queries: Vec<String>,
    /// Whether it has a text for the case without data, in place of "No data".
    says_when_empty: bool,
}

/// Waits until every panel has data or says why it has none.
fn no_panel_is_without_data(prometheus: &Prometheus) {
    for panel in panels().iter().filter(|panel| !panel.says_when_empty) {
        eventually(SOON, &format!("{} to show something", panel.name), || {
            // A mean of nothing is NaN, which Grafana draws as a gap.
            let series = |query: &String| prometheus.query(&format!("count({query})"));
            let has_data = |query| series(query).is_ok_and(|count| !count.is_empty());
            panel.queries.iter().any(has_data).then_some(())
        });
    }
}

/// One of every counted event, failures included.
fn traffic(stack: &Stack, api: &Program) {
    let key = unique("key");
    let channel = Channel::builder(&format!("127.0.0.1:{}", api.grpc_port())).build();
    create_order(&channel, &unique("key")).expect("an order by gRPC");
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

/// Waits until every query of every panel has a value. A quantile of no request is NaN, so this needs traffic.
fn every_query_has_a_value(prometheus: &Prometheus) {
    let mut asked = 0;
    for Panel { name, queries, .. } in panels() {
        for query in queries {
            asked += 1;
            eventually(SOON, &format!("{name} to show something: {query}"), || {
                let values = prometheus.query(&query);
                let values = values.unwrap_or_else(|error| panic!("{name}: {error}: {query}"));
                (!values.is_empty()).then_some(())
            });
        }
    }
    assert!(asked > 40, "{asked}");
}

fn every_alert_has_something_to_judge_by(prometheus: &Prometheus) {
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
}

/// Waits until both ways show two apis that create orders, and no third. The second gets orders meanwhile; returns their number.
fn there_are_two_apis(prometheus: &Prometheus, second: &Program) -> u32 {
    let mut orders = 0;
    for source in ["", "otlp"] {
        let labels = format!(r#"source="{source}", job="api""#);
        let count = format!("count(tbd_build_info{{{labels}}})");
        let window = rate_interval();
        let rates = format!("sum by (instance) (rate(orders_created_total{{{labels}}}[{window}]))");
        eventually(SOON, &format!("two apis: {labels}"), || {
            // Refused while a round of the traffic has taken the table away.
            orders += u32::from(second.order(&unique("key"), 1299).status == 202);
            let rates = prometheus.query(&rates).expect("rates");
            let both_create = rates.len() == 2 && rates.iter().all(|rate| *rate > 0.0);
            (prometheus.query(&count) == Ok(vec![2.0]) && both_create).then_some(())
        });
    }
    orders
}

#[test]
fn every_panel_and_every_alert_gets_an_answer_also_after_a_restart_of_one_api_of_two() {
    let collector = Collector::start();
    let exporting = |stack: Stack| {
        stack
            .set("OTEL_SDK_DISABLED", "false")
            .set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.grpc_address())
            .set("OTEL_METRICS_EXPORTER", "otlp")
            .set("OTEL_METRIC_EXPORT_INTERVAL", "1000")
    };
    let stack = exporting(Stack::new());
    let (api, mut second, worker) = (stack.api(), stack.api(), stack.worker());
    let mut site = Site::new(&[]);
    site.stack = exporting(site.stack);
    let saga_worker = site.stack.worker();
    let prometheus = Prometheus::start(&[
        ("api", vec![api.address(), second.address()]),
        ("worker", vec![worker.address(), saga_worker.address()]),
        ("spans", vec![collector.metrics_address()]),
        ("programs", vec![collector.programs_address()]),
    ]);
    // A rate needs an earlier sample.
    eventually(SOON, "a first look at all, by both ways", || {
        let seen = prometheus.query(r#"count(http_threads{job=~"api|worker"})"#);
        (seen == Ok(vec![8.0])).then_some(())
    });
    no_panel_is_without_data(&prometheus);

    let (end, ended) = mpsc::channel::<()>();
    let created = thread::scope(|scope| {
        let (stack, api, site) = (&stack, &api, &site);
        let rounds = scope.spawn(move || {
            let pause = Duration::from_secs(1);
            let mut rounds = 0;
            while ended.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                traffic(stack, api);
                site.order(if rounds % 2 == 0 { 1251 } else { 1299 });
                rounds += 1;
            }
            rounds
        });
        // The thread ends with this value, also after a failure.
        let end = end;
        eventually(SOON, "an order, the table being there", || {
            (second.order(&unique("key"), 1299).status == 202).then_some(())
        });
        every_query_has_a_value(&prometheus);
        second.kill();
        second = stack.start_in_place_of(&second).ready();
        let orders = there_are_two_apis(&prometheus, &second);
        every_query_has_a_value(&prometheus);
        every_alert_has_something_to_judge_by(&prometheus);
        drop(end);
        7 * rounds.join().expect("traffic") + orders
    });

    let counted = |source: &str| {
        prometheus.query(&format!(
            r#"sum(orders_created_total{{source="{source}"}})"#
        ))
    };
    eventually(SOON, "the same count by both ways", || {
        (counted("otlp") == counted("") && counted("") == Ok(vec![f64::from(created)]))
            .then_some(())
    });

    for (query, least) in [
        (
            r#"max(increase(orders_dead_lettered_total{reason="undecodable"}[10m]))"#,
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
