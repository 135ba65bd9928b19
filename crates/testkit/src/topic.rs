//! Topic reader and writer for the tests' single broker, request by request: small enough to trust. It
//! shares only the codec with the client under test.

use std::io::{Read, Result, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::messages::alter_client_quotas_request::{EntityData, EntryData, OpData};
use kafka_protocol::messages::create_acls_request::AclCreation;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    AlterClientQuotasRequest, AlterClientQuotasResponse, ApiKey, CreateAclsRequest,
    CreateAclsResponse, CreatePartitionsRequest, CreatePartitionsResponse, DescribeConfigsRequest,
    DescribeConfigsResponse, FetchRequest, FetchResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, GroupId, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse, MetadataRequest, MetadataResponse, OffsetFetchRequest,
    OffsetFetchResponse, ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use kafka_protocol::records::{
    Compression, Record as WireRecord, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions,
    TimestampType,
};
use serde_json::Value;

use crate::eventually;

/// A record in a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl Record {
    /// A record to write.
    pub fn new(key: &str, value: Option<&str>) -> Record {
        Record {
            partition: 0,
            offset: 0,
            key: Some(Bytes::copy_from_slice(key.as_bytes())),
            value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
            headers: Vec::new(),
        }
    }

    /// A record whose value is no text.
    pub fn of_bytes(key: &str, value: Vec<u8>) -> Record {
        Record {
            value: Some(value.into()),
            ..Record::new(key, None)
        }
    }

    /// One more header.
    pub fn with(mut self, name: &str, value: &str) -> Record {
        let value = Bytes::copy_from_slice(value.as_bytes());
        self.headers.push((name.to_owned(), Some(value)));
        self
    }

    /// The key as text.
    pub fn key(&self) -> &str {
        text(self.key.as_ref().expect("a key"))
    }

    /// The value as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(self.value.as_ref().expect("a value")).expect("the value is JSON")
    }

    /// A header's text.
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let header = self.headers.iter().find(|(n, _)| n == name);
        let (_, value) = header.unwrap_or_else(|| panic!("no header {name} in {:?}", self.headers));
        text(value.as_ref().expect("a header's value"))
    }
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// Waits until the topic holds at least `count` records; all of them.
#[track_caller]
pub fn wait_for_records(broker: &str, topic: &str, count: usize, limit: Duration) -> Vec<Record> {
    eventually(limit, &format!("{count} records in {topic}"), || {
        let records = records(broker, topic);
        (records.len() >= count).then_some(records)
    })
}

/// Every record of a topic, partition by partition. A missing topic has none.
pub fn records(broker: &str, topic: &str) -> Vec<Record> {
    records_after(broker, topic, &[]).expect("read a topic")
}

/// The records of a topic from these offsets on, the first partition's first; a partition without an
/// offset is read from the beginning.
pub fn records_after(broker: &str, topic: &str, offsets: &[i64]) -> Result<Vec<Record>> {
    let mut broker = Broker::open(broker)?;
    let mut found = Vec::new();
    let offsets = offsets.iter().copied().chain(std::iter::repeat(0));
    for (partition, mut offset) in (0..broker.partitions(topic)?).zip(offsets) {
        loop {
            let (batch, high_watermark) = broker.fetch(topic, partition, offset)?;
            match batch.last() {
                Some(last) => offset = last.offset + 1,
                None => break,
            }
            found.extend(batch);
            if offset >= high_watermark {
                break;
            }
        }
    }
    Ok(found)
}

/// How many partitions a topic has; 0 if it does not exist.
pub fn partitions(broker: &str, topic: &str) -> i32 {
    let mut broker = Broker::open(broker).expect("connect to Kafka");
    broker.partitions(topic).expect("ask for a topic")
}

/// Writes records to partition 0 of a topic.
pub fn write(broker: &str, topic: &str, records: &[Record]) {
    write_as(broker, topic, records, Compression::None);
}

/// As [`write()`], compressed with zstd.
pub fn write_compressed(broker: &str, topic: &str, records: &[Record]) {
    write_as(broker, topic, records, Compression::Zstd);
}

fn write_as(broker: &str, topic: &str, records: &[Record], compression: Compression) {
    let mut broker = Broker::open(broker).expect("connect to Kafka");
    eventually(Duration::from_secs(20), "a topic to be led", || {
        let written = broker.produce(topic, records, compression);
        written.expect("write to a topic").then_some(())
    });
}

/// A group's committed offsets in a topic: (partition, next offset).
pub fn committed(broker: &str, group: &str, topic: &str) -> Vec<(i32, i64)> {
    eventually(Duration::from_secs(20), "a group's offsets", || {
        try_committed(broker, group, topic).ok()
    })
}

/// As [`committed`], from a broker that may be unreachable.
pub fn try_committed(broker: &str, group: &str, topic: &str) -> Result<Vec<(i32, i64)>> {
    let mut broker = Broker::open(broker)?;
    let partitions = broker.partitions(topic)?;
    broker.committed(group, topic, partitions)
}

/// The node that coordinates a group, once there is one.
pub fn coordinator(broker: &str, group: &str) -> i32 {
    let mut broker = Broker::open(broker).expect("connect to Kafka");
    let request =
        FindCoordinatorRequest::default().with_key(StrBytes::from_string(group.to_owned()));
    eventually(Duration::from_secs(30), "a coordinator", || {
        let response = broker.call(ApiKey::FindCoordinator, 2, &request);
        let response: FindCoordinatorResponse = response.expect("ask for a coordinator");
        (response.error_code == 0).then_some(response.node_id.0)
    })
}

/// Gives a topic more partitions, `count` in all.
pub fn grow(broker: &str, topic: &str, count: i32) {
    let wanted = CreatePartitionsTopic::default()
        .with_name(name(topic))
        .with_count(count)
        .with_assignments(None);
    let request = CreatePartitionsRequest::default()
        .with_topics(vec![wanted])
        .with_timeout_ms(10_000);
    let response: Result<CreatePartitionsResponse> = Broker::open(broker)
        .and_then(|mut broker| broker.call(ApiKey::CreatePartitions, 2, &request));
    let response = response.expect("ask for more partitions");
    assert_eq!(response.results[0].error_code, 0, "grow {topic}");
}

/// Sets one of a topic's settings, as `kafka-configs.sh` does, and waits until the broker obeys it.
///
/// A broker shows a new setting before its logs obey it. It applies changes one after the other, so
/// once it shows a later one, its logs obey the first.
pub fn configure(broker: &str, topic: &str, setting: &str, value: &str) {
    static CHANGES: AtomicU32 = AtomicU32::new(60_000);
    let later = CHANGES.fetch_add(1, Ordering::Relaxed).to_string();
    for (setting, value) in [(setting, value), ("file.delete.delay.ms", &later)] {
        let mut broker = Broker::open(broker).expect("connect to Kafka");
        broker.alter(topic, setting, value);
        eventually(Duration::from_secs(60), "a setting to be shown", || {
            (broker.setting(topic, setting)? == value).then_some(())
        });
    }
}

/// Allows a user an operation on every topic: 5 is Create, 8 is Describe.
pub fn allow(broker: &str, user: &str, operation: i8) {
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let rule = AclCreation::default()
        .with_resource_type(2)
        .with_resource_name(text("*"))
        .with_resource_pattern_type(3)
        .with_principal(text(&format!("User:{user}")))
        .with_host(text("*"))
        .with_operation(operation)
        .with_permission_type(3);
    let request = CreateAclsRequest::default().with_creations(vec![rule]);
    let response: Result<CreateAclsResponse> =
        Broker::open(broker).and_then(|mut broker| broker.call(ApiKey::CreateAcls, 2, &request));
    let response = response.expect("ask for a rule");
    assert_eq!(response.results[0].error_code, 0, "allow {user}");
}

/// Limits what a client writes (`producer_byte_rate`) or reads (`consumer_byte_rate`), in bytes a second.
pub fn limit(broker: &str, client_id: &str, quota: &'static str, rate: usize) {
    let client = EntityData::default()
        .with_entity_type(StrBytes::from_static_str("client-id"))
        .with_entity_name(Some(StrBytes::from_string(client_id.to_owned())));
    let quota = OpData::default()
        .with_key(StrBytes::from_static_str(quota))
        .with_value(rate as f64);
    let entry = EntryData::default()
        .with_entity(vec![client])
        .with_ops(vec![quota]);
    let request = AlterClientQuotasRequest::default().with_entries(vec![entry]);
    let response: Result<AlterClientQuotasResponse> = Broker::open(broker)
        .and_then(|mut broker| broker.call(ApiKey::AlterClientQuotas, 1, &request));
    let response = response.expect("ask for a quota");
    assert_eq!(response.entries[0].error_code, 0, "limit {client_id}");
}

/// A connection.
pub(crate) struct Broker {
    stream: TcpStream,
    correlation_id: i32,
}

impl Broker {
    pub(crate) fn open(address: &str) -> Result<Broker> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Broker {
            stream,
            correlation_id: 0,
        })
    }

    fn partitions(&mut self, topic: &str) -> Result<i32> {
        let request = MetadataRequest::default()
            .with_topics(Some(vec![
                MetadataRequestTopic::default().with_name(Some(name(topic))),
            ]))
            .with_allow_auto_topic_creation(false);
        let response: MetadataResponse = self.call(ApiKey::Metadata, 8, &request)?;
        let count = response
            .topics
            .first()
            .map_or(0, |topic| topic.partitions.len());
        Ok(i32::try_from(count).expect("few partitions"))
    }

    fn alter(&mut self, topic: &str, setting: &str, value: &str) {
        let text = |text: &str| StrBytes::from_string(text.to_owned());
        let setting = AlterableConfig::default()
            .with_name(text(setting))
            .with_config_operation(0)
            .with_value(Some(text(value)));
        let resource = AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text(topic))
            .with_configs(vec![setting]);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let response: Result<IncrementalAlterConfigsResponse> =
            self.call(ApiKey::IncrementalAlterConfigs, 1, &request);
        let response = response.expect("ask for another setting");
        assert_eq!(response.responses[0].error_code, 0, "configure {topic}");
    }

    fn setting(&mut self, topic: &str, setting: &str) -> Option<String> {
        let text = |text: &str| StrBytes::from_string(text.to_owned());
        let resource = DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text(topic))
            .with_configuration_keys(Some(vec![text(setting)]));
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        let response: Result<DescribeConfigsResponse> =
            self.call(ApiKey::DescribeConfigs, 1, &request);
        let results = response.expect("ask for a setting").results;
        let shown = results.first()?.configs.first()?;
        shown.value.as_deref().map(str::to_owned)
    }

    fn fetch(&mut self, topic: &str, partition: i32, offset: i64) -> Result<(Vec<Record>, i64)> {
        let wanted = FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(8 << 20);
        let request = FetchRequest::default()
            .with_max_wait_ms(0)
            .with_min_bytes(0)
            .with_max_bytes(8 << 20)
            .with_session_epoch(-1)
            .with_topics(vec![
                FetchTopic::default()
                    .with_topic(name(topic))
                    .with_partitions(vec![wanted]),
            ]);
        let mut response: FetchResponse = self.call(ApiKey::Fetch, 11, &request)?;
        assert_eq!(response.error_code, 0, "fetch");
        let mut answer = response.responses.remove(0).partitions.remove(0);
        // 5: an election is running; 3: the topic was created a moment ago. The caller retries.
        if matches!(answer.error_code, 3 | 5 | 6) {
            return Ok((Vec::new(), 0));
        }
        assert_eq!(answer.error_code, 0, "fetch {topic}");
        let mut records = Vec::new();
        if let Some(bytes) = &mut answer.records {
            for set in RecordBatchDecoder::decode_all(bytes).expect("whole batches") {
                records.extend(set.records);
            }
        }
        let records = records
            .into_iter()
            .filter(|record| record.offset >= offset && !record.control)
            .map(|record| Record {
                partition,
                offset: record.offset,
                key: record.key,
                value: record.value,
                headers: record
                    .headers
                    .into_iter()
                    .map(|(name, value)| (name.to_string(), value))
                    .collect(),
            })
            .collect();
        Ok((records, answer.high_watermark))
    }

    /// False if the new topic has no leader yet.
    fn produce(
        &mut self,
        topic: &str,
        records: &[Record],
        compression: Compression,
    ) -> Result<bool> {
        let records: Vec<WireRecord> = records
            .iter()
            .zip(0..)
            .map(|(record, index)| WireRecord {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: -1,
                producer_id: -1,
                producer_epoch: -1,
                timestamp_type: TimestampType::Creation,
                offset: index,
                // Means none without a producer id. It still counts up, or the encoder would split the batch.
                sequence: index as i32 - 1,
                timestamp: Timestamp::now().as_millisecond(),
                key: record.key.clone(),
                value: record.value.clone(),
                headers: record
                    .headers
                    .iter()
                    .map(|(name, value)| (StrBytes::from_string(name.clone()), value.clone()))
                    .collect::<IndexMap<_, _>>(),
            })
            .collect();
        let options = RecordEncodeOptions {
            version: 2,
            compression,
        };
        let mut batch = BytesMut::new();
        RecordBatchEncoder::encode(&mut batch, &records, &options).expect("encode records");
        let data = PartitionProduceData::default()
            .with_index(0)
            .with_records(Some(batch.freeze()));
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![
                TopicProduceData::default()
                    .with_name(name(topic))
                    .with_partition_data(vec![data]),
            ]);
        let response: ProduceResponse = self.call(ApiKey::Produce, 7, &request)?;
        let error = response.responses[0].partition_responses[0].error_code;
        if matches!(error, 3 | 5 | 6) {
            return Ok(false);
        }
        assert_eq!(error, 0, "produce to {topic}");
        Ok(true)
    }

    fn committed(&mut self, group: &str, topic: &str, partitions: i32) -> Result<Vec<(i32, i64)>> {
        // One broker coordinates every group; the question makes sure that it has started to.
        let group = GroupId(StrBytes::from_string(group.to_owned()));
        let request = FindCoordinatorRequest::default().with_key(group.0.clone());
        let _: FindCoordinatorResponse = self.call(ApiKey::FindCoordinator, 2, &request)?;
        let request = OffsetFetchRequest::default()
            .with_group_id(group)
            .with_topics(Some(vec![
                OffsetFetchRequestTopic::default()
                    .with_name(name(topic))
                    .with_partition_indexes((0..partitions).collect()),
            ]));
        let response: OffsetFetchResponse = self.call(ApiKey::OffsetFetch, 5, &request)?;
        if response.error_code != 0 {
            let reason = format!("OffsetFetch: error {}", response.error_code);
            return Err(std::io::Error::other(reason));
        }
        let offset = |partition: &kafka_protocol::messages::offset_fetch_response::OffsetFetchResponsePartition| {
            (partition.partition_index, partition.committed_offset)
        };
        let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        Ok(partitions.map(offset).collect())
    }

    pub(crate) fn call<Q, R>(&mut self, api: ApiKey, version: i16, request: &Q) -> Result<R>
    where
        Q: Encodable + HeaderVersion,
        R: Decodable + HeaderVersion,
    {
        self.correlation_id += 1;
        let header = RequestHeader::default()
            .with_request_api_key(api as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(StrBytes::from_static_str("tbd-tests")));
        let mut message = BytesMut::new();
        header
            .encode(&mut message, Q::header_version(version))
            .expect("encode a header");
        request
            .encode(&mut message, version)
            .expect("encode a request");
        let mut frame = BytesMut::new();
        frame.put_i32(i32::try_from(message.len()).expect("a small request"));
        frame.extend_from_slice(&message);
        self.stream.write_all(&frame)?;

        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = usize::try_from(i32::from_be_bytes(length)).expect("a length");
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        let mut answer = Bytes::from(answer);
        let header = ResponseHeader::decode(&mut answer, R::header_version(version));
        assert_eq!(
            header.expect("a header").correlation_id,
            self.correlation_id
        );
        let response = R::decode(&mut answer, version).expect("decode an answer");
        assert!(!answer.has_remaining(), "bytes left over");
        Ok(response)
    }
}

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}
