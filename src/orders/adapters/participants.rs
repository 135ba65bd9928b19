//! The participants of sagas over gRPC: the adapter of [`Participants`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use uuid::Uuid;

use crate::orders::adapters::breaker::Breaker;
use crate::orders::domain::AmountCents;
use crate::orders::domain::saga::{Answer, Command, Participant};
use crate::orders::ports::{Participants, Unavailable};
use crate::proto::{inventory, payments};
use tbd_deadline::Deadline;
use tbd_grpc::client::{Backoff, ChannelConfig, RetryPolicy};
use tbd_grpc::proto::grpc::health::{HealthCheckRequest, health};
use tbd_grpc::server::ServingStatus;
use tbd_grpc::{Channel, Code, Keepalive, Metadata, Method, Status};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, SpanKind};

/// Time limit of a health check.
const CHECK_BUDGET: Duration = Duration::from_secs(3);

/// An order takes one unit of the one product.
const UNITS: u32 = 1;

/// Both participants, each behind its own circuit breaker.
pub struct GrpcParticipants {
    inventory: Service,
    payments: Service,
}

/// The current bearer token.
pub type TokenSource = Arc<dyn Fn() -> String + Send + Sync>;

/// One participant.
pub struct Service {
    channel: Channel,
    breaker: Arc<Breaker>,
    token: Option<TokenSource>,
}

impl Service {
    /// The participant behind `channel`. Each command carries a `token`, if there is one.
    pub fn new(channel: Channel, breaker: Arc<Breaker>, token: Option<TokenSource>) -> Self {
        Self {
            channel,
            breaker,
            token,
        }
    }
}

/// The settings of a channel to a participant: a call without a connection is retried within its
/// deadline, and an absent address is dialled again every second. A connection whose other end is
/// silently gone is noticed within three seconds, and replaced.
pub fn channel_config() -> ChannelConfig {
    let mut config = ChannelConfig::default();
    config.retry = Some(RetryPolicy::default());
    config.connection.keepalive = Some(Keepalive {
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        // So that the next command finds a living connection.
        without_calls: true,
    });
    config.connect_timeout = Duration::from_secs(1);
    config.resolve_interval = Duration::from_secs(5);
    config.reconnect = Backoff {
        max: Duration::from_secs(1),
        ..Backoff::default()
    };
    config
}

/// A result of either participant.
struct Reply {
    saga_id: String,
    outcome: i32,
    reason: String,
}

impl GrpcParticipants {
    /// The participants of sagas.
    pub fn new(inventory: Service, payments: Service) -> Self {
        Self {
            inventory,
            payments,
        }
    }

    /// Asks the participant's health service (`grpc.health.v1`); waits for it until a time limit of 3 s.
    ///
    /// # Errors
    /// Why it cannot be used, in a sentence without secrets.
    pub fn check(&self, participant: Participant) -> Result<(), String> {
        let call = self.service(participant).channel.call(health::CHECK);
        let call = call.deadline(Deadline::after(CHECK_BUDGET));
        match call.send(&HealthCheckRequest::default()) {
            Ok(response) if response.status() == ServingStatus::Serving => Ok(()),
            Ok(_) => Err("it answers, but it is not ready".to_owned()),
            Err(status) => Err(status.to_string()),
        }
    }

    /// The participant is back: the next command may probe it.
    pub fn found(&self, participant: Participant) {
        self.service(participant).breaker.found();
    }

    fn service(&self, participant: Participant) -> &Service {
        match participant {
            Participant::Inventory => &self.inventory,
            Participant::Payments => &self.payments,
        }
    }

    fn call(
        &self,
        command: Command,
        sagas: &[(Uuid, AmountCents)],
        deadline: Deadline,
    ) -> Result<Vec<Reply>, Status> {
        let step = command.as_str();
        // The requests and responses of all methods look alike, but each has types of its own.
        macro_rules! call {
            ($service:ident::$methods:ident::$method:ident, $request:ident, $command:ident) => {{
                let command = |(id, amount): &(Uuid, AmountCents)| $command(step, *id, *amount);
                let request = $service::$request {
                    commands: sagas.iter().map(command).collect(),
                };
                let method = $service::$methods::$method;
                let response = self.$service.send(method, &request, deadline)?;
                let reply = |result: $service::Result| Reply {
                    saga_id: result.saga_id,
                    outcome: result.outcome,
                    reason: result.reason,
                };
                Ok(response.results.into_iter().map(reply).collect())
            }};
        }
        macro_rules! stock {
            ($method:ident, $request:ident) => {
                call!(
                    inventory::inventory_service::$method,
                    $request,
                    stock_command
                )
            };
        }
        macro_rules! money {
            ($method:ident, $request:ident) => {
                call!(payments::payments_service::$method, $request, money_command)
            };
        }
        match command {
            Command::ReserveStock => stock!(RESERVE_STOCK, ReserveStockRequest),
            Command::ConfirmReservation => stock!(CONFIRM_RESERVATIONS, ConfirmReservationsRequest),
            Command::ReleaseReservation => stock!(RELEASE_RESERVATIONS, ReleaseReservationsRequest),
            Command::AuthorizePayment => money!(AUTHORIZE_PAYMENTS, AuthorizePaymentsRequest),
            Command::CapturePayment => money!(CAPTURE_PAYMENTS, CapturePaymentsRequest),
            Command::VoidPayment => money!(VOID_PAYMENTS, VoidPaymentsRequest),
        }
    }
}

impl Service {
    /// One call, in a span of its own whose context travels along.
    fn send<Req: Message, Res: Message + Default>(
        &self,
        method: Method<Req, Res>,
        request: &Req,
        deadline: Deadline,
    ) -> Result<Res, Status> {
        let name = method.path().trim_start_matches('/');
        let attributes = semconv::grpc_call(name, self.channel.authority());
        let span = tracing::span(name, SpanKind::Client, attributes);
        let mut metadata = Metadata::new();
        for (key, value) in tracing::headers(&span.context()) {
            // A context that cannot travel costs the trace, not the call.
            let _ = metadata.insert_text(key, value);
        }
        if let Some(token) = &self.token {
            // The participant refuses a call without its token, and says so.
            let _ = metadata.insert_text("authorization", format!("Bearer {}", token()));
        }
        let call = self
            .channel
            .call(method)
            .metadata(metadata)
            .deadline(deadline);
        let response = call.send(request);
        let code = response.as_ref().map_or_else(Status::code, |_| Code::Ok);
        span.set(semconv::RPC_RESPONSE_STATUS_CODE, code.name());
        if let Err(status) = &response {
            span.fail(code.name(), &status.to_string());
        }
        response
    }
}

impl Participants for GrpcParticipants {
    fn send(
        &self,
        command: Command,
        sagas: &[(Uuid, AmountCents)],
        deadline: Deadline,
    ) -> Result<Vec<Answer>, Unavailable> {
        let participant = command.participant();
        let send = || {
            let replies = self.call(command, sagas, deadline);
            let replies = replies.map_err(|status| unavailable(participant, status.to_string()))?;
            answers(replies, sagas)
                .ok_or_else(|| unavailable(participant, "the answers do not match the call"))
        };
        let breaker = &self.service(participant).breaker;
        let guarded = breaker.guard(deadline, |_| true, send);
        guarded.unwrap_or_else(|| Err(unavailable(participant, OPEN)))
    }

    fn is_reachable(&self, participant: Participant) -> Result<(), Unavailable> {
        let breaker = &self.service(participant).breaker;
        match breaker.would_admit(Instant::now()) {
            true => Ok(()),
            false => Err(unavailable(participant, OPEN)),
        }
    }
}

const OPEN: &str = "the circuit breaker is open";

fn unavailable(participant: Participant, reason: impl Into<String>) -> Unavailable {
    let reason = reason.into();
    Unavailable {
        participant,
        reason,
    }
}

/// The answers, if there is one for each saga, in order.
fn answers(replies: Vec<Reply>, sagas: &[(Uuid, AmountCents)]) -> Option<Vec<Answer>> {
    if replies.len() != sagas.len() {
        return None;
    }
    let answer = |(reply, (id, _)): (Reply, &(Uuid, AmountCents))| {
        if Uuid::parse_str(&reply.saga_id) != Ok(*id) {
            return None;
        }
        match inventory::Outcome::try_from(reply.outcome) {
            Ok(inventory::Outcome::Done) => Some(Answer::Done),
            Ok(inventory::Outcome::Refused) => Some(Answer::Refused(reply.reason)),
            Ok(inventory::Outcome::Unspecified) | Err(_) => None,
        }
    };
    replies.into_iter().zip(sagas).map(answer).collect()
}

fn stock_command(step: &str, id: Uuid, amount: AmountCents) -> inventory::Command {
    inventory::Command {
        saga_id: id.to_string(),
        step: step.to_owned(),
        units: UNITS,
        amount_cents: amount.get(),
    }
}

fn money_command(step: &str, id: Uuid, amount: AmountCents) -> payments::Command {
    payments::Command {
        saga_id: id.to_string(),
        step: step.to_owned(),
        amount_cents: amount.get(),
    }
}
