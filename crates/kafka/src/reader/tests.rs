use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::{
    FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse,
};
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

use super::*;
use crate::fake_broker::{FakeBroker, Incoming, Reply};
use crate::{ApiKey, ClientConfig};

/// The oldest record available, and the end. Batches have four records; retention cut the first
/// one.
const START: i64 = 6;
const END: i64 = 16;

/// The batch that holds `offset`: records 4 n to 4 n + 3.
fn batch(offset: i64) -> Bytes {
    let first = offset / 4 * 4;
    let records = (first..first + 4).map(|offset| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset,
        sequence: (offset - first) as i32,
        timestamp: 0,
        key: None,
        value: None,
        headers: Default::default(),
    });
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    RecordBatchEncoder::encode(&mut bytes, &records.collect::<Vec<_>>(), &options).unwrap();
    bytes.freeze()
}

fn fetch(incoming: &Incoming, code: impl Fn(i64) -> i16) -> Reply {
    let request: FetchRequest = incoming.decode();
    let asked = &request.topics[0].partitions[0];
    let code = code(asked.fetch_offset);
    let mut answer = PartitionData::default()
        .with_partition_index(asked.partition)
        .with_error_code(code);
    if code == 0 && asked.fetch_offset < END {
        answer = answer.with_records(Some(batch(asked.fetch_offset)));
    }
    let topic = FetchableTopicResponse::default()
        .with_topic(request.topics[0].topic.clone())
        .with_partitions(vec![answer]);
    incoming.answer(&FetchResponse::default().with_responses(vec![topic]))
}

fn offsets(incoming: &Incoming) -> Reply {
    let request: ListOffsetsRequest = incoming.decode();
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            ListOffsetsPartitionResponse::default()
                .with_partition_index(asked.partition_index)
                .with_offset(if asked.timestamp == -2 { START } else { END })
        });
        ListOffsetsTopicResponse::default()
            .with_name(topic.name)
            .with_partitions(partitions.collect())
    });
    incoming.answer(&ListOffsetsResponse::default().with_topics(topics.collect()))
}

/// 1: OFFSET_OUT_OF_RANGE.
fn in_range(offset: i64) -> i16 {
    i16::from(!(START..=END).contains(&offset))
}

fn broker(fetch: impl Fn(&Incoming) -> Reply + Send + Sync + 'static) -> (FakeBroker, Cluster) {
    let broker = FakeBroker::start(move |incoming, address: SocketAddr| match incoming.api {
        ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
        ApiKey::Metadata => incoming.answer(&incoming.metadata(address, 2)),
        ApiKey::ListOffsets => offsets(incoming),
        ApiKey::Fetch => fetch(incoming),
        other => panic!("a reader joins nothing and commits nothing: {other:?}"),
    });
    let cluster = Cluster::new(ClientConfig {
        brokers: vec![broker.address()],
        ..ClientConfig::default()
    });
    (broker, cluster)
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn read_all(mut reader: Reader) -> Vec<(i32, i64)> {
    let mut read = Vec::new();
    loop {
        let records = reader.read(soon()).unwrap();
        if records.is_empty() {
            return read;
        }
        read.extend(
            records
                .iter()
                .map(|record| (record.partition, record.offset)),
        );
    }
}

#[test]
fn ranges_are_read_exactly_one_after_another() {
    let (_broker, cluster) = broker(|incoming| fetch(incoming, in_range));
    let ranges = Reader::ranges(&cluster, "t", soon()).unwrap();
    assert_eq!(ranges, [START..END, START..END]);
    let whole = read_all(Reader::new(cluster.clone(), "t", (0..).zip(ranges)));
    let expected = |partition| (START..END).map(move |offset| (partition, offset));
    assert_eq!(whole, expected(0).chain(expected(1)).collect::<Vec<_>>());

    let some = [(1, 13..14), (0, 7..7), (0, 10..13)];
    let some = read_all(Reader::new(cluster, "t", some));
    assert_eq!(some, [(1, 13), (0, 10), (0, 11), (0, 12)]);
}

#[test]
fn what_retention_has_removed_meanwhile_is_passed_over() {
    let (_broker, cluster) = broker(|incoming| fetch(incoming, in_range));
    let ranges = [(0, 0..3), (0, 2..8), (1, 100..101)];
    assert_eq!(
        read_all(Reader::new(cluster, "t", ranges)),
        [(0, 6), (0, 7)]
    );
}

#[test]
fn a_leader_that_moves_is_followed() {
    let asked = AtomicUsize::new(0);
    let (_broker, cluster) = broker(move |incoming| {
        // 6: NOT_LEADER_OR_FOLLOWER, every other time.
        let moved = asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        fetch(incoming, |_| if moved { 6 } else { 0 })
    });
    let read = read_all(Reader::new(cluster, "t", [(0, 8..16)]));
    assert_eq!(read, (8..16).map(|offset| (0, offset)).collect::<Vec<_>>());
}

#[test]
fn a_broker_that_brings_nothing_ends_the_wait_at_the_deadline() {
    let (_broker, cluster) = broker(|incoming| fetch(incoming, |_| 0));
    let mut reader = Reader::new(cluster, "t", [(0, END..END + 1)]);
    let ended = reader.read(Deadline::after(Duration::from_millis(300)));
    assert!(
        matches!(&ended, Err(error) if error.is_transient()),
        "{ended:?}"
    );
}
