//! tbd-worker on tokio.

use std::error::Error;
use std::sync::Arc;

use tbd::config::{CommandLine, Program, WorkerConfig, Workflow};
use tbd::metrics::Metrics;
use tbd::orders::adapters::PrometheusMeter;
use tbd::wiring::{self as house, SPANS_SHARE, Telemetry};
use tbd_async_twin::bus::Bus;
use tbd_async_twin::http::router;
use tbd_async_twin::service;
use tbd_async_twin::store::Store;
use tbd_async_twin::worker::Worker;
use tbd_deadline::{Deadline, StopSignal};
use tbd_kafka::consumer::GroupProtocol;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

fn main() {
    let (command, config) = house::load(Program::Worker, WorkerConfig::from_env);
    match command {
        CommandLine::Healthcheck => std::process::exit(house::healthcheck_command(&config.http)),
        CommandLine::Dlq(command) => std::process::exit(house::dead_letters(&config, &command)),
        _ => {}
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

async fn run(config: WorkerConfig) -> Result<(), Box<dyn Error>> {
    let metrics = Metrics::new();
    let telemetry = Telemetry::start(&config.log, &config.telemetry, &metrics)?;
    let stop = StopSignal::new();
    let (stopping, stopped) = watch::channel(false);
    let (closing, closed) = watch::channel(false);
    let drain = config.http.shutdown_drain;

    service::refuse(config.http.tls.is_some(), "HTTP_TLS_CERT_FILE")?;
    service::refuse(config.workflow != Workflow::Step, "WORKER_WORKFLOW")?;
    let is_classic = config.group_protocol == GroupProtocol::Classic;
    service::refuse(!is_classic, "KAFKA_GROUP_PROTOCOL")?;
    let migrator = service::migrator(None)?;
    let (checks, kafka, mut threads) =
        service::checks(&config.database, &config.kafka, migrator, &stop)?;
    threads.push(service::lag(&kafka, &config.kafka, &metrics, &stop)?);
    let store = Store::new(
        house::database_config(&config.database, "tbd-worker")?,
        (false, false),
        &metrics,
    );
    let bus = Bus::new(&config.kafka, kafka.topics.clone(), metrics.kafka.clone())?;
    let places = Arc::new(Semaphore::new(config.http.workers + config.http.queue));
    let requests = TaskTracker::new();
    let instance = house::instance(config.http.port);
    let router = router(
        None,
        checks,
        metrics.clone(),
        (places, instance),
        requests.clone(),
    );
    let listener = service::listen(config.http.address())?;
    let server = tokio::spawn(service::serve(listener, router, requests, closed));
    let abort = watch::Sender::new(false);
    let tasks = Worker {
        store,
        bus,
        meter: PrometheusMeter::new(metrics.orders.clone()),
        metrics,
        config,
        stop: stopped,
        abort: abort.subscribe(),
    }
    .start()?;

    service::shutdown_signal(abort).await?;
    let drained = sleep(drain);
    stop.stop();
    stopping.send_replace(true);
    for task in tasks {
        task.await?;
    }
    drained.await;
    closing.send_replace(true);
    server.await??;
    tokio::task::spawn_blocking(move || {
        house::join(threads);
        telemetry.shutdown(Deadline::after(SPANS_SHARE));
    })
    .await?;
    log::info!("stopped");
    Ok(())
}
