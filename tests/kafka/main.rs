//! The tests of the Kafka client against real brokers and together with other clients, in one binary.

mod admin;
mod client;
mod consumer;
mod consumer_protocol;
mod examples;
mod faults;
mod features;
mod hand_over;
mod history;
mod mixed;
mod producer;
mod quotas;
mod rebalance;
mod recreated_topic;
mod replicas;
mod transactions;
use tbd_testkit as support;
