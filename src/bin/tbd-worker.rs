//! The worker program: wires the modules together, starts them, and stops them in order.
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

use std::process;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tbd::config::{self, CommandLine, Program, WorkerConfig};
use tbd::metrics::Metrics;
use tbd::orders::adapters::kafka::{AnnouncementHealth, KafkaEventBus, OrderConsumers};
use tbd::orders::adapters::postgres::migrations::EMBEDDED;
use tbd::orders::adapters::postgres::{self, PostgresStore};
use tbd::orders::adapters::{PrometheusMeter, SimulatedStep};
use tbd::orders::app::SagaSweeper;
use tbd::orders::app::commands::{ProcessOrders, RunSagas, Workflow};
use tbd::wiring::health::Monitor;
use tbd::wiring::{
    self, AnyError, Background, Checks, EVENTS_SHARE, Kafka, Shutdown, ShutdownSignal,
    THREADS_SHARE, Telemetry,
};
use tbd_deadline::{Deadline, StopSignal};
use tbd_http::{Router, Server};
use tbd_kafka::consumer::ConsumerConfig;

/// Target duration of the steps of one poll's orders. A rebalance waits for the member's next
/// poll.
const BATCH_TIME: Duration = Duration::from_secs(1);
/// Maximum number of orders of one poll.
const BATCH_MAX: usize = 500;

fn main() {
    let (command, config) = wiring::load(Program::Worker, WorkerConfig::from_env);
    match command {
        CommandLine::Healthcheck => process::exit(wiring::healthcheck_command(&config.http)),
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
    let abort = StopSignal::new();
    let program = start(config, &metrics, &abort)?;
    let shutdown = signal.wait(abort)?;
    program.stop(shutdown, config, telemetry);
    Ok(())
}

/// What runs, and has to be stopped.
struct Running {
    background: Background,
    consumers: Vec<JoinHandle<()>>,
    bus: Arc<KafkaEventBus>,
    http: Server,
}

fn start(
    config: &WorkerConfig,
    metrics: &Metrics,
    abort: &StopSignal,
) -> Result<Running, AnyError> {
    let mut background = Background::default();
    let database = wiring::database_config(&config.database, "tbd-worker")?;
    let pool = wiring::pool(database, metrics)?;
    let kafka = Kafka::new(&config.kafka, "tbd-worker", metrics)?;
    let bus = KafkaEventBus::new(kafka.producer(metrics)?, kafka.topics.clone());
    let bus = Arc::new(bus);

    let migrator = wiring::migrator(EMBEDDED, None)?;
    let database_health = background.monitor_database(&pool, &migrator, postgres::TABLES)?;
    let warm = Arc::clone(&bus);
    let mut check = kafka
        .clone()
        .health_check(move |deadline| warm.warm_up(deadline));
    let announcement_health = AnnouncementHealth::default();
    let reported = announcement_health.clone();
    let kafka_health = background.monitor("kafka-health", move || {
        check().and_then(|()| reported.health())
    })?;
    let store = Arc::new(PostgresStore::new(pool, false));
    let (workflow, services) = workflow(config, metrics, &store, &bus, abort, &mut background)?;

    let mut monitors = vec![("database", database_health), ("kafka", kafka_health)];
    monitors.extend(services);
    let checks = Checks {
        monitors,
        stop: background.stop.clone(),
    };
    let router = wiring::probes(Router::new(), checks, metrics.clone(), config.http.port);
    let http = wiring::http_server(&config.http, router, metrics)?;
    let consumers = OrderConsumers {
        cluster: kafka.cluster.clone(),
        config: consumer_config(config),
        concurrency: config.concurrency,
        workflow,
        bus: bus.clone(),
        metrics: metrics.kafka.clone(),
        worker: metrics.worker.clone(),
        announcement_health,
        stop: background.stop.clone(),
    };
    let consumers = consumers.start()?;
    let lag = kafka.watch_lag(metrics, background.stop.clone())?;
    background.threads.push(lag);
    Ok(Running {
        background,
        consumers,
        bus,
        http,
    })
}

type Services = Vec<(&'static str, Monitor)>;

/// What the consumers do with orders, and the health of the services that it needs.
fn workflow(
    config: &WorkerConfig,
    metrics: &Metrics,
    store: &Arc<PostgresStore>,
    bus: &Arc<KafkaEventBus>,
    abort: &StopSignal,
    background: &mut Background,
) -> Result<(Box<dyn Workflow>, Services), AnyError> {
    let meter = PrometheusMeter::new(metrics.orders.clone());
    let stop = background.stop.clone();
    let config::Workflow::Saga(addresses) = &config.workflow else {
        let (time, failure_rate) = (config.processing_time, config.processing_failure_rate);
        let workflow = ProcessOrders {
            repository: store.clone(),
            step: Arc::new(SimulatedStep::new(time, failure_rate, abort.clone())),
            meter: Arc::new(meter),
            max_attempts: config.max_attempts,
            stop,
        };
        return Ok((Box::new(workflow), Vec::new()));
    };
    let meter = Arc::new(meter.with_sagas());
    let participants = wiring::participants(addresses, &config.participants_access, metrics)?;
    let services = wiring::monitor_participants(&participants, background)?;
    let sweeper = SagaSweeper {
        sagas: store.clone(),
        participants: participants.clone(),
        bus: bus.clone(),
        meter: meter.clone(),
        stop: stop.clone(),
    };
    background.threads.push(sweeper.start()?);
    let workflow = RunSagas {
        repository: store.clone(),
        sagas: store.clone(),
        participants,
        meter,
        stop,
    };
    Ok((Box::new(workflow), services))
}

fn consumer_config(config: &WorkerConfig) -> ConsumerConfig {
    let group = config.kafka.consumer_group.clone();
    let topic = config.kafka.topic_order_created.clone();
    let mut consumer = ConsumerConfig::new(group, [topic]);
    consumer.set_session_timeout(config.session_timeout);
    consumer.group_protocol = config.group_protocol;
    consumer.max_poll_records = match config.workflow {
        config::Workflow::Step => batch_size(config.processing_time),
        config::Workflow::Saga(_) => BATCH_MAX,
    };
    consumer
}

impl Running {
    /// Order: readiness fails; the consumers finish the orders in hand, commit and leave the group;
    /// the last events; the spans.
    fn stop(self, mut shutdown: Shutdown, config: &WorkerConfig, telemetry: Telemetry) {
        let (consumers, http, bus) = (self.consumers, self.http, self.bus);
        self.background.stop.stop();
        shutdown.part("consumers", shutdown.work(), move |_| {
            wiring::join(consumers)
        });
        shutdown.drain(config.http.shutdown_drain);
        let end = Deadline::after(THREADS_SHARE);
        shutdown.part("probes", end, move |end| {
            wiring::stop_servers(http, None, end);
        });
        let threads = self.background.threads;
        shutdown.part("threads", end, move |_| wiring::join(threads));
        let end = Deadline::after(EVENTS_SHARE);
        shutdown.part("events", end, move |end| bus.close(end));
        shutdown.finish(telemetry, self.background.migrations);
    }
}

/// The maximum number of orders of one poll, if each takes `processing_time`.
fn batch_size(processing_time: Duration) -> usize {
    let fits = BATCH_TIME.as_nanos() / processing_time.as_nanos().max(1);
    usize::try_from(fits)
        .unwrap_or(BATCH_MAX)
        .clamp(1, BATCH_MAX)
}
