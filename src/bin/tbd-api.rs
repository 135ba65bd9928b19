//! The API program: wires the modules together, starts them, and stops them in order.
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

use std::process;
use std::sync::Arc;

use tbd::config::{ApiConfig, CommandLine, Program};
use tbd::metrics::Metrics;
use tbd::orders::adapters::PrometheusMeter;
use tbd::orders::adapters::http::{Api, page, routes};
use tbd::orders::adapters::kafka::KafkaEventBus;
use tbd::orders::adapters::postgres::migrations::EMBEDDED;
use tbd::orders::adapters::postgres::{self, AfterCommit, PostgresStore, ReadReplica};
use tbd::orders::app::commands::{CancelOrder, CreateOrder};
use tbd::orders::app::{DeliveryMode, Housekeeping};
use tbd::orders::ports::{Message, OrderReader};
use tbd::wiring::{
    self, AnyError, Background, Checks, EVENTS_SHARE, GrpcServer, Kafka, Shutdown, ShutdownSignal,
    Telemetry,
};
use tbd_deadline::{Deadline, StopSignal};
use tbd_http::{Router, Server};
use tbd_postgres::Pool;

fn main() {
    let (command, config) = wiring::load(Program::Api, ApiConfig::from_env);
    if command == CommandLine::Healthcheck {
        process::exit(wiring::healthcheck_command(&config.http));
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
    let program = start(config, &metrics)?;
    let shutdown = signal.wait(StopSignal::new())?;
    program.stop(shutdown, config, telemetry);
    Ok(())
}

/// What runs, and has to be stopped.
struct Running {
    background: Background,
    /// Housekeeping ends after the last request, whose event it may handle.
    stop_housekeeping: StopSignal,
    bus: Arc<KafkaEventBus>,
    http: Server,
    grpc: Option<GrpcServer>,
}

fn start(config: &ApiConfig, metrics: &Metrics) -> Result<Running, AnyError> {
    let token_check = wiring::token_check(config.auth.as_ref())?;
    let mut background = Background::default();
    let migrator = wiring::migrator(EMBEDDED, config.migrations_dir.as_deref())?;
    let database = wiring::database_config(&config.database, "tbd-api")?;
    let pool = wiring::pool(database.clone(), metrics)?;
    let kafka = Kafka::new(&config.kafka, "tbd-api", metrics)?;
    let breaker = wiring::breaker("publishing", "kafka-publish", metrics);
    let bus = KafkaEventBus::new(kafka.producer(metrics)?, kafka.topics.clone());
    let bus = Arc::new(bus.with_breaker(breaker));

    let stop_housekeeping = StopSignal::new();
    let api = api(
        config,
        metrics,
        &pool,
        &bus,
        (&mut background, &stop_housekeeping),
    )?;
    let database_health = background.monitor_database(&pool, &migrator, postgres::TABLES)?;
    let warm = Arc::clone(&bus);
    let check = kafka
        .clone()
        .health_check(move |deadline| warm.warm_up(deadline));
    let kafka_health = background.monitor("kafka-health", check)?;
    let lag = kafka.watch_lag(metrics, background.stop.clone())?;
    background.threads.push(lag);

    let checks = Checks {
        monitors: vec![("database", database_health), ("kafka", kafka_health)],
        stop: background.stop.clone(),
    };
    let router = routes(Router::new(), Arc::clone(&api));
    let router = page(router, config.jaeger_ui.as_deref());
    let mut router = wiring::probes(router, checks.clone(), metrics.clone(), config.http.port);
    if let Some(check) = token_check.clone() {
        router = router.guard("/v1/", move |request| {
            check.get().admit(request.headers("Authorization"))
        });
    }
    let http = wiring::http_server(&config.http, router, metrics)?;
    let mut grpc = None;
    if let Some(config) = &config.grpc {
        let pool = http.pool();
        let background = &mut background;
        let server =
            wiring::grpc_server(config, api, token_check, pool, checks, metrics, background)?;
        grpc = Some(server);
    }
    if config.auto_migrate {
        background.migrate(migrator, database)?;
    }
    Ok(Running {
        background,
        stop_housekeeping,
        bus,
        http,
        grpc,
    })
}

/// The use cases, with housekeeping in the background until its own signal.
fn api(
    config: &ApiConfig,
    metrics: &Metrics,
    pool: &Pool,
    bus: &Arc<KafkaEventBus>,
    (background, stop_housekeeping): (&mut Background, &StopSignal),
) -> Result<Arc<Api>, AnyError> {
    // In direct mode the committing thread also starts to publish the events of the orders.
    let after_commit = (config.event_delivery == DeliveryMode::Direct).then(|| {
        let bus = Arc::clone(bus);
        Box::new(move |messages: &[&Message]| bus.begin(messages)) as Box<AfterCommit>
    });
    let coalesce = config.database_coalesce;
    let store = PostgresStore::with_after_commit(pool.clone(), coalesce, after_commit);
    let store = Arc::new(store);
    let reader = reader(config, &store, metrics)?;
    let meter = Arc::new(PrometheusMeter::new(metrics.orders.clone()));
    let housekeeping = Housekeeping {
        outbox: store.clone(),
        keys: store.clone(),
        bus: bus.clone(),
        meter: meter.clone(),
        stop: stop_housekeeping.clone(),
    };
    let (delivery, threads) = housekeeping.start(config.event_delivery)?;
    background.threads.extend(threads);
    Ok(Arc::new(Api {
        create: CreateOrder {
            store: store.clone(),
            bus: bus.clone(),
            delivery,
            meter,
            ttl: config.idempotency_ttl,
        },
        cancel: CancelOrder {
            repository: store.clone(),
        },
        orders: reader,
        sagas: store,
    }))
}

/// What the queries read: `store`, behind a standby if there is one.
fn reader(
    config: &ApiConfig,
    store: &Arc<PostgresStore>,
    metrics: &Metrics,
) -> Result<Arc<dyn OrderReader>, AnyError> {
    let Some(settings) = &config.read_database else {
        return Ok(store.clone());
    };
    let standby = wiring::database_config(settings, "tbd-api")?;
    let pool = wiring::read_pool(ReadReplica::config(standby), metrics)?;
    let standby = PostgresStore::new(pool, config.database_coalesce);
    let breaker = wiring::breaker("the standby", "database-read", metrics);
    Ok(Arc::new(ReadReplica::new(standby, store.clone(), breaker)))
}

impl Running {
    /// Order: readiness fails; no new requests; the last responses; their events; the spans.
    fn stop(self, mut shutdown: Shutdown, config: &ApiConfig, telemetry: Telemetry) {
        let (http, grpc, bus) = (self.http, self.grpc, self.bus);
        self.background.stop.stop();
        if let Some(grpc) = &grpc {
            grpc.fail_health();
        }
        shutdown.drain(config.http.shutdown_drain);
        shutdown.part("requests", shutdown.work(), move |end| {
            wiring::stop_servers(http, grpc, end);
        });
        self.stop_housekeeping.stop();
        shutdown.threads(self.background.threads);
        let end = Deadline::after(EVENTS_SHARE);
        shutdown.part("events", end, move |end| bus.close(end));
        shutdown.finish(telemetry, self.background.migrations);
    }
}
