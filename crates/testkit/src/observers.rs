//! The test's own OpenTelemetry collector and Prometheus.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::{eventually, free_port, own_folder, read, repository, script};

/// A collector with the configuration of docker-compose.yml that writes its spans to a file. Stopped
/// when dropped.
pub struct Collector {
    folder: PathBuf,
    settings: Vec<String>,
    port: u16,
    grpc_port: u16,
    metrics_port: u16,
    programs_port: u16,
}

impl Collector {
    /// A running collector.
    pub fn start() -> Collector {
        Collector::with(&[])
    }

    /// A running collector with more settings, `path.to.key=value`.
    pub fn with(settings: &[String]) -> Collector {
        let collector = Collector {
            folder: own_folder("collector"),
            settings: settings.to_vec(),
            port: free_port(),
            grpc_port: free_port(),
            metrics_port: free_port(),
            programs_port: free_port(),
        };
        collector.resume();
        collector
    }

    /// Starts it again after [`stop`](Self::stop).
    pub fn resume(&self) {
        let folder = self.folder.to_str().expect("a UTF-8 path");
        let ports = [
            self.port,
            self.grpc_port,
            self.metrics_port,
            self.programs_port,
        ];
        let ports = ports.map(|port| port.to_string());
        let mut command = vec!["collector", "start", folder];
        command.extend(ports.iter().map(String::as_str));
        command.extend(self.settings.iter().map(String::as_str));
        script(&command);
    }

    /// Ends it; its ports stay its own.
    pub fn stop(&self) {
        script(&["collector", "stop", self.folder.to_str().expect("UTF-8")]);
    }

    /// `host:port` of OTLP over gRPC.
    pub fn grpc_address(&self) -> String {
        format!("127.0.0.1:{}", self.grpc_port)
    }

    /// `host:port` of OTLP over HTTP.
    pub fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The address of the metrics that programs send to it.
    pub fn programs_address(&self) -> String {
        format!("127.0.0.1:{}", self.programs_port)
    }

    /// The URL of the metrics that it derives from spans.
    pub fn metrics_address(&self) -> String {
        format!("127.0.0.1:{}", self.metrics_port)
    }

    /// The spans of a trace that it has received so far.
    pub fn spans(&self, trace_id: &str) -> Vec<Span> {
        let text = fs::read_to_string(self.folder.join("spans.json")).unwrap_or_default();
        let mut found = Vec::new();
        // The last line may be incomplete.
        for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
            let batch: Value = serde_json::from_str(line).expect("a line is JSON");
            for resource in items(&batch["resourceSpans"]) {
                for span in items(&resource["scopeSpans"]).flat_map(|scope| items(&scope["spans"]))
                {
                    if span["traceId"] == trace_id {
                        found.push(Span {
                            service: attribute(&resource["resource"], "service.name")
                                .expect("a name"),
                            json: span.clone(),
                        });
                    }
                }
            }
        }
        found
    }

    /// The spans of a trace, once there is one of each of these names.
    #[track_caller]
    pub fn wait_for(&self, trace_id: &str, names: &[&str]) -> Trace {
        let what = format!("spans {names:?} of {trace_id}");
        eventually(Duration::from_secs(60), &what, || {
            let spans = self.spans(trace_id);
            let has = |name: &&str| spans.iter().any(|span| span.name() == *name);
            names.iter().all(has).then_some(Trace(spans))
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// An attribute as text, of any object with attributes.
fn attribute(of: &Value, key: &str) -> Option<String> {
    let found = items(&of["attributes"]).find(|attribute| attribute["key"] == key)?;
    let value = found["value"].as_object()?.values().next()?;
    Some(
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned),
    )
}

/// A span as the collector received it (OTLP in JSON).
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.name` of its process.
    pub service: String,
    json: Value,
}

impl Span {
    /// The span's name.
    pub fn name(&self) -> &str {
        self.json["name"].as_str().expect("a name")
    }

    /// The span's id, in hex.
    pub fn id(&self) -> &str {
        self.json["spanId"].as_str().expect("an id")
    }

    /// The parent's id, empty at the root.
    pub fn parent(&self) -> &str {
        self.json["parentSpanId"].as_str().unwrap_or_default()
    }

    /// Its `tracestate`.
    pub fn state(&self) -> &str {
        self.json["traceState"].as_str().unwrap_or_default()
    }

    /// 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub fn kind(&self) -> i64 {
        self.json["kind"].as_i64().expect("a kind")
    }

    /// An attribute as text.
    pub fn attribute(&self, key: &str) -> Option<String> {
        attribute(&self.json, key)
    }

    /// Begin and end, nanoseconds since 1970.
    pub fn time(&self) -> (u64, u64) {
        let time = |key: &str| self.json[key].as_str().and_then(|text| text.parse().ok());
        let (begin, end) = (time("startTimeUnixNano"), time("endTimeUnixNano"));
        (begin.expect("a begin"), end.expect("an end"))
    }

    /// Whether its status is Error.
    pub fn has_failed(&self) -> bool {
        self.json["status"]["code"] == 2
    }

    /// An attribute of its `exception` event.
    pub fn exception(&self, key: &str) -> Option<String> {
        let event = items(&self.json["events"]).find(|event| event["name"] == "exception")?;
        attribute(event, key)
    }

    /// The ids of the spans it links to.
    pub fn links(&self) -> Vec<&str> {
        items(&self.json["links"])
            .filter_map(|link| link["spanId"].as_str())
            .collect()
    }
}

/// The spans of one trace.
#[derive(Debug)]
pub struct Trace(pub Vec<Span>);

impl Trace {
    /// The only span of this name.
    #[track_caller]
    pub fn one(&self, name: &str) -> &Span {
        let mut found = self.0.iter().filter(|span| span.name() == name);
        let one = found.next();
        let one = one.unwrap_or_else(|| panic!("no span {name} in {:#?}", self.0));
        assert!(found.next().is_none(), "two spans {name}");
        one
    }

    /// The spans below this one, of this name.
    pub fn below<'a>(&'a self, parent: &'a Span, name: &'a str) -> impl Iterator<Item = &'a Span> {
        let is = move |span: &&Span| span.parent() == parent.id() && span.name() == name;
        self.0.iter().filter(is)
    }
}

/// A Prometheus with the alerts of docker-compose.yml that scrapes and evaluates every second. Stopped
/// when dropped.
pub struct Prometheus {
    folder: PathBuf,
    port: u16,
}

impl Prometheus {
    /// A Prometheus that scrapes these jobs: (name, addresses).
    pub fn start(jobs: &[(&str, Vec<String>)]) -> Prometheus {
        let (folder, port) = (own_folder("prometheus"), free_port());
        let alerts = repository().join("docker/prometheus/alerts.yml");
        let mut config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{}]\nscrape_configs:\n",
            alerts.display()
        );
        for (name, addresses) in jobs {
            if *name == "programs" {
                config.push_str(&programs_job(addresses));
                continue;
            }
            config.push_str(&format!(
                "  - {{job_name: {name}, static_configs: [{{targets: {addresses:?}}}]}}\n"
            ));
        }
        fs::create_dir_all(&folder).expect("a folder for Prometheus");
        fs::write(folder.join("prometheus.yml"), config).expect("write its configuration");
        script(&[
            "prometheus",
            "start",
            folder.to_str().expect("UTF-8"),
            &port.to_string(),
        ]);
        Prometheus { folder, port }
    }

    /// The result of an instant query: the value of each numeric series.
    ///
    /// # Errors
    /// Prometheus' error about the query.
    pub fn query(&self, query: &str) -> Result<Vec<f64>, String> {
        let answer = self.ask("query", query);
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        let value = |series: &Value| series["value"][1].as_str()?.parse().ok();
        let values = items(&answer["data"]["result"]).filter_map(value);
        Ok(values.filter(|value: &f64| !value.is_nan()).collect())
    }

    /// The loaded alerting rules: (name, expression, health).
    pub fn alerts(&self) -> Vec<(String, String, String)> {
        let answer = self.ask("rules", "");
        let text = |rule: &Value, key: &str| rule[key].as_str().expect("a text").to_owned();
        items(&answer["data"]["groups"])
            .flat_map(|group| items(&group["rules"]))
            .map(|rule| {
                (
                    text(rule, "name"),
                    text(rule, "query"),
                    text(rule, "health"),
                )
            })
            .collect()
    }

    fn ask(&self, what: &str, query: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/api/v1/{what}", self.port);
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        let answer = agent.get(&url).query("query", query).call();
        let text = answer
            .expect("an answer of Prometheus")
            .body_mut()
            .read_to_string();
        serde_json::from_str(&text.expect("its answer")).expect("its answer is JSON")
    }
}

/// The job of docker-compose.yml's Prometheus for the metrics that programs send to the collector.
fn programs_job(addresses: &[String]) -> String {
    let config = read("docker/prometheus/prometheus.yml");
    let job = config
        .split("  - job_name: ")
        .find(|job| job.starts_with("programs\n"));
    let job = job
        .expect("the job programs")
        .split_once("    static_configs:");
    let (head, _) = job.expect("its targets come last");
    format!("  - job_name: {head}    static_configs: [{{targets: {addresses:?}}}]\n")
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        script(&["prometheus", "stop", self.folder.to_str().expect("UTF-8")]);
    }
}
