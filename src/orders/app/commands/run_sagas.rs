//! Processing of accepted orders by a worker as sagas: a batch at a time, one command of every saga at
//! a time.
//!
//! | Crash after | The store has | The next worker |
//! | --- | --- | --- |
//! | `begin` or `save`, before `send` | the announced command | sends it for the first time |
//! | `send`, before `save` | the announced command | sends it again and gets the same answer |
//! | the last `save` | saga and order in a final state | announces the outcome again |
//!
//! So a command is always stored before it is sent, and an answer is never needed twice.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::orders::domain::saga::{Answer, Command, Input, SagaState};
use crate::orders::domain::{AmountCents, Order, OrderId, Saga};
use crate::orders::ports::{
    Begun, Meter, OrderRepository, Outcome, Participants, Replay, SagaStore, StepOutcome,
    StoreError,
};
use tbd_deadline::{Deadline, StopSignal};

use super::process_orders::{Processed, STORE_BUDGET, Task, Workflow, ended};

/// Time limit of one call to a participant, repetitions included.
const CALL_BUDGET: Duration = Duration::from_secs(3);

/// Runs the sagas of orders.
pub struct RunSagas {
    /// The store of orders.
    pub repository: Arc<dyn OrderRepository>,
    /// The store of sagas.
    pub sagas: Arc<dyn SagaStore>,
    /// The services that execute commands.
    pub participants: Arc<dyn Participants>,
    /// Counts outcomes.
    pub meter: Arc<dyn Meter>,
    /// Ends the work before the next command.
    pub stop: StopSignal,
}

/// An order and the saga that its worker knows.
struct Work {
    order: Order,
    saga: Saga,
}

type Results = HashMap<OrderId, Processed>;

impl Workflow for RunSagas {
    /// Takes every saga as far as the participants allow: to its end, unless one is away. Each round
    /// stores the announcements of all sagas in one statement, then makes one call for each command.
    /// There are at most five rounds, without pauses. A call takes 3 s at most.
    fn handle(
        &self,
        tasks: &[Task],
        replays: &[Replay],
        _: Deadline,
    ) -> Result<Results, StoreError> {
        let mut results = Results::with_capacity(tasks.len());
        let (mut announced, mut transitions) = self.begin(tasks, replays, &mut results)?;
        loop {
            announced.extend(self.save(mem::take(&mut transitions), &mut results)?);
            if announced.is_empty() || self.stop.is_stopped() {
                return Ok(results);
            }
            transitions = self.send(mem::take(&mut announced), &mut results);
        }
    }
}

impl RunSagas {
    /// The sagas whose command is announced and was never sent, and the transitions of those that
    /// resume or begin again.
    fn begin(
        &self,
        tasks: &[Task],
        replays: &[Replay],
        results: &mut Results,
    ) -> Result<(Vec<Work>, Vec<Work>), StoreError> {
        let now = Timestamp::now();
        if !replays.is_empty() {
            let deadline = Deadline::after(STORE_BUDGET);
            self.repository.retry_failed(replays, now, deadline)?;
        }
        let ids: Vec<OrderId> = tasks.iter().map(|task| task.id).collect();
        let begun = self.sagas.begin(&ids, now, Deadline::after(STORE_BUDGET))?;
        let begun = begun.into_iter().map(|it| (it.claimed.order.id, it));
        let mut begun: HashMap<OrderId, Begun> = begun.collect();
        let (mut announced, mut transitions) = (Vec::new(), Vec::new());
        for id in ids {
            let Some(Begun {
                claimed,
                saga,
                is_new,
            }) = begun.remove(&id)
            else {
                results.insert(id, Processed::Unknown);
                continue;
            };
            let attempts = saga.as_ref().map_or(1, attempts_at_refused);
            if let Some((outcome, processed)) = ended(&claimed, attempts) {
                self.meter.order_processed(outcome);
                results.insert(id, processed);
            } else if let Some(saga) = saga {
                let order = claimed.order;
                if is_new {
                    announced.push(Work { order, saga });
                } else if let Some(saga) = self.resumed(&saga, now, results) {
                    transitions.push(Work { order, saga });
                }
            }
        }
        Ok((announced, transitions))
    }

    /// The saga with one more attempt announced, or begun again if its order's dead letter was
    /// replayed. While the participant is known to be away there is no attempt to announce.
    fn resumed(&self, saga: &Saga, now: Timestamp, results: &mut Results) -> Option<Saga> {
        let Some(command) = saga.announced() else {
            return saga.next(Input::Restarted(Uuid::new_v4()), now);
        };
        match self.participants.is_reachable(command.participant()) {
            Ok(()) => saga.next(Input::Resumed, now),
            Err(away) => {
                let reason = away.to_string();
                results.insert(saga.order_id, Processed::Waiting { reason });
                None
            }
        }
    }

    /// Stores transitions. Returns the unfinished work; final states go to `results`. A saga that
    /// another worker has moved meanwhile is in neither: the caller passes its order again.
    fn save(&self, transitions: Vec<Work>, results: &mut Results) -> Result<Vec<Work>, StoreError> {
        if transitions.is_empty() {
            return Ok(Vec::new());
        }
        let (sagas, orders): (Vec<Saga>, Vec<Order>) = transitions
            .into_iter()
            .map(|it| (it.saga, it.order))
            .unzip();
        let saved = self.sagas.save(&sagas, Deadline::after(STORE_BUDGET))?;
        let mut saved: HashMap<OrderId, Option<Order>> = saved
            .into_iter()
            .map(|it| (it.order_id, it.ended))
            .collect();
        let mut announced = Vec::new();
        for (saga, order) in sagas.into_iter().zip(orders) {
            match saved.remove(&saga.order_id) {
                Some(Some(ended)) => {
                    results.insert(ended.id, self.end(&saga, ended));
                }
                Some(None) if !saga.state.is_final() => announced.push(Work { order, saga }),
                Some(None) | None => {}
            }
        }
        Ok(announced)
    }

    /// Sends the announced commands, in one call for each kind. Returns the transitions that the
    /// answers cause.
    fn send(&self, announced: Vec<Work>, results: &mut Results) -> Vec<Work> {
        let mut groups: HashMap<Command, Vec<Work>> = HashMap::new();
        for work in announced {
            if let Some(command) = work.saga.announced() {
                groups.entry(command).or_default().push(work);
            }
        }
        let mut transitions = Vec::new();
        for command in Command::ALL {
            let Some(group) = groups.remove(&command) else {
                continue;
            };
            let sagas: Vec<(Uuid, AmountCents)> = group
                .iter()
                .map(|work| (work.saga.id, work.order.amount))
                .collect();
            let answers = self
                .participants
                .send(command, &sagas, Deadline::after(CALL_BUDGET));
            match answers {
                Ok(answers) => {
                    let answered = group.into_iter().zip(answers);
                    transitions.extend(answered.filter_map(|(work, answer)| {
                        self.answered(work, command, answer, results)
                    }));
                }
                Err(away) => {
                    log::warn!(
                        "{} sagas wait for {}: {away}",
                        group.len(),
                        command.as_str()
                    );
                    for work in group {
                        self.meter.saga_step(command, StepOutcome::Unavailable);
                        let reason = away.to_string();
                        results.insert(work.order.id, Processed::Waiting { reason });
                    }
                }
            }
        }
        transitions
    }

    /// The transition that an answer causes.
    fn answered(
        &self,
        Work { order, saga }: Work,
        command: Command,
        answer: Answer,
        results: &mut Results,
    ) -> Option<Work> {
        let (outcome, reason) = match &answer {
            Answer::Done => (StepOutcome::Done, String::new()),
            Answer::Refused(reason) => {
                let reason = format!("{} was refused: {reason}", command.as_str());
                log::info!(order_id:% = order.id; "{reason}");
                (StepOutcome::Refused, reason)
            }
        };
        self.meter.saga_step(command, outcome);
        let next = saga.next(Input::Answered(command, answer), Timestamp::now());
        if next.is_none() {
            // The participant's books disagree with the saga, which only a person can mend. Until then the
            // sweeper tries again each minute, and no other order waits.
            log::error!(order_id:% = order.id; "{reason}, which this step does not allow; trying again each minute");
            results.insert(order.id, Processed::LeftToSaga);
        }
        next.map(|saga| Work { order, saga })
    }

    fn end(&self, saga: &Saga, order: Order) -> Processed {
        let since = |start| order.updated_at.duration_since(start).unsigned_abs();
        self.meter.saga_ended(saga.state, since(saga.started_at));
        if saga.state == SagaState::Completed {
            self.meter.order_processed(Outcome::Completed);
            self.meter.order_completed_after(since(order.created_at));
            return Processed::Completed(order);
        }
        self.meter.order_processed(Outcome::Failed);
        Processed::Failed {
            order,
            reason: saga.refusal().unwrap_or("unknown").to_owned(),
            attempts: attempts_at_refused(saga),
        }
    }
}

/// How often the refused command was sent.
fn attempts_at_refused(saga: &Saga) -> u32 {
    let is_refused = |answer: &(Answer, Timestamp)| matches!(answer.0, Answer::Refused(_));
    let mut calls = saga.calls.iter();
    let refused = calls.find(|call| call.answer.as_ref().is_some_and(is_refused));
    refused.map_or(1, |call| call.attempts)
}

#[cfg(test)]
mod tests;
