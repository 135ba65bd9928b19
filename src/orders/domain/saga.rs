//! The saga of an order: the table of its steps, and the state machine that runs them. No I/O.
//!
//! A saga announces one command at a time. The store has the announcement before a participant gets
//! the command. So after a crash the next worker knows which command may have been executed, and sends
//! it again. Participants execute a command once, however often it arrives.

use jiff::Timestamp;
use uuid::Uuid;

use super::{OrderId, words};

words! {
    /// One of the services that take part.
    pub enum Participant {
        /// Holds and sells stock.
        Inventory = "inventory",
        /// Authorizes and captures payments.
        Payments = "payments",
    }
}

words! {
    /// A saga's request to a participant.
    pub enum Command {
        /// Hold one unit of stock.
        ReserveStock = "reserve_stock",
        /// Hold the amount on the customer's account.
        AuthorizePayment = "authorize_payment",
        /// Take the amount that is held.
        CapturePayment = "capture_payment",
        /// Sell the unit that is held.
        ConfirmReservation = "confirm_reservation",
        /// Free the amount that is held.
        VoidPayment = "void_payment",
        /// Return the unit that is held.
        ReleaseReservation = "release_reservation",
    }
}

impl Command {
    /// The participant that executes it.
    pub fn participant(self) -> Participant {
        match self {
            Command::ReserveStock | Command::ConfirmReservation | Command::ReleaseReservation => {
                Participant::Inventory
            }
            Command::AuthorizePayment | Command::CapturePayment | Command::VoidPayment => {
                Participant::Payments
            }
        }
    }
}

/// A step of the saga. The step has the name of its command.
#[derive(Debug)]
pub struct Step {
    /// What it does.
    pub command: Command,
    /// What undoes it, if a later step is refused.
    pub compensation: Option<Command>,
    /// Whether the participant may refuse it. If it may not, the step is retried until it succeeds.
    pub is_refusable: bool,
}

/// The steps, in their order. The capture is the pivot: before it everything can be undone, after it
/// everything can be completed.
#[rustfmt::skip]
pub const STEPS: [Step; 4] = [
    Step { command: Command::ReserveStock,       compensation: Some(Command::ReleaseReservation), is_refusable: true },
    Step { command: Command::AuthorizePayment,   compensation: Some(Command::VoidPayment),        is_refusable: true },
    Step { command: Command::CapturePayment,     compensation: None,                              is_refusable: true },
    Step { command: Command::ConfirmReservation, compensation: None,                              is_refusable: false },
];

words! {
    /// The state of a saga. The final ones are also those of the order.
    pub enum SagaState {
        /// A step's command is announced.
        Running = "running",
        /// A step was refused, and the compensation of an earlier one is announced.
        Compensating = "compensating",
        /// Every step is done; final.
        Completed = "completed",
        /// A step was refused, and every earlier one is compensated; final, unless somebody replays the
        /// order's dead letter.
        Failed = "failed",
    }
}

impl SagaState {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, SagaState::Completed | SagaState::Failed)
    }
}

/// A participant's answer to a command. It is the same however often the command is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The command has its effect.
    Done,
    /// The command has no effect and never will: a reason, one word in snake case.
    Refused(String),
}

/// An announced command and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The command.
    pub command: Command,
    /// How often it was sent, at most. Information for people: no number of attempts fails a saga.
    pub attempts: u32,
    /// When it was announced.
    pub announced_at: Timestamp,
    /// The answer and its time; `None` until it is known.
    pub answer: Option<(Answer, Timestamp)>,
}

/// The saga of one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saga {
    /// The order.
    pub order_id: OrderId,
    /// The name under which participants know it: the order's id, or a new one for each replay of the
    /// order's dead letter.
    pub id: Uuid,
    /// Grows with every transition. A transition is stored only on top of the version before it, so of
    /// two workers with one saga, one is too late.
    pub version: i64,
    /// The current state.
    pub state: SagaState,
    /// Every call, in the order of their announcement. Only the last one may be without an answer.
    pub calls: Vec<Call>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// What a saga reacts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The announced command is about to be sent once more.
    Resumed,
    /// A participant has answered this command.
    Answered(Command, Answer),
    /// The dead letter of the failed order was replayed: the saga begins again, with this id.
    Restarted(Uuid),
}

impl Saga {
    /// A new saga that announces the first command.
    pub fn start(order_id: OrderId, now: Timestamp) -> Self {
        Self {
            order_id,
            id: order_id.0,
            version: 1,
            state: SagaState::Running,
            calls: vec![Call::announced(STEPS[0].command, now)],
            started_at: now,
            updated_at: now,
        }
    }

    /// The command to send, if the saga is not over.
    pub fn announced(&self) -> Option<Command> {
        let open = self.calls.last().filter(|call| call.answer.is_none());
        open.map(|call| call.command)
    }

    /// Why it failed or is about to fail: the refusal that led there.
    pub fn refusal(&self) -> Option<&str> {
        self.calls.iter().find_map(|call| match &call.answer {
            Some((Answer::Refused(reason), _)) => Some(reason.as_str()),
            _ => None,
        })
    }

    /// The call of a command, if it was announced.
    pub fn call(&self, command: Command) -> Option<&Call> {
        self.calls.iter().find(|call| call.command == command)
    }

    /// Every transition there is. `None` if `input` changes nothing: it is late, or a refusal of what
    /// must succeed and is therefore sent again.
    pub fn next(&self, input: Input, now: Timestamp) -> Option<Saga> {
        let mut next = self.clone();
        next.version += 1;
        next.updated_at = now;
        match (self.announced(), input) {
            (Some(_), Input::Resumed) => next.calls.last_mut()?.attempts += 1,
            (Some(command), Input::Answered(about, answer)) if command == about => {
                let follow_up = follow_up(command, &answer)?;
                next.calls.last_mut()?.answer = Some((answer, now));
                next.state = match follow_up {
                    FollowUp::Step(command) => next.announce(command, SagaState::Running),
                    FollowUp::Undo(command) => next.announce(command, SagaState::Compensating),
                    FollowUp::End(state) => state,
                };
            }
            (None, Input::Restarted(id)) if self.state == SagaState::Failed => {
                next = Saga {
                    id,
                    version: next.version,
                    ..Saga::start(self.order_id, now)
                };
            }
            _ => return None,
        }
        Some(next)
    }

    fn announce(&mut self, command: Command, state: SagaState) -> SagaState {
        self.calls.push(Call::announced(command, self.updated_at));
        state
    }
}

impl Call {
    fn announced(command: Command, now: Timestamp) -> Self {
        Self {
            command,
            attempts: 1,
            announced_at: now,
            answer: None,
        }
    }
}

/// What follows an answer.
enum FollowUp {
    Step(Command),
    Undo(Command),
    End(SagaState),
}

/// The rule of the saga. `None`: send the command again.
fn follow_up(command: Command, answer: &Answer) -> Option<FollowUp> {
    let is_undone_by = |step: &Step| step.compensation == Some(command);
    let Some(index) = STEPS.iter().position(|step| step.command == command) else {
        let undone = STEPS.iter().position(is_undone_by)?;
        return (*answer == Answer::Done).then(|| undo_before(undone));
    };
    match answer {
        Answer::Done => Some(match STEPS.get(index + 1) {
            Some(step) => FollowUp::Step(step.command),
            None => FollowUp::End(SagaState::Completed),
        }),
        Answer::Refused(_) => STEPS[index].is_refusable.then(|| undo_before(index)),
    }
}

/// Compensates the steps before this one, the last one first.
fn undo_before(index: usize) -> FollowUp {
    let mut earlier = STEPS[..index].iter().rev();
    match earlier.find_map(|step| step.compensation) {
        Some(compensation) => FollowUp::Undo(compensation),
        None => FollowUp::End(SagaState::Failed),
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
