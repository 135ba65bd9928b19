//! [`IdempotencyStore`]: key, order and event in one statement, one round trip, one commit.
//! Submissions that come while a commit is under way share the next one.
//!
//! Submitting may be repeated after a lost connection: the second try meets its
//! own first row.

use std::sync::Arc;

use crate::orders::ports::{IdempotencyStore, Once, StoreError, Submission};
use tbd_deadline::Deadline;
use tbd_postgres::{Coalescer, Connection, DatabaseError, Job, Statement};

use super::submission::{ROWS_MAX, Row, TRIES_MAX, WRITERS, Written, each, known, outcome};
use super::together::{self, Carried, carried, shared_by};
use super::{PostgresStore, Shared};

pub(super) const STATEMENTS: &[Statement] = &[SUBMIT, SUBMIT_MANY, KNOWN, SWEEP];

// `known` keeps a replay free of writes: nothing to insert, no transaction id,
// no flush to disk. If a twin inserts the key meanwhile, the INSERT waits for
// it at the unique index; when the twin commits, nothing is inserted, and
// `known`, which sees the table as it was before the wait, is empty too: then
// `KNOWN` reads the key in a statement of its own. An expired key counts as
// none and is taken over.
//
// The column `traceparent` holds the whole trace context, `tracestate` included.
//
// `LATERAL` with a limit is one look-up in the index. A plain join of the outbox, which is
// nearly empty whenever PostgreSQL counts its rows, is planned as reading it whole, with the
// dead rows of thousands of events, or the backlog of an outage.
const SUBMIT: Statement = Statement::new(
    "INSERT order",
    "WITH known AS (
         SELECT request_hash, response_status, response_body, order_id
           FROM idempotency_keys WHERE key = $1 AND expires_at > now()
     ), fresh AS (
         INSERT INTO idempotency_keys AS k
                (key, request_hash, response_status, response_body, order_id, created_at, expires_at)
         SELECT $1, $2, $3, $4, $5, now(), now() + make_interval(secs => $6)
          WHERE NOT EXISTS (SELECT FROM known)
         ON CONFLICT (key) DO UPDATE
            SET request_hash = excluded.request_hash, response_status = excluded.response_status,
                response_body = excluded.response_body, order_id = excluded.order_id,
                created_at = excluded.created_at, expires_at = excluded.expires_at
          WHERE k.expires_at <= now()
      RETURNING order_id
     ), new_order AS (
         INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
         SELECT $5, $7, $8, 'pending', $9, $9 FROM fresh
     ), event AS (
         INSERT INTO outbox (order_id, payload, traceparent)
         SELECT $5, $10, $11 FROM fresh
     )
     SELECT EXISTS (SELECT FROM fresh) AS is_first,
            known.request_hash, known.response_status, known.response_body, known.order_id,
            outbox.payload, outbox.traceparent
       FROM (VALUES (1)) AS one
            LEFT JOIN known ON true
            LEFT JOIN LATERAL (
                SELECT payload, traceparent FROM outbox WHERE order_id = known.order_id LIMIT 1) AS outbox ON true",
);

// The same for many rows with different keys. They are inserted in the order of their keys,
// so that two writers cannot wait for each other.
const SUBMIT_MANY: Statement = Statement::new(
    "INSERT orders",
    "WITH input AS (
         SELECT * FROM unnest($1::text[], $2::bytea[], $3::smallint[], $4::bytea[], $5::uuid[],
                              $6::float8[], $7::text[], $8::bigint[], $9::timestamptz[],
                              $10::bytea[], $11::text[])
                WITH ORDINALITY AS input (key, request_hash, response_status, response_body, order_id,
                                          ttl, customer_email, amount_cents, created_at,
                                          payload, traceparent, n)
     ), known AS (
         SELECT n, k.* FROM input CROSS JOIN LATERAL (
             SELECT request_hash, response_status, response_body, order_id
               FROM idempotency_keys WHERE key = input.key AND expires_at > now() LIMIT 1) k
     ), fresh AS (
         INSERT INTO idempotency_keys AS k
                (key, request_hash, response_status, response_body, order_id, created_at, expires_at)
         SELECT key, request_hash, response_status, response_body, order_id,
                now(), now() + make_interval(secs => ttl)
           FROM input WHERE n NOT IN (SELECT n FROM known) ORDER BY key
         ON CONFLICT (key) DO UPDATE
            SET request_hash = excluded.request_hash, response_status = excluded.response_status,
                response_body = excluded.response_body, order_id = excluded.order_id,
                created_at = excluded.created_at, expires_at = excluded.expires_at
          WHERE k.expires_at <= now()
      RETURNING order_id
     ), new_orders AS (
         INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
         SELECT order_id, customer_email, amount_cents, 'pending', created_at, created_at
           FROM input JOIN fresh USING (order_id)
     ), events AS (
         INSERT INTO outbox (order_id, payload, traceparent)
         SELECT order_id, payload, traceparent FROM input JOIN fresh USING (order_id)
     )
     SELECT fresh.order_id IS NOT NULL AS is_first,
            known.request_hash, known.response_status, known.response_body, known.order_id,
            outbox.payload, outbox.traceparent
       FROM input
            LEFT JOIN fresh ON fresh.order_id = input.order_id
            LEFT JOIN known ON known.n = input.n
            LEFT JOIN LATERAL (
                SELECT payload, traceparent FROM outbox WHERE order_id = known.order_id LIMIT 1) AS outbox ON true
      ORDER BY input.n",
);

const KNOWN: Statement = Statement::new(
    "SELECT idempotency key",
    "SELECT request_hash, response_status, response_body, k.order_id, payload, traceparent
       FROM idempotency_keys k
            LEFT JOIN LATERAL (
                SELECT payload, traceparent FROM outbox WHERE order_id = k.order_id LIMIT 1) AS outbox ON true
      WHERE key = $1 AND expires_at > now()",
);

// In small batches, passing over rows that another instance is sweeping.
const SWEEP: Statement = Statement::new(
    "DELETE idempotency keys",
    "DELETE FROM idempotency_keys WHERE key = ANY (ARRAY(
         SELECT key FROM idempotency_keys WHERE expires_at <= now()
          ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))",
);

impl Job for Row {
    type Key = String;
    type Answer = Carried<Written>;

    fn key(&self) -> Option<&String> {
        Some(&self.key)
    }

    fn answered(&self, answer: &Carried<Written>) {
        if let (Some(when_stored), Ok(Written::Once(Once::First))) =
            (&self.when_stored, &answer.outcome)
        {
            when_stored(&self.message);
        }
    }
}

/// Where rows gather.
pub(super) type Submissions = Coalescer<Arc<Row>>;

/// A place for rows to gather.
pub(super) fn submissions() -> Submissions {
    Coalescer::new(WRITERS, ROWS_MAX)
}

impl IdempotencyStore for PostgresStore {
    fn submit(&self, submission: &Submission<'_>, deadline: Deadline) -> Result<Once, StoreError> {
        let row = Arc::new(Row::new(submission)?);
        let Some(Shared { submissions, .. }) = self.shared.as_deref() else {
            return self.submit_alone(&row, deadline);
        };
        let job = Arc::clone(&row);
        let wait = "wait for a shared commit";
        let write = |rows: &[&Arc<Row>]| self.write(rows, deadline);
        match together::run(submissions, job, deadline, wait, write)? {
            Written::Once(once) => Ok(once),
            Written::Alone => self.submit_alone(&row, deadline),
        }
    }

    fn sweep(&self, limit: u32, deadline: Deadline) -> Result<u64, StoreError> {
        let swept = self.run(SWEEP, deadline, |connection| {
            connection.execute(SWEEP, &[&i64::from(limit)])
        })?;
        Ok(swept)
    }
}

impl PostgresStore {
    /// One row by itself. Waits for a twin in progress for as long as the session's lock
    /// time-out allows.
    fn submit_alone(&self, row: &Row, deadline: Deadline) -> Result<Once, StoreError> {
        let submitted = self.run(SUBMIT, deadline, |connection| {
            for _ in 0..TRIES_MAX {
                if let Some(once) = submit_one(connection, row)? {
                    return Ok(once);
                }
            }
            Ok(Once::Running)
        });
        match submitted {
            Err(DatabaseError::LockTimeout) => Ok(Once::Running),
            other => Ok(other?),
        }
    }

    /// What gathered, for each row its own outcome.
    fn write(&self, rows: &[&Arc<Row>], deadline: Deadline) -> Vec<Carried<Written>> {
        let mut statement = None;
        let written = match rows {
            [row] => self.run(SUBMIT, deadline, |connection| {
                statement = shared_by(1);
                let once = submit_one(connection, row)?;
                Ok(vec![once.map_or(Written::Alone, Written::Once)])
            }),
            _ => self.run(SUBMIT_MANY, deadline, |connection| {
                statement = shared_by(rows.len());
                submit_many(connection, rows)
            }),
        };
        carried(each(written, rows.len()), statement)
    }
}

/// One try; `None` if the key was taken by a twin of which nothing is to be seen afterwards.
fn submit_one(connection: &mut Connection, row: &Row) -> Result<Option<Once>, DatabaseError> {
    let found = connection.query_opt(
        SUBMIT,
        &[
            &row.key,
            &&row.request_hash[..],
            &row.response_status,
            &row.response.body,
            &row.order.id.0,
            &row.ttl_seconds,
            &row.order.customer_email.as_str(),
            &row.order.amount.get(),
            &row.order.created_at,
            &&row.message.payload[..],
            &row.message.trace_context,
        ],
    )?;
    if let Some(found) = &found
        && let Written::Once(once) = outcome(found, row)?
    {
        return Ok(Some(once));
    }
    connection
        .query_opt(KNOWN, &[&row.key])?
        .map(|found| known(&found, row))
        .transpose()
}

/// All rows in one statement; for each what became of it.
fn submit_many(
    connection: &mut Connection,
    rows: &[&Arc<Row>],
) -> Result<Vec<Written>, DatabaseError> {
    fn column<'a, T>(rows: &[&'a Arc<Row>], of: impl Fn(&'a Row) -> T) -> Vec<T> {
        rows.iter().map(|row| of(row)).collect()
    }
    let found = connection.query(
        SUBMIT_MANY,
        &[
            &column(rows, |row| row.key.as_str()),
            &column(rows, |row| &row.request_hash[..]),
            &column(rows, |row| row.response_status),
            &column(rows, |row| &row.response.body[..]),
            &column(rows, |row| row.order.id.0),
            &column(rows, |row| row.ttl_seconds),
            &column(rows, |row| row.order.customer_email.as_str()),
            &column(rows, |row| row.order.amount.get()),
            &column(rows, |row| row.order.created_at),
            &column(rows, |row| &row.message.payload[..]),
            &column(rows, |row| row.message.trace_context.as_deref()),
        ],
    )?;
    found
        .iter()
        .zip(rows)
        .map(|(found, row)| outcome(found, row))
        .collect()
}
