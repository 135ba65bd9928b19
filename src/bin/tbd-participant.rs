//! The program of the saga's participants: wires the modules together, starts them, and stops them
//! in order.
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

use std::process;
use std::sync::Arc;

use tbd::config::{CommandLine, ParticipantConfig, Program};
use tbd::metrics::Metrics;
use tbd::participants::adapters::grpc::{Faults, MESSAGE_BYTES_MAX, Service, paths, routes};
use tbd::participants::adapters::http::audits;
use tbd::participants::adapters::identity::Admission;
use tbd::participants::adapters::migrations::embedded;
use tbd::participants::adapters::postgres::{PostgresLedger, tables};
use tbd::wiring::{
    self, AnyError, Background, Checks, GrpcServer, GrpcService, ShutdownSignal, Telemetry,
};
use tbd_deadline::StopSignal;
use tbd_http::{Router, Server};

fn main() {
    let (command, config) = wiring::load(Program::Participant, ParticipantConfig::from_env);
    if command == CommandLine::Healthcheck {
        process::exit(wiring::healthcheck_command(&config.http));
    }
    if let Err(error) = run(&config) {
        log::error!("{error}");
        process::exit(1);
    }
}

fn run(config: &ParticipantConfig) -> Result<(), AnyError> {
    let metrics = Metrics::new();
    let telemetry = Telemetry::start(&config.log, &config.telemetry, &metrics)?;
    let signal = ShutdownSignal::new()?;
    let abort = StopSignal::new();
    let mut background = Background::default();
    let (http, grpc) = start(config, &metrics, &abort, &mut background)?;

    let mut shutdown = signal.wait(abort)?;

    // Order: readiness fails; no new calls; the last answers; the spans.
    background.stop.stop();
    grpc.fail_health();
    shutdown.drain(config.http.shutdown_drain);
    shutdown.part("calls", shutdown.work(), move |end| {
        wiring::stop_servers(http, Some(grpc), end);
    });
    shutdown.threads(background.threads);
    shutdown.finish(telemetry, background.migrations);
    Ok(())
}

fn start(
    config: &ParticipantConfig,
    metrics: &Metrics,
    abort: &StopSignal,
    background: &mut Background,
) -> Result<(Server, GrpcServer), AnyError> {
    let participant = config.participant;
    let token = wiring::token_check(config.auth.as_ref())?;
    let migrator = wiring::migrator(embedded(participant), config.migrations_dir.as_deref())?;
    let application = format!("tbd-{}", participant.name());
    let database = wiring::database_config(&config.database, &application)?;
    let pool = wiring::pool(database.clone(), metrics)?;
    let ledger = PostgresLedger::new(pool.clone(), participant, config.initial_stock);
    let ledger = Arc::new(ledger);
    let database_health = background.monitor_database(&pool, &migrator, tables(participant))?;
    let checks = Checks {
        monitors: vec![("database", database_health)],
        stop: background.stop.clone(),
    };

    let router = audits(Router::new(), participant, ledger.clone());
    let router = wiring::probes(router, checks.clone(), metrics.clone(), config.http.port);
    let http = wiring::http_server(&config.http, router, metrics)?;
    let service = Service {
        participant,
        ledger,
        faults: Faults {
            latency: config.latency,
            failure_rate: config.failure_rate,
            abort: abort.clone(),
        },
        metrics: metrics.participant.clone(),
    };
    let tls = config.grpc.tls.as_ref();
    let has_certificates = tls.is_some_and(|files| files.client_ca.is_some());
    let admission = Admission {
        allowed_clients: has_certificates.then(|| config.allowed_clients.clone()),
        token,
    };
    let observed = GrpcService {
        name: participant.service(),
        paths: paths(participant),
        message_bytes_max: MESSAGE_BYTES_MAX,
    };
    // Only admitted callers reach the service; health checks and reflection are for everybody.
    let add = |router: &mut tbd_grpc::Router| {
        router.intercept(move |call, next| {
            admission.admit(call)?;
            next.run()
        });
        routes(router, service);
    };
    let (settings, pool) = (&config.grpc, http.pool());
    let grpc = wiring::serve_grpc(settings, &observed, add, pool, checks, metrics, background)?;
    if config.auto_migrate {
        background.migrate(migrator, database)?;
    }
    Ok((http, grpc))
}
