//! Background threads of a program: health checks, migrations, and the signal that stops them.

use std::io;
use std::path::Path;
use std::thread::JoinHandle;

use tbd_deadline::StopSignal;
use tbd_postgres::migrations::{MigrationError, Migrator, Source, Tables};
use tbd_postgres::{DatabaseConfig, HealthCheck, Pool};

use super::database::start_migrations;
use super::health::Monitor;

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
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn migrate(&mut self, migrator: Migrator, database: DatabaseConfig) -> io::Result<()> {
        let thread = start_migrations(migrator, database, self.stop.clone())?;
        self.migrations.push(thread);
        Ok(())
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
