//! The API program: wires the modules together, starts them, and stops them in order.

use std::process;
use std::sync::Arc;

use tbd::config::{ApiConfig, CommandLine, EventDelivery, Program};
use tbd::metrics::Metrics;
use tbd::orders::adapters::PrometheusMeter;
use tbd::orders::adapters::http::{Api, page, routes};
use tbd::orders::adapters::kafka::{Breaker, KafkaEventBus, watch_lag};
use tbd::orders::adapters::postgres::migrations::EMBEDDED;
use tbd::orders::adapters::postgres::{self, AfterCommit, PostgresStore};
use tbd::orders::app::commands::{CancelOrder, CreateOrder};
use tbd::orders::app::queries::{GetOrder, ListOrders};
use tbd::orders::app::{DeliveryMode, Housekeeping};
use tbd::orders::ports::Message;
use tbd::wiring::health::Monitor;
use tbd::wiring::{
    self, Checks, EVENTS_SHARE, Kafka, SPANS_SHARE, ShutdownSignal, THREADS_SHARE, Telemetry,
};
use tbd_deadline::Deadline;
use tbd_deadline::StopSignal;
use tbd_http::Router;
use tbd_postgres::HealthCheck;
use tbd_postgres::migrations::{Migrator, Source};

type AnyError = Box<dyn std::error::Error>;

fn main() {
    let (command, config) = wiring::load(Program::Api, ApiConfig::from_env);
    if command == CommandLine::Healthcheck {
        process::exit(wiring::healthcheck_command(config.http.address()));
    }
    if let Err(error) = run(&config) {
        log::error!("{error}");
        process::exit(1);
    }
}

fn run(config: &ApiConfig) -> Result<(), AnyError> {
    let metrics = Metrics::new();
    let telemetry = Telemetry::start(&config.log, &config.telemetry, &metrics)?;
    let signal = ShutdownSignal::new()?;
    let stop = StopSignal::new();

    let token_check = config.auth.as_ref().map(wiring::token_check).transpose()?;
    let migrator = Migrator::new(match &config.migrations_dir {
        None => EMBEDDED,
        Some(dir) => Source::Dir(dir.clone()),
    })?;
    let database = wiring::database_config(&config.database, "tbd-api");
    let pool = wiring::pool(database.clone(), &metrics)?;

    let kafka = Kafka::new(&config.kafka, "tbd-api", &metrics)?;
    let producer = kafka.producer(&metrics)?;
    let state = metrics
        .orders
        .circuit_breaker_state
        .with_label_values(&["kafka-publish"]);
    let breaker = Breaker::new(move |new| state.set(new as i64));
    let bus = KafkaEventBus::new(producer, kafka.topics.clone()).with_breaker(breaker);
    let bus = Arc::new(bus);
    // In direct mode the committing thread also starts to publish the events of the orders.
    let after_commit = (config.event_delivery == EventDelivery::Direct).then(|| {
        let bus = Arc::clone(&bus);
        Box::new(move |messages: &[&Message]| bus.begin(messages)) as Box<AfterCommit>
    });
    let coalesce = config.database_coalesce;
    let store = PostgresStore::with_after_commit(pool.clone(), coalesce, after_commit);
    let store = Arc::new(store);

    let meter = Arc::new(PrometheusMeter::new(metrics.orders.clone()));
    // A separate stop signal: housekeeping ends after the last request, whose event it may handle.
    let stop_housekeeping = StopSignal::new();
    let housekeeping = Housekeeping {
        outbox: store.clone(),
        keys: store.clone(),
        bus: bus.clone(),
        meter: meter.clone(),
        stop: stop_housekeeping.clone(),
    };
    let (delivery, mut threads) = housekeeping.start(match config.event_delivery {
        EventDelivery::Direct => DeliveryMode::Direct,
        EventDelivery::Outbox => DeliveryMode::Outbox,
    })?;

    let mut check = HealthCheck::new(pool, migrator.clone(), postgres::TABLES);
    let (database_health, thread) =
        Monitor::start("database-health", stop.clone(), move || check.run())?;
    threads.push(thread);
    let warm = Arc::clone(&bus);
    let check = kafka
        .clone()
        .health_check(move |deadline| warm.warm_up(deadline));
    let (kafka_health, thread) = Monitor::start("kafka-health", stop.clone(), check)?;
    threads.push(thread);
    threads.push(watch_lag(
        kafka.cluster.clone(),
        config.kafka.consumer_group.clone(),
        config.kafka.topic_order_created.clone(),
        metrics.kafka.clone(),
        stop.clone(),
    )?);
    let mut migrations = Vec::new();
    if config.auto_migrate {
        migrations.push(wiring::start_migrations(migrator, database, stop.clone())?);
    }

    let api = Api {
        create: CreateOrder::new(
            store.clone(),
            bus.clone(),
            delivery,
            meter,
            config.idempotency_ttl,
        ),
        cancel: CancelOrder::new(store.clone()),
        get: GetOrder::new(store.clone()),
        list: ListOrders::new(store),
    };
    let checks = Checks {
        database: database_health,
        kafka: kafka_health,
        stop: stop.clone(),
    };
    let router = page(routes(Router::new(), api), config.jaeger_ui.as_deref());
    let mut router = wiring::probes(router, checks, metrics.clone(), config.http.port);
    if let Some(check) = token_check {
        router = router.guard("/v1/", move |request| check.admit(request));
    }
    let server = wiring::http_server(&config.http, router, &metrics)?;

    let mut shutdown = signal.wait(StopSignal::new())?;

    // Order: readiness fails; no new requests; the last responses; their events; the spans.
    stop.stop();
    shutdown.drain(config.http.shutdown_drain);
    shutdown.part("requests", shutdown.work(), move |end| {
        wiring::stop_server(server, end);
    });
    stop_housekeeping.stop();
    shutdown.part("threads", Deadline::after(THREADS_SHARE), move |_| {
        wiring::join(threads);
    });
    shutdown.part("events", Deadline::after(EVENTS_SHARE), move |end| {
        bus.close(end);
    });
    shutdown.part("spans", Deadline::after(SPANS_SHARE), move |end| {
        telemetry.shutdown(end);
    });
    shutdown.part("migrations", shutdown.rest(), move |_| {
        wiring::join(migrations);
    });
    shutdown.end();
    Ok(())
}
