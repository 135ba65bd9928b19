//! Processing of accepted orders by a worker: a batch at a time, one attempt at each.
//!
//! A failed attempt is not retried here. The caller keeps the order, retries it after
//! [`pause_after`] in a later batch, and works on other orders until then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::orders::domain::{Order, OrderId, Status};
use crate::orders::ports::{
    Claimed, Failure, Meter, OrderRepository, Outcome, ProcessingStep, Replay, StepError,
    StoreError,
};
use tbd_deadline::{Deadline, StopSignal};

/// Time limit of one attempt at processing an order.
pub const PROCESSING_LIMIT: Duration = Duration::from_secs(60);

/// Time limit of one call to the store, retries included.
pub const STORE_BUDGET: Duration = Duration::from_secs(10);

/// Pauses between attempts. The last one applies to every further attempt.
const BACKOFF: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

/// An order to attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The order.
    pub id: OrderId,
    /// Attempts at it that have failed so far.
    pub failed_attempts: u32,
}

/// The outcome of working on an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Processed {
    /// Completed now or earlier. Announce it, perhaps again.
    Completed(Order),
    /// Failed now or earlier. Announce it, perhaps again.
    Failed {
        /// The order.
        order: Order,
        /// Why the last attempt failed.
        reason: String,
        /// Attempts made.
        attempts: u32,
    },
    /// The attempt failed and is not the last one. Retry after [`pause_after`].
    Retry {
        /// Attempts that have failed so far.
        failed_attempts: u32,
    },
    /// A service that takes part is away. No attempt counts; retry after a pause, and take no more
    /// orders until then.
    Waiting {
        /// What the order waits for, in a text without secrets.
        reason: String,
    },
    /// Canceled by the customer; nothing to announce.
    Canceled,
    /// Left to its unfinished saga, which announces the order's end.
    LeftToSaga,
    /// There is no such order.
    Unknown,
}

/// How a worker processes the orders of a batch.
pub trait Workflow: Send + Sync {
    /// Works on `tasks`, in the order given. Resumes orders that an interrupted run left unfinished.
    /// A failed order stays failed unless `replays` names it. Nothing new begins after `until` or
    /// after the stop signal. An order without an outcome in the result is not done: pass it again.
    ///
    /// # Errors
    /// [`StoreError`]: some orders may have changed. Passing the same tasks again resumes.
    fn handle(
        &self,
        tasks: &[Task],
        replays: &[Replay],
        until: Deadline,
    ) -> Result<HashMap<OrderId, Processed>, StoreError>;
}

/// Processes orders in a single step.
pub struct ProcessOrders {
    /// The store of orders.
    pub repository: Arc<dyn OrderRepository>,
    /// The work itself.
    pub step: Arc<dyn ProcessingStep>,
    /// Counts outcomes.
    pub meter: Arc<dyn Meter>,
    /// Attempts before an order fails; at least 1.
    pub max_attempts: u32,
    /// Ends the work before the next order.
    pub stop: StopSignal,
}

impl Workflow for ProcessOrders {
    /// Makes one attempt at each of `tasks`. One store call claims all orders, one completes some and
    /// one fails the others. The first task is always attempted, for 60 seconds at most.
    fn handle(
        &self,
        tasks: &[Task],
        replays: &[Replay],
        until: Deadline,
    ) -> Result<HashMap<OrderId, Processed>, StoreError> {
        let mut by_id = self.claim(tasks, replays)?;
        let mut results = HashMap::with_capacity(tasks.len());
        let (mut completed, mut failures) = (Vec::new(), Vec::new());
        let mut is_first = true;
        for &Task {
            id,
            failed_attempts,
        } in tasks
        {
            // The caller passes the remaining tasks again, so they get no outcome now.
            if self.stop.is_stopped() || (!is_first && until.is_past()) {
                break;
            }
            is_first = false;
            let Some(claimed) = by_id.remove(&id) else {
                results.insert(id, Processed::Unknown);
                continue;
            };
            // A single step would complete an order whose payment and stock its saga still holds.
            if claimed.has_saga {
                results.insert(id, Processed::LeftToSaga);
                continue;
            }
            if let Some((outcome, processed)) = ended(&claimed, self.max_attempts) {
                self.meter.order_processed(outcome);
                results.insert(id, processed);
                continue;
            }
            let attempts = failed_attempts + 1;
            match self.attempt(&claimed.order) {
                Ok(()) => completed.push(id),
                Err(StepError::Stopped) => break,
                Err(error) if attempts < self.max_attempts => {
                    log::info!(order_id:% = id, attempt = attempts; "processing failed, trying again: {error}");
                    let failed_attempts = attempts;
                    results.insert(id, Processed::Retry { failed_attempts });
                }
                Err(error) => failures.push((id, error.to_string(), attempts)),
            }
        }
        self.complete(&completed, &mut results)?;
        self.fail(failures, &mut results)?;
        Ok(results)
    }
}

impl ProcessOrders {
    fn claim(
        &self,
        tasks: &[Task],
        replays: &[Replay],
    ) -> Result<HashMap<OrderId, Claimed>, StoreError> {
        let now = Timestamp::now();
        if !replays.is_empty() {
            let deadline = Deadline::after(STORE_BUDGET);
            self.repository.retry_failed(replays, now, deadline)?;
        }
        let ids: Vec<OrderId> = tasks.iter().map(|task| task.id).collect();
        let deadline = Deadline::after(STORE_BUDGET);
        let claimed = self.repository.claim(&ids, now, deadline)?;
        let by_id = claimed.into_iter().map(|it| (it.order.id, it));
        Ok(by_id.collect())
    }

    fn attempt(&self, order: &Order) -> Result<(), StepError> {
        let began = Instant::now();
        let outcome = self.step.process(order, Deadline::after(PROCESSING_LIMIT));
        self.meter.step_ended(began.elapsed());
        outcome
    }

    fn complete(
        &self,
        ids: &[OrderId],
        results: &mut HashMap<OrderId, Processed>,
    ) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let deadline = Deadline::after(STORE_BUDGET);
        for order in self.repository.complete(ids, Timestamp::now(), deadline)? {
            self.meter.order_processed(Outcome::Completed);
            let delay = order.updated_at.duration_since(order.created_at);
            self.meter.order_completed_after(delay.unsigned_abs());
            results.insert(order.id, Processed::Completed(order));
        }
        // If we lost the partition without noticing, another worker may have finished an order
        // meanwhile. It gets no outcome here; the caller passes it again and finds it finished.
        Ok(())
    }

    fn fail(
        &self,
        failed: Vec<(OrderId, String, u32)>,
        results: &mut HashMap<OrderId, Processed>,
    ) -> Result<(), StoreError> {
        if failed.is_empty() {
            return Ok(());
        }
        let failures: Vec<Failure> = failed
            .iter()
            .map(|(id, reason, _)| Failure {
                id: *id,
                reason: reason.clone(),
            })
            .collect();
        let deadline = Deadline::after(STORE_BUDGET);
        let moved = self
            .repository
            .fail(&failures, Timestamp::now(), deadline)?;
        let mut moved: HashMap<OrderId, Order> = moved.into_iter().map(|it| (it.id, it)).collect();
        for (id, reason, attempts) in failed {
            if let Some(order) = moved.remove(&id) {
                self.meter.order_processed(Outcome::Failed);
                let failed = Processed::Failed {
                    order,
                    reason,
                    attempts,
                };
                results.insert(id, failed);
            }
        }
        Ok(())
    }
}

/// The pause after `failed_attempts` attempts, at least one.
pub fn pause_after(failed_attempts: u32) -> Duration {
    BACKOFF[(failed_attempts as usize).clamp(1, BACKOFF.len()) - 1]
}

/// The outcome of an order that already has a final status: a duplicate, or canceled. `None` if
/// there is work to do.
pub fn ended(claimed: &Claimed, max_attempts: u32) -> Option<(Outcome, Processed)> {
    let order = claimed.order.clone();
    match order.status {
        Status::Pending | Status::Processing => None,
        Status::Canceled => Some((Outcome::Canceled, Processed::Canceled)),
        Status::Completed => Some((Outcome::Duplicate, Processed::Completed(order))),
        Status::Failed => {
            let reason = claimed.failure_reason.clone();
            let failed = Processed::Failed {
                order,
                reason: reason.unwrap_or_else(|| "unknown".into()),
                attempts: max_attempts,
            };
            Some((Outcome::Duplicate, failed))
        }
    }
}

#[cfg(test)]
mod tests;
