//! Health check of the database, for a monitor thread.

use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::error::DatabaseError;
use super::hooks::NoHooks;
use super::migrations::{Migrator, SchemaState, SchemaStatus, Tables};
use super::pool::Pool;
use tbd_deadline::Deadline;

/// How long the database may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the check waits for a pooled connection before it considers the pool busy.
const POOL_TIMEOUT: Duration = Duration::from_millis(500);

/// Checks the database on a pooled connection, as requests do. While the pool is busy it uses its
/// own connection, one more than `max_conns`, so a busy pool does not look like an outage.
pub struct HealthCheck {
    pool: Pool,
    schema: Migrator,
    tables: Tables,
    own: Option<Connection>,
    verdict: Result<(), String>,
    state: SchemaState,
    /// The version that a warning has called newer than the program.
    newer: Option<i64>,
}

impl HealthCheck {
    /// A check of `pool`'s database. It is healthy while its schema is at least as new as the
    /// migrations of `schema`. While a migration runs, or after one failed half way, it is healthy
    /// if all `tables` exist.
    pub fn new(pool: Pool, schema: Migrator, tables: Tables) -> Self {
        Self {
            pool,
            schema,
            tables,
            own: None,
            verdict: Err("not asked yet".to_owned()),
            state: SchemaState::Clean,
            newer: None,
        }
    }

    /// Runs one check. It replaces a failed connection at once, since the fault may be in that
    /// connection alone. Blocks for half a second at most for a pooled connection, and for 2
    /// seconds for the server's answer. A new connection takes as long as
    /// [`DatabaseConfig::connect_timeout`](super::DatabaseConfig::connect_timeout) allows.
    ///
    /// # Errors
    /// Why the database cannot be used, in a sentence without secrets.
    pub fn run(&mut self) -> Result<(), String> {
        let examined = match self.ask_pooled() {
            Err(DatabaseError::PoolTimeout { .. }) => self.ask_on_own_connection(),
            examined => {
                self.own = None;
                examined.map(Some)
            }
        };
        match examined {
            Ok(Some(status)) => {
                self.report(&status);
                self.verdict = status.problem().map_or(Ok(()), Err);
            }
            Ok(None) => {}
            Err(error) => self.verdict = Err(error.to_string()),
        }
        self.verdict.clone()
    }

    fn ask_pooled(&self) -> Result<SchemaStatus, DatabaseError> {
        let mut connection = self.pool.get(Deadline::after(POOL_TIMEOUT))?;
        let status = self.examine(&mut connection);
        if !connection.is_lost() {
            return status;
        }
        drop(connection);
        self.examine(&mut *self.pool.get(Deadline::after(POOL_TIMEOUT))?)
    }

    /// None if the server has no connection to spare. It answers, and the pool's connections are at
    /// work, so the last verdict holds.
    fn ask_on_own_connection(&mut self) -> Result<Option<SchemaStatus>, DatabaseError> {
        if let Some(mut connection) = self.own.take()
            && let Ok(status) = self.examine(&mut connection)
        {
            self.own = Some(connection);
            return Ok(Some(status));
        }
        let config = self.pool.config();
        let mut connection = match Connection::open(config, Arc::new(NoHooks)) {
            Err(DatabaseError::OutOfResources { .. }) => return Ok(None),
            opened => opened?,
        };
        let status = self.examine(&mut connection)?;
        self.own = Some(connection);
        Ok(Some(status))
    }

    fn examine(&self, connection: &mut Connection) -> Result<SchemaStatus, DatabaseError> {
        connection.ping(ANSWER_TIMEOUT)?;
        self.schema.status(connection, self.tables)
    }

    /// Reports to the hooks, and logs a change of state.
    fn report(&mut self, status: &SchemaStatus) {
        self.pool.hooks().schema_checked(status.state);
        let newer = status.version.filter(|_| status.version > status.latest);
        if let Some(version) = newer
            && self.newer != newer
        {
            log::warn!(
                "the database's schema (version {version}) is newer than this program's (version {})",
                status.latest.unwrap_or_default()
            );
        }
        self.newer = newer;
        if self.state == status.state {
            return;
        }
        self.state = status.state;
        match status.state {
            SchemaState::Clean => log::info!("the schema is clean again"),
            SchemaState::Migrating => log::info!("another process is migrating the schema"),
            SchemaState::Dirty => log::warn!("{}", self.schema.way_out(status.version)),
        }
    }
}
