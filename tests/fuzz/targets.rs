//! What is fuzzed: for each target its name and what is done with the bytes. A target may refuse bytes; it may not
//! panic, hang, or take memory that the bytes do not justify.
//!
//! Shared by the fuzzer (`fuzz/`, for as long as one likes: `make fuzz`) and by `tests/fuzz` (each test run).

use bytes::Bytes;
use tbd::kafka::batch::next_batch;
use tbd::kafka::group::protocol::{Subscription, decode_assignment};
use tbd::kafka::wire;

/// What is done with the bytes.
pub type Target = fn(&[u8]);

/// The target of that name.
pub fn find(name: &str) -> Option<Target> {
    ALL.iter()
        .find(|(known, _)| *known == name)
        .map(|(_, target)| *target)
}

/// Every target, by name. One for each answer that the Kafka client decodes.
pub const ALL: &[(&str, Target)] = &[
    ("kafka_batches", kafka_batches),
    ("kafka_subscription", kafka_subscription),
    ("kafka_produce", answer::<0>),
    ("kafka_fetch", answer::<1>),
    ("kafka_list_offsets", answer::<2>),
    ("kafka_metadata", answer::<3>),
    ("kafka_offset_commit", answer::<8>),
    ("kafka_offset_fetch", answer::<9>),
    ("kafka_find_coordinator", answer::<10>),
    ("kafka_join_group", answer::<11>),
    ("kafka_heartbeat", answer::<12>),
    ("kafka_leave_group", answer::<13>),
    ("kafka_sync_group", answer::<14>),
    ("kafka_api_versions", answer::<18>),
    ("kafka_create_topics", answer::<19>),
    ("kafka_delete_topics", answer::<20>),
    ("kafka_init_producer_id", answer::<22>),
];

/// An answer's frame behind a byte that names its version.
fn answer<const API: i16>(bytes: &[u8]) {
    let Some((&version, frame)) = bytes.split_first() else {
        return;
    };
    let api = API.try_into().expect("a request of Kafka");
    let range = wire::supported(api).expect("a request that we send");
    // Any byte names a version that is spoken, so that none is wasted.
    let version = range.min + i16::from(version) % (range.max - range.min + 1);
    let _ = wire::try_decode(api, version, Bytes::copy_from_slice(frame));
}

/// Record batches, as they lie in an answer to Fetch. The checksums are made right where
/// there is room for one: otherwise the fuzzer would get no further than them.
fn kafka_batches(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    for bytes in [bytes.to_vec(), sealed] {
        let mut input = Bytes::from(bytes);
        let mut end = -1;
        while let Ok(Some(batch)) = next_batch(&mut input) {
            let Ok(records) = batch.records() else { break };
            assert!(
                records
                    .iter()
                    .all(|record| record.offset < batch.next_offset())
            );
            assert!(batch.next_offset() > end || batch.base_offset <= end);
            end = batch.next_offset();
        }
    }
}

/// Makes the checksum of each batch right (Kafka protocol guide, "Record Batch").
fn seal(bytes: &mut [u8]) {
    let mut rest = bytes;
    while rest.len() >= 61 {
        let length = i32::from_be_bytes([rest[8], rest[9], rest[10], rest[11]]);
        let total = usize::try_from(length).map_or(usize::MAX, |length| length.saturating_add(12));
        if !(61..=rest.len()).contains(&total) {
            return;
        }
        let (batch, next) = rest.split_at_mut(total);
        let checksum = crc32c::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&checksum.to_be_bytes());
        rest = next;
    }
}

/// What other members of a group send: their subscription, and the assignment of their leader.
fn kafka_subscription(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(subscription) = Subscription::decode(bytes.clone()) {
        let again = Subscription::decode(subscription.encode()).expect("what we wrote ourselves");
        assert_eq!(again.topics, subscription.topics);
    }
    let _ = decode_assignment(bytes);
}
