//! A worker processes accepted orders, a batch at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::deadline::Deadline;
use crate::orders::domain::{Order, OrderId, Status};
use crate::orders::ports::{
    Meter, OrderRepository, Outcome, ProcessingStep, SecondChance, Started, StepError, StoreError,
};
use crate::stop::StopSignal;

/// What one order's processing may take, all attempts apart (the seed's table of time-outs).
pub const PROCESSING_LIMIT: Duration = Duration::from_secs(60);

/// What one call to the store may take here, repetitions included.
pub const STORE_BUDGET: Duration = Duration::from_secs(10);

/// Waits between attempts: the seed's backoff for whatever may say no.
const BACKOFF: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

/// How an order stands after its message was worked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Processed {
    /// Completed, now or before: to be announced (again).
    Completed(Order),
    /// Failed, now or before: to be announced (again).
    Failed {
        /// The order.
        order: Order,
        /// Why the last attempt failed.
        reason: String,
        /// Attempts made.
        attempts: u32,
    },
    /// Canceled by the customer; nothing to announce.
    Canceled,
    /// There is no such order.
    Unknown,
    /// The program stops before this one's turn; its message must come again.
    Interrupted,
}

/// Processes orders.
pub struct ProcessOrders {
    /// Where orders are kept.
    pub repository: Arc<dyn OrderRepository>,
    /// The work itself.
    pub step: Arc<dyn ProcessingStep>,
    /// Where outcomes are counted.
    pub meter: Arc<dyn Meter>,
    /// Attempts before an order fails; at least 1.
    pub max_attempts: u32,
    /// Cuts waits short.
    pub stop: StopSignal,
}

impl ProcessOrders {
    /// Works on the orders `ids`, each of them once, in the order given, taking each from
    /// wherever an earlier, broken run left it, and says how each one stands. A failed one
    /// stays failed, unless `chances` gives it another chance. One store call takes all up, one completes all; the steps run one after another in between,
    /// each attempt for 60 seconds at most. When the program stops, the orders that are
    /// done are the first ones.
    ///
    /// # Errors
    /// [`StoreError`]: some orders may have moved on; working on the same ids again resumes.
    pub fn handle(
        &self,
        ids: &[OrderId],
        chances: &[SecondChance],
    ) -> Result<HashMap<OrderId, Processed>, StoreError> {
        if !chances.is_empty() {
            let deadline = Deadline::after(STORE_BUDGET);
            self.repository
                .retry_failed(chances, Timestamp::now(), deadline)?;
        }
        let mut started: HashMap<OrderId, Started> = self
            .take_up(ids)?
            .into_iter()
            .map(|started| (started.order.id, started))
            .collect();
        let mut results = HashMap::with_capacity(ids.len());
        let mut done = Vec::new();
        let mut failed = Vec::new();
        let mut stopped = false;
        for &id in ids {
            let result = match started.remove(&id) {
                // What comes after an interrupted one comes again with it: announcing it
                // now would announce it twice.
                _ if stopped => Processed::Interrupted,
                None => Processed::Unknown,
                Some(started) => match self.attempt(&started.order) {
                    None => {
                        let (outcome, processed) = ended(started, self.max_attempts);
                        self.meter.order_processed(outcome);
                        processed
                    }
                    // Until the store says otherwise.
                    Some(attempted) => {
                        match attempted {
                            Ok(()) => done.push(id),
                            Err((StepError::Stopped, _)) => stopped = true,
                            Err((error, attempts)) => {
                                failed.push((id, error.to_string(), attempts));
                            }
                        }
                        Processed::Interrupted
                    }
                },
            };
            results.insert(id, result);
        }
        self.complete(&done, &mut results)?;
        for (id, reason, attempts) in failed {
            let deadline = Deadline::after(STORE_BUDGET);
            if let Some(order) = self
                .repository
                .fail(id, &reason, Timestamp::now(), deadline)?
            {
                self.meter.order_processed(Outcome::Failed);
                let failed = Processed::Failed {
                    order,
                    reason,
                    attempts,
                };
                results.insert(id, failed);
            }
        }
        Ok(results)
    }

    fn take_up(&self, ids: &[OrderId]) -> Result<Vec<Started>, StoreError> {
        let deadline = Deadline::after(STORE_BUDGET);
        self.repository
            .start_processing(ids, Timestamp::now(), deadline)
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
        // An order that another worker finished meanwhile (we had lost the
        // partition without knowing) stays `Interrupted`: its message comes
        // again, to us or to its new owner, and finds it finished.
        Ok(())
    }

    /// Tries the step; `None` if there is nothing to do any more. After a failure also
    /// how many attempts were made.
    fn attempt(&self, order: &Order) -> Option<Result<(), (StepError, u32)>> {
        match order.status {
            Status::Completed | Status::Failed | Status::Canceled => return None,
            Status::Pending | Status::Processing => {}
        }
        let mut attempt = 1;
        loop {
            if self.stop.is_stopped() {
                return Some(Err((StepError::Stopped, attempt - 1)));
            }
            let limit = Deadline::after(PROCESSING_LIMIT);
            let began = Instant::now();
            let outcome = self.step.process(order, limit);
            self.meter.step_ended(began.elapsed());
            let error = match outcome {
                Ok(()) => return Some(Ok(())),
                Err(error) => error,
            };
            if error == StepError::Stopped || attempt >= self.max_attempts {
                return Some(Err((error, attempt)));
            }
            log::info!(order_id:% = order.id, attempt = attempt; "processing failed, trying again: {error}");
            self.stop.wait_for(pause_after(attempt));
            attempt += 1;
        }
    }
}

/// The wait after the attempt of this number (from 1) has failed.
pub fn pause_after(attempt: u32) -> Duration {
    BACKOFF[(attempt as usize - 1).min(BACKOFF.len() - 1)]
}

/// What to count and to say of an order that had ended before: a replay, or canceled.
pub fn ended(started: Started, max_attempts: u32) -> (Outcome, Processed) {
    let Started {
        order,
        failure_reason,
    } = started;
    match order.status {
        Status::Canceled => (Outcome::Canceled, Processed::Canceled),
        Status::Failed => {
            let failed = Processed::Failed {
                order,
                reason: failure_reason.unwrap_or_else(|| "unknown".into()),
                attempts: max_attempts,
            };
            (Outcome::Duplicate, failed)
        }
        _ => (Outcome::Duplicate, Processed::Completed(order)),
    }
}

#[cfg(test)]
mod tests;
