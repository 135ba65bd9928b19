//! The PostgreSQL [`SagaStore`]. Each transition names the version that it replaces, so a retry after a
//! lost connection changes nothing twice. It may then look like another worker's transition; the next
//! round reads the saga and sees that it is its own.

use jiff::Timestamp;
use postgres::Row;
use uuid::Uuid;

use crate::orders::domain::saga::SagaState;
use crate::orders::domain::{Order, OrderId, Saga};
use crate::orders::ports::{Begun, SagaStore, Saved, StoreError};
use tbd_deadline::Deadline;
use tbd_postgres::{DatabaseError, Params, Statement, column};

use super::PostgresStore;
use super::rows::{claimed_order, order, uuids};
use super::saga_calls;

// Every join repeats the condition on the ids: a plan made for small tables would otherwise read an
// index from end to end, and be kept while the tables grow.
pub(super) const STATEMENTS: &[Statement] = &[BEGIN, LOOK, SAVE, FIND, LEASE, UNFINISHED];

// Order and saga change together, so a canceled order has no saga. An order that another session
// changes meanwhile may be in neither half of `known`; then `LOOK` finds it.
const BEGIN: Statement = Statement::new(
    "INSERT sagas",
    "WITH claimed AS (
         UPDATE orders SET status = 'processing', updated_at = greatest($2, updated_at + interval '1 microsecond')
          WHERE id = ANY($1) AND status = 'pending'
      RETURNING id, customer_email, amount_cents, status, created_at, updated_at, failure_reason
     ), known AS (
         SELECT * FROM claimed
         UNION ALL
         SELECT id, customer_email, amount_cents, status, created_at, updated_at, failure_reason
           FROM orders WHERE id = ANY($1) AND status <> 'pending'
     ), begun AS (
         INSERT INTO sagas (order_id, id, version, state, command, calls, started_at, updated_at)
         SELECT id, id, 1, 'running', $3, $4::text::jsonb, $2, $2 FROM known WHERE status = 'processing'
             ON CONFLICT (order_id) DO NOTHING
      RETURNING *
     ), saga AS (
         SELECT *, true AS is_new FROM begun
         UNION ALL
         SELECT *, false FROM sagas WHERE order_id = ANY($1)
     )
     SELECT known.*, is_new, saga.id AS saga_id, version, state, calls::text, started_at,
            saga.updated_at AS saga_updated_at
       FROM known LEFT JOIN saga ON order_id = known.id",
);

const LOOK: Statement = Statement::new(
    "SELECT orders and sagas",
    "SELECT orders.id, customer_email, amount_cents, status, created_at, orders.updated_at, failure_reason,
            false AS is_new, sagas.id AS saga_id, version, state, calls::text, started_at,
            sagas.updated_at AS saga_updated_at
       FROM orders LEFT JOIN sagas ON order_id = orders.id AND order_id = ANY($1)
      WHERE orders.id = ANY($1)",
);

// A final state is the order's status as well.
const SAVE: Statement = Statement::new(
    "UPDATE sagas",
    "WITH saved AS (
         UPDATE sagas SET id = next.id, version = next.version, state = next.state, command = next.command,
                calls = next.calls::jsonb, updated_at = next.updated_at
           FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
                       $8::text[])
             AS next (order_id, id, version, state, command, calls, updated_at, refusal)
          WHERE sagas.order_id = ANY($1) AND sagas.order_id = next.order_id AND sagas.version = next.version - 1
      RETURNING sagas.order_id, sagas.state, sagas.updated_at, refusal
     ), ended AS (
         UPDATE orders SET status = state, failure_reason = refusal,
                updated_at = greatest(saved.updated_at, orders.updated_at + interval '1 microsecond')
           FROM saved
          WHERE id = ANY($1) AND id = order_id AND state IN ('completed', 'failed') AND status = 'processing'
      RETURNING id, customer_email, amount_cents, status, created_at, orders.updated_at
     )
     SELECT order_id, ended.* FROM saved LEFT JOIN ended ON id = order_id",
);

const FIND: Statement = Statement::new(
    "SELECT saga",
    "SELECT id AS saga_id, version, state, calls::text, started_at, updated_at AS saga_updated_at
       FROM sagas WHERE order_id = $1",
);

// A saga that another session holds is not standing still.
const LEASE: Statement = Statement::new(
    "UPDATE sagas stalled",
    "WITH stalled AS (
         SELECT order_id FROM sagas
          WHERE state IN ('running', 'compensating') AND updated_at < $2 AND (swept_at IS NULL OR swept_at < $2)
          ORDER BY order_id LIMIT $3 FOR UPDATE SKIP LOCKED
     ), leased AS (
         UPDATE sagas SET swept_at = $1 WHERE order_id = ANY(ARRAY(SELECT order_id FROM stalled)) RETURNING order_id
     )
     SELECT id, customer_email, amount_cents, status, created_at, updated_at
       FROM orders WHERE id = ANY(ARRAY(SELECT order_id FROM leased))",
);

const UNFINISHED: Statement = Statement::new(
    "SELECT sagas unfinished",
    "SELECT state, count(*) AS count FROM sagas WHERE state IN ('running', 'compensating') GROUP BY state",
);

impl SagaStore for PostgresStore {
    fn begin(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Begun>, StoreError> {
        let wanted = uuids(ids);
        let first = Saga::start(OrderId(Uuid::nil()), now);
        let (command, calls) = (command(&first), saga_calls::to_json(&first.calls));
        let params: Params<'_> = &[&wanted, &now, &command, &calls];
        let mut all = self.rows(BEGIN, params, deadline, begun)?;
        if all.len() < ids.len() {
            let is_missing = |id: &Uuid| all.iter().all(|it| it.claimed.order.id.0 != *id);
            let missing: Vec<Uuid> = wanted.into_iter().filter(is_missing).collect();
            all.extend(self.rows(LOOK, &[&missing], deadline, begun)?);
        }
        Ok(all)
    }

    fn save(&self, sagas: &[Saga], deadline: Deadline) -> Result<Vec<Saved>, StoreError> {
        // Sorted, so that two batches lock shared rows in the same order.
        let mut sagas: Vec<&Saga> = sagas.iter().collect();
        sagas.sort_unstable_by_key(|saga| saga.order_id);
        let order_ids: Vec<Uuid> = sagas.iter().map(|it| it.order_id.0).collect();
        let ids: Vec<Uuid> = sagas.iter().map(|it| it.id).collect();
        let versions: Vec<i64> = sagas.iter().map(|it| it.version).collect();
        let states: Vec<&str> = sagas.iter().map(|it| it.state.as_str()).collect();
        let commands: Vec<Option<&str>> = sagas.iter().map(|it| command(it)).collect();
        let calls: Vec<String> = sagas
            .iter()
            .map(|it| saga_calls::to_json(&it.calls))
            .collect();
        let times: Vec<Timestamp> = sagas.iter().map(|it| it.updated_at).collect();
        let refusals: Vec<Option<&str>> = sagas.iter().map(|it| it.refusal()).collect();
        let params: Params<'_> = &[
            &order_ids, &ids, &versions, &states, &commands, &calls, &times, &refusals,
        ];
        self.rows(SAVE, params, deadline, saved)
    }

    fn find(&self, order_id: OrderId, deadline: Deadline) -> Result<Option<Saga>, StoreError> {
        let found = self.run(FIND, deadline, |connection| {
            let found = connection.query_opt(FIND, &[&order_id.0])?;
            found.as_ref().map(|row| saga(row, order_id)).transpose()
        })?;
        Ok(found)
    }

    fn lease_stalled(
        &self,
        now: Timestamp,
        unchanged_since: Timestamp,
        limit: u32,
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError> {
        let limit = i64::from(limit);
        let params: Params<'_> = &[&now, &unchanged_since, &limit];
        self.rows(LEASE, params, deadline, order)
    }

    fn unfinished(&self, deadline: Deadline) -> Result<Vec<(SagaState, i64)>, StoreError> {
        self.rows(UNFINISHED, &[], deadline, |row| {
            Ok((state(row)?, column(row, "count")?))
        })
    }
}

fn command(saga: &Saga) -> Option<&'static str> {
    saga.announced().map(|command| command.as_str())
}

fn begun(row: &Row) -> Result<Begun, DatabaseError> {
    let claimed = claimed_order(row)?;
    let is_new: Option<bool> = column(row, "is_new")?;
    let saga_id: Option<Uuid> = column(row, "saga_id")?;
    Ok(Begun {
        saga: saga_id.map(|_| saga(row, claimed.order.id)).transpose()?,
        claimed,
        is_new: is_new.unwrap_or(false),
    })
}

fn saga(row: &Row, order_id: OrderId) -> Result<Saga, DatabaseError> {
    let calls = saga_calls::from_json(column(row, "calls")?);
    Ok(Saga {
        order_id,
        id: column(row, "saga_id")?,
        version: column(row, "version")?,
        state: state(row)?,
        calls: calls.map_err(|why| DatabaseError::Driver(format!("a stored saga: {why}")))?,
        started_at: column(row, "started_at")?,
        updated_at: column(row, "saga_updated_at")?,
    })
}

fn state(row: &Row) -> Result<SagaState, DatabaseError> {
    let text: &str = column(row, "state")?;
    SagaState::from_word(text)
        .ok_or_else(|| DatabaseError::Driver(format!("a stored saga is {text:?}")))
}

fn saved(row: &Row) -> Result<Saved, DatabaseError> {
    let ended: Option<Uuid> = column(row, "id")?;
    Ok(Saved {
        order_id: OrderId(column(row, "order_id")?),
        ended: ended.map(|_| order(row)).transpose()?,
    })
}
