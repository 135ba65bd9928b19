//! Database setup of the programs: configuration, pool with metrics.

use std::sync::Arc;
use std::time::Duration;

use crate::config::DatabaseSettings;
use crate::metrics::{DatabaseMetrics, Metrics};
use tbd_postgres::migrations::SchemaState;
use tbd_postgres::{DatabaseConfig, DatabaseError, FileError, Hooks, Pool, Tls};

/// The configuration for `settings`. `application` is the name in `pg_stat_activity`. Reads the
/// files of certificates and keys.
///
/// # Errors
/// A file cannot be used.
pub fn database_config(
    settings: &DatabaseSettings,
    application: &str,
) -> Result<DatabaseConfig, FileError> {
    let tls = settings.tls.clone();
    Ok(DatabaseConfig {
        tls: Tls::new(tls.mode, tls.roots, tls.identity)?,
        application_name: application.to_owned(),
        ..settings.config.clone()
    })
}

/// The pool, with its metrics. Does no I/O.
///
/// # Errors
/// When the configuration is contradictory.
pub fn pool(config: DatabaseConfig, metrics: &Metrics) -> Result<Pool, DatabaseError> {
    let pool = read_pool(config, metrics)?;
    let (measured, gauges) = (pool.clone(), metrics.database.clone());
    metrics.on_scrape(Box::new(move || {
        let status = measured.status();
        gauges.in_use.set(status.in_use.into());
        gauges.idle.set(status.idle.into());
        gauges.waiting.set(status.waiting.into());
        gauges.max.set(status.max.into());
    }));
    Ok(pool)
}

/// A further pool, for reads from a standby. It shares the metrics of statements and waits; the gauges
/// of connections describe the main pool alone. Does no I/O.
///
/// # Errors
/// When the configuration is contradictory.
pub fn read_pool(config: DatabaseConfig, metrics: &Metrics) -> Result<Pool, DatabaseError> {
    Pool::with_hooks(config, Arc::new(DatabaseMeter(metrics.database.clone())))
}

struct DatabaseMeter(DatabaseMetrics);

impl Hooks for DatabaseMeter {
    fn query_finished(&self, name: &'static str, duration: Duration, ok: bool) {
        let labels = [name];
        let seconds = duration.as_secs_f64();
        self.0
            .query_duration
            .with_label_values(&labels)
            .observe(seconds);
        // Creates the counter even without an error: Prometheus sees the first one only after a 0.
        let errors = self.0.query_errors.with_label_values(&labels);
        if !ok {
            errors.inc();
        }
    }

    fn connection_waited(&self, duration: Duration) {
        self.0.wait.observe(duration.as_secs_f64());
    }

    fn schema_checked(&self, state: SchemaState) {
        let is = |other| i64::from(state == other);
        self.0.schema_migrating.set(is(SchemaState::Migrating));
        self.0.schema_dirty.set(is(SchemaState::Dirty));
    }
}
