//! The tests of the Kafka client against real brokers and together with other clients, in one binary.

mod client;
mod consumer;
mod consumer_protocol;
mod history;
mod mixed;
mod producer;
mod rebalance;
mod recreated_topic;
mod replicas;
#[path = "../support/mod.rs"]
mod support;
