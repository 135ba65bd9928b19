//! Interpretation of the rows that a submission gets back. No I/O: the async twin
//! (`loadtest/async-twin`) shares these rules.

use uuid::Uuid;

use crate::orders::domain::{EventKind, OrderId};
use crate::orders::ports::{Message, StoredAnswer, Submission, SubmitOutcome};
use tbd_postgres::{DatabaseError, column};

/// Attempts at a key that was taken at the INSERT and gone at the SELECT: its twin rolled back, or
/// the sweeper deleted it. More often than this is not a coincidence.
pub const TRIES_MAX: u32 = 3;

/// Writers at the same time. A second one would halve the rows of a statement, which costs more
/// than it gains (DECISIONS.md).
pub const WRITERS: usize = 1;

/// Maximum number of rows in one statement. More rows gain nothing, and one slow commit would
/// delay them all.
pub const ROWS_MAX: usize = 64;

/// The `response_status` of every row: only accepted orders are stored.
pub const ACCEPTED: i16 = 202;

/// The outcome of one row in a statement.
pub enum RowOutcome {
    /// The outcome of the submission.
    Decided(SubmitOutcome),
    /// The row needs its own statement: a twin took its key at the same moment, or the shared
    /// statement failed, perhaps because of another row.
    NeedsOwnStatement,
}

/// The outcome of each of the `rows` rows in one statement.
pub fn outcome_per_row(
    written: Result<Vec<RowOutcome>, DatabaseError>,
    rows: usize,
) -> Vec<Result<RowOutcome, DatabaseError>> {
    match written {
        Ok(written) => written.into_iter().map(Ok).collect(),
        // No row is at fault: every caller gets the error.
        Err(error) if error.is_unavailable() => (0..rows).map(|_| Err(error.clone())).collect(),
        // Nothing was written, for example because of a lock or an invalid value. One row must
        // not fail the others.
        Err(_) => (0..rows)
            .map(|_| Ok(RowOutcome::NeedsOwnStatement))
            .collect(),
    }
}

/// The outcome of one row of the inserting statement.
///
/// # Errors
/// The columns do not match the statement.
pub fn interpret_row(found: &postgres::Row, row: &Submission) -> Result<RowOutcome, DatabaseError> {
    if column(found, "is_first")? {
        return Ok(RowOutcome::Decided(SubmitOutcome::First));
    }
    match column::<Option<Uuid>>(found, "order_id")? {
        Some(_) => interpret_known_key(found, row).map(RowOutcome::Decided),
        None => Ok(RowOutcome::NeedsOwnStatement),
    }
}

/// The outcome of a row whose key is already in the table.
///
/// # Errors
/// The columns do not match the statement.
pub fn interpret_known_key(
    found: &postgres::Row,
    row: &Submission,
) -> Result<SubmitOutcome, DatabaseError> {
    let order_id = OrderId(column(found, "order_id")?);
    if order_id == row.order.id {
        // Our own row: the connection broke after the commit, and this is the retry.
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
