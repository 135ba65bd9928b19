//! The participants' gRPC services: commands of many sagas in one call.

use std::sync::Arc;
use std::time::Duration;

use tbd_deadline::{Deadline, StopSignal};
use tbd_grpc::proto::google::rpc::{BadRequest, bad_request::FieldViolation};
use tbd_grpc::{Call, Code, Router, Status};
use uuid::Uuid;

use crate::metrics::ParticipantMetrics;
use crate::participants::domain::{Action, Answer, Command, Participant};
use crate::participants::ports::{Ledger, LedgerError, Outcome};
use crate::proto::inventory::{self, inventory_service};
use crate::proto::payments::{self, payments_service};

/// Commands of one call. More would keep the stock locked for too long.
pub const COMMANDS_MAX: usize = 1000;
/// Bytes of a request: room for so many commands.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a step's name.
const STEP_BYTES_MAX: usize = 63;
/// Delay of answers that are late on purpose.
const LATE_BY: Duration = Duration::from_secs(5);

/// What goes wrong on purpose, for demonstrations.
#[derive(Clone, Debug)]
pub struct Faults {
    /// How long each call waits before its work (PARTICIPANT_LATENCY).
    pub latency: Duration,
    /// Share of calls that are answered UNAVAILABLE (PARTICIPANT_FAILURE_RATE). Half of them have
    /// had their effect by then, as if the answer had been lost.
    pub failure_rate: f64,
    /// Ends all waits on purpose.
    pub abort: StopSignal,
}

/// The service of one participant.
pub struct Service {
    /// Which one.
    pub participant: Participant,
    /// Where it keeps the holds.
    pub ledger: Arc<dyn Ledger>,
    /// What goes wrong on purpose.
    pub faults: Faults,
    /// What it counts.
    pub metrics: ParticipantMetrics,
}

/// Adds the methods of `service`'s participant to `router`. Handlers block for the database, until
/// the call's deadline at most.
pub fn routes(router: &mut Router, service: Service) {
    let service = Arc::new(service);
    macro_rules! method {
        ($method:expr, $action:expr, $response:ident) => {{
            let service = Arc::clone(&service);
            router.unary($method, move |call, request| {
                let results = service.run(call, $action, request.commands)?;
                Ok($response { results })
            });
        }};
    }
    match service.participant {
        Participant::Inventory => {
            use inventory::{
                ConfirmReservationsResponse, ReleaseReservationsResponse, ReserveStockResponse,
            };
            use inventory_service::{CONFIRM_RESERVATIONS, RELEASE_RESERVATIONS, RESERVE_STOCK};
            method!(RESERVE_STOCK, Action::Hold, ReserveStockResponse);
            method!(
                CONFIRM_RESERVATIONS,
                Action::Settle,
                ConfirmReservationsResponse
            );
            method!(
                RELEASE_RESERVATIONS,
                Action::Release,
                ReleaseReservationsResponse
            );
        }
        Participant::Payments => {
            use payments::{
                AuthorizePaymentsResponse, CapturePaymentsResponse, VoidPaymentsResponse,
            };
            use payments_service::{AUTHORIZE_PAYMENTS, CAPTURE_PAYMENTS, VOID_PAYMENTS};
            method!(AUTHORIZE_PAYMENTS, Action::Hold, AuthorizePaymentsResponse);
            method!(CAPTURE_PAYMENTS, Action::Settle, CapturePaymentsResponse);
            method!(VOID_PAYMENTS, Action::Release, VoidPaymentsResponse);
        }
    }
}

/// The paths of the participant's methods.
pub const fn paths(participant: Participant) -> &'static [&'static str] {
    const INVENTORY: [&str; 3] = [
        inventory_service::RESERVE_STOCK.path(),
        inventory_service::CONFIRM_RESERVATIONS.path(),
        inventory_service::RELEASE_RESERVATIONS.path(),
    ];
    const PAYMENTS: [&str; 3] = [
        payments_service::AUTHORIZE_PAYMENTS.path(),
        payments_service::CAPTURE_PAYMENTS.path(),
        payments_service::VOID_PAYMENTS.path(),
    ];
    match participant {
        Participant::Inventory => &INVENTORY,
        Participant::Payments => &PAYMENTS,
    }
}

/// The fields that a command has in both packages.
struct Fields<'a> {
    saga_id: &'a str,
    step: &'a str,
    /// What has to be positive to be held: the field's name and its value.
    quantity: (&'static str, i64),
    amount_cents: i64,
}

/// A command as it travels. The two packages have types of their own.
trait WireCommand {
    type Result;
    fn fields(&self) -> Fields<'_>;
    fn result(self, answer: Answer) -> Self::Result;
}

macro_rules! wire_command {
    ($package:ident, $quantity:ident) => {
        impl WireCommand for $package::Command {
            type Result = $package::Result;

            fn fields(&self) -> Fields<'_> {
                Fields {
                    saga_id: &self.saga_id,
                    step: &self.step,
                    quantity: (stringify!($quantity), self.$quantity.into()),
                    amount_cents: self.amount_cents,
                }
            }

            fn result(self, answer: Answer) -> Self::Result {
                let (outcome, reason) = match answer {
                    Answer::Done => ($package::Outcome::Done, String::new()),
                    Answer::Refused(reason) => ($package::Outcome::Refused, reason.into_owned()),
                };
                $package::Result {
                    saga_id: self.saga_id,
                    outcome: outcome.into(),
                    reason,
                }
            }
        }
    };
}

wire_command!(inventory, units);
wire_command!(payments, amount_cents);

impl Service {
    /// Runs the commands of a call. The effect is committed before a wait on purpose, and a retry is
    /// answered at once.
    fn run<C: WireCommand>(
        &self,
        call: &Call,
        action: Action,
        commands: Vec<C>,
    ) -> Result<Vec<C::Result>, Status> {
        let parsed = parse(action, &commands)?;
        let deadline = call.deadline();
        let failure = fastrand::f64();
        self.wait(self.faults.latency, deadline);
        if failure < self.faults.failure_rate / 2.0 {
            return Err(simulated_failure());
        }
        let outcomes = self.ledger.run(action, &parsed, deadline);
        let outcomes = outcomes.map_err(|error| to_status(&error))?;
        self.count(action, &outcomes);
        let is_late = |(command, outcome): (&Command, &Outcome)| {
            let amount = command.amount_cents;
            outcome.is_new && self.participant.is_late_on_purpose(action, amount)
        };
        if parsed.iter().zip(&outcomes).any(is_late) {
            self.wait(LATE_BY, deadline);
        }
        if failure < self.faults.failure_rate {
            return Err(simulated_failure());
        }
        let answered = commands.into_iter().zip(outcomes);
        Ok(answered
            .map(|(command, outcome)| command.result(outcome.answer))
            .collect())
    }

    fn wait(&self, time: Duration, deadline: Deadline) {
        if !time.is_zero() {
            let end = Deadline::after(time).earlier_of(deadline);
            self.faults.abort.wait_until(end);
        }
    }

    fn count(&self, action: Action, outcomes: &[Outcome]) {
        let step = self.participant.step(action);
        for outcome in outcomes {
            let label = match (&outcome.answer, outcome.is_new) {
                (_, false) => "repeated",
                (Answer::Done, true) => "done",
                (Answer::Refused(_), true) => "refused",
            };
            self.metrics
                .commands
                .with_label_values(&[step, label])
                .inc();
        }
    }
}

/// The commands of a call, or everything that is wrong with them.
fn parse<C: WireCommand>(action: Action, commands: &[C]) -> Result<Vec<Command>, Status> {
    let mut violations = Vec::new();
    let mut refuse = |field: String, description: String| {
        violations.push(FieldViolation {
            field,
            description,
            ..Default::default()
        });
    };
    if commands.len() > COMMANDS_MAX {
        refuse("commands".to_owned(), format!("at most {COMMANDS_MAX}"));
    }
    let mut parsed = Vec::with_capacity(commands.len());
    for (index, command) in commands.iter().take(COMMANDS_MAX).enumerate() {
        let mut refuse = |field: &str, description: &str| {
            refuse(format!("commands[{index}].{field}"), description.to_owned());
        };
        let fields = command.fields();
        let saga = Uuid::parse_str(fields.saga_id);
        if saga.is_err() {
            refuse("saga_id", "must be a UUID");
        }
        if !(1..=STEP_BYTES_MAX).contains(&fields.step.len()) {
            refuse("step", "must have 1 to 63 bytes");
        }
        let (field, quantity) = fields.quantity;
        if action == Action::Hold && quantity < 1 {
            refuse(field, "must be 1 or more");
        }
        parsed.push(Command {
            saga: saga.unwrap_or_default(),
            quantity,
            amount_cents: fields.amount_cents,
        });
    }
    if violations.is_empty() {
        return Ok(parsed);
    }
    let status = Status::new(Code::InvalidArgument, "The commands are not valid.");
    Err(status.with_detail(&BadRequest {
        field_violations: violations,
    }))
}

fn simulated_failure() -> Status {
    Status::new(
        Code::Unavailable,
        "A failure on purpose (PARTICIPANT_FAILURE_RATE).",
    )
}

fn to_status(error: &LedgerError) -> Status {
    match error {
        LedgerError::Unavailable(reason) => {
            log::warn!("{reason}");
            let message = "The database is not available. Send the same commands again later.";
            Status::new(Code::Unavailable, message)
        }
        LedgerError::Internal(reason) => {
            log::error!("{reason}");
            Status::new(Code::Internal, "Something went wrong on our side.")
        }
    }
}
