//! What a Kafka can do, as it says itself: tests run with several versions.

use std::io::Write;
use std::thread;

use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::StrBytes;

use crate::kafka;
use crate::topic::Broker;

/// A broker's answer to ApiVersions.
pub fn versions(broker: &str) -> ApiVersionsResponse {
    let request = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str("tbd-tests"))
        .with_client_software_version(StrBytes::from_static_str("1"));
    let answer =
        Broker::open(broker).and_then(|mut broker| broker.call(ApiKey::ApiVersions, 3, &request));
    answer.expect("ask for versions")
}

/// The level in force of a cluster's feature; 0 without it.
pub fn level(broker: &str, feature: &str) -> i16 {
    let answer = versions(broker);
    let mut features = answer.finalized_features.iter();
    let found = features.find(|it| &*it.name == feature);
    found.map_or(0, |it| it.max_version_level)
}

/// Whether the shared Kafka is older than 4.0. A new cluster's `metadata.version` is the newest that it knows.
pub fn is_before_kafka_4() -> bool {
    const IV0_OF_4_0: i16 = 22;
    let level = level(&kafka(), "metadata.version");
    assert!(level > 0, "no Kafka with KRaft");
    level < IV0_OF_4_0
}

/// Whether groups of the shared Kafka can use the consumer protocol. Before Kafka 4.0 they cannot, and the
/// test that asks, or its part, is to be skipped. A later one with the protocol off skips nothing.
pub fn has_consumer_protocol() -> bool {
    if !is_before_kafka_4() {
        return true;
    }
    let test = thread::current();
    let test = test.name().unwrap_or_default();
    let line = format!("skipped: {test}: this Kafka has no consumer protocol\n");
    // Past libtest, which shows nothing of a test that passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}
