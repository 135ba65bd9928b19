//! The Kafka client against real brokers and beside other clients, in one binary: one line per module.

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
