//! The Kafka adapter: encoding, publishing and consuming of events, and dead letters.

mod announcement_health;
mod batch;
mod begun;
mod bus;
mod consumer;
pub mod dead_letter;
mod dead_letters;
pub mod events;
mod lag;
mod meter;
mod partition_breakers;
mod spans;

pub use announcement_health::AnnouncementHealth;
pub use batch::{Announcement, Batch, Due, Place};
pub use bus::KafkaEventBus;
pub use consumer::OrderConsumers;
pub use dead_letters::{
    DeadLetters, IncompleteError, Letter, Letters, ReplayError, replay_letters,
};
pub use events::{Topics, created_order};
pub use lag::watch_lag;
pub use meter::{ClientMeter, ProducerMeter};
pub use spans::send_span;
