//! What the application needs of the outside, under names that say nothing of
//! who provides it.

mod event_bus;
mod idempotency;
mod meter;
mod outbox;
mod processing;
mod repository;
mod store_error;

pub use event_bus::{EventBus, Message, PublishError};
pub use idempotency::{
    Caller, IdempotencyKey, IdempotencyStore, StoredAnswer, Submission, SubmitOutcome,
};
pub use meter::{Meter, Outcome};
pub use outbox::{Backlog, Outbox};
pub use processing::{ProcessingStep, StepError};
pub use repository::{Claimed, Failure, OrderRepository, Page, Replay};
pub use store_error::StoreError;
