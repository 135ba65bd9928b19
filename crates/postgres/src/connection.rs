//! One session with the database: statements prepared once, errors typed, a broken session known as broken.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::types::ToSql;
use postgres::{Client, Row};

use super::config::DatabaseConfig;
use super::connector::{self, Link};
use super::error::{DatabaseError, is_stale_statement};
use super::hooks::Hooks;
use super::watchdog::{TimeLimit, Watchdog};
use tbd_deadline::Deadline;

/// Parameters of a statement.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// How much longer than the server we let a statement run before we give up the server itself.
const GRACE: Duration = Duration::from_secs(2);
/// The shortest time a statement is given by [`Connection::limit_to`]: zero would mean "without limit".
const MIN_STATEMENT_TIMEOUT: Duration = Duration::from_millis(1);

/// An SQL text that is part of the program, and the name under which it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    name: &'static str,
    sql: &'static str,
}

impl Statement {
    /// `sql`, measured as `name` (one of few: it becomes a metric label).
    pub const fn new(name: &'static str, sql: &'static str) -> Self {
        Self { name, sql }
    }

    /// The name under which it is measured.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its text, parameterised and so free of values.
    pub const fn sql(&self) -> &'static str {
        self.sql
    }
}

impl From<&'static str> for Statement {
    /// A statement nobody measures on its own.
    fn from(sql: &'static str) -> Self {
        Self::new("other", sql)
    }
}

/// One session. Every statement runs prepared: the first use on a connection costs a round trip more, any further
/// use exactly one (bind, execute and sync travel together), and outside a transaction commits by itself.
///
/// **Blocking:** each call waits for the server's answer. The server ends a statement at `statement_timeout` (or
/// earlier, after [`limit_to`](Self::limit_to)). A server that does not even do that within 2 s more is taken for
/// gone, and the connection with it.
pub struct Connection {
    link: Link,
    // Bounded by the number of statements in the program, since every text is 'static.
    prepared: HashMap<&'static str, postgres::Statement>,
    hooks: Arc<dyn Hooks>,
    lost: bool,
    /// The session's configured limit, and the one in force.
    statement_timeout: Duration,
    statement_timeout_now: Duration,
}

impl Connection {
    /// Connects. Waits for the resolver, then for all servers together `connect_timeout`, and 5 s for authentication.
    pub(super) fn open(
        config: &DatabaseConfig,
        watchdog: &Watchdog,
        hooks: Arc<dyn Hooks>,
    ) -> Result<Self, DatabaseError> {
        Ok(Self {
            link: connector::connect(config, watchdog)?,
            prepared: HashMap::new(),
            hooks,
            lost: false,
            statement_timeout: config.statement_timeout,
            statement_timeout_now: config.statement_timeout,
        })
    }

    /// Runs `statement` and returns its rows.
    pub fn query(
        &mut self,
        statement: impl Into<Statement>,
        params: Params<'_>,
    ) -> Result<Vec<Row>, DatabaseError> {
        self.run(statement.into(), |client, prepared| {
            client.query(prepared, params)
        })
    }

    /// Runs `statement` and returns its first row, if any.
    pub fn query_opt(
        &mut self,
        statement: impl Into<Statement>,
        params: Params<'_>,
    ) -> Result<Option<Row>, DatabaseError> {
        Ok(self.query(statement, params)?.into_iter().next())
    }

    /// Runs `statement` and returns how many rows it changed.
    pub fn execute(
        &mut self,
        statement: impl Into<Statement>,
        params: Params<'_>,
    ) -> Result<u64, DatabaseError> {
        self.run(statement.into(), |client, prepared| {
            client.execute(prepared, params)
        })
    }

    /// Runs `work` in a transaction: committed when it returns `Ok`, rolled back when it returns `Err` or panics.
    /// Costs two round trips more than the statements in it.
    ///
    /// When the commit itself fails for a lost connection, the transaction may have been committed.
    pub fn transaction<T, E: From<DatabaseError>>(
        &mut self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let allowance = self.allowance();
        let Self {
            link: Link { client, limit, .. },
            prepared,
            hooks,
            lost,
            ..
        } = self;
        let limited = limit.hold(allowance);
        let inner = client
            .transaction()
            .map_err(|error| noted(lost, limit, error))?;
        drop(limited);
        let mut transaction = Transaction {
            inner,
            limit,
            allowance,
            prepared,
            hooks,
            lost,
        };
        // A panic is held up only until the rollback is through, which needs the limit, too.
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&mut transaction)));
        let Transaction { inner, lost, .. } = transaction;
        let _limited = limit.hold(allowance);
        if let Ok(Ok(_)) = &outcome {
            inner.commit().map_err(|error| noted(lost, limit, error))?;
        } else {
            // What the caller hears is why its work failed; a failed rollback ends with the session.
            let _ = inner.rollback().map_err(|error| noted(lost, limit, error));
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Lets the statements that follow, until the connection goes back to the pool, run no longer than `deadline`
    /// allows. Free of charge as long as `statement_timeout` is the stricter limit; otherwise one round trip now,
    /// and one when the connection is next checked out.
    pub fn limit_to(&mut self, deadline: Deadline) -> Result<(), DatabaseError> {
        let remaining = deadline.remaining().max(MIN_STATEMENT_TIMEOUT);
        let configured = self.statement_timeout;
        let wanted = if configured.is_zero() {
            remaining
        } else {
            configured.min(remaining)
        };
        self.set_statement_timeout(wanted)
    }

    /// Undoes [`limit_to`](Self::limit_to).
    pub(super) fn reset_statement_timeout(&mut self) -> Result<(), DatabaseError> {
        self.set_statement_timeout(self.statement_timeout)
    }

    fn set_statement_timeout(&mut self, timeout: Duration) -> Result<(), DatabaseError> {
        if timeout == self.statement_timeout_now {
            return Ok(());
        }
        // SET takes no parameters; a number of milliseconds is safe to spell out.
        let set = format!("SET statement_timeout = {}", timeout.as_millis());
        let _limited = self.link.limit.hold(self.allowance());
        self.link
            .client
            .batch_execute(&set)
            .map_err(|error| noted(&mut self.lost, &self.link.limit, error))?;
        self.statement_timeout_now = timeout;
        Ok(())
    }

    /// Host and port of the server: one of those that the configuration names.
    pub fn server(&self) -> (&str, u16) {
        let (host, port) = &self.link.server;
        (host, *port)
    }

    /// Asks the server for a sign of life, and whether it is still what [`DatabaseConfig::target`] asks for: one round
    /// trip, at most `timeout` long. Without a good answer the connection is lost.
    pub fn ping(&mut self, timeout: Duration) -> Result<(), DatabaseError> {
        let _limited = self.link.limit.hold(timeout);
        self.link.verify().map_err(|error| {
            self.lost = true;
            self.link.limit.explain(error)
        })
    }

    /// Whether the session is of no use any more.
    pub fn is_lost(&self) -> bool {
        self.lost || self.link.is_closed()
    }

    fn run<T>(
        &mut self,
        statement: Statement,
        mut call: impl FnMut(&mut Client, &postgres::Statement) -> Result<T, postgres::Error>,
    ) -> Result<T, DatabaseError> {
        let started = Instant::now();
        let limited = self.link.limit.hold(self.allowance());
        let mut outcome = self.attempt(statement, &mut call);
        // The server refused the prepared form before running anything, so a second try cannot do the work twice.
        if outcome
            .as_ref()
            .is_err_and(|error| error.as_db_error().is_some_and(is_stale_statement))
        {
            self.prepared.remove(statement.sql);
            outcome = self.attempt(statement, &mut call);
        }
        drop(limited);
        self.hooks
            .query_finished(statement.name, started.elapsed(), outcome.is_ok());
        outcome.map_err(|error| noted(&mut self.lost, &self.link.limit, error))
    }

    /// How long a statement may keep us waiting.
    fn allowance(&self) -> Duration {
        match self.statement_timeout_now {
            Duration::ZERO => Duration::MAX,
            timeout => timeout.saturating_add(GRACE),
        }
    }

    fn attempt<T>(
        &mut self,
        statement: Statement,
        call: &mut impl FnMut(&mut Client, &postgres::Statement) -> Result<T, postgres::Error>,
    ) -> Result<T, postgres::Error> {
        let Self {
            link: Link { client, .. },
            prepared,
            ..
        } = self;
        if let Some(prepared) = prepared.get(statement.sql) {
            return call(client, prepared);
        }
        let fresh = client.prepare(statement.sql)?;
        let outcome = call(client, &fresh);
        prepared.insert(statement.sql, fresh);
        outcome
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.lost {
            self.link.limit.cut();
        }
    }
}

/// An open transaction, see [`Connection::transaction`].
pub struct Transaction<'a> {
    inner: postgres::Transaction<'a>,
    limit: &'a TimeLimit,
    allowance: Duration,
    prepared: &'a mut HashMap<&'static str, postgres::Statement>,
    hooks: &'a Arc<dyn Hooks>,
    lost: &'a mut bool,
}

impl<'a> Transaction<'a> {
    /// Runs `statement` and returns its rows.
    pub fn query(
        &mut self,
        statement: impl Into<Statement>,
        params: Params<'_>,
    ) -> Result<Vec<Row>, DatabaseError> {
        self.run(statement.into(), |inner, prepared| {
            inner.query(prepared, params)
        })
    }

    /// Runs `statement` and returns its first row, if any.
    pub fn query_opt(
        &mut self,
        statement: impl Into<Statement>,
        params: Params<'_>,
    ) -> Result<Option<Row>, DatabaseError> {
        Ok(self.query(statement, params)?.into_iter().next())
    }

    /// Runs `statement` and returns how many rows it changed.
    pub fn execute(
        &mut self,
        statement: impl Into<Statement>,
        params: Params<'_>,
    ) -> Result<u64, DatabaseError> {
        self.run(statement.into(), |inner, prepared| {
            inner.execute(prepared, params)
        })
    }

    fn run<T>(
        &mut self,
        statement: Statement,
        call: impl FnOnce(
            &mut postgres::Transaction<'a>,
            &postgres::Statement,
        ) -> Result<T, postgres::Error>,
    ) -> Result<T, DatabaseError> {
        let started = Instant::now();
        let limited = self.limit.hold(self.allowance);
        let outcome = self.attempt(statement, call);
        drop(limited);
        self.hooks
            .query_finished(statement.name, started.elapsed(), outcome.is_ok());
        outcome.map_err(|error| {
            // The transaction is over, so there is no second try here, but the next one shall find it prepared.
            if error.as_db_error().is_some_and(is_stale_statement) {
                self.prepared.remove(statement.sql);
            }
            noted(self.lost, self.limit, error)
        })
    }

    fn attempt<T>(
        &mut self,
        statement: Statement,
        call: impl FnOnce(
            &mut postgres::Transaction<'a>,
            &postgres::Statement,
        ) -> Result<T, postgres::Error>,
    ) -> Result<T, postgres::Error> {
        if let Some(prepared) = self.prepared.get(statement.sql) {
            return call(&mut self.inner, prepared);
        }
        let fresh = self.inner.prepare(statement.sql)?;
        let outcome = call(&mut self.inner, &fresh);
        self.prepared.insert(statement.sql, fresh);
        outcome
    }
}

/// Types `error`, and notes when the session did not survive it.
fn noted(lost: &mut bool, limit: &TimeLimit, error: postgres::Error) -> DatabaseError {
    let error = limit.explain(error.into());
    *lost |= error.ends_session();
    error
}
