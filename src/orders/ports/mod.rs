//! Ports: what the use cases need from outside, under names that do not depend on a provider.

mod event_bus;
mod idempotency;
mod meter;
mod outbox;
mod processing;
mod repository;
mod saga;
mod store_error;

pub use event_bus::{EventBus, Message, PublishError};
pub use idempotency::{
    Caller, IdempotencyKey, IdempotencyStore, StoredAnswer, Submission, SubmitOutcome,
};
pub use meter::{Meter, Outcome, StepOutcome};
pub use outbox::{Backlog, Outbox, Relayed};
pub use processing::{ProcessingStep, StepError};
pub use repository::{Claimed, Failure, OrderReader, OrderRepository, Page, Replay};
pub use saga::{Begun, Participants, SagaStore, Saved, Unavailable};
pub use store_error::StoreError;
