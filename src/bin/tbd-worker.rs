//! The worker program: wires the modules together, starts them, and stops them in order.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use tbd::config::{CommandLine, GroupProtocol as WantedProtocol, Program, WorkerConfig};
use tbd::metrics::Metrics;
use tbd::orders::adapters::kafka::{
    AnnouncementHealth, ConsumerSettings, KafkaEventBus, OrderConsumers, watch_lag,
};
use tbd::orders::adapters::postgres::migrations::EMBEDDED;
use tbd::orders::adapters::postgres::{self, PostgresStore};
use tbd::orders::adapters::{PrometheusMeter, SimulatedStep};
use tbd::orders::app::commands::ProcessOrders;
use tbd::wiring::health::Monitor;
use tbd::wiring::{
    self, Checks, EVENTS_SHARE, Kafka, SPANS_SHARE, ShutdownSignal, THREADS_SHARE, Telemetry,
};
use tbd_deadline::Deadline;
use tbd_deadline::StopSignal;
use tbd_http::Router;
use tbd_kafka::consumer::{ConsumerConfig, GroupProtocol};
use tbd_postgres::HealthCheck;
use tbd_postgres::migrations::Migrator;

type AnyError = Box<dyn std::error::Error>;

/// Target duration of the steps of one poll's orders. A rebalance waits for the member's next
/// poll.
const BATCH_TIME: Duration = Duration::from_secs(1);
/// Maximum number of orders of one poll.
const BATCH_MAX: usize = 500;

fn main() {
    let (command, config) = wiring::load(Program::Worker, WorkerConfig::from_env);
    match command {
        CommandLine::Healthcheck => {
            process::exit(wiring::healthcheck_command(config.http.address()))
        }
        CommandLine::Dlq(command) => process::exit(wiring::dead_letters(&config, &command)),
        _ => {}
    }
    if let Err(error) = run(&config) {
        log::error!("{error}");
        process::exit(1);
    }
}

fn run(config: &WorkerConfig) -> Result<(), AnyError> {
    let metrics = Metrics::new();
    let telemetry = Telemetry::start(&config.log, &config.telemetry, &metrics)?;
    let signal = ShutdownSignal::new()?;
    let stop = StopSignal::new();
    let abort = StopSignal::new();

    let database = wiring::database_config(&config.database, "tbd-worker");
    let pool = wiring::pool(database, &metrics)?;
    let store = Arc::new(PostgresStore::new(pool.clone(), false));
    let kafka = Kafka::new(&config.kafka, "tbd-worker", &metrics)?;
    let producer = kafka.producer(&metrics)?;
    let bus = Arc::new(KafkaEventBus::new(producer, kafka.topics.clone()));

    let mut check = HealthCheck::new(pool, Migrator::new(EMBEDDED)?, postgres::TABLES);
    let (database_health, database_thread) =
        Monitor::start("database-health", stop.clone(), move || check.run())?;
    let warm = Arc::clone(&bus);
    let mut check = kafka
        .clone()
        .health_check(move |deadline| warm.warm_up(deadline));
    let announcement_health = AnnouncementHealth::default();
    let reported = announcement_health.clone();
    let (kafka_health, kafka_thread) = Monitor::start("kafka-health", stop.clone(), move || {
        check().and_then(|()| reported.health())
    })?;

    let checks = Checks {
        database: database_health,
        kafka: kafka_health,
        stop: stop.clone(),
    };
    let router = wiring::probes(Router::new(), checks, metrics.clone(), config.http.port);
    let server = wiring::http_server(&config.http, router, &metrics)?;

    let step = SimulatedStep::new(
        config.processing_time,
        config.processing_failure_rate,
        abort.clone(),
    );
    let consumers = OrderConsumers {
        process: ProcessOrders {
            repository: store,
            step: Arc::new(step),
            meter: Arc::new(PrometheusMeter::new(metrics.orders.clone())),
            max_attempts: config.max_attempts,
            stop: stop.clone(),
        },
        bus: bus.clone(),
        orders: metrics.orders.clone(),
        worker: metrics.worker.clone(),
        announcement_health,
        stop: stop.clone(),
    };
    let mut consumer = ConsumerConfig::new(
        config.kafka.consumer_group.clone(),
        [config.kafka.topic_order_created.clone()],
    );
    consumer.set_session_timeout(config.kafka.session_timeout);
    consumer.group_protocol = match config.kafka.group_protocol {
        WantedProtocol::Classic => GroupProtocol::Classic,
        WantedProtocol::Consumer => GroupProtocol::Consumer,
    };
    consumer.max_poll_records = batch_size(config.processing_time);
    let consumer_threads = consumers.start(ConsumerSettings {
        cluster: kafka.cluster.clone(),
        consumer,
        metrics: metrics.kafka.clone(),
        concurrency: config.concurrency,
    })?;
    let lag_thread = watch_lag(
        kafka.cluster.clone(),
        config.kafka.consumer_group.clone(),
        config.kafka.topic_order_created.clone(),
        metrics.kafka.clone(),
        stop.clone(),
    )?;
    let threads = vec![database_thread, kafka_thread, lag_thread];

    let mut shutdown = signal.wait(abort)?;

    // Order: readiness fails; the consumers finish the orders in hand, commit and leave the group;
    // the last events; the spans.
    stop.stop();
    shutdown.part("consumers", shutdown.work(), move |_| {
        wiring::join(consumer_threads);
    });
    shutdown.drain(config.http.shutdown_drain);
    let threads_end = Deadline::after(THREADS_SHARE);
    shutdown.part("probes", threads_end, move |end| {
        wiring::stop_server(server, end);
    });
    shutdown.part("threads", threads_end, move |_| wiring::join(threads));
    shutdown.part("events", Deadline::after(EVENTS_SHARE), move |end| {
        bus.close(end);
    });
    shutdown.part("spans", Deadline::after(SPANS_SHARE), move |end| {
        telemetry.shutdown(end);
    });
    shutdown.end();
    Ok(())
}

/// The maximum number of orders of one poll, if each takes `processing_time`.
fn batch_size(processing_time: Duration) -> usize {
    let fits = BATCH_TIME.as_nanos() / processing_time.as_nanos().max(1);
    usize::try_from(fits)
        .unwrap_or(BATCH_MAX)
        .clamp(1, BATCH_MAX)
}
