//! The PostgreSQL [`OrderRepository`]. Reads are repeatable. Each update names the status it
//! starts from, so a retry after a lost connection changes nothing twice. Each transition is later than
//! the one before it, even if this machine's clock is behind that of the machine that made it.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::orders::domain::{Order, OrderId};
use crate::orders::ports::{
    Claimed, Failure, OrderReader, OrderRepository, Page, Replay, StoreError,
};
use tbd_deadline::Deadline;
use tbd_postgres::{Coalescer, DatabaseError, Job, Params, Row, Statement, column};

use super::rows::{claimed_order, order, uuids};
use super::shared_statement::{self, SharedOutcome, shared_by, with_statement_span};
use super::{PostgresStore, Shared};

pub(super) const STATEMENTS: &[Statement] = &[
    GET,
    LIST,
    LIST_BY_STATUS,
    REPLACE,
    CLAIM,
    CLAIMED,
    LOOK,
    RETRY,
    COMPLETE,
    FAIL,
];

const GET: Statement = Statement::new(
    "SELECT order",
    "SELECT id, customer_email, amount_cents, status, created_at, updated_at
       FROM orders WHERE id = $1",
);

// Ids sort by creation time (see `OrderId::at`), so the primary key serves "newest first" at any
// depth.
const LIST: Statement = Statement::new(
    "SELECT orders",
    "SELECT id, customer_email, amount_cents, status, created_at, updated_at
       FROM orders WHERE id < $1 ORDER BY id DESC OFFSET $2 LIMIT $3",
);

const LIST_BY_STATUS: Statement = Statement::new(
    "SELECT orders by status",
    "SELECT id, customer_email, amount_cents, status, created_at, updated_at
       FROM orders WHERE id < $1 AND status = $4 ORDER BY id DESC OFFSET $2 LIMIT $3",
);

const REPLACE: Statement = Statement::new(
    "UPDATE order",
    "UPDATE orders SET status = $2, updated_at = $3
      WHERE id = $1 AND status = $4 AND updated_at = $5",
);

// The SELECT sees the table as of the start of the statement. An order that another session
// changes meanwhile may be in neither half; then `CLAIMED` finds it.
const CLAIM: Statement = Statement::new(
    "UPDATE orders processing",
    "WITH claimed AS (
         UPDATE orders SET status = 'processing', updated_at = greatest($2, updated_at + interval '1 microsecond')
          WHERE id = ANY($1) AND status = 'pending'
      RETURNING id, customer_email, amount_cents, status, created_at, updated_at, failure_reason
     )
     SELECT *, false AS has_saga FROM claimed
     UNION ALL
     SELECT id, customer_email, amount_cents, status, created_at, updated_at, failure_reason,
            EXISTS (SELECT FROM sagas WHERE order_id = orders.id AND state IN ('running', 'compensating'))
       FROM orders WHERE id = ANY($1) AND status <> 'pending'",
);

const CLAIMED: Statement = Statement::new(
    "SELECT orders claimed",
    "SELECT id, customer_email, amount_cents, status, created_at, updated_at, failure_reason,
            EXISTS (SELECT FROM sagas WHERE order_id = orders.id AND state IN ('running', 'compensating')) AS has_saga
       FROM orders WHERE id = ANY($1)",
);

const LOOK: Statement = Statement::new(
    "SELECT orders by id",
    "SELECT id, customer_email, amount_cents, status, created_at, updated_at, failure_reason
       FROM orders WHERE id = ANY($1)",
);

// A moved order is not older than its replay, whatever the clocks say, so repeating the statement changes
// nothing. `ANY` leaves out, where orders are partitioned, all partitions without one of these ids; a join
// does not.
const RETRY: Statement = Statement::new(
    "UPDATE orders retried",
    "UPDATE orders SET status = 'processing', failure_reason = NULL, updated_at = greatest($3, replayed_at)
       FROM unnest($1::uuid[], $2::timestamptz[]) AS replay (order_id, replayed_at)
      WHERE id = ANY($1) AND id = order_id AND status = 'failed' AND updated_at < replayed_at",
);

// A saga may have begun since the order was claimed, on a worker that took it over. It alone ends its
// order. The condition on the ids is repeated for the plan, as in `sagas`.
const COMPLETE: Statement = Statement::new(
    "UPDATE orders completed",
    "UPDATE orders SET status = 'completed', updated_at = greatest($2, updated_at + interval '1 microsecond')
      WHERE id = ANY($1) AND status = 'processing'
        AND NOT EXISTS (SELECT FROM sagas WHERE sagas.order_id = ANY($1) AND sagas.order_id = orders.id
                                            AND state IN ('running', 'compensating'))
  RETURNING id, customer_email, amount_cents, status, created_at, updated_at",
);

const FAIL: Statement = Statement::new(
    "UPDATE orders failed",
    "UPDATE orders SET status = 'failed', failure_reason = reason,
            updated_at = greatest($3, updated_at + interval '1 microsecond')
       FROM unnest($1::uuid[], $2::text[]) AS failure (order_id, reason)
      WHERE id = ANY($1) AND id = failure.order_id AND status = 'processing'
        AND NOT EXISTS (SELECT FROM sagas WHERE sagas.order_id = ANY($1) AND sagas.order_id = orders.id
                                            AND state IN ('running', 'compensating'))
  RETURNING id, customer_email, amount_cents, status, created_at, updated_at",
);

/// Shared look-ups that run at the same time, each on one caller's thread. There are more on a slow
/// database, where they begin at most [`PATIENCE`] apart.
const READERS: usize = 2;
const READERS_IF_SLOW: usize = 16;

/// Longer than look-ups take on a database that is merely busy.
const PATIENCE: Duration = Duration::from_millis(8);

/// Maximum number of orders in one look-up.
const IDS_MAX: usize = 64;

impl OrderReader for PostgresStore {
    fn get(&self, id: OrderId, deadline: Deadline) -> Result<Option<Order>, StoreError> {
        let Some(Shared { lookups, .. }) = self.shared.as_deref() else {
            return Ok(self.look_up(id, deadline)?);
        };
        let wait = "wait for a shared look-up";
        let read = |wanted: &[&Wanted]| self.look_up_all(wanted, deadline);
        match shared_statement::run(lookups, Wanted(id), deadline, wait, read)? {
            Found::Decided(order) => Ok(order),
            Found::NeedsOwnStatement => Ok(self.look_up(id, deadline)?),
        }
    }

    fn list(&self, page: &Page, deadline: Deadline) -> Result<Vec<Order>, StoreError> {
        let before = page.before.map_or(Uuid::max(), |id| id.0);
        let skip = i64::try_from(page.skip).unwrap_or(i64::MAX);
        let limit = i64::from(page.limit);
        match page.status {
            None => self.rows(LIST, &[&before, &skip, &limit], deadline, order),
            Some(status) => {
                let params: Params<'_> = &[&before, &skip, &limit, &status.as_str()];
                self.rows(LIST_BY_STATUS, params, deadline, order)
            }
        }
    }
}

impl OrderRepository for PostgresStore {
    fn replace(&self, old: &Order, new: &Order, deadline: Deadline) -> Result<bool, StoreError> {
        let replaced = self.run(REPLACE, deadline, |connection| {
            connection.execute(
                REPLACE,
                &[
                    &old.id.0,
                    &new.status.as_str(),
                    &new.updated_at,
                    &old.status.as_str(),
                    &old.updated_at,
                ],
            )
        })?;
        Ok(replaced == 1)
    }

    fn claim(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Claimed>, StoreError> {
        let wanted = uuids(ids);
        let mut all = self.rows(CLAIM, &[&wanted, &now], deadline, claimed)?;
        if all.len() < ids.len() {
            let missing: Vec<Uuid> = wanted
                .into_iter()
                .filter(|id| all.iter().all(|found| found.order.id.0 != *id))
                .collect();
            all.extend(self.rows(CLAIMED, &[&missing], deadline, claimed)?);
        }
        Ok(all)
    }

    fn retry_failed(
        &self,
        replays: &[Replay],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = replays.iter().map(|replay| replay.id.0).collect();
        let replayed_at: Vec<Timestamp> = replays.iter().map(|replay| replay.replayed_at).collect();
        self.run(RETRY, deadline, |connection| {
            connection.execute(RETRY, &[&ids, &replayed_at, &now])
        })?;
        Ok(())
    }

    fn complete(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError> {
        self.rows(COMPLETE, &[&uuids(ids), &now], deadline, order)
    }

    fn fail(
        &self,
        failures: &[Failure],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError> {
        let ids: Vec<Uuid> = failures.iter().map(|failure| failure.id.0).collect();
        let reasons: Vec<&str> = failures.iter().map(|failure| &*failure.reason).collect();
        self.rows(FAIL, &[&ids, &reasons, &now], deadline, order)
    }
}

/// An order to look up: the job that callers share.
pub(super) struct Wanted(OrderId);

impl Job for Wanted {
    type Key = OrderId;
    type Answer = SharedOutcome<Found>;

    /// Jobs for the same order may share a statement.
    fn key(&self) -> Option<&OrderId> {
        None
    }
}

/// What came of one look-up in a statement.
pub(super) enum Found {
    /// The order, if there is one.
    Decided(Option<Order>),
    /// The statement failed, perhaps because the request that ran it had little time left.
    NeedsOwnStatement,
}

/// Collects look-ups. A look-up sees everything that was committed before it arrived, because its
/// statement is sent afterwards.
pub(super) type Lookups = Coalescer<Wanted>;

/// A new coalescer of look-ups.
pub(super) fn lookups() -> Lookups {
    Coalescer::new(READERS, IDS_MAX).more_when_slow(READERS_IF_SLOW, PATIENCE)
}

impl PostgresStore {
    fn look_up(&self, id: OrderId, deadline: Deadline) -> Result<Option<Order>, DatabaseError> {
        self.run(GET, deadline, |connection| {
            let found = connection.query_opt(GET, &[&id.0])?;
            found.as_ref().map(order).transpose()
        })
    }

    /// One statement for all of `wanted`. Returns the outcome of each.
    fn look_up_all(&self, wanted: &[&Wanted], deadline: Deadline) -> Vec<SharedOutcome<Found>> {
        let mut statement = None;
        if let [Wanted(id)] = wanted {
            let found = self.look_up(*id, deadline).map(Found::Decided);
            return with_statement_span([found], None);
        }
        let ids: Vec<Uuid> = wanted.iter().map(|wanted| wanted.0.0).collect();
        // One result per row: a row that cannot be read must not fail the others.
        let found = self.run(LOOK, deadline, |connection| {
            statement = shared_by(ids.len());
            let rows = connection.query(LOOK, &[&ids])?;
            let orders = rows.iter().map(|row| Ok((column(row, "id")?, order(row))));
            orders.collect::<Result<HashMap<Uuid, _>, DatabaseError>>()
        });
        let outcome = |id| match &found {
            Ok(orders) => orders.get(id).cloned().transpose().map(Found::Decided),
            // No request is at fault: every caller gets the error.
            Err(error) if error.is_unavailable() => Err(error.clone()),
            Err(_) => Ok(Found::NeedsOwnStatement),
        };
        with_statement_span(ids.iter().map(outcome), statement)
    }
}

fn claimed(row: &Row) -> Result<Claimed, DatabaseError> {
    Ok(Claimed {
        has_saga: column(row, "has_saga")?,
        ..claimed_order(row)?
    })
}
