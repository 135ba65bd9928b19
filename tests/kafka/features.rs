//! What the tests' Kafka and the client have in common.

use tbd_kafka::ApiKey;
use tbd_kafka::consumer::GroupProtocol;
use tbd_kafka::internals::request;

use crate::support::features::{has_consumer_protocol, versions};
use crate::support::kafka;

/// The protocols that groups can use.
pub fn group_protocols() -> Vec<GroupProtocol> {
    let newer = has_consumer_protocol().then_some(GroupProtocol::Consumer);
    [GroupProtocol::Classic].into_iter().chain(newer).collect()
}

#[test]
fn the_broker_and_the_client_have_a_version_of_each_request_in_common() {
    let offers = versions(&kafka()).api_keys;
    for api in ApiKey::ALL {
        let (_, oldest, newest) = request(*api as i16).unwrap();
        let offer = offers.iter().find(|offer| offer.api_key == *api as i16);
        let is_common =
            offer.is_some_and(|it| it.min_version <= newest && oldest <= it.max_version);
        assert!(is_common, "{api:?}: {offer:?}");
    }
}
