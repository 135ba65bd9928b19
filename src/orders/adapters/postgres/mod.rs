//! The PostgreSQL store of orders, idempotency keys and the outbox. Each port has a file, with its
//! SQL at the top. Reading rows (`rows`) and interpreting them (`submission`) have their own files.

mod idempotency;
pub mod migrations;
mod outbox;
mod read_replica;
mod repository;
pub mod rows;
mod saga_calls;
mod sagas;
mod shared_statement;
pub mod submission;

use std::sync::Arc;
use std::time::Instant;

use crate::orders::ports::{Message, StoreError};
use tbd_deadline::Deadline;
use tbd_postgres::migrations::Tables;
use tbd_postgres::{
    Connection, DatabaseConfig, DatabaseError, Params, Pool, Row, Statement, retry,
};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, Context, KeyValue, SpanKind};

use idempotency::{Submissions, submissions};
use repository::{Lookups, lookups};

pub use read_replica::ReadReplica;

/// Every statement of this adapter, for the test that checks their plans.
pub fn statements() -> Vec<Statement> {
    [
        repository::STATEMENTS,
        idempotency::STATEMENTS,
        outbox::STATEMENTS,
        sagas::STATEMENTS,
    ]
    .concat()
}

/// The tables and columns that these statements use.
#[rustfmt::skip]
pub const TABLES: Tables = &[
    ("orders", &["id", "customer_email", "amount_cents", "status", "failure_reason", "created_at", "updated_at"]),
    ("idempotency_keys", &["key", "request_hash", "response_status", "response_body", "order_id", "created_at", "expires_at"]),
    ("outbox", &["order_id", "payload", "traceparent", "created_at"]),
    ("sagas", &["order_id", "id", "version", "state", "command", "calls", "started_at", "updated_at", "swept_at"]),
];

/// Implements every storage port on one pool. Clones share the pool.
#[derive(Clone)]
pub struct PostgresStore {
    pool: Pool,
    /// Without it each request runs its own statement.
    shared: Option<Arc<Shared>>,
}

/// Receives the events of orders that one commit has stored, before the threads of their requests
/// wake. The committing thread calls it, so it must not block.
pub type AfterCommit = dyn Fn(&[&Message]) + Send + Sync;

/// Collects jobs while a statement is in flight; they share the next one.
struct Shared {
    submissions: Submissions,
    lookups: Lookups,
}

impl PostgresStore {
    /// A store in the database of `pool`. With `coalesce`, submissions that arrive while a commit
    /// is in flight share the next one; look-ups of orders share statements in the same way.
    pub fn new(pool: Pool, coalesce: bool) -> Self {
        Self::with_after_commit(pool, coalesce, None)
    }

    /// Like [`new`](Self::new); calls `after_commit` for the orders of each shared commit.
    pub fn with_after_commit(
        pool: Pool,
        coalesce: bool,
        after_commit: Option<Box<AfterCommit>>,
    ) -> Self {
        let shared = coalesce.then(|| Shared {
            submissions: submissions(after_commit),
            lookups: lookups(),
        });
        Self {
            pool,
            shared: shared.map(Arc::new),
        }
    }

    /// Runs `work` on a connection. Retries transient errors on a fresh connection: every
    /// statement in this folder is repeatable, and each file says why. Waits for a connection and
    /// for the server until `deadline` at most.
    ///
    /// The span covers all tries, each with its wait for a connection. Statements outside any
    /// trace, such as the housekeeping's every second, start no trace: the metrics cover them.
    fn run<T>(
        &self,
        statement: Statement,
        deadline: Deadline,
        mut work: impl FnMut(&mut Connection) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let parent = match tracing::current() {
            Some(_) => Context::current(),
            None => tracing::unsampled(),
        };
        let attributes = || attributes(statement, self.pool.config());
        let name = statement.name();
        let span = tracing::span_in(&parent, name, SpanKind::Client, attributes, Vec::new());
        let result = retry(deadline, || {
            let began = Instant::now();
            let connection = self.pool.get(deadline);
            let wait = tracing::waited("wait for a connection", began.elapsed(), Vec::new());
            if let Err(error) = &connection {
                wait.fail(error.kind(), &error.to_string());
            }
            drop(wait);
            let mut connection = connection?;
            if !self.pool.config().other_servers.is_empty() {
                let (host, port) = connection.server();
                span.set(semconv::SERVER_ADDRESS, host.to_owned());
                span.set(semconv::SERVER_PORT, i64::from(port));
            }
            connection.limit_to(deadline)?;
            work(&mut connection)
        });
        if let Err(error) = &result {
            if let Some(sqlstate) = error.sqlstate() {
                span.set(semconv::DB_RESPONSE_STATUS_CODE, sqlstate.to_owned());
            }
            span.fail(error.kind(), &error.to_string());
        }
        result
    }

    /// [Runs](Self::run) one statement, and reads each of its rows with `read`.
    fn rows<T>(
        &self,
        statement: Statement,
        params: Params<'_>,
        deadline: Deadline,
        read: impl Fn(&Row) -> Result<T, DatabaseError>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.run(statement, deadline, |connection| {
            let rows = connection.query(statement, params)?;
            rows.iter().map(&read).collect()
        })?;
        Ok(rows)
    }
}

/// The attributes of a statement's span.
pub fn attributes(statement: Statement, server: &DatabaseConfig) -> [KeyValue; 7] {
    let name = statement.name();
    let operation = name.split(' ').next().unwrap_or(name);
    let [system, namespace, address, port] =
        semconv::postgresql(&server.name, &server.host, server.port);
    [
        system,
        namespace,
        KeyValue::new(semconv::DB_OPERATION_NAME, operation),
        KeyValue::new(semconv::DB_QUERY_SUMMARY, name),
        KeyValue::new(semconv::DB_QUERY_TEXT, statement.sql()),
        address,
        port,
    ]
}

impl From<DatabaseError> for StoreError {
    fn from(error: DatabaseError) -> Self {
        match error.may_pass() {
            true => StoreError::Unavailable(error.to_string()),
            false => StoreError::Internal(error.to_string()),
        }
    }
}
