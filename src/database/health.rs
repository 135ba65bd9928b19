//! Whether the database can be used: asked by a [monitor](crate::health::Monitor).

use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::error::DatabaseError;
use super::hooks::NoHooks;
use super::migrations::Migrator;
use super::pool::Pool;
use super::watchdog::Watchdog;

/// How long the database may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the database on a connection of its own: one more than `max_conns`, so
/// that a pool that is merely busy is not taken for a database that is away.
pub struct HealthCheck {
    pool: Pool,
    schema: Migrator,
    watchdog: Watchdog,
    connection: Option<Connection>,
}

impl HealthCheck {
    /// A check of `pool`'s database, healthy while its schema is clean and at least
    /// as new as the migrations of `schema`, and once the pool has found it again.
    pub fn new(pool: Pool, schema: Migrator) -> Self {
        Self {
            pool,
            schema,
            watchdog: Watchdog::default(),
            connection: None,
        }
    }

    /// One check. A kept connection that fails is replaced at once: what broke may
    /// have been the connection alone. Waits for the server's answer for 2 seconds
    /// at most, and for a new connection as [`DatabaseConfig::connect_timeout`](super::DatabaseConfig::connect_timeout) says.
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
        let opened = Connection::open(self.pool.config(), &self.watchdog, Arc::new(NoHooks));
        let outcome = opened.and_then(|mut connection| {
            let problem = self.examine(&mut connection)?;
            self.connection = Some(connection);
            Ok(problem)
        });
        match outcome {
            Ok(problem) => problem.map_or(Ok(()), Err),
            Err(error) => Err(error.to_string()),
        }
    }

    fn examine(&self, connection: &mut Connection) -> Result<Option<String>, DatabaseError> {
        connection.ping(ANSWER_TIMEOUT)?;
        let away = self.pool.away().map(|reason| reason.to_string());
        Ok(away.or(self.schema.status(connection)?.problem()))
    }
}
