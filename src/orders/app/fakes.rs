//! Fakes of the event bus, the meter and the processing step, for unit tests.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use jiff::Timestamp;
use uuid::Uuid;

use crate::orders::domain::saga::fake::Ledger;
use crate::orders::domain::saga::{Answer, Command, Participant, SagaState};
use crate::orders::domain::{AmountCents, CustomerEmail, Order, OrderEvent, OrderId};
use crate::orders::ports::{
    Backlog, EventBus, Message, Meter, Outcome, Participants, ProcessingStep, PublishError,
    StepError, StepOutcome, Unavailable,
};
pub use tbd_deadline::lock;

use tbd_deadline::Deadline;

pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

pub fn order() -> Order {
    let email = CustomerEmail::new("user@example.com".into()).unwrap();
    Order::create(email, AmountCents::new(1).unwrap(), Timestamp::now())
}

/// Acknowledges everything, unless it is away or the order is one it refuses.
pub struct Bus {
    pub away: AtomicBool,
    pub refused: Mutex<Vec<OrderId>>,
    /// The time left to each publish.
    pub time_left: Mutex<Vec<Duration>>,
    published: Sender<Message>,
    /// Acknowledged messages.
    pub acknowledged: Receiver<Message>,
}

impl Default for Bus {
    fn default() -> Self {
        let (published, acknowledged) = unbounded();
        Self {
            away: AtomicBool::default(),
            refused: Mutex::default(),
            time_left: Mutex::default(),
            published,
            acknowledged,
        }
    }
}

impl Bus {
    /// Messages acknowledged since the last call.
    pub fn take(&self) -> Vec<Message> {
        self.acknowledged.try_iter().collect()
    }
}

impl EventBus for Bus {
    fn encode(&self, event: &OrderEvent) -> Message {
        Message {
            kind: event.kind(),
            order_id: event.order().id,
            payload: Bytes::from(event.order().id.to_string()),
            trace_context: Some("00-1-2-01".to_owned()),
        }
    }

    fn publish(&self, message: &Message, deadline: Deadline) -> Result<(), PublishError> {
        lock(&self.time_left).push(deadline.remaining());
        if self.away.load(Ordering::SeqCst) {
            return Err(PublishError::Unavailable("away".into()));
        }
        if lock(&self.refused).contains(&message.order_id) {
            return Err(PublishError::Refused("no".into()));
        }
        self.published.send(message.clone()).unwrap();
        Ok(())
    }

    fn publish_all(
        &self,
        messages: &[Message],
        deadline: Deadline,
    ) -> Vec<Result<(), PublishError>> {
        let publish = |message| self.publish(message, deadline);
        messages.iter().map(publish).collect()
    }
}

/// Keeps every measurement for assertions.
#[derive(Default)]
pub struct RecordingMeter {
    pub created: Mutex<u32>,
    pub hits: Mutex<u32>,
    pub outcomes: Mutex<Vec<Outcome>>,
    pub delays: Mutex<Vec<Duration>>,
    pub steps: Mutex<Vec<Duration>>,
    pub relayed: Mutex<usize>,
    pub swept: Mutex<u64>,
    pub backlogs: Mutex<Vec<Backlog>>,
    pub saga_steps: Mutex<Vec<(Command, StepOutcome)>>,
    pub sagas_ended: Mutex<Vec<SagaState>>,
    pub sagas: Mutex<Vec<(SagaState, i64)>>,
}

impl Meter for RecordingMeter {
    fn order_created(&self) {
        *lock(&self.created) += 1;
    }

    fn idempotency_hit(&self) {
        *lock(&self.hits) += 1;
    }

    fn order_processed(&self, outcome: Outcome) {
        lock(&self.outcomes).push(outcome);
    }

    fn order_completed_after(&self, delay: Duration) {
        lock(&self.delays).push(delay);
    }

    fn step_ended(&self, time: Duration) {
        lock(&self.steps).push(time);
    }

    fn events_relayed(&self, count: usize) {
        *lock(&self.relayed) += count;
    }

    fn keys_swept(&self, count: u64) {
        *lock(&self.swept) += count;
    }

    fn outbox_backlog(&self, backlog: Backlog) {
        lock(&self.backlogs).push(backlog);
    }

    fn saga_step(&self, command: Command, outcome: StepOutcome) {
        lock(&self.saga_steps).push((command, outcome));
    }

    fn saga_ended(&self, state: SagaState, _: Duration) {
        lock(&self.sagas_ended).push(state);
    }

    fn sagas(&self, state: SagaState, count: i64) {
        lock(&self.sagas).push((state, count));
    }
}

/// A step that calls a closure with the order and the number of earlier attempts at any order.
pub struct Step<F> {
    work: F,
    pub tried: Mutex<Vec<OrderId>>,
}

impl<F: Fn(OrderId, usize) -> Result<(), StepError>> Step<F> {
    pub fn new(work: F) -> Self {
        Self {
            work,
            tried: Mutex::default(),
        }
    }
}

impl<F: Fn(OrderId, usize) -> Result<(), StepError> + Send + Sync> ProcessingStep for Step<F> {
    fn process(&self, order: &Order, _: Deadline) -> Result<(), StepError> {
        let before = {
            let mut tried = lock(&self.tried);
            tried.push(order.id);
            tried.len() - 1
        };
        (self.work)(order.id, before)
    }
}

/// Executes commands, unless a participant is away.
#[derive(Default)]
pub struct FakeParticipants {
    pub ledger: Mutex<Ledger>,
    pub away: Mutex<HashSet<Participant>>,
    /// Each call, with the number of its sagas.
    pub calls: Mutex<Vec<(Command, usize)>>,
    /// The call whose answer is lost, counted from 0.
    pub lost_answer: Mutex<Option<usize>>,
}

fn unavailable(participant: Participant) -> Unavailable {
    Unavailable {
        participant,
        reason: "away".into(),
    }
}

impl Participants for FakeParticipants {
    fn send(
        &self,
        command: Command,
        sagas: &[(Uuid, AmountCents)],
        _: Deadline,
    ) -> Result<Vec<Answer>, Unavailable> {
        self.is_reachable(command.participant())?;
        let number = lock(&self.calls).len();
        lock(&self.calls).push((command, sagas.len()));
        let mut ledger = lock(&self.ledger);
        let answers = sagas.iter().map(|(id, _)| ledger.execute(*id, command));
        let answers = answers.collect();
        match *lock(&self.lost_answer) == Some(number) {
            true => Err(unavailable(command.participant())),
            false => Ok(answers),
        }
    }

    fn is_reachable(&self, participant: Participant) -> Result<(), Unavailable> {
        match lock(&self.away).contains(&participant) {
            true => Err(unavailable(participant)),
            false => Ok(()),
        }
    }
}
