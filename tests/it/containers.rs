//! docker-compose.yml and docker/, compared with the programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tbd::config::{Program, VARIABLES, variables};
use tbd::wiring::SHUTDOWN_BUDGET;

use crate::support::{dashboards, files_below, own_folder, read, repository};

/// Every `expr` of a dashboard.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(expression) = fields.get("expr").and_then(Value::as_str) {
                found.push(expression.to_owned());
            }
            fields.values().for_each(|field| expressions(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

/// The words of a text that look like tbd's metrics.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    const OURS: [&str; 12] = [
        "http_",
        "grpc_server_",
        "kafka_",
        "db_",
        "order_",
        "orders_",
        "outbox_",
        "idempotency_",
        "circuit_",
        "worker_",
        "otel_",
        "tbd_",
    ];
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| OURS.iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

#[test]
fn dashboards_and_alerts_ask_for_metrics_that_exist() {
    let known = read("src/metrics.rs") + &read("crates/telemetry/src/metrics.rs");
    let mut asked = read("docker/prometheus/alerts.yml");
    for file in dashboards() {
        let json: Value = serde_json::from_str(&read(&file)).expect("JSON");
        let mut found = Vec::new();
        expressions(&json, &mut found);
        assert!(!found.is_empty(), "{} asks for nothing", file.display());
        asked.push_str(&found.join("\n"));
    }
    let metrics = metrics_in(&asked);
    assert!(metrics.len() > 20, "{metrics:?}");
    for metric in metrics {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| metric.strip_suffix(suffix))
            .unwrap_or(metric);
        assert!(known.contains(&format!("\"{family}\"")), "{metric}");
    }
}

#[test]
fn dashboards_have_ids_of_their_own_units_and_the_provisioned_data_source() {
    let mut ids = BTreeSet::new();
    for file in dashboards() {
        let text = read(&file);
        let json: Value = serde_json::from_str(&text).expect("JSON");
        let id = json["uid"].as_str().expect("uid").to_owned();
        assert!(ids.insert(id), "{} has another's uid", file.display());
        for panel in json["panels"].as_array().expect("panels") {
            if panel["type"] != "row" {
                assert_eq!(panel["datasource"]["uid"], "prometheus", "{panel}");
                let unit = &panel["fieldConfig"]["defaults"]["unit"];
                assert!(
                    unit.as_str().is_some_and(|unit| !unit.is_empty()),
                    "{panel}"
                );
            }
            let kind = panel["type"].as_str().expect("a type");
            let known = ["row", "timeseries", "stat", "table", "state-timeline"];
            assert!(known.contains(&kind), "{kind}");
        }
    }
    let sources = read("docker/grafana/provisioning/datasources/datasources.yaml");
    assert!(sources.contains("uid: prometheus"));
}

/// `NAME: ${NAME:-default}` lines of the Compose file whose name is one of tbd's variables.
fn passed_on(compose: &str) -> Vec<(String, String)> {
    compose
        .lines()
        .filter_map(|line| {
            let (name, value) = line.trim().split_once(": ${")?;
            let default = value.strip_prefix(name)?.split('}').next()?;
            let default = default
                .strip_prefix(":-")
                .or_else(|| default.strip_prefix('-'))?;
            Some((name.to_owned(), default.to_owned()))
        })
        .filter(|(name, _)| !name.starts_with("PGADMIN") && !name.starts_with("GF_"))
        .collect()
}

#[test]
fn compose_passes_on_variables_that_exist_with_the_programs_own_defaults() {
    // In containers the other servers have other names.
    const ELSEWHERE: [&str; 9] = [
        "DB_HOST",
        "KAFKA_BROKERS",
        "INVENTORY_ADDRESS",
        "PAYMENTS_ADDRESS",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_METRICS_EXPORTER",       // there is a collector
        "OTEL_METRIC_EXPORT_INTERVAL", // Grafana's windows are as short as for scrapes
        "JAEGER_UI_URL",               // on the port that Compose publishes
        "SHUTDOWN_DRAIN",              // nginx learns late that a container ends
    ];
    let passed = passed_on(&read("docker-compose.yml"));
    assert!(passed.len() > 30, "{passed:?}");
    for (name, default) in passed {
        let variable = VARIABLES.iter().find(|variable| variable.name == name);
        let variable = variable.unwrap_or_else(|| panic!("{name} is nobody's variable"));
        // Empty is unset: the program's own default.
        if !ELSEWHERE.contains(&name.as_str()) && !default.is_empty() {
            assert_eq!(default, variable.default, "{name}");
        }
    }
}

/// The lines below the line `head`, as long as they are indented further.
fn below<'a>(text: &'a str, head: &str) -> Vec<&'a str> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().skip_while(|line| *line != head);
    let head = lines.next().unwrap_or_else(|| panic!("no {head}"));
    lines
        .take_while(|line| line.trim().is_empty() || indent(line) > indent(head))
        .collect()
}

/// Whether the lines set this variable or key.
fn names(lines: &[&str], name: &str) -> bool {
    let sets = |line: &&str| {
        line.trim()
            .split_once(": ")
            .is_some_and(|(key, _)| key == name)
    };
    lines.iter().any(sets)
}

#[test]
fn compose_passes_on_every_variable_that_a_program_knows() {
    let compose = read("docker-compose.yml");
    let settings = below(&compose, "x-settings: &settings");
    let of_servers = below(&compose, "x-server-settings: &server-settings");
    for (program, service) in [
        (Program::Api, "  api:"),
        (Program::Worker, "  worker:"),
        (Program::Participant, "  inventory: &participant"),
    ] {
        let service = below(&compose, service);
        let merged = match program {
            Program::Worker => "<<: *settings",
            Program::Api | Program::Participant => "<<: [*settings, *server-settings]",
        };
        assert!(service.iter().any(|line| line.trim() == merged));
        for variable in variables(program) {
            let is_passed = names(&settings, variable.name)
                || names(&service, variable.name)
                || program != Program::Worker && names(&of_servers, variable.name);
            assert!(is_passed, "{} of {}", variable.name, program.name());
        }
    }
    let payments = below(&compose, "  payments:");
    assert!(payments.contains(&"      <<: *participant-settings"));
}

/// Compose's default of a variable, with the defaults of those within it.
fn compose_default(compose: &str, name: &str) -> Option<String> {
    let starts = [format!("${{{name}:-"), format!("${{{name}-")];
    let rest = starts.iter().find_map(|it| compose.split_once(it))?.1;
    match rest
        .split_once("${")
        .filter(|(before, _)| !before.contains('}'))
    {
        None => Some(rest.split_once('}')?.0.to_owned()),
        Some((before, inner)) => {
            let (_, inner) = inner.split_once('}')?.0.split_once(":-")?;
            Some(before.to_owned() + inner)
        }
    }
}

#[test]
fn every_assignment_of_the_example_is_composes_default() {
    let compose = read("docker-compose.yml");
    let example = read(".env.example");
    let lines = example.lines().map(|line| line.trim_start_matches('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    let is_name = |name: &str| {
        name.chars()
            .all(|c| c.is_ascii_uppercase() || "_0123456789".contains(c))
    };
    let pairs: Vec<(&str, &str)> = pairs.filter(|(name, _)| is_name(name)).collect();
    assert!(pairs.len() > 60, "{}", pairs.len());
    for (name, value) in pairs {
        let default = compose_default(&compose, name);
        assert_eq!(default.as_deref(), Some(value), "{name}");
    }
}

#[test]
fn the_override_for_several_servers_names_each_of_them_everywhere() {
    let compose = read("docker-compose.ha.yml");
    let settings = below(&compose, "x-settings: &settings");
    let value = |lines: &[&str], name: &str| {
        let mut pairs = lines.iter().filter_map(|line| line.trim().split_once(": "));
        pairs
            .find(|(key, _)| *key == name)
            .map(|(_, it)| it.to_owned())
    };
    let api = below(&compose, "  api:");
    for name in ["DB_HOST", "KAFKA_BROKERS", "KAFKA_TOPIC_REPLICATION"] {
        assert!(VARIABLES.iter().any(|it| it.name == name));
        assert!(names(&settings, name), "{name}");
    }
    for service in ["  worker:", "  inventory:", "  payments:"] {
        let service = below(&compose, service);
        assert_eq!(value(&service, "environment").as_deref(), Some("*settings"));
    }
    let hosts = value(&settings, "DB_HOST").expect("hosts");
    let standby = value(&api, "DB_READ_HOST").expect("a standby");
    assert!(hosts.split(',').any(|host| host == standby));

    let brokers = value(&settings, "KAFKA_BROKERS").expect("brokers");
    let broker = below(&compose, "x-broker: &broker");
    let voters = value(&broker, "KAFKA_CONTROLLER_QUORUM_VOTERS").expect("voters");
    let base = read("docker-compose.yml");
    for (index, (address, voter)) in brokers.split(',').zip(voters.split(',')).enumerate() {
        let number = index + 1;
        let host = address.strip_suffix(":9092").expect("its port");
        assert_eq!(voter, format!("{number}@{host}:9093"));
        // The first broker is the one of the base file.
        let file = if number == 1 { &base } else { &compose };
        let service = below(file, &format!("  {host}:")).join("\n");
        assert!(service.contains(&format!("KAFKA_NODE_ID: {number}\n")));
        let advertised = format!("KAFKA_ADVERTISED_LISTENERS: PLAINTEXT://{address}\n");
        assert!(service.contains(&advertised));
        assert!(host == "kafka" || api.iter().any(|line| line.contains(host)));
    }
    assert_eq!(brokers.split(',').count(), 3);
}

#[test]
fn the_override_for_tls_covers_every_program_and_scrapes_the_same_targets() {
    let compose = read("docker-compose.tls.yml");
    let certificates = read("scripts/certs");
    for name in ["api", "worker", "inventory", "payments"] {
        let service = below(&compose, &format!("  {name}:"));
        for variable in ["HTTP_TLS_CERT_FILE", "HTTP_TLS_KEY_FILE"] {
            assert!(names(&service, variable), "{variable} of {name}");
        }
    }
    let settings = below(&compose, "x-settings: &settings");
    let collector = settings.iter().find(|line| line.contains("_ENDPOINT"));
    assert!(collector.is_some_and(|line| line.contains("https://otel-collector:")));
    assert!(certificates.contains("kafka-ui otel-collector;"));

    let scrapes = |file: &str| {
        let text = read(format!("docker/prometheus/{file}"));
        let lines = text.lines().map(str::trim).map(str::to_owned);
        let targets: BTreeSet<String> = lines
            .flat_map(|line| match line.split_once("{names: ") {
                Some((_, target)) => Some(target.trim_end_matches(']').to_owned()),
                None => line.strip_prefix("static_configs: ").map(str::to_owned),
            })
            .collect();
        (targets, text.matches("scheme: https").count())
    };
    let (plain, tls) = (scrapes("prometheus.yml"), scrapes("prometheus.tls.yml"));
    assert_eq!(plain.0, tls.0);
    assert!(plain.0.len() > 6, "{plain:?}");
    assert_eq!((plain.1, tls.1), (0, 4));
}

/// A rate needs two updates within `$__rate_interval`, which is at least four times the data source's `timeInterval`.
#[test]
fn grafanas_shortest_window_holds_two_updates_of_either_source() {
    let sources = read("docker/grafana/provisioning/datasources/datasources.yaml");
    let window = 4 * quantity(&sources, "timeInterval: ", 's');
    let prometheus = read("docker/prometheus/prometheus.yml");
    let scrape = quantity(&prometheus, "scrape_interval: ", 's');
    let compose = read("docker-compose.yml");
    let export = quantity(&compose, "${OTEL_METRIC_EXPORT_INTERVAL:-", '}').div_ceil(1000);
    // What Prometheus sees of an export may be a scrape late.
    assert!(window >= 2 * scrape && window >= 2 * export + scrape);
    let collector = read("docker/otel-collector/config.yaml");
    assert!(quantity(&collector, "metric_expiration: ", 's') > 2 * export);
}

#[test]
fn every_port_that_compose_publishes_can_be_moved() {
    let compose = read("docker-compose.yml");
    let example = read(".env.example");
    let lines = compose.lines();
    let ports = lines.filter_map(|line| line.trim().strip_prefix("ports: "));
    let mut count = 0;
    for published in ports.flat_map(|ports| ports.split(", ")) {
        let (_, published) = published
            .split_once("127.0.0.1}:")
            .expect("on BIND_ADDRESS");
        let variable = published.strip_prefix("${").expect("a variable");
        let (name, _) = variable.split_once(":-").expect("with a default");
        assert!(example.contains(&format!("#{name}=")), "{name}");
        count += 1;
    }
    assert_eq!(count, 7);
}

#[test]
fn the_images_find_their_program_by_its_name() {
    let dockerfile = read("Dockerfile");
    let path = dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("ENV PATH="))
        .expect("a PATH");
    let compose = read("docker-compose.yml");
    for program in [Program::Api, Program::Worker].map(Program::name) {
        let copied = format!("COPY --from=build /out/{program} ");
        let to = dockerfile
            .lines()
            .find_map(|line| line.strip_prefix(&copied))
            .expect("the program in the image");
        let folder = to.strip_suffix(&format!("/{program}")).expect("its name");
        assert!(path.split(':').any(|part| part == folder), "{folder}");
        assert!(dockerfile.contains(&format!("ENTRYPOINT [\"{to}\"]")));
        assert!(compose.contains(&format!("test: [CMD, {program}, healthcheck]")));
    }
}

/// The number before `unit` after `key` in a line of `text`.
fn quantity(text: &str, key: &str, unit: char) -> u64 {
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key}"));
    let (number, _) = rest.split_once(unit).expect("its unit");
    number.trim().parse().expect("a number")
}

#[test]
fn containers_get_the_time_that_a_shutdown_may_take() {
    let needed = SHUTDOWN_BUDGET.as_secs();
    let compose = read("docker-compose.yml");
    for (service, manifest) in [
        ("  api:", "base/api.yaml"),
        ("  worker:", "base/worker.yaml"),
        (
            "  inventory: &participant",
            "components/saga/inventory.yaml",
        ),
        ("  inventory: &participant", "components/saga/payments.yaml"),
    ] {
        let service = below(&compose, service).join("\n");
        assert!(quantity(&service, "stop_grace_period: ", 's') > needed);
        let manifest = read(format!("docker/k8s/{manifest}"));
        assert!(quantity(&manifest, "terminationGracePeriodSeconds: ", '#') > needed);
        assert!(!manifest.contains("preStop"), "it would take of that time");
    }
    // nginx ends after its last answer.
    let template = read("docker/nginx/nginx.conf.template");
    let answer = quantity(&template, "proxy_read_timeout ", 's');
    let nginx = below(&compose, "  nginx:").join("\n");
    assert!(quantity(&nginx, "stop_grace_period: ", 's') > answer);
    let edge = read("docker/k8s/base/edge.yaml");
    let sleeps = quantity(&edge, "sleep: {seconds: ", '}');
    assert!(quantity(&edge, "terminationGracePeriodSeconds: ", '#') > sleeps + answer);
}

/// The CPU that an object of docker/k8s requests, in thousandths.
fn requested(file: &str) -> u64 {
    let manifest = read(format!("docker/k8s/{file}.yaml"));
    quantity(&manifest, "requests: {cpu: ", 'm')
}

#[test]
fn kubernetes_requests_the_cpu_that_its_page_states_and_fits_one_small_node() {
    // About what a node of two CPUs has left when it also runs the cluster's control plane.
    const LEFT: u64 = 1000;
    let (api, edge) = (requested("base/api"), requested("base/edge"));
    let (kafka, postgres) = (requested("base/kafka"), requested("base/postgres"));
    let base = 2 * (api + requested("base/worker") + edge) + kafka + postgres;
    let rollout = base + api + edge;
    let participants = ["inventory", "payments"].map(|it| format!("components/saga/{it}"));
    let sagas: u64 = participants.iter().map(|it| 2 * requested(it)).sum();
    let ha = 3 * requested("components/ha/kafka") - kafka + postgres;
    assert!(rollout + sagas <= LEFT && base + ha <= LEFT, "{base} {ha}");

    let page = read("docs/kubernetes.md").replace('\n', " ");
    for statement in [
        format!("request {base}m, and {rollout}m while api and edge roll out"),
        format!("Sagas request {sagas}m more"),
        format!("`ha` requests {ha}m more than `base`"),
        format!("A rollout then needs {}m more", rollout - base),
    ] {
        assert!(page.contains(&statement), "{statement}");
    }
}

#[test]
fn kubernetes_keeps_one_of_several_instances_in_a_drain_and_scales_the_programs() {
    let has = |file: &str, kind: &str, name: &str| {
        let head = format!("kind: {kind}\nmetadata:\n  name: {name}\nspec:\n");
        let manifest = read(format!("docker/k8s/{file}.yaml"));
        assert!(manifest.contains(&head), "{file}: {kind} {name}");
    };
    for (file, name) in [
        ("base/api", "api"),
        ("base/worker", "worker"),
        ("base/edge", "edge"),
        ("components/saga/inventory", "inventory"),
        ("components/saga/payments", "payments"),
        ("components/ha/budgets", "kafka"),
        ("components/ha/budgets", "postgres"),
    ] {
        has(file, "PodDisruptionBudget", name);
        if !["edge", "kafka", "postgres"].contains(&name) {
            has(file, "HorizontalPodAutoscaler", name);
        }
    }
}

#[test]
fn kubernetes_runs_what_compose_runs() {
    let compose = read("docker-compose.yml");
    let folders = ["base", "components/saga", "components/tls", "components/ha"];
    let files = folders.iter().flat_map(|folder| {
        let folder = repository().join("docker/k8s").join(folder);
        fs::read_dir(folder).expect("manifests")
    });
    let (mut images, mut variables) = (BTreeSet::new(), 0);
    for file in files.map(|file| file.expect("a file").path()) {
        let text = read(&file);
        for line in text.lines().map(str::trim) {
            if line.starts_with("image: ") {
                assert!(compose.contains(line), "{line}");
                images.insert(line.to_owned());
            }
        }
        if file.ends_with("kustomization.yaml") {
            let literals = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("- "));
            let pairs = literals.filter_map(|literal| literal.split_once('='));
            let is_name = |name: &str| name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            for (name, _) in pairs.filter(|(name, _)| is_name(name)) {
                let known = VARIABLES.iter().any(|variable| variable.name == name);
                assert!(known, "{name} is nobody's variable");
                variables += 1;
            }
        }
    }
    assert_eq!(images.len(), 6, "{images:?}");
    assert!(variables > 20, "{variables}");
}

/// The value of `NAME: value` or `{name: NAME, value: value}` in a line of `text`.
fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(name)?;
    let value = rest.lines().next()?.trim_start_matches([':', ',', ' ']);
    let value = value.strip_prefix("value: ").unwrap_or(value);
    let value = value.split(" #").next()?.trim_end_matches('}');
    Some(value.trim_matches('"'))
}

#[test]
fn the_broker_of_kubernetes_has_the_settings_of_the_one_of_compose() {
    // Only what names the broker, or a folder, differs.
    const OTHERS: [&str; 3] = ["ADVERTISED_LISTENERS", "LOG_DIRS", "HEAP_OPTS"];
    let compose = read("docker-compose.yml");
    let kafka = below(&compose, "  kafka:");
    let manifest = read("docker/k8s/base/kafka.yaml");
    let mut count = 0;
    for line in kafka.iter().map(|line| line.trim()) {
        let Some((name, _)) = line.split_once(": ") else {
            continue;
        };
        let is_setting = name.starts_with("KAFKA_") && !OTHERS.contains(&&name["KAFKA_".len()..]);
        if is_setting {
            let value = setting(line, name);
            assert_eq!(
                setting(&manifest, &format!("{{name: {name},")),
                value,
                "{name}"
            );
            count += 1;
        }
    }
    assert!(count > 15, "{count}");
}

/// PostgreSQL is process 1 of its container. It ends every session when a child that it does not know ends, and so
/// does a check that is late and outlives its shell.
#[test]
fn checks_of_postgres_leave_it_no_child() {
    for file in ["docker-compose.yml", "docker/k8s/base/postgres.yaml"] {
        let text = read(file);
        let checks = text.lines().filter(|line| line.contains("pg_isready"));
        let checks: Vec<&str> = checks.collect();
        assert_eq!(checks.len(), 1, "{file}");
        assert!(checks[0].contains("'exec pg_isready -q -t 2 "), "{file}");
    }
}

/// The lines of all files that name images: Compose, Dockerfile, and the manifests below docker/k8s.
fn lines_with_images() -> Vec<String> {
    let mut files: Vec<_> = fs::read_dir(repository())
        .expect("the repository")
        .map(|file| file.expect("a file").path())
        .filter(|path| {
            let name = path.file_name().expect("a name").to_string_lossy();
            name.starts_with("docker-compose") || name == "Dockerfile"
        })
        .collect();
    files.extend(files_below("docker/k8s"));
    let text: Vec<String> = files.iter().map(read).collect();
    text.iter()
        .flat_map(|it| it.lines())
        .map(|line| line.trim().to_owned())
        .collect()
}

#[test]
fn every_image_has_its_exact_version_except_the_one_whose_publisher_offers_none() {
    const WITHOUT_VERSIONS: &str = "gcr.io/distroless/cc-debian12:nonroot";
    const OF_TWO_NUMBERS: [&str; 2] = ["postgres", "dpage/pgadmin4"];
    let lines = lines_with_images();
    let images = lines.iter().filter_map(|line| {
        let base = line.strip_prefix("FROM ").filter(|base| base.contains(':'));
        let image = line.strip_prefix("image: ").or(base)?;
        image.split_whitespace().next()
    });
    let images: BTreeSet<&str> = images.filter(|image| !image.ends_with(":local")).collect();
    assert!(images.len() >= 12, "{images:?}");
    assert!(images.contains(WITHOUT_VERSIONS));
    for image in images
        .into_iter()
        .filter(|image| *image != WITHOUT_VERSIONS)
    {
        let (name, tag) = image.rsplit_once(':').expect("a tag");
        let version = tag.trim_start_matches('v').split('-').next();
        let numbers = version.unwrap_or_default().split('.');
        let are_numbers = numbers.clone().all(|number| number.parse::<u32>().is_ok());
        let least = if OF_TWO_NUMBERS.contains(&name) { 2 } else { 3 };
        assert!(are_numbers && numbers.count() >= least, "{image}");
    }
}

/// Cargo refuses a manifest that names a missing file.
#[test]
fn the_images_layer_of_dependencies_has_a_stand_in_for_every_file_that_the_manifest_names() {
    let dockerfile = read("Dockerfile");
    let (before, _) = dockerfile.split_once("&& cargo build").expect("a build");
    let (_, stand_ins) = before.rsplit_once("RUN ").expect("what precedes it");
    let folder = own_folder("image");
    fs::create_dir_all(&folder).expect("a folder");
    for line in before.lines() {
        let Some(arguments) = line.strip_prefix("COPY ") else {
            continue;
        };
        let mut files: Vec<&str> = arguments.split_whitespace().collect();
        let target = folder.join(files.pop().expect("a target"));
        fs::create_dir_all(&target).expect("a folder");
        for file in files {
            let name = Path::new(file).file_name().expect("a name");
            fs::copy(repository().join(file), target.join(name)).expect("a file to copy");
        }
    }
    let script = format!("{stand_ins} && cargo metadata --no-deps --format-version 1");
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(&folder)
        .output();
    let output = output.expect("run sh");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
