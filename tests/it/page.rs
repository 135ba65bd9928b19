//! The page at `/`: its HTTP answer, and its behaviour in a real browser.

use std::time::Duration;

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::edge::Edge;
use crate::support::http::{Request, Response, get, post};
use crate::support::program::{Stack, new_order};
use crate::support::token::{SECRET, claims, hs256};
use crate::support::{Database, OwnServer, kafka, unique};

const STATUS: &str = "#mine tr:first-child td:nth-child(2)";
const BUTTON: &str = "#mine tr:first-child button";

fn policy(page: &Response) -> &str {
    page.header("Content-Security-Policy").expect("a policy")
}

#[test]
fn the_page_is_one_small_document_that_may_load_nothing_else() {
    let stack = Stack::new();
    let api = stack.api();
    let page = get("/").send(&api.address());
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(page.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(page.header("Referrer-Policy"), Some("no-referrer"));
    assert!(policy(&page).starts_with("default-src 'none'; "));
    assert!(!policy(&page).contains("unsafe"), "{}", policy(&page));
    assert!(page.body.len() < 36 * 1024, "{} bytes", page.body.len());
    assert!(!page.text().contains("{{"), "a part is missing");

    let tag = page.header("ETag").expect("an entity tag").to_owned();
    let again = get("/").header("If-None-Match", &tag).send(&api.address());
    assert_eq!((again.status, again.header("ETag")), (304, Some(&*tag)));
    assert_eq!(policy(&again), policy(&page));
    let head = Request::new("HEAD", "/").send(&api.address());
    assert_eq!((head.status, head.header("ETag")), (200, Some(&*tag)));
    let refused = post("/").send(&api.address());
    refused.problem(405, "method-not-allowed");
    assert_eq!(refused.header("Allow"), Some("GET, HEAD"));
    let sample = r#"http_requests_total{method="GET",route="/",status="200"}"#;
    api.metric_becomes(sample, 1.0);
}

#[test]
fn traces_lead_to_jaeger_if_they_are_exported() {
    let jaeger_of = |stack: Stack| {
        let api = stack.start_api();
        let page = crate::support::eventually(Duration::from_secs(30), "the page", || {
            get("/").try_send(&api.address()).ok()
        });
        let text = page.text();
        let (_, rest) = text.split_once("data-jaeger=\"").expect("the attribute");
        rest.split_once('"').expect("its end").0.to_owned()
    };
    let exporting = || {
        let stack = Stack::new().set("OTEL_SDK_DISABLED", "false");
        stack.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    };
    assert_eq!(jaeger_of(exporting()), "http://localhost:16686");
    let elsewhere = exporting().set("JAEGER_UI_URL", "https://jaeger.example/ui/");
    assert_eq!(jaeger_of(elsewhere), "https://jaeger.example/ui");
    assert_eq!(jaeger_of(exporting().set("JAEGER_UI_URL", "")), "");
    assert_eq!(jaeger_of(Stack::new()), "");
}

/// Only the table of orders may be wider than a narrow window, and then it scrolls by itself.
fn fits_a_phone(browser: &mut Browser) {
    let narrow = json!({ "width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": false });
    browser.command("Emulation.setDeviceMetricsOverride", narrow);
    browser.until(
        "a page as wide as its window",
        "innerWidth === 360 && document.documentElement.scrollWidth <= 360",
    );
    browser.command("Emulation.clearDeviceMetricsOverride", json!({}));
}

#[test]
fn a_browser_sees_orders_move_through_the_system() {
    let stack = Stack::new();
    let apis = vec![stack.api(), stack.api()];
    let edge = Edge::in_front_of(&apis);
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", edge.address()));
    browser.until_text("#health", "Ready");
    browser.until(
        "a lane for each instance",
        "document.querySelectorAll('.lane').length === 2",
    );
    for (port, lane) in [(apis[0].port(), 1), (apis[1].port(), 2)] {
        let text = browser.text(&format!(".lane:nth-child({lane})"));
        assert!(
            text.contains("0 of 64 busy") || text.contains("1 of 64 busy"),
            "{text}"
        );
        let lanes = browser.text("#lanes");
        assert!(lanes.contains(&format!(":{port}")), "{lanes}");
    }

    fits_a_phone(&mut browser);

    // With the keyboard alone; each fault appears at its field.
    browser.value("document.querySelector('#customer_email').focus()");
    browser.value("document.querySelector('#customer_email').value = 'nobody'");
    browser.press("Enter", "\r");
    browser.until_text("#customer_email_fault", "must contain exactly one @");
    browser.until_text("#alarm", "not accepted");
    assert_eq!(
        browser.value("document.querySelector('#customer_email').ariaInvalid"),
        "true"
    );
    assert_eq!(stack.count("orders"), 0);
    browser.value("document.querySelector('#customer_email').value = 'user@example.com'");

    // Without a worker the order stays pending until it is canceled.
    browser.click("button.first");
    browser.until_text(STATUS, "pending");
    browser.until_text("#legend", "pending 1");
    browser.until_text("#backlog", "1 to do");
    browser.click(BUTTON);
    browser.until_text(STATUS, "canceled");
    browser.until_text("#said", "is canceled");
    stack.all_become("canceled", 1, Duration::from_secs(1));

    let worker = stack.worker();
    browser.click("button.first");
    browser.until_text(STATUS, "completed");
    browser.until_text("#said", "is completed");
    browser.click("[data-burst='50']");
    browser.until_text("#said", "50 orders were accepted");
    browser.until_text("#legend", "completed 51");
    browser.until_text("#backlog", "0 to do");
    assert_eq!(stack.count("orders"), 52);
    fits_a_phone(&mut browser);

    drop((worker, apis));
    browser.until_text("#health", "Bad Gateway (502)");
    browser.click("button.first");
    browser.until_text(
        "#alarm",
        "not accepted: Bad Gateway (502). Refused by the proxy",
    );
    browser.until_text("#blind", "No numbers from /metrics: Bad Gateway (502)");
    drop(edge);
    browser.until_text("#health", "No answer from 127.0.0.1");
    browser.click(BUTTON);
    browser.until_text("#alarm", "not accepted: No answer from 127.0.0.1");
    assert_eq!(browser.complaints, [""; 0]);
}

#[test]
fn a_browser_sends_the_same_burst_to_each_twin_that_nginx_has() {
    let stacks = [Stack::new(), Stack::new(), Stack::new()];
    let [apis, async_apis, go_apis] = stacks.each_ref().map(|stack| vec![stack.api()]);
    let workers = [stacks[0].worker(), stacks[1].worker()];
    let mut browser = Browser::start();
    {
        let alone = Edge::in_front_of(&apis);
        browser.open(&format!("http://{}/", alone.address()));
        browser.until_text("#health", "Ready");
        let is_hidden = browser.value("document.querySelector('#twins').hidden");
        assert_eq!(is_hidden, true, "nothing to compare");
    }
    let edge = Edge::with_twins(&apis, &[("async", &async_apis[0]), ("go", &go_apis[0])]);
    browser.open(&format!("http://{}/", edge.address()));
    browser.until(
        "both twins",
        "!document.querySelector('#twins').hidden && document.querySelector('#bursts').rows.length === 3",
    );
    drop(go_apis);
    browser.click("[data-burst='50']");
    // One after the other; the Go twin's api is gone.
    let rows = [
        (1, "tbd", "50\t0", "50 in "),
        (2, "/twins/async", "50\t0", "50 in "),
        (3, "/twins/go", "0\t50", "0"),
    ];
    for (row, name, counts, completed) in rows {
        let row = format!("#bursts tr:nth-child({row})");
        let text = browser.until_text(&row, &format!("{name}\t{counts}\t"));
        let last = text.rsplit('\t').next().unwrap_or_default();
        assert!(last.starts_with(completed), "{text}");
    }
    browser.until_text("#said", "50 orders were accepted");
    let counts = stacks.each_ref().map(|stack| stack.count("orders"));
    assert_eq!(counts, [50, 50, 0]);
    let key = unique("key");
    let order = new_order(&key, 1).send(&edge.address());
    let beside = post("/twins/async/v1/orders").header("Idempotency-Key", &key);
    let beside = beside.json(r#"{"customer_email":"a@b.com","amount_cents":1}"#);
    let beside = beside.send(&edge.address());
    assert_eq!((order.status, beside.status), (202, 202), "keys of its own");
    fits_a_phone(&mut browser);
    drop(workers);
    assert_eq!(browser.complaints, [""; 0]);
}

#[test]
fn a_browser_is_asked_for_the_token_that_the_api_wants() {
    let stack = Stack::new().set("AUTH_JWT_HS256_SECRET", SECRET);
    let apis = [stack.api()];
    let edge = Edge::in_front_of(&apis);
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", edge.address()));
    browser.until_text("#form", "Bearer token");
    browser.click("button.first");
    browser.until_text("#alarm", "not accepted");
    let token = hs256(&json!({ "alg": "HS256" }), &claims(), SECRET.as_bytes());
    browser.value(&format!(
        "document.querySelector('#token').value = '{token}'"
    ));
    browser.click(BUTTON);
    browser.until_text("#said", "is accepted");
    browser.until_text("#legend", "pending 1");
    browser.click(BUTTON);
    browser.until_text("#said", "is canceled");
    assert_eq!(browser.complaints, [""; 0]);
}

#[test]
fn a_browser_shows_what_has_failed_and_retries_with_the_same_key() {
    let server = OwnServer::postgres();
    let stack = Stack::on(Database::on(&server.address()), kafka());
    let api = stack.api();
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", api.address()));
    browser.until_text("#health", "Ready");
    server.stop();
    browser.click("button.first");
    browser.until_text("#alarm", "The database is not available");
    browser.until_text("#health", "Not ready: database");
    browser.until_text(STATUS, "refused");
    server.start();
    browser.until_text("#health", "Ready");
    browser.click(BUTTON);
    browser.until_text("#said", "is accepted");
    browser.until_text(STATUS, "pending");
    assert_eq!(
        (stack.count("orders"), stack.count("idempotency_keys")),
        (1, 1)
    );
    assert_eq!(browser.complaints, [""; 0]);
}
