//! The PostgreSQL [`Outbox`]. Every statement is repeatable: publishing twice and deleting twice
//! are harmless.

use std::time::Duration;

use crate::orders::domain::OrderId;
use crate::orders::ports::{Backlog, Message, Outbox, Relayed, StoreError};
use tbd_deadline::Deadline;
use tbd_postgres::{DatabaseError, Statement, column};
use uuid::Uuid;

use super::PostgresStore;
use super::rows::{message, uuids};

pub(super) const STATEMENTS: &[Statement] = &[TAKE, REMOVE, BACKLOG];

// The api writes one event per order, order.created, so skipping locked rows cannot reorder the
// events of an order. Ids sort by creation time.
const TAKE: Statement = Statement::new(
    "SELECT outbox",
    "SELECT order_id, payload, traceparent FROM outbox
      WHERE order_id > $1 AND created_at <= now() - make_interval(secs => $2)
      ORDER BY order_id LIMIT $3 FOR UPDATE SKIP LOCKED",
);

const REMOVE: Statement = Statement::new(
    "DELETE outbox",
    "DELETE FROM outbox WHERE order_id = ANY($1)",
);

const BACKLOG: Statement = Statement::new(
    "SELECT outbox backlog",
    "SELECT count(*) AS rows,
            coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS oldest_seconds
       FROM outbox",
);

impl Outbox for PostgresStore {
    fn relay(
        &self,
        after: Option<OrderId>,
        limit: u32,
        min_age: Duration,
        deadline: Deadline,
        publish: &mut dyn FnMut(&[Message]) -> Vec<bool>,
    ) -> Result<Relayed, StoreError> {
        // No order has the nil id.
        let after = after.map_or(Uuid::nil(), |id| id.0);
        let relayed = self.run(TAKE, deadline, |connection| {
            connection.transaction(|transaction| {
                let (age, limit) = (min_age.as_secs_f64(), i64::from(limit));
                let rows = transaction.query(TAKE, &[&after, &age, &limit])?;
                let messages: Vec<Message> = rows.iter().map(message).collect::<Result<_, _>>()?;
                let Some(last) = messages.last() else {
                    return Ok(Relayed::default());
                };
                let acknowledged: Vec<OrderId> = publish(&messages)
                    .into_iter()
                    .zip(&messages)
                    .filter_map(|(acknowledged, message)| acknowledged.then_some(message.order_id))
                    .collect();
                // Only the acknowledged rows, never "up to the last id": others may be between.
                transaction.execute(REMOVE, &[&uuids(&acknowledged)])?;
                Ok::<_, DatabaseError>(Relayed {
                    taken: messages.len(),
                    removed: acknowledged.len(),
                    last: Some(last.order_id),
                })
            })
        })?;
        Ok(relayed)
    }

    fn remove(&self, order_ids: &[OrderId], deadline: Deadline) -> Result<(), StoreError> {
        let ids = uuids(order_ids);
        self.run(REMOVE, deadline, |connection| {
            connection.execute(REMOVE, &[&ids])
        })?;
        Ok(())
    }

    fn backlog(&self, deadline: Deadline) -> Result<Backlog, StoreError> {
        let backlog = self.run(BACKLOG, deadline, |connection| {
            match connection.query_opt(BACKLOG, &[])? {
                None => Ok(Backlog::default()),
                Some(row) => Ok(Backlog {
                    rows: column(&row, "rows")?,
                    oldest_seconds: column(&row, "oldest_seconds")?,
                }),
            }
        })?;
        Ok(backlog)
    }
}
