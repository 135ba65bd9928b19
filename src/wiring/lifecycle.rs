//! Start-up of the programs: command line, configuration, logs, and exports to a collector.

use std::io::{self, Write};
use std::process;

use crate::config::{self, CommandLine, ConfigErrors, LogConfig, Program, TelemetrySettings};
use crate::metrics::Metrics;
use tbd_deadline::Deadline;
use tbd_telemetry::logging;
use tbd_telemetry::otlp::{self, MetricsExport};
use tbd_telemetry::tracing::{self, Tracing, TracingConfig};

/// Exit code for an invalid command line or configuration.
const EXIT_USAGE: i32 = 2;

/// Parses the command line and reads the configuration. After `--help` and `--version` the process
/// ends with code 0, and after an error with code 2.
pub fn load<C>(program: Program, from_env: fn() -> Result<C, ConfigErrors>) -> (CommandLine, C) {
    let arguments = std::env::args_os().skip(1);
    let command = config::command_line(program, arguments);
    match &command {
        CommandLine::Run | CommandLine::Healthcheck | CommandLine::Dlq(_) => {}
        CommandLine::Print(text) => {
            // A closed pipe is no failure: `head` stops reading early.
            let _ = writeln!(io::stdout(), "{text}");
            process::exit(0);
        }
        CommandLine::Refuse(message) => fail(message),
    }
    let config = from_env().unwrap_or_else(|errors| fail(&errors.to_string()));
    (command, config)
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    process::exit(EXIT_USAGE);
}

/// Logs of the process, and its exports to a collector.
pub struct Telemetry {
    tracing: Tracing,
    metrics: Option<MetricsExport>,
}

impl Telemetry {
    /// Sets up logging, then the exports.
    ///
    /// # Errors
    /// A header or a CA certificate for the collector cannot be used, or an export's thread cannot be
    /// started.
    pub fn start(
        log: &LogConfig,
        settings: &TelemetrySettings,
        metrics: &Metrics,
    ) -> io::Result<Self> {
        logging::init(&settings.service_name, log.level, log.format);
        let collector = settings.collector.as_ref().map(otlp::Client::new);
        let collector = collector.transpose()?;
        let version = env!("CARGO_PKG_VERSION");
        let resource = tracing::resource(
            &settings.service_name,
            version,
            &settings.resource_attributes,
        );
        let export = match (&collector, settings.metrics_interval) {
            (Some(collector), Some(interval)) => {
                Some(metrics.export(&resource, collector.clone(), interval)?)
            }
            _ => None,
        };
        let config = TracingConfig {
            resource,
            version: version.to_owned(),
            collector,
            sampler: settings.sampler.clone(),
        };
        Ok(Self {
            tracing: tracing::init(config, &metrics.tracing),
            metrics: export,
        })
    }

    /// Exports the remaining spans and then the final metrics, until `deadline` at most.
    pub fn shutdown(self, deadline: Deadline) {
        let are_spans_sent = self.tracing.shutdown(deadline);
        let are_metrics_sent = self.metrics.is_none_or(|export| export.shutdown(deadline));
        if !are_spans_sent || !are_metrics_sent {
            log::warn!("the collector did not accept the last spans and metrics in time");
        }
    }
}
