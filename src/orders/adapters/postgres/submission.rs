//! What is written when an order is accepted, and what the database then says of it. No I/O here: the async twin
//! (`loadtest/async-twin`) reads answers by the same rules.

use uuid::Uuid;

use crate::orders::domain::{EventKind, OrderId};
use crate::orders::ports::{Message, StoredAnswer, Submission, SubmitOutcome};
use tbd_postgres::DatabaseError;

use super::rows::column;

/// A key that was taken when we inserted and gone when we looked (its twin
/// rolled back, or it was swept) is free again; more than this is no accident.
pub const TRIES_MAX: u32 = 3;

/// Callers that write at the same time, each with what gathered for it. A second one would halve what
/// a statement carries, which costs more than it gains (DECISIONS.md).
pub const WRITERS: usize = 1;

/// Rows in one statement: beyond this the gain is spent, and one commit holds up many.
pub const ROWS_MAX: usize = 64;

/// The `response_status` of every row: only accepted orders are stored.
pub const ACCEPTED: i16 = 202;

/// What a writer can tell of a row.
pub enum RowOutcome {
    /// What became of it.
    Decided(SubmitOutcome),
    /// It has to be looked at on its own: its key was taken in the same moment, or
    /// something failed that may be another row's fault.
    NeedsOwnStatement,
}

/// What became of each of `rows` rows that one statement was to write.
pub fn outcome_per_row(
    written: Result<Vec<RowOutcome>, DatabaseError>,
    rows: usize,
) -> Vec<Result<RowOutcome, DatabaseError>> {
    match written {
        Ok(written) => written.into_iter().map(Ok).collect(),
        // No row is at fault: each caller is told.
        Err(error) if error.is_unavailable() => (0..rows).map(|_| Err(error.clone())).collect(),
        // A lock that somebody holds, a value that does not fit: nothing was written,
        // and one row must not fail another.
        Err(_) => (0..rows)
            .map(|_| Ok(RowOutcome::NeedsOwnStatement))
            .collect(),
    }
}

/// What the inserting statement says of one row.
///
/// # Errors
/// Columns that are not the statement's.
pub fn interpret_row(found: &postgres::Row, row: &Submission) -> Result<RowOutcome, DatabaseError> {
    if column(found, "is_first")? {
        return Ok(RowOutcome::Decided(SubmitOutcome::First));
    }
    match column::<Option<Uuid>>(found, "order_id")? {
        Some(_) => interpret_known_key(found, row).map(RowOutcome::Decided),
        None => Ok(RowOutcome::NeedsOwnStatement),
    }
}

/// What a key found in the table means for this row.
///
/// # Errors
/// Columns that are not the statement's.
pub fn interpret_known_key(
    found: &postgres::Row,
    row: &Submission,
) -> Result<SubmitOutcome, DatabaseError> {
    let order_id = OrderId(column(found, "order_id")?);
    if order_id == row.order.id {
        // Our own row: the connection broke after the commit, and we came again.
        return Ok(SubmitOutcome::First);
    }
    if column::<&[u8]>(found, "request_hash")? != row.fingerprint {
        return Ok(SubmitOutcome::OtherRequest);
    }
    let payload: Option<Vec<u8>> = column(found, "payload")?;
    let trace_context = column(found, "traceparent")?;
    Ok(SubmitOutcome::Replay {
        answer: StoredAnswer {
            body: column(found, "response_body")?,
            order_id,
        },
        unpublished: payload.map(|payload| Message {
            kind: EventKind::Created,
            order_id,
            payload: payload.into(),
            trace_context,
        }),
    })
}
