//! Settings of logs, traces and exported metrics.

use std::time::Duration;

use log::LevelFilter;
use tbd_telemetry::logging::LogFormat;
pub use tbd_telemetry::otlp::OtlpConfig as CollectorSettings;
use tbd_telemetry::tracing::{self, Sampler};

use super::endpoint::endpoint;
use super::reader::{Reader, boolean, choice, key_values, optional, path, text};

/// Logging.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The least severe level that appears.
    pub level: LevelFilter,
    /// The format of the lines.
    pub format: LogFormat,
}

/// Traces, and metrics that are sent to a collector.
#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    /// The collector; `None`: no export.
    pub collector: Option<CollectorSettings>,
    /// The interval between two exports of all metrics; `None`: no export.
    pub metrics_interval: Option<Duration>,
    /// `service.name`.
    pub service_name: String,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// Further attributes of the process.
    pub resource_attributes: Vec<(String, String)>,
}

pub(super) fn log_config(reader: &mut Reader<'_>) -> LogConfig {
    let levels = [
        ("debug", LevelFilter::Debug),
        ("info", LevelFilter::Info),
        ("warn", LevelFilter::Warn),
        ("error", LevelFilter::Error),
    ];
    let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
    LogConfig {
        level: reader.choice("LOG_LEVEL", &levels),
        format: reader.choice("LOG_FORMAT", &formats),
    }
}

fn collector_settings(reader: &mut Reader<'_>) -> Option<CollectorSettings> {
    let protocols = [("grpc", true), ("http/protobuf", false)];
    let is_grpc = reader.get("OTEL_EXPORTER_OTLP_PROTOCOL", optional(choice(&protocols)));
    let endpoint = reader.get_even_empty("OTEL_EXPORTER_OTLP_ENDPOINT", |text| {
        endpoint(text, is_grpc)
    });
    let headers = reader.get("OTEL_EXPORTER_OTLP_HEADERS", key_values);
    let ca_file = reader.get("OTEL_EXPORTER_OTLP_CERTIFICATE", optional(path));
    let is_disabled = reader.get("OTEL_SDK_DISABLED", boolean);
    let endpoint = endpoint.filter(|_| !is_disabled)?;
    Some(CollectorSettings {
        is_grpc: endpoint.is_grpc,
        url: endpoint.url,
        headers,
        ca_file,
    })
}

pub(super) fn telemetry_settings(reader: &mut Reader<'_>) -> TelemetrySettings {
    let collector = collector_settings(reader);
    let exporters = [("none", false), ("otlp", true)];
    let exports_metrics = reader.choice("OTEL_METRICS_EXPORTER", &exporters);
    let interval = Duration::from_millis(reader.number("OTEL_METRIC_EXPORT_INTERVAL"));
    let mut resource_attributes = reader.get("OTEL_RESOURCE_ATTRIBUTES", key_values);
    // OTEL_SERVICE_NAME overrides service.name; its default does not.
    let mut service_name = reader.get("OTEL_SERVICE_NAME", text(255));
    resource_attributes.retain(|(key, value)| {
        let is_name = key == "service.name";
        if is_name && !value.is_empty() && !reader.is_given("OTEL_SERVICE_NAME") {
            service_name.clone_from(value);
        }
        !is_name
    });
    let ratio = reader.number("OTEL_TRACES_SAMPLER_ARG");
    TelemetrySettings {
        collector,
        metrics_interval: exports_metrics.then_some(interval),
        service_name,
        sampler: reader.get("OTEL_TRACES_SAMPLER", |text| {
            tracing::sampler(&text.trim().to_ascii_lowercase(), ratio)
        }),
        resource_attributes,
    }
}
