//! The storage ports in memory, for tests: as strict as PostgreSQL, and able to fail at any call.
//! `tests/it/ports.rs` checks both implementations against one contract.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::orders::domain::saga::SagaState;
use crate::orders::domain::{Order, OrderId, Saga, Status};
use crate::orders::ports::{
    Backlog, Begun, Claimed, Failure, IdempotencyStore, Message, OrderReader, OrderRepository,
    Outbox, Page, Relayed, Replay, SagaStore, Saved, StoreError, StoredAnswer, Submission,
    SubmitOutcome,
};
use jiff::{SignedDuration, Timestamp};
use tbd_deadline::{Deadline, lock};

/// Orders, keys and outbox.
#[derive(Default)]
pub struct Memory {
    tables: Mutex<Tables>,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing has changed.
    Before,
    /// Everything has changed, but the caller gets an error.
    After,
    /// The call runs twice because its first answer was lost; the caller gets the second answer.
    Twice,
}

#[derive(Default)]
struct Tables {
    orders: BTreeMap<OrderId, (Order, Option<String>)>,
    keys: HashMap<String, Key>,
    outbox: BTreeMap<OrderId, Row>,
    /// With the time of the last lease.
    sagas: BTreeMap<OrderId, (Saga, Option<Timestamp>)>,
    calls: usize,
    /// The call that fails, counted from 0, and how.
    fault: Option<(usize, Fault)>,
}

struct Key {
    fingerprint: [u8; 32],
    answer: StoredAnswer,
    expires_at: Timestamp,
}

struct Row {
    message: Message,
    created_at: Timestamp,
    /// A relay is publishing it.
    held: bool,
}

impl Memory {
    /// Makes the `call`-th call from now on, counted from 0, fail in this way.
    pub fn fail_at(&self, call: usize, fault: Fault) {
        let mut tables = self.lock();
        tables.fault = Some((tables.calls + call, fault));
    }

    /// Undoes [`fail_at`](Self::fail_at); whether the fault was still pending.
    pub fn mend(&self) -> bool {
        self.lock().fault.take().is_some()
    }

    /// How often the ports were called.
    pub fn calls(&self) -> usize {
        self.lock().calls
    }

    /// Every order.
    pub fn orders(&self) -> Vec<Order> {
        let tables = self.lock();
        tables
            .orders
            .values()
            .map(|(order, _)| order.clone())
            .collect()
    }

    /// An order's current state, and why it failed.
    pub fn look(&self, id: OrderId) -> (Order, Option<String>) {
        self.lock().orders[&id].clone()
    }

    /// The orders whose events wait in the outbox.
    pub fn outbox(&self) -> Vec<OrderId> {
        self.lock().outbox.keys().copied().collect()
    }

    /// How many keys are stored, expired ones included.
    pub fn keys(&self) -> usize {
        self.lock().keys.len()
    }

    /// Adds an order without a key or an event.
    pub fn put(&self, order: &Order) {
        let row = (order.clone(), None);
        self.lock().orders.insert(order.id, row);
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    /// One call: applies all of `work` or nothing.
    fn call<T>(&self, mut work: impl FnMut(&mut Tables) -> T) -> Result<T, StoreError> {
        let mut tables = self.lock();
        let fault = tables.begin();
        if fault == Some(Fault::Before) {
            return Err(away());
        }
        let result = work(&mut tables);
        match fault {
            None => Ok(result),
            Some(Fault::Twice) => Ok(work(&mut tables)),
            Some(_) => Err(away()),
        }
    }
}

fn away() -> StoreError {
    StoreError::Unavailable("the test takes it away".into())
}

impl Tables {
    fn begin(&mut self) -> Option<Fault> {
        let number = self.calls;
        self.calls += 1;
        let fault = self.fault.filter(|(call, _)| *call == number)?.1;
        self.fault = None;
        Some(fault)
    }

    /// Whether an unfinished saga works on the order.
    fn has_saga(&self, id: OrderId) -> bool {
        let saga = self.sagas.get(&id);
        saga.is_some_and(|(saga, _)| !saga.state.is_final())
    }

    /// Changes an order's status, by the domain's rules, if the order has the status `from`.
    fn step(
        &mut self,
        id: OrderId,
        from: Status,
        to: Status,
        now: Timestamp,
    ) -> Option<&mut (Order, Option<String>)> {
        let row = self
            .orders
            .get_mut(&id)
            .filter(|(order, _)| order.status == from)?;
        assert!(from.may_become(to), "{from} never becomes {to}");
        row.0.status = to;
        row.0.updated_at = cut(now).max(row.0.updated_at + SignedDuration::from_micros(1));
        Some(row)
    }
}

/// Columns keep microseconds.
fn cut(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).expect("in range")
}

impl OrderReader for Memory {
    fn get(&self, id: OrderId, _: Deadline) -> Result<Option<Order>, StoreError> {
        self.call(|tables| tables.orders.get(&id).map(|(order, _)| order.clone()))
    }

    fn list(&self, page: &Page, _: Deadline) -> Result<Vec<Order>, StoreError> {
        self.call(|tables| {
            let newest_first = tables.orders.values().rev().map(|(order, _)| order);
            newest_first
                .filter(|order| page.status.is_none_or(|status| order.status == status))
                .filter(|order| page.before.is_none_or(|before| order.id < before))
                .skip(usize::try_from(page.skip).expect("a small number"))
                .take(page.limit as usize)
                .cloned()
                .collect()
        })
    }
}

impl OrderRepository for Memory {
    fn replace(&self, old: &Order, new: &Order, _: Deadline) -> Result<bool, StoreError> {
        self.call(|tables| match tables.orders.get_mut(&old.id) {
            Some((order, _))
                if (order.status, order.updated_at) == (old.status, old.updated_at) =>
            {
                order.status = new.status;
                order.updated_at = new.updated_at;
                true
            }
            _ => false,
        })
    }

    fn claim(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        _: Deadline,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.call(|tables| {
            for &id in ids {
                tables.step(id, Status::Pending, Status::Processing, now);
            }
            let claimed = |id| {
                let (order, reason) = tables.orders.get(id)?;
                Some(Claimed {
                    order: order.clone(),
                    failure_reason: reason.clone(),
                    has_saga: tables.has_saga(*id),
                })
            };
            ids.iter().filter_map(claimed).collect()
        })
    }

    fn retry_failed(
        &self,
        replays: &[Replay],
        now: Timestamp,
        _: Deadline,
    ) -> Result<(), StoreError> {
        self.call(|tables| {
            for replay in replays {
                let is_due = |(order, _): &(Order, _)| order.updated_at < cut(replay.replayed_at);
                if tables.orders.get(&replay.id).is_some_and(is_due)
                    && let Some(row) =
                        tables.step(replay.id, Status::Failed, Status::Processing, now)
                {
                    row.0.updated_at = row.0.updated_at.max(cut(replay.replayed_at));
                    row.1 = None;
                }
            }
        })
    }

    fn complete(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        _: Deadline,
    ) -> Result<Vec<Order>, StoreError> {
        self.call(|tables| {
            let mut completed = Vec::new();
            for &id in ids {
                if tables.has_saga(id) {
                    continue;
                }
                let moved = tables.step(id, Status::Processing, Status::Completed, now);
                completed.extend(moved.map(|(order, _)| order.clone()));
            }
            completed
        })
    }

    fn fail(
        &self,
        failures: &[Failure],
        now: Timestamp,
        _: Deadline,
    ) -> Result<Vec<Order>, StoreError> {
        self.call(|tables| {
            let mut failed = Vec::new();
            for Failure { id, reason } in failures {
                if !tables.has_saga(*id)
                    && let Some(moved) = tables.step(*id, Status::Processing, Status::Failed, now)
                {
                    moved.1 = Some(reason.clone());
                    failed.push(moved.0.clone());
                }
            }
            failed
        })
    }
}

impl IdempotencyStore for Memory {
    fn submit(
        &self,
        submission: &Arc<Submission>,
        _: Deadline,
    ) -> Result<SubmitOutcome, StoreError> {
        self.call(|tables| {
            let now = Timestamp::now();
            let known = tables.keys.get(submission.key.as_str());
            if let Some(key) = known.filter(|key| key.expires_at > now) {
                if key.answer.order_id == submission.order.id {
                    return SubmitOutcome::First;
                }
                if key.fingerprint != submission.fingerprint {
                    return SubmitOutcome::OtherRequest;
                }
                let row = tables.outbox.get(&key.answer.order_id);
                return SubmitOutcome::Replay {
                    answer: key.answer.clone(),
                    unpublished: row.map(|row| row.message.clone()),
                };
            }
            let order = submission.order.clone();
            let key = Key {
                fingerprint: submission.fingerprint,
                answer: StoredAnswer {
                    body: submission.body.clone(),
                    order_id: order.id,
                },
                expires_at: now + submission.ttl,
            };
            let row = Row {
                message: submission.message.clone(),
                created_at: now,
                held: false,
            };
            tables.keys.insert(submission.key.as_str().to_owned(), key);
            tables.outbox.insert(order.id, row);
            tables.orders.insert(order.id, (order, None));
            SubmitOutcome::First
        })
    }

    fn sweep(&self, limit: u32, _: Deadline) -> Result<u64, StoreError> {
        self.call(|tables| {
            let now = Timestamp::now();
            let expired = tables.keys.iter().filter(|(_, key)| key.expires_at <= now);
            let expired: Vec<String> = expired
                .map(|(name, _)| name.clone())
                .take(limit as usize)
                .collect();
            for name in &expired {
                tables.keys.remove(name);
            }
            expired.len() as u64
        })
    }
}

impl Outbox for Memory {
    fn relay(
        &self,
        after: Option<OrderId>,
        limit: u32,
        min_age: Duration,
        _: Deadline,
        publish: &mut dyn FnMut(&[Message]) -> Vec<bool>,
    ) -> Result<Relayed, StoreError> {
        let mut taken = None;
        let outcome: Result<Vec<Message>, StoreError> = self.call(|tables| {
            let due = Timestamp::now() - min_age;
            let rows = tables.outbox.iter_mut();
            let rows = rows.filter(|(id, _)| after.is_none_or(|after| **id > after));
            let rows = rows.map(|(_, row)| row);
            let rows = rows.filter(|row| !row.held && row.created_at <= due);
            let hold = |row: &mut Row| {
                row.held = true;
                row.message.clone()
            };
            taken
                .get_or_insert_with(|| rows.take(limit as usize).map(hold).collect::<Vec<_>>())
                .clone()
        });
        let ids = |messages: &[Message]| messages.iter().map(|m| m.order_id).collect();
        // Released on every path, as a rollback releases its rows.
        let _held = Held(self, ids(&taken.unwrap_or_default()));
        let messages = outcome?;
        let Some(last) = messages.last() else {
            return Ok(Relayed::default());
        };
        let gone: Vec<OrderId> = messages
            .iter()
            .zip(publish(&messages))
            .filter_map(|(message, acknowledged)| acknowledged.then_some(message.order_id))
            .collect();
        self.call(|tables| tables.outbox.retain(|id, _| !gone.contains(id)))?;
        Ok(Relayed {
            taken: messages.len(),
            removed: gone.len(),
            last: Some(last.order_id),
        })
    }

    fn remove(&self, order_ids: &[OrderId], _: Deadline) -> Result<(), StoreError> {
        self.call(|tables| tables.outbox.retain(|id, _| !order_ids.contains(id)))
    }

    fn backlog(&self, _: Deadline) -> Result<Backlog, StoreError> {
        self.call(|tables| {
            let oldest = tables.outbox.values().map(|row| row.created_at).min();
            Backlog {
                rows: tables.outbox.len() as i64,
                oldest_seconds: oldest.map_or(0.0, |at| {
                    (Timestamp::now() - at)
                        .total(jiff::Unit::Second)
                        .expect("seconds")
                }),
            }
        })
    }
}

impl SagaStore for Memory {
    fn begin(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        _: Deadline,
    ) -> Result<Vec<Begun>, StoreError> {
        let now = cut(now);
        self.call(|tables| {
            let mut begun = Vec::new();
            for &id in ids {
                tables.step(id, Status::Pending, Status::Processing, now);
                let Some((order, reason)) = tables.orders.get(&id).cloned() else {
                    continue;
                };
                let is_new = order.status == Status::Processing && !tables.sagas.contains_key(&id);
                if is_new {
                    tables.sagas.insert(id, (Saga::start(id, now), None));
                }
                begun.push(Begun {
                    claimed: Claimed {
                        order,
                        failure_reason: reason,
                        has_saga: false,
                    },
                    saga: tables.sagas.get(&id).map(|(saga, _)| saga.clone()),
                    is_new,
                });
            }
            begun
        })
    }

    fn save(&self, sagas: &[Saga], _: Deadline) -> Result<Vec<Saved>, StoreError> {
        self.call(|tables| {
            let mut saved = Vec::new();
            for saga in sagas {
                let stored = tables.sagas.get_mut(&saga.order_id);
                let Some(row) = stored.filter(|(it, _)| it.version + 1 == saga.version) else {
                    continue;
                };
                row.0 = saga.clone();
                let end = match saga.state {
                    SagaState::Completed => Some(Status::Completed),
                    SagaState::Failed => Some(Status::Failed),
                    SagaState::Running | SagaState::Compensating => None,
                };
                let ended = end.and_then(|end| {
                    let from = Status::Processing;
                    let row = tables.step(saga.order_id, from, end, saga.updated_at)?;
                    row.1 = saga.refusal().map(str::to_owned);
                    Some(row.0.clone())
                });
                saved.push(Saved {
                    order_id: saga.order_id,
                    ended,
                });
            }
            saved
        })
    }

    fn find(&self, order_id: OrderId, _: Deadline) -> Result<Option<Saga>, StoreError> {
        self.call(|tables| tables.sagas.get(&order_id).map(|(saga, _)| saga.clone()))
    }

    fn lease_stalled(
        &self,
        now: Timestamp,
        unchanged_since: Timestamp,
        limit: u32,
        _: Deadline,
    ) -> Result<Vec<Order>, StoreError> {
        self.call(|tables| {
            let is_stalled = |saga: &Saga, leased_at: &Option<Timestamp>| {
                !saga.state.is_final()
                    && saga.updated_at < unchanged_since
                    && leased_at.is_none_or(|at| at < unchanged_since)
            };
            let mut orders = Vec::new();
            for (id, (saga, leased_at)) in &mut tables.sagas {
                if is_stalled(saga, leased_at) && orders.len() < limit as usize {
                    *leased_at = Some(now);
                    orders.push(tables.orders[id].0.clone());
                }
            }
            orders
        })
    }

    fn unfinished(&self, _: Deadline) -> Result<Vec<(SagaState, i64)>, StoreError> {
        self.call(|tables| {
            let count = |state| {
                let sagas = tables.sagas.values();
                let count = sagas.filter(|(saga, _)| saga.state == state).count();
                (state, i64::try_from(count).expect("few"))
            };
            let states = [SagaState::Running, SagaState::Compensating];
            states
                .map(count)
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .collect()
        })
    }
}

struct Held<'a>(&'a Memory, Vec<OrderId>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut tables = self.0.lock();
        for id in &self.1 {
            if let Some(row) = tables.outbox.get_mut(id) {
                row.held = false;
            }
        }
    }
}
