//! Conversion between PostgreSQL rows and domain values.

use crate::orders::domain::{AmountCents, CustomerEmail, EventKind, Order, OrderId};
use crate::orders::ports::{Claimed, Message};
use tbd_postgres::{DatabaseError, Row, column};

/// The order in columns `id, customer_email, amount_cents, status, created_at, updated_at`.
pub fn order(row: &Row) -> Result<Order, DatabaseError> {
    Ok(Order {
        id: OrderId(column(row, "id")?),
        customer_email: CustomerEmail::accepted_before(column(row, "customer_email")?),
        amount: valid(AmountCents::new(column(row, "amount_cents")?))?,
        status: valid(column::<&str>(row, "status")?.parse())?,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
    })
}

/// The order as [`order`] reads it, with column `failure_reason`.
pub fn claimed_order(row: &Row) -> Result<Claimed, DatabaseError> {
    Ok(Claimed {
        order: order(row)?,
        failure_reason: column(row, "failure_reason")?,
        has_saga: false,
    })
}

/// A pending event in the outbox.
pub fn message(row: &Row) -> Result<Message, DatabaseError> {
    Ok(Message {
        kind: EventKind::Created,
        order_id: OrderId(column(row, "order_id")?),
        payload: column::<Vec<u8>>(row, "payload")?.into(),
        trace_context: column(row, "traceparent")?,
    })
}

/// Fails for a stored value that breaks a rule of the domain: another program wrote it.
pub fn valid<T, E: std::fmt::Display>(value: Result<T, E>) -> Result<T, DatabaseError> {
    value.map_err(|error| DatabaseError::Driver(format!("a stored order {error}")))
}

/// The ids as a parameter for PostgreSQL. Sorted, so that two batches lock shared rows in the
/// same order.
pub fn uuids(ids: &[OrderId]) -> Vec<uuid::Uuid> {
    let mut ids: Vec<uuid::Uuid> = ids.iter().map(|id| id.0).collect();
    ids.sort_unstable();
    ids
}
