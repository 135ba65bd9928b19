//! Start-up of both programs: command line, configuration, logs and spans.

use std::io::{self, Write};
use std::process;

use crate::config::{self, CommandLine, ConfigErrors, LogConfig, Program, TelemetrySettings};
use crate::metrics::Metrics;
use tbd_deadline::Deadline;
use tbd_telemetry::logging;
use tbd_telemetry::tracing::{self, Sampler, Tracing, TracingConfig};

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

/// Logs and spans of the process.
pub struct Telemetry {
    tracing: Tracing,
}

impl Telemetry {
    /// Sets up logging, then tracing.
    ///
    /// # Errors
    /// When the export's thread cannot be started.
    pub fn start(
        log: &LogConfig,
        settings: &TelemetrySettings,
        metrics: &Metrics,
    ) -> io::Result<Self> {
        let format = match log.format {
            config::LogFormat::Json => logging::LogFormat::Json,
            config::LogFormat::Text => logging::LogFormat::Text,
        };
        logging::init(&settings.service_name, log.level, format);
        if let Some(note) = &settings.endpoint_note {
            log::info!("{note}");
        }
        let sampler = Sampler::from_name(settings.sampler, settings.sampler_arg);
        let config = TracingConfig {
            service_version: env!("CARGO_PKG_VERSION").to_owned(),
            service_name: settings.service_name.clone(),
            endpoint: settings.otlp_endpoint.clone(),
            sampler: sampler.unwrap_or(Sampler::ParentBasedAlwaysOn),
            resource_attributes: settings.resource_attributes.clone(),
        };
        let tracing = tracing::init(config, &metrics.tracing)?;
        Ok(Self { tracing })
    }

    /// Exports the remaining spans, until `deadline` at most.
    pub fn shutdown(self, deadline: Deadline) {
        if !self.tracing.shutdown(deadline) {
            log::warn!("the collector did not take the last spans in time");
        }
    }
}
