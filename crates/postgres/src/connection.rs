//! A session with the database: cached prepared statements, typed errors, detection of lost
//! sessions.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::types::{FromSql, ToSql};
use postgres::{Client, GenericClient, Row};

use super::config::DatabaseConfig;
use super::connector::{self, Link};
use super::error::{DatabaseError, is_stale_statement};
use super::hooks::Hooks;
use super::limit::TimeLimit;
use tbd_deadline::Deadline;

/// A statement's parameters.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// How long the server may exceed a statement's time-out before the connection is given up.
const GRACE: Duration = Duration::from_secs(2);
/// The shortest time-out that [`Connection::limit_to`] sets: zero would mean "without limit".
const MIN_STATEMENT_TIMEOUT: Duration = Duration::from_millis(1);

/// An SQL text that is part of the program, with its name in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    name: &'static str,
    sql: &'static str,
}

impl Statement {
    /// `sql`, measured as `name`, which must be one of few: it becomes a metric label.
    pub const fn new(name: &'static str, sql: &'static str) -> Self {
        Self { name, sql }
    }

    /// The name in metrics.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The SQL text. It is parameterised, so it holds no values.
    pub const fn sql(&self) -> &'static str {
        self.sql
    }
}

impl From<&'static str> for Statement {
    /// A statement that is not measured separately.
    fn from(sql: &'static str) -> Self {
        Self::new("other", sql)
    }
}

/// One session. Every statement runs prepared. Its first use on a connection costs one extra round
/// trip. Any later use costs exactly one (bind, execute and sync travel together). Outside a
/// transaction it commits by itself.
///
/// **Blocking:** each call waits for the server's answer. The server ends a statement at
/// `statement_timeout`, or earlier after [`limit_to`](Self::limit_to). If it has not done so 2 s
/// later, the connection counts as lost.
pub struct Connection {
    link: Link,
    // Bounded by the number of statements in the program, since every text is 'static.
    prepared: HashMap<&'static str, postgres::Statement>,
    hooks: Arc<dyn Hooks>,
    lost: bool,
    /// The session's configured time-out, and the one in force.
    statement_timeout: Duration,
    statement_timeout_now: Duration,
}

impl Connection {
    /// Connects. Waits for the resolver, then for all servers together `connect_timeout` plus 5 s
    /// for authentication.
    pub(super) fn open(
        config: &DatabaseConfig,
        hooks: Arc<dyn Hooks>,
    ) -> Result<Self, DatabaseError> {
        Ok(Self {
            link: connector::connect(config)?,
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

    /// Runs `work` in a transaction: committed when it returns `Ok`, rolled back when it returns
    /// `Err` or panics. Costs two more round trips than its statements.
    ///
    /// When the commit fails because the connection was lost, the outcome is unknown. A session whose
    /// transaction could not be ended is lost, too.
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
        // A panic is delayed until the rollback is done, which needs the limit too.
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&mut transaction)));
        let Transaction { inner, lost, .. } = transaction;
        let _limited = limit.hold(allowance);
        // If the server refuses the end itself, the transaction may still be open, and the session must
        // not serve anybody else.
        if let Ok(Ok(_)) = &outcome {
            inner.commit().map_err(|error| {
                *lost = true;
                limit.explain(error.into())
            })?;
        } else {
            // The caller gets the error of its work.
            *lost |= inner.rollback().is_err();
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Limits the statements that follow to `deadline`, until the connection goes back to the pool.
    /// Costs nothing while `statement_timeout` is the stricter limit. Otherwise it costs one round
    /// trip now, and one at the next check-out.
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

    /// Undoes [`limit_to`](Self::limit_to). If that fails, the connection is lost: the pool would hand it
    /// out again and again.
    pub(super) fn reset_statement_timeout(&mut self) -> Result<(), DatabaseError> {
        let reset = self.set_statement_timeout(self.statement_timeout);
        self.lost |= reset.is_err();
        reset
    }

    fn set_statement_timeout(&mut self, timeout: Duration) -> Result<(), DatabaseError> {
        if timeout == self.statement_timeout_now {
            return Ok(());
        }
        // SET takes no parameters, and a number of milliseconds needs no quoting.
        let set = format!("SET statement_timeout = {}", timeout.as_millis());
        let _limited = self.link.limit.hold(self.allowance());
        self.link
            .client
            .batch_execute(&set)
            .map_err(|error| noted(&mut self.lost, &self.link.limit, error))?;
        self.statement_timeout_now = timeout;
        Ok(())
    }

    /// Host and port of the server: one of the configured ones.
    pub fn server(&self) -> (&str, u16) {
        let (host, port) = &self.link.server;
        (host, *port)
    }

    /// Checks in one round trip that the server answers and is still what
    /// [`DatabaseConfig::target`] requires. Blocks for at most `timeout`. If the check fails, the
    /// connection is lost.
    pub fn ping(&mut self, timeout: Duration) -> Result<(), DatabaseError> {
        let _limited = self.link.limit.hold(timeout);
        self.link.verify().map_err(|error| {
            self.lost = true;
            self.link.limit.explain(error)
        })
    }

    /// Whether the session can no longer be used.
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
        let (client, prepared) = (&mut self.link.client, &mut self.prepared);
        let mut outcome = attempt(client, prepared, statement, &mut call);
        // The server refused the prepared form before it ran anything, so a retry cannot do the
        // work twice.
        if outcome
            .as_ref()
            .is_err_and(|error| error.as_db_error().is_some_and(is_stale_statement))
        {
            prepared.remove(statement.sql);
            outcome = attempt(client, prepared, statement, &mut call);
        }
        drop(limited);
        self.hooks
            .query_finished(statement.name, started.elapsed(), outcome.is_ok());
        outcome.map_err(|error| noted(&mut self.lost, &self.link.limit, error))
    }

    /// How long a statement may block this thread.
    fn allowance(&self) -> Duration {
        match self.statement_timeout_now {
            Duration::ZERO => Duration::MAX,
            timeout => timeout.saturating_add(GRACE),
        }
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
        let outcome = attempt(&mut self.inner, self.prepared, statement, call);
        drop(limited);
        self.hooks
            .query_finished(statement.name, started.elapsed(), outcome.is_ok());
        outcome.map_err(|error| {
            // The transaction is over, so there is no retry here, but the next attempt must prepare
            // again.
            if error.as_db_error().is_some_and(is_stale_statement) {
                self.prepared.remove(statement.sql);
            }
            noted(self.lost, self.limit, error)
        })
    }
}

/// Calls with `statement`, prepared now or earlier in the session.
fn attempt<C: GenericClient, T>(
    client: &mut C,
    prepared: &mut HashMap<&'static str, postgres::Statement>,
    statement: Statement,
    call: impl FnOnce(&mut C, &postgres::Statement) -> Result<T, postgres::Error>,
) -> Result<T, postgres::Error> {
    if let Some(prepared) = prepared.get(statement.sql) {
        return call(client, prepared);
    }
    let fresh = client.prepare(statement.sql)?;
    let outcome = call(client, &fresh);
    prepared.insert(statement.sql, fresh);
    outcome
}

/// Converts `error`, and records whether it ended the session.
fn noted(lost: &mut bool, limit: &TimeLimit, error: postgres::Error) -> DatabaseError {
    let error = limit.explain(error.into());
    *lost |= error.ends_session();
    error
}

/// The value of one column.
///
/// # Errors
/// No such column, or its type is another one: a bug of the caller, but an error and not a panic.
pub fn column<'a, T: FromSql<'a>>(row: &'a Row, name: &str) -> Result<T, DatabaseError> {
    row.try_get(name).map_err(DatabaseError::from)
}
