//! Whether the database can be used: asked by a [monitor](crate::health::Monitor).

use std::sync::Arc;
use std::time::Duration;

use super::config::DatabaseConfig;
use super::connection::Connection;
use super::error::DatabaseError;
use super::hooks::NoHooks;
use super::migrations::Migrator;
use super::watchdog::Watchdog;

/// How long the database may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the database on a connection of its own: one more than `max_conns`, so
/// that a pool that is merely busy is not taken for a database that is away.
pub struct HealthCheck {
    config: DatabaseConfig,
    schema: Migrator,
    watchdog: Watchdog,
    connection: Option<Connection>,
}

impl HealthCheck {
    /// A check of the database `config`, healthy while its schema is clean and at
    /// least as new as the migrations of `schema`.
    pub fn new(config: DatabaseConfig, schema: Migrator) -> Self {
        Self {
            config,
            schema,
            watchdog: Watchdog::default(),
            connection: None,
        }
    }

    /// One check. A kept connection that fails is replaced at once: what broke may
    /// have been the connection alone. Waits for the server's answer for 2 seconds
    /// at most, and for a new connection as [`DatabaseConfig::connect_timeout`] says.
    ///
    /// # Errors
    /// Why the database cannot be used, in a sentence without secrets.
    pub fn run(&mut self) -> Result<(), String> {
        if let Some(mut connection) = self.connection.take()
            && let Ok(problem) = self.examine(&mut connection)
        {
            self.connection = Some(connection);
            return problem.map_or(Ok(()), Err);
        }
        let outcome = Connection::open(&self.config, &self.watchdog, Arc::new(NoHooks)).and_then(
            |mut connection| {
                let problem = self.examine(&mut connection)?;
                self.connection = Some(connection);
                Ok(problem)
            },
        );
        match outcome {
            Ok(problem) => problem.map_or(Ok(()), Err),
            Err(error) => Err(error.to_string()),
        }
    }

    fn examine(&self, connection: &mut Connection) -> Result<Option<String>, DatabaseError> {
        connection.ping(ANSWER_TIMEOUT)?;
        Ok(self.schema.status(connection)?.problem())
    }
}
