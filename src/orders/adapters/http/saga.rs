//! The JSON of a saga: its steps, with their calls and compensations.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::orders::adapters::wire::{Rfc3339, json};
use crate::orders::domain::Saga;
use crate::orders::domain::saga::{Answer, Call, Command, STEPS};

/// The schema `Saga` of `openapi.yaml`.
#[derive(Serialize)]
struct SagaJson<'a> {
    order_id: Uuid,
    state: &'static str,
    reason: Option<&'a str>,
    steps: Vec<StepJson>,
    started_at: Rfc3339,
    updated_at: Rfc3339,
}

/// A step, or the compensation of one.
#[derive(Serialize)]
struct StepJson {
    name: &'static str,
    participant: &'static str,
    state: &'static str,
    attempts: u32,
    started_at: Option<Rfc3339>,
    ended_at: Option<Rfc3339>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compensation: Option<Box<StepJson>>,
}

/// The body of the response with `saga`.
pub(super) fn saga_body(saga: &Saga) -> Vec<u8> {
    let steps = STEPS.iter().map(|step| StepJson {
        // Only a compensation that was announced: the others will not happen.
        compensation: step
            .compensation
            .filter(|it| saga.call(*it).is_some())
            .map(|it| Box::new(step_json(saga, it))),
        ..step_json(saga, step.command)
    });
    json(&SagaJson {
        order_id: saga.order_id.0,
        state: saga.state.as_str(),
        reason: saga.refusal(),
        steps: steps.collect(),
        started_at: Rfc3339(saga.started_at),
        updated_at: Rfc3339(saga.updated_at),
    })
}

fn step_json(saga: &Saga, command: Command) -> StepJson {
    let call = saga.call(command);
    let answered: Option<&(Answer, Timestamp)> = call.and_then(|call| call.answer.as_ref());
    StepJson {
        name: command.as_str(),
        participant: command.participant().as_str(),
        state: match (call, answered) {
            (None, _) => "pending",
            (Some(_), None) => "running",
            (Some(_), Some((Answer::Done, _))) => "done",
            (Some(_), Some((Answer::Refused(_), _))) => "refused",
        },
        attempts: call.map_or(0, |call: &Call| call.attempts),
        started_at: call.map(|call| Rfc3339(call.announced_at)),
        ended_at: answered.map(|(_, at)| Rfc3339(*at)),
        compensation: None,
    }
}
