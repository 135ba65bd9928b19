//! [`IdempotencyStore`]: key, order and event in one statement, one round trip, one commit.
//!
//! Submitting may be repeated after a lost connection: the second try meets its
//! own first row.

use uuid::Uuid;

use crate::database::{Connection, DatabaseError, Statement};
use crate::deadline::Deadline;
use crate::orders::domain::{EventKind, OrderId};
use crate::orders::ports::{
    IdempotencyStore, Message, Once, StoreError, StoredResponse, Submission,
};

use super::PostgresStore;
use super::rows::column;

pub(super) const STATEMENTS: &[Statement] = &[SUBMIT, KNOWN, SWEEP];

// `known` keeps a replay free of writes: nothing to insert, no transaction id,
// no flush to disk. If a twin inserts the key meanwhile, the INSERT waits for
// it at the unique index; when the twin commits, nothing is inserted, and
// `known`, which sees the table as it was before the wait, is empty too: then
// `KNOWN` reads the key in a statement of its own. An expired key counts as
// none and is taken over.
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
            LEFT JOIN outbox ON outbox.order_id = known.order_id",
);

const KNOWN: Statement = Statement::new(
    "SELECT idempotency key",
    "SELECT request_hash, response_status, response_body, k.order_id, payload, traceparent
       FROM idempotency_keys k LEFT JOIN outbox ON outbox.order_id = k.order_id
      WHERE key = $1 AND expires_at > now()",
);

// In small batches, passing over rows that another instance is sweeping.
const SWEEP: Statement = Statement::new(
    "DELETE idempotency keys",
    "DELETE FROM idempotency_keys WHERE key = ANY (ARRAY(
         SELECT key FROM idempotency_keys WHERE expires_at <= now()
          ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))",
);

/// A key that was taken when we inserted and gone when we looked (its twin
/// rolled back, or it was swept) is free again; more than this is no accident.
const TRIES_MAX: u32 = 3;

impl IdempotencyStore for PostgresStore {
    fn submit(&self, submission: &Submission<'_>, deadline: Deadline) -> Result<Once, StoreError> {
        let submitted = self.run(SUBMIT, deadline, |connection| {
            for _ in 0..TRIES_MAX {
                if let Some(once) = submit(connection, submission)? {
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

    fn sweep(&self, limit: u32, deadline: Deadline) -> Result<u64, StoreError> {
        let swept = self.run(SWEEP, deadline, |connection| {
            connection.execute(SWEEP, &[&i64::from(limit)])
        })?;
        Ok(swept)
    }
}

/// One try; `None` if the key was taken by a twin of which nothing is to be seen afterwards.
fn submit(
    connection: &mut Connection,
    submission: &Submission<'_>,
) -> Result<Option<Once>, DatabaseError> {
    let Submission {
        key,
        request_hash,
        order,
        response,
        message,
        ttl,
    } = submission;
    let row = connection.query_opt(
        SUBMIT,
        &[
            &key.as_str(),
            &&request_hash[..],
            &smallint(response.status)?,
            &response.body,
            &order.id.0,
            &ttl.as_secs_f64(),
            &order.customer_email.as_str(),
            &order.amount.get(),
            &order.created_at,
            &&message.payload[..],
            &message.traceparent,
        ],
    )?;
    if let Some(row) = &row {
        if column(row, "is_first")? {
            return Ok(Some(Once::First));
        }
        if column::<Option<Uuid>>(row, "order_id")?.is_some() {
            return known(row, submission).map(Some);
        }
    }
    connection
        .query_opt(KNOWN, &[&key.as_str()])?
        .map(|row| known(&row, submission))
        .transpose()
}

/// What a key found in the table means for this submission.
fn known(row: &postgres::Row, submission: &Submission<'_>) -> Result<Once, DatabaseError> {
    let order_id = OrderId(column(row, "order_id")?);
    if order_id == submission.order.id {
        // Our own row: the connection broke after the commit, and we came again.
        return Ok(Once::First);
    }
    if column::<&[u8]>(row, "request_hash")? != submission.request_hash {
        return Ok(Once::OtherRequest);
    }
    let status: i16 = column(row, "response_status")?;
    let payload: Option<Vec<u8>> = column(row, "payload")?;
    let traceparent = column(row, "traceparent")?;
    Ok(Once::Again {
        response: StoredResponse {
            status: super::rows::valid(u16::try_from(status))?,
            body: column(row, "response_body")?,
            order_id,
        },
        unpublished: payload.map(|payload| Message {
            kind: EventKind::Created,
            order_id,
            payload: payload.into(),
            traceparent,
        }),
    })
}

fn smallint(status: u16) -> Result<i16, DatabaseError> {
    super::rows::valid(i16::try_from(status))
}
