//! What is written when an order is accepted, and what the database then says of it. No I/O here: the async twin
//! (`loadtest/async-twin`) reads answers by the same rules.

use uuid::Uuid;

use crate::orders::domain::{EventKind, Order, OrderId};
use crate::orders::ports::{Message, Once, StoredResponse, Submission, WhenStored};
use tbd_postgres::DatabaseError;

use super::rows::{column, valid};

/// A key that was taken when we inserted and gone when we looked (its twin
/// rolled back, or it was swept) is free again; more than this is no accident.
pub const TRIES_MAX: u32 = 3;

/// Callers that write at the same time, each with what gathered for it. A second one would halve what
/// a statement carries, which costs more than it gains (DECISIONS.md).
pub const WRITERS: usize = 1;

/// Rows in one statement: beyond this the gain is spent, and one commit holds up many.
pub const ROWS_MAX: usize = 64;

/// A submission that another thread may write.
pub struct Row {
    /// The client's key.
    pub key: String,
    /// SHA-256 over the meaning of the request.
    pub request_hash: [u8; 32],
    /// The answer to store.
    pub response: StoredResponse,
    /// Its status, as its column takes it.
    pub response_status: i16,
    /// The new order.
    pub order: Order,
    /// How long the key is kept.
    pub ttl_seconds: f64,
    /// The event to publish.
    pub message: Message,
    /// What the writer calls once the row is stored.
    pub when_stored: Option<WhenStored>,
}

impl Row {
    /// What `submission` writes.
    ///
    /// # Errors
    /// A status that is none.
    pub fn new(submission: &Submission<'_>) -> Result<Self, DatabaseError> {
        Ok(Self {
            key: submission.key.as_str().to_owned(),
            request_hash: submission.request_hash,
            response: submission.response.clone(),
            response_status: valid(i16::try_from(submission.response.status))?,
            order: submission.order.clone(),
            ttl_seconds: submission.ttl.as_secs_f64(),
            message: submission.message.clone(),
            when_stored: submission.when_stored.clone(),
        })
    }
}

/// What a writer can tell of a row.
pub enum Written {
    /// What became of it.
    Once(Once),
    /// It has to be looked at on its own: its key was taken in the same moment, or
    /// something failed that may be another row's fault.
    Alone,
}

/// What became of each of `rows` rows that one statement was to write.
pub fn each(
    written: Result<Vec<Written>, DatabaseError>,
    rows: usize,
) -> Vec<Result<Written, DatabaseError>> {
    match written {
        Ok(written) => written.into_iter().map(Ok).collect(),
        // No row is at fault: each caller is told.
        Err(error) if error.is_unavailable() => (0..rows).map(|_| Err(error.clone())).collect(),
        // A lock that somebody holds, a value that does not fit: nothing was written,
        // and one row must not fail another.
        Err(_) => (0..rows).map(|_| Ok(Written::Alone)).collect(),
    }
}

/// What the inserting statement says of one row.
///
/// # Errors
/// Columns that are not the statement's.
pub fn outcome(found: &postgres::Row, row: &Row) -> Result<Written, DatabaseError> {
    if column(found, "is_first")? {
        return Ok(Written::Once(Once::First));
    }
    match column::<Option<Uuid>>(found, "order_id")? {
        Some(_) => known(found, row).map(Written::Once),
        None => Ok(Written::Alone),
    }
}

/// What a key found in the table means for this row.
///
/// # Errors
/// Columns that are not the statement's.
pub fn known(found: &postgres::Row, row: &Row) -> Result<Once, DatabaseError> {
    let order_id = OrderId(column(found, "order_id")?);
    if order_id == row.order.id {
        // Our own row: the connection broke after the commit, and we came again.
        return Ok(Once::First);
    }
    if column::<&[u8]>(found, "request_hash")? != row.request_hash {
        return Ok(Once::OtherRequest);
    }
    let status: i16 = column(found, "response_status")?;
    let payload: Option<Vec<u8>> = column(found, "payload")?;
    let trace_context = column(found, "traceparent")?;
    Ok(Once::Again {
        response: StoredResponse {
            status: valid(u16::try_from(status))?,
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
