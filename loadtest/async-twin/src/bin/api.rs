//! tbd-api on tokio.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use tbd::config::{ApiConfig, CommandLine, Program};
use tbd::metrics::Metrics;
use tbd::wiring::{self as house, Background, EVENTS_SHARE, SPANS_SHARE, Telemetry};
use tbd_async_twin::bus::Bus;
use tbd_async_twin::delivery::Delivery;
use tbd_async_twin::grpc::{self, Orders};
use tbd_async_twin::http::{Api, router};
use tbd_async_twin::service;
use tbd_async_twin::store::Store;
use tbd_deadline::{Deadline, StopSignal};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

fn main() {
    let (command, config) = house::load(Program::Api, ApiConfig::from_env);
    if command == CommandLine::Healthcheck {
        std::process::exit(house::healthcheck_command(&config.http));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let ended = runtime
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(config)));
    if let Err(error) = ended {
        log::error!("{error}");
        std::process::exit(1);
    }
}

async fn run(config: ApiConfig) -> Result<(), Box<dyn Error>> {
    service::refuse(config.http.tls.is_some(), "HTTP_TLS_CERT_FILE")?;
    service::refuse(
        config.auth.is_some(),
        "AUTH_JWT_JWKS_FILE, AUTH_JWT_HS256_SECRET",
    )?;
    let metrics = Metrics::new();
    let telemetry = Telemetry::start(&config.log, &config.telemetry, &metrics)?;
    let stop = StopSignal::new();
    let (stopping, stopped) = watch::channel(false);
    let (housekeeping, over) = watch::channel(false);

    let migrator = service::migrator(config.migrations_dir.as_deref())?;
    let (checks, kafka, mut threads) =
        service::checks(&config.database, &config.kafka, migrator.clone(), &stop)?;
    let database = house::database_config(&config.database, "tbd-api")?;
    if config.auto_migrate {
        let mut background = Background {
            stop: stop.clone(),
            ..Background::default()
        };
        background.migrate(migrator, database.clone())?;
        threads.extend(background.migrations);
    }
    threads.push(service::lag(&kafka, &config.kafka, &metrics, &stop)?);
    // The only setting that tbd lacks, for the comparison.
    let pipeline = std::env::var("TWIN_PIPELINE").as_deref() != Ok("off");
    let store = Store::new(database, (config.database_coalesce, pipeline), &metrics);
    let bus = Arc::new(Bus::new(
        &config.kafka,
        kafka.topics.clone(),
        metrics.kafka.clone(),
    )?);
    let (delivery, tasks) = Delivery::start(
        config.event_delivery,
        store.clone(),
        Arc::clone(&bus),
        &metrics,
        over,
    );
    let api = Arc::new(Api {
        store,
        delivery,
        ttl: config.idempotency_ttl,
    });
    let places = Arc::new(Semaphore::new(config.http.workers + config.http.queue));
    let requests = TaskTracker::new();
    let instance = house::instance(config.http.port);
    let router = router(
        Some(Arc::clone(&api)),
        checks,
        metrics,
        (Arc::clone(&places), instance),
        requests.clone(),
    );
    let listener = service::listen(config.http.address())?;
    let grpc = match grpc_port()? {
        0 => None,
        port => {
            let address = SocketAddr::new(config.http.address().ip(), port);
            let orders = Orders { api, places };
            let calls = grpc::serve(service::listen(address)?, orders, stopped.clone());
            Some(tokio::spawn(calls))
        }
    };
    let server = tokio::spawn(service::serve(listener, router, requests, stopped));

    service::shutdown_signal(watch::Sender::new(false)).await?;
    stop.stop();
    tokio::time::sleep(config.http.shutdown_drain).await;
    stopping.send_replace(true);
    server.await??;
    if let Some(grpc) = grpc {
        grpc.await??;
    }
    housekeeping.send_replace(true);
    for task in tasks {
        task.await?;
    }
    tokio::task::spawn_blocking(move || {
        house::join(threads);
        bus.close(Deadline::after(EVENTS_SHARE));
        telemetry.shutdown(Deadline::after(SPANS_SHARE));
    })
    .await?;
    log::info!("stopped");
    Ok(())
}

/// `API_GRPC_PORT`; 0, also where it is unset: no gRPC.
fn grpc_port() -> Result<u16, String> {
    let port = std::env::var("API_GRPC_PORT").unwrap_or_default();
    match port.as_str() {
        "" => Ok(0),
        port => port
            .parse()
            .map_err(|_| "API_GRPC_PORT must be a port".to_owned()),
    }
}
