//! The PostgreSQL [`IdempotencyStore`]: key, order and event in one statement, one round trip, one
//! commit. Submissions that arrive while a commit is in flight share the next one.
//!
//! A submission is repeatable after a lost connection: the retry finds its own row.

use std::sync::Arc;

use crate::orders::ports::{
    IdempotencyKey, IdempotencyStore, Message, StoreError, Submission, SubmitOutcome,
};
use tbd_deadline::Deadline;
use tbd_postgres::{Coalescer, Connection, DatabaseError, Job, Statement};

use super::shared_statement::{self, SharedOutcome, shared_by, with_statement_span};
use super::submission::{
    ACCEPTED, ROWS_MAX, RowOutcome, TRIES_MAX, WRITERS, interpret_known_key, interpret_row,
    outcome_per_row,
};
use super::{AfterCommit, PostgresStore, Shared};

pub(super) const STATEMENTS: &[Statement] = &[SUBMIT, SUBMIT_MANY, KNOWN, SWEEP];

// `known` keeps a replay free of writes: no insert, no transaction id, no flush to disk. If a
// twin inserts the key meanwhile, the INSERT waits for it at the unique index. When the twin
// commits, nothing is inserted, and `known` is empty too, because it sees the table as of before
// the wait. Then `KNOWN` reads the key in a separate statement. The INSERT overwrites an expired
// key.
//
// The column `traceparent` contains the whole trace context, with `tracestate`.
//
// `LATERAL` with a limit is one index look-up. PostgreSQL's statistics usually show a nearly empty
// outbox, so it would plan a plain join as a sequential scan. That scan reads the dead rows of
// thousands of events, or the backlog of an outage.
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

// The same for many rows with different keys. It inserts them in the order of their keys, so that
// two writers cannot deadlock.
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

// Small batches; rows that another instance is sweeping are skipped.
const SWEEP: Statement = Statement::new(
    "DELETE idempotency keys",
    "DELETE FROM idempotency_keys WHERE key = ANY (ARRAY(
         SELECT key FROM idempotency_keys WHERE expires_at <= now()
          ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))",
);

impl Job for Submission {
    type Key = IdempotencyKey;
    type Answer = SharedOutcome<RowOutcome>;

    fn key(&self) -> Option<&IdempotencyKey> {
        Some(&self.key)
    }
}

/// Collects submissions for shared statements.
pub(super) type Submissions = Coalescer<Arc<Submission>>;

/// A new coalescer of submissions. It passes the messages of accepted orders to `after_commit`.
pub(super) fn submissions(after_commit: Option<Box<AfterCommit>>) -> Submissions {
    let submissions = Submissions::new(WRITERS, ROWS_MAX);
    let Some(after_commit) = after_commit else {
        return submissions;
    };
    submissions.on_answered(Box::new(move |rows| {
        let firsts = rows
            .iter()
            .filter_map(|(row, answer)| match answer.outcome {
                Ok(RowOutcome::Decided(SubmitOutcome::First)) => Some(&row.message),
                _ => None,
            });
        let messages: Vec<&Message> = firsts.collect();
        after_commit(&messages);
    }))
}

impl IdempotencyStore for PostgresStore {
    fn submit(
        &self,
        submission: &Arc<Submission>,
        deadline: Deadline,
    ) -> Result<SubmitOutcome, StoreError> {
        let Some(Shared { submissions, .. }) = self.shared.as_deref() else {
            return self.submit_alone(submission, deadline);
        };
        let job = Arc::clone(submission);
        let wait = "wait for a shared commit";
        let write = |rows: &[&Arc<Submission>]| self.write(rows, deadline);
        match shared_statement::run(submissions, job, deadline, wait, write)? {
            RowOutcome::Decided(outcome) => Ok(outcome),
            RowOutcome::NeedsOwnStatement => self.submit_alone(submission, deadline),
        }
    }

    fn sweep(&self, limit: u32, deadline: Deadline) -> Result<u64, StoreError> {
        let limit = i64::from(limit);
        Ok(self.run(SWEEP, deadline, |it| it.execute(SWEEP, &[&limit]))?)
    }
}

impl PostgresStore {
    /// Submits one row in its own statement. Waits for a twin in progress until the session's lock
    /// time-out.
    fn submit_alone(
        &self,
        row: &Submission,
        deadline: Deadline,
    ) -> Result<SubmitOutcome, StoreError> {
        let submitted = self.run(SUBMIT, deadline, |connection| {
            for _ in 0..TRIES_MAX {
                if let Some(outcome) = submit_one(connection, row)? {
                    return Ok(outcome);
                }
            }
            Ok(SubmitOutcome::Running)
        });
        match submitted {
            Err(DatabaseError::LockTimeout) => Ok(SubmitOutcome::Running),
            other => Ok(other?),
        }
    }

    /// One statement for all of `rows`. Returns the outcome of each.
    fn write(
        &self,
        rows: &[&Arc<Submission>],
        deadline: Deadline,
    ) -> Vec<SharedOutcome<RowOutcome>> {
        let mut statement = None;
        let written = match rows {
            [row] => self.run(SUBMIT, deadline, |connection| {
                statement = shared_by(1);
                let outcome = submit_one(connection, row)?;
                Ok(vec![outcome.map_or(
                    RowOutcome::NeedsOwnStatement,
                    RowOutcome::Decided,
                )])
            }),
            _ => self.run(SUBMIT_MANY, deadline, |connection| {
                statement = shared_by(rows.len());
                submit_many(connection, rows)
            }),
        };
        with_statement_span(outcome_per_row(written, rows.len()), statement)
    }
}

/// One try. `None` if the key was taken at the INSERT and gone afterwards.
fn submit_one(
    connection: &mut Connection,
    row: &Submission,
) -> Result<Option<SubmitOutcome>, DatabaseError> {
    let found = connection.query_opt(
        SUBMIT,
        &[
            &row.key.as_str(),
            &&row.fingerprint[..],
            &ACCEPTED,
            &row.body,
            &row.order.id.0,
            &row.ttl.as_secs_f64(),
            &row.order.customer_email.as_str(),
            &row.order.amount.get(),
            &row.order.created_at,
            &&row.message.payload[..],
            &row.message.trace_context,
        ],
    )?;
    if let Some(found) = &found
        && let RowOutcome::Decided(outcome) = interpret_row(found, row)?
    {
        return Ok(Some(outcome));
    }
    connection
        .query_opt(KNOWN, &[&row.key.as_str()])?
        .map(|found| interpret_known_key(&found, row))
        .transpose()
}

/// Submits all rows in one statement. Returns the outcome of each.
fn submit_many(
    connection: &mut Connection,
    rows: &[&Arc<Submission>],
) -> Result<Vec<RowOutcome>, DatabaseError> {
    fn column<'a, T>(rows: &[&'a Arc<Submission>], of: impl Fn(&'a Submission) -> T) -> Vec<T> {
        rows.iter().map(|row| of(row)).collect()
    }
    let found = connection.query(
        SUBMIT_MANY,
        &[
            &column(rows, |row| row.key.as_str()),
            &column(rows, |row| &row.fingerprint[..]),
            &vec![ACCEPTED; rows.len()],
            &column(rows, |row| &row.body[..]),
            &column(rows, |row| row.order.id.0),
            &column(rows, |row| row.ttl.as_secs_f64()),
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
        .map(|(found, row)| interpret_row(found, row))
        .collect()
}
