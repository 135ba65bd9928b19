//! Start and stop, as in tbd. Migrations and the two health checks are tbd's own, on their own threads:
//! they are on no request's path.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tbd::config::{DatabaseSettings, KafkaSettings};
use tbd::metrics::Metrics;
use tbd::orders::adapters::kafka::watch_lag;
use tbd::orders::adapters::postgres::TABLES;
use tbd::orders::adapters::postgres::migrations::EMBEDDED;
use tbd::wiring::health::Monitor;
use tbd::wiring::{self, Checks, Kafka};
use tbd_deadline::StopSignal;
use tbd_postgres::migrations::{Migrator, Source};
use tbd_postgres::{HealthCheck, SslMode};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// Time for the last answers, where a connection is not ready to end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The running health checks, their Kafka client, and their threads.
pub type Checked = (Checks, Kafka, Vec<JoinHandle<()>>);

/// tbd's health checks on a pool of one connection.
///
/// # Errors
/// When they cannot start.
pub fn checks(
    database: &DatabaseSettings,
    kafka: &KafkaSettings,
    migrator: Migrator,
    stop: &StopSignal,
) -> Result<Checked, Box<dyn Error>> {
    let encrypts = !matches!(database.tls.mode, SslMode::Disable | SslMode::Prefer);
    refuse(encrypts, "DB_SSLMODE")?;
    let mut config = wiring::database_config(database, "tbd-health")?;
    (config.max_conns, config.max_idle_conns) = (1, 1);
    let unseen = Metrics::new();
    let pool = wiring::pool(config, &unseen)?;
    let mut check = HealthCheck::new(pool, migrator, TABLES);
    let (database, first) = Monitor::start("database-health", stop.clone(), move || check.run())?;
    let secured = kafka.security.tls.is_some() || kafka.security.sasl.is_some();
    refuse(secured, "KAFKA_SECURITY_PROTOCOL")?;
    let kafka = Kafka::new(kafka, "tbd-health", &unseen)?;
    // librdkafka prepares by itself, as far as it does.
    let check = kafka.clone().health_check(|_| {});
    let (health, second) = Monitor::start("kafka-health", stop.clone(), check)?;
    let checks = Checks {
        monitors: vec![("database", database), ("kafka", health)],
        stop: stop.clone(),
    };
    Ok((checks, kafka, vec![first, second]))
}

/// tbd's monitor of the workers' lag.
///
/// # Errors
/// When its thread cannot be started.
pub fn lag(
    kafka: &Kafka,
    settings: &KafkaSettings,
    metrics: &Metrics,
    stop: &StopSignal,
) -> io::Result<JoinHandle<()>> {
    watch_lag(
        kafka.cluster.clone(),
        settings.consumer_group.clone(),
        settings.topic_order_created.clone(),
        metrics.kafka.clone(),
        stop.clone(),
    )
}

/// Refuses a feature of tbd that the twin lacks.
///
/// # Errors
/// If `wanted`.
pub fn refuse(wanted: bool, variable: &str) -> Result<(), String> {
    match wanted {
        true => Err(format!("{variable}: the twin knows its default alone")),
        false => Ok(()),
    }
}

/// The migrations built into tbd, or those of a folder.
///
/// # Errors
/// When the folder's files are not migrations.
pub fn migrator(folder: Option<&std::path::Path>) -> Result<Migrator, Box<dyn Error>> {
    Ok(Migrator::new(match folder {
        None => EMBEDDED,
        Some(folder) => Source::Dir(folder.to_owned()),
    })?)
}

/// Listens before anything is served, so that a port in use fails the start.
///
/// # Errors
/// When it cannot listen on the address; names the address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listening = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let listener = listening().map_err(|error| {
        io::Error::new(error.kind(), format!("listening on {address}: {error}"))
    })?;
    log::info!("listening on {address}");
    Ok(listener)
}

/// Serves `router` until `stop` is true, then finishes the requests in flight, which `requests` counts.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    requests: TaskTracker,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // An answer is one write, so waiting for more gains nothing.
        let _ = stream.set_nodelay(true);
    });
    let mut stopped = stop.clone();
    let router = router.into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    });
    let answered = async {
        let _ = stop.wait_for(|stop| *stop).await;
        requests.close();
        requests.wait().await;
        sleep(LAST_WORDS).await;
    };
    // hyper also waits, without a limit, for a client that has sent half a head.
    tokio::select! {
        ended = served => ended,
        () = answered => Ok(()),
    }
}

/// Waits for SIGTERM or SIGINT; a second signal ends the process at once. Shortly before the limit of an
/// orderly shutdown, `abort` becomes true; at the limit, the process ends.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub async fn shutdown_signal(abort: watch::Sender<bool>) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    log::info!("stopping; a second signal ends the process at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    tokio::spawn(async move {
        sleep(wiring::ABORT_AFTER).await;
        abort.send_replace(true);
        sleep(wiring::SHUTDOWN_BUDGET - wiring::ABORT_AFTER).await;
        log::error!("not everything ended in time, ending anyway");
        std::process::exit(1);
    });
    Ok(())
}
