//! Orders, keys and outbox in PostgreSQL: a file for each port, its SQL at the top; rows and what they mean apart.

mod idempotency;
pub mod migrations;
mod outbox;
mod repository;
pub mod rows;
mod shared_statement;
pub mod submission;

use std::sync::Arc;
use std::time::Instant;

use crate::orders::ports::{Message, StoreError};
use tbd_deadline::Deadline;
use tbd_postgres::migrations::Tables;
use tbd_postgres::{Connection, DatabaseConfig, DatabaseError, Pool, Statement, retry};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, Context, KeyValue, SpanKind};

use idempotency::{Submissions, submissions};
use repository::{Lookups, lookups};

/// Every statement of this adapter, for the test that looks at their plans.
pub fn statements() -> Vec<Statement> {
    [
        repository::STATEMENTS,
        idempotency::STATEMENTS,
        outbox::STATEMENTS,
    ]
    .concat()
}

/// The tables and columns that these statements name.
pub const TABLES: Tables = &[
    (
        "orders",
        &[
            "id",
            "customer_email",
            "amount_cents",
            "status",
            "failure_reason",
            "created_at",
            "updated_at",
        ],
    ),
    (
        "idempotency_keys",
        &[
            "key",
            "request_hash",
            "response_status",
            "response_body",
            "order_id",
            "created_at",
            "expires_at",
        ],
    ),
    (
        "outbox",
        &["order_id", "payload", "traceparent", "created_at"],
    ),
];

/// Implements every storage port on one pool. Clones share the pool.
#[derive(Clone)]
pub struct PostgresStore {
    pool: Pool,
    /// Without it each request has a statement of its own.
    shared: Option<Arc<Shared>>,
}

/// Hears of the events of orders that one commit has stored, before the threads of their requests wake. Called by the
/// thread that committed; must not block.
pub type AfterCommit = dyn Fn(&[&Message]) + Send + Sync;

/// Where work gathers while a statement is under way, to share the next one.
struct Shared {
    submissions: Submissions,
    lookups: Lookups,
}

impl PostgresStore {
    /// A store on the database behind `pool`. With `coalesce`, submissions that
    /// come while a commit is under way share the next one, and so do look-ups of an order.
    pub fn new(pool: Pool, coalesce: bool) -> Self {
        Self::with_after_commit(pool, coalesce, None)
    }

    /// The same, with `after_commit` called for orders that share a commit.
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

    /// Runs `work` on a connection, and again on a fresh one after a transient
    /// error: everything in this folder may be repeated (each file says why).
    /// Waits for a connection and for the server until `deadline` at most.
    ///
    /// The span covers all tries, each with its wait for a connection. Statements that
    /// belong to no trace (the housekeeping's, every second) make none: the metrics
    /// measure them.
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
}

/// What a statement's span says of it; the namespace is `database|schema`, as the semantic conventions name it.
pub fn attributes(statement: Statement, server: &DatabaseConfig) -> [KeyValue; 7] {
    let name = statement.name();
    let operation = name.split(' ').next().unwrap_or(name);
    [
        KeyValue::new(semconv::DB_SYSTEM_NAME, semconv::POSTGRESQL),
        KeyValue::new(semconv::DB_NAMESPACE, format!("{}|public", server.name)),
        KeyValue::new(semconv::DB_OPERATION_NAME, operation),
        KeyValue::new(semconv::DB_QUERY_SUMMARY, name),
        KeyValue::new(semconv::DB_QUERY_TEXT, statement.sql()),
        KeyValue::new(semconv::SERVER_ADDRESS, server.host.clone()),
        KeyValue::new(semconv::SERVER_PORT, i64::from(server.port)),
    ]
}

impl From<DatabaseError> for StoreError {
    fn from(error: DatabaseError) -> Self {
        /// PostgreSQL's undefined_table: the schema is not migrated yet, and will be.
        const UNDEFINED_TABLE: &str = "42P01";
        let later = match &error {
            DatabaseError::Driver(_) => false,
            DatabaseError::Other { sqlstate, .. } => sqlstate == UNDEFINED_TABLE,
            _ => true,
        };
        match later {
            true => StoreError::Unavailable(error.to_string()),
            false => StoreError::Internal(error.to_string()),
        }
    }
}
