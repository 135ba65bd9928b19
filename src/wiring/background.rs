//! Background threads of a program: health checks, migrations, and the signal that stops them.

use std::io;
use std::path::Path;
use std::process;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tbd_deadline::{Deadline, StopSignal};
use tbd_postgres::migrations::{MigrationError, Migrator, Source, Tables};
use tbd_postgres::{DatabaseConfig, HealthCheck, Pool};

use super::health::Monitor;

/// How long one attempt waits for the migration lock of another instance.
const LOCK_BUDGET: Duration = Duration::from_secs(60);
/// The pause between attempts while the database is unavailable.
const PAUSE: Duration = Duration::from_secs(1);
/// Exit code when the migrations fail: somebody has to repair the database.
const EXIT_MIGRATION: i32 = 1;

/// The threads, to be joined once `stop` is given.
#[derive(Default)]
pub struct Background {
    /// Ends all of them.
    pub stop: StopSignal,
    /// All but the migrations.
    pub threads: Vec<JoinHandle<()>>,
    /// The thread of the migrations; it may outlast the others.
    pub migrations: Vec<JoinHandle<()>>,
}

impl Background {
    /// Starts the thread `name`, which calls `check` as [`Monitor::start`] says.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn monitor(
        &mut self,
        name: &str,
        check: impl FnMut() -> Result<(), String> + Send + 'static,
    ) -> io::Result<Monitor> {
        let (monitor, thread) = Monitor::start(name, self.stop.clone(), check)?;
        self.threads.push(thread);
        Ok(monitor)
    }

    /// Starts the thread `database-health`: PostgreSQL answers and has the schema of `migrator`, with
    /// these tables.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn monitor_database(
        &mut self,
        pool: &Pool,
        migrator: &Migrator,
        tables: Tables,
    ) -> io::Result<Monitor> {
        let mut check = HealthCheck::new(pool.clone(), migrator.clone(), tables);
        self.monitor("database-health", move || check.run())
    }

    /// Starts the thread `migrations`. It migrates the schema as soon as the database is available, and
    /// ends. If a migration fails, the process logs how to repair the database and exits with code 1.
    /// Call it last of all that can fail: an end of the process would cut a migration short.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn migrate(&mut self, migrator: Migrator, database: DatabaseConfig) -> io::Result<()> {
        let stop = self.stop.clone();
        let thread = thread::Builder::new().name("migrations".into());
        let thread = thread.spawn(move || run_migrations(&migrator, &database, &stop))?;
        self.migrations.push(thread);
        Ok(())
    }
}

fn run_migrations(migrator: &Migrator, database: &DatabaseConfig, stop: &StopSignal) {
    let mut said = String::new();
    while !stop.is_stopped() {
        match migrator.run_unless_stopped(database, Deadline::after(LOCK_BUDGET), stop) {
            Ok(outcome) => {
                log::info!(applied = outcome.applied, version = outcome.to; "schema is up to date");
                return;
            }
            // The database is unavailable or refuses us; both may change while we wait.
            Err(error @ (MigrationError::Locked | MigrationError::Database(_))) => {
                let reason = error.to_string();
                if reason != said {
                    log::warn!("migrations wait: {reason}");
                    said = reason;
                }
                stop.wait_for(PAUSE);
            }
            Err(error @ MigrationError::Stopped) => {
                log::info!("{error}");
                return;
            }
            Err(error) => {
                log::error!("{error}");
                process::exit(EXIT_MIGRATION);
            }
        }
    }
}

/// The migrations in `folder`, or those `embedded` in the program.
///
/// # Errors
/// The folder's files are not migrations.
pub fn migrator(embedded: Source, folder: Option<&Path>) -> Result<Migrator, MigrationError> {
    Migrator::new(match folder {
        None => embedded,
        Some(folder) => Source::Dir(folder.to_owned()),
    })
}
