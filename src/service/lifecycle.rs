//! From the command line to the last log line.

use std::io::{self, Write};
use std::process;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{self, CommandLine, ConfigErrors, LogConfig, Program, TelemetrySettings};
use crate::deadline::Deadline;
use crate::stop::StopSignal;
use crate::telemetry::logging;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tracing::{self, Sampler, Tracing, TracingConfig};

/// All that stopping may take (the seed's table of time-outs).
pub const SHUTDOWN_BUDGET: Duration = Duration::from_secs(30);

/// Of which this much is left when work that waits is cut short.
pub const ABORT_BEFORE_END: Duration = Duration::from_secs(5);

/// A command line or configuration that cannot be used.
const EXIT_USAGE: i32 = 2;

/// Answers `--help` and `--version`, reads the configuration; ends the process
/// with code 0 or 2 where that is all there is to do. Otherwise what is to be done,
/// and the configuration.
pub fn load<C>(program: Program, from_env: fn() -> Result<C, ConfigErrors>) -> (CommandLine, C) {
    let arguments = std::env::args_os().skip(1);
    let command = config::command_line(program, arguments);
    match &command {
        CommandLine::Run | CommandLine::Healthcheck | CommandLine::Dlq(_) => {}
        CommandLine::Print(text) => {
            // A reader that has seen enough, such as `head`, is no failure.
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
            service_name: settings.service_name.clone(),
            endpoint: settings.otlp_endpoint.clone(),
            sampler: sampler.unwrap_or(Sampler::ParentBasedAlwaysOn),
            resource_attributes: settings.resource_attributes.clone(),
        };
        let tracing = tracing::init(config, &metrics.tracing)?;
        Ok(Self { tracing })
    }

    /// Sends what spans are left, until `deadline` at most.
    pub fn shutdown(self, deadline: Deadline) {
        self.tracing.shutdown(deadline);
    }
}

/// SIGTERM and SIGINT, caught from its making on.
pub struct ShutdownSignal(Signals);

impl ShutdownSignal {
    /// Catches the signals: one that comes before [`wait`](Self::wait) is not lost.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Signals::new([SIGTERM, SIGINT])?))
    }

    /// Waits for the first signal. From then on a second one ends the process at once,
    /// with code 1.
    ///
    /// # Errors
    /// When the thread that waits for the second one cannot be started.
    pub fn wait(mut self) -> io::Result<()> {
        // The iterator only ends when it is closed, which nobody does.
        if let Some(signal) = self.0.forever().next() {
            log::info!(signal = signal; "stopping; a second signal ends the process at once");
        }
        thread::Builder::new()
            .name("second-signal".into())
            .spawn(move || {
                if self.0.forever().next().is_some() {
                    log::warn!("second signal, not waiting any longer");
                    process::exit(1);
                }
            })?;
        Ok(())
    }
}

/// Starts the thread `shutdown-watchdog`: it gives `abort` when the shutdown's budget is
/// nearly spent, and ends the process with code 1 when it is.
///
/// # Errors
/// When the thread cannot be started.
pub fn watchdog(abort: StopSignal) -> io::Result<()> {
    let end = Deadline::after(SHUTDOWN_BUDGET);
    thread::Builder::new()
        .name("shutdown-watchdog".into())
        .spawn(move || {
            // Nobody else gives this signal; it is a clock that can be waited on.
            StopSignal::new().wait_for(SHUTDOWN_BUDGET - ABORT_BEFORE_END);
            abort.stop();
            StopSignal::new().wait_until(end);
            log::error!("not everything ended within {SHUTDOWN_BUDGET:?}, ending anyway");
            process::exit(1);
        })?;
    Ok(())
}

/// Joins `threads`, each of which has been told to end; a panic of one is logged.
/// Waits for as long as they take: the watchdog bounds it.
pub fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        let name = thread.thread().name().unwrap_or("unnamed").to_owned();
        if thread.join().is_err() {
            log::error!(thread = name; "the thread had panicked");
        }
    }
}
