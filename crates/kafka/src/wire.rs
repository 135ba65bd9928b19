//! Frames, headers, and the supported request versions.
//!
//! A frame is an i32 length and that many bytes: a header with a correlation id, then the message
//! in a version that both sides know. `kafka-protocol` encodes and decodes headers and messages.
//! This module decides versions and limits, and protects the codec from hostile bytes. It does no
//! I/O.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut, TryGetError};
use kafka_protocol::messages::{self, *};
use kafka_protocol::protocol::buf::ByteBuf;
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes, VersionRange};

/// The largest Fetch response that is accepted: twice what a consumer requests by default, because
/// one batch may exceed the requested limit.
const FETCH_FRAME_BYTES_MAX: usize = 100 * 1024 * 1024;

/// The most bytes of records that a fetch asks for. The rest of the largest response is for the names
/// of some 50,000 partitions.
pub(crate) const FETCH_BYTES_MAX: i32 = 96 * 1024 * 1024;

/// The largest other response that is accepted. Metadata of 10,000 partitions takes about 1 MiB.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Counts up to this size are not checked: the memory for so many elements is small.
const HARMLESS_COUNT: usize = 10_000;

/// As [`HARMLESS_COUNT`], for the old fixed-width fields. There a count looks like a node id or a
/// generation number. A reservation for a million elements that never come is address space, not
/// memory.
const HARMLESS_NUMBER: usize = 1_000_000;

/// A request that this client sends.
pub trait Request: Encodable + HeaderVersion {
    /// Its API key.
    const API: ApiKey;
    /// The versions that this client supports.
    const VERSIONS: VersionRange;
    /// Its response.
    type Response: Decodable + HeaderVersion;

    /// For how long the broker reads no further request from the connection, in milliseconds
    /// (KIP-219).
    fn throttle_ms(response: &Self::Response) -> i32;
}

/// The responses to a login have no such field.
macro_rules! throttle_ms {
    (SaslHandshake, $response:ident) => {{
        let _ = $response;
        0
    }};
    (SaslAuthenticate, $response:ident) => {{
        let _ = $response;
        0
    }};
    ($api:ident, $response:ident) => {
        $response.throttle_time_ms
    };
}

/// One line per request: its type, its response's type, and the supported versions.
macro_rules! requests {
    ($($(#[$comment:meta])* $api:ident: $request:ident => $response:ident, $min:literal to $max:literal;)*) => {
        $(
            impl Request for $request {
                const API: ApiKey = ApiKey::$api;
                const VERSIONS: VersionRange = VersionRange { min: $min, max: $max };
                type Response = $response;

                fn throttle_ms(response: &$response) -> i32 {
                    throttle_ms!($api, response)
                }
            }
        )*

        /// A kind of request that this client sends, under its name in the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the protocol documents them")]
        #[non_exhaustive]
        pub enum ApiKey {
            $($api = messages::ApiKey::$api as isize,)*
        }

        impl ApiKey {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$api),*];

            /// Its number in the protocol.
            pub(crate) const fn number(self) -> i16 {
                self as i16
            }

            /// The versions that this client supports.
            pub(crate) const fn versions(self) -> VersionRange {
                match self {
                    $(Self::$api => <$request as Request>::VERSIONS,)*
                }
            }
        }

        /// Decodes and drops a response to `api` (the frame without its length), as a connection
        /// does. For fuzzing and replays of recorded traffic.
        ///
        /// # Errors
        /// When the bytes are no such response, or the client does not support that version.
        pub fn try_decode(api: ApiKey, version: i16, frame: Bytes) -> Result<(), String> {
            match api {
                $(ApiKey::$api if (<$request as Request>::VERSIONS.min..=<$request as Request>::VERSIONS.max).contains(&version) => {
                    decode_response::<$request>(frame, version).map(drop)
                })*
                _ => Err(format!("{api:?} {version} is not supported")),
            }
        }
    };
}

// The upper bound is the newest version whose fields we use; except for Produce and Fetch, the
// newest that addresses topics by name. The lower bound is the oldest version with the fields we
// need. Kafka 2.8 to 4.4 and Redpanda offer all lower bounds.
requests! {
    // 13 addresses topics by id; it is sent only for topics whose ids are known.
    Produce: ProduceRequest => ProduceResponse, 3 to 13;
    // 13 addresses topics by id; 12 is sent where an id is not known.
    Fetch: FetchRequest => FetchResponse, 4 to 13;
    ListOffsets: ListOffsetsRequest => ListOffsetsResponse, 1 to 7;
    // 4 can forbid the creation of topics; 13 can ask for a new bootstrap.
    Metadata: MetadataRequest => MetadataResponse, 4 to 13;
    // 7 knows static members; 10 addresses topics by id.
    OffsetCommit: OffsetCommitRequest => OffsetCommitResponse, 7 to 9;
    // 8 asks for many groups at once.
    OffsetFetch: OffsetFetchRequest => OffsetFetchResponse, 5 to 7;
    // 4 asks for many coordinators at once.
    FindCoordinator: FindCoordinatorRequest => FindCoordinatorResponse, 1 to 3;
    // 5 knows static members; 9 lets the leader skip the assignment.
    JoinGroup: JoinGroupRequest => JoinGroupResponse, 5 to 8;
    SyncGroup: SyncGroupRequest => SyncGroupResponse, 3 to 5;
    Heartbeat: HeartbeatRequest => HeartbeatResponse, 3 to 4;
    // Kafka 4.0 and newer.
    ConsumerGroupHeartbeat: ConsumerGroupHeartbeatRequest => ConsumerGroupHeartbeatResponse, 0 to 1;
    LeaveGroup: LeaveGroupRequest => LeaveGroupResponse, 3 to 5;
    ApiVersions: ApiVersionsRequest => ApiVersionsResponse, 0 to 3;
    // 3 can raise an epoch; 6 belongs to two-phase commits.
    InitProducerId: InitProducerIdRequest => InitProducerIdResponse, 0 to 5;
    // 4 is for brokers.
    AddPartitionsToTxn: AddPartitionsToTxnRequest => AddPartitionsToTxnResponse, 0 to 3;
    AddOffsetsToTxn: AddOffsetsToTxnRequest => AddOffsetsToTxnResponse, 0 to 4;
    // 3 names the member, so that an expelled one is refused; 5 adds the group to the transaction.
    TxnOffsetCommit: TxnOffsetCommitRequest => TxnOffsetCommitResponse, 3 to 5;
    // 5 raises the epoch.
    EndTxn: EndTxnRequest => EndTxnResponse, 0 to 5;
    CreateTopics: CreateTopicsRequest => CreateTopicsResponse, 2 to 7;
    // 6 addresses topics by id.
    DeleteTopics: DeleteTopicsRequest => DeleteTopicsResponse, 1 to 5;
    CreatePartitions: CreatePartitionsRequest => CreatePartitionsResponse, 0 to 3;
    DeleteRecords: DeleteRecordsRequest => DeleteRecordsResponse, 0 to 2;
    // 1 says where a value comes from.
    DescribeConfigs: DescribeConfigsRequest => DescribeConfigsResponse, 1 to 4;
    IncrementalAlterConfigs: IncrementalAlterConfigsRequest => IncrementalAlterConfigsResponse, 0 to 1;
    ListGroups: ListGroupsRequest => ListGroupsResponse, 0 to 5;
    // 6 answers with an error for a group that does not exist.
    DescribeGroups: DescribeGroupsRequest => DescribeGroupsResponse, 0 to 5;
    ConsumerGroupDescribe: ConsumerGroupDescribeRequest => ConsumerGroupDescribeResponse, 0 to 1;
    DeleteGroups: DeleteGroupsRequest => DeleteGroupsResponse, 0 to 2;
    OffsetDelete: OffsetDeleteRequest => OffsetDeleteResponse, 0 to 0;
    // 1 continues with SaslAuthenticate instead of bare bytes.
    SaslHandshake: SaslHandshakeRequest => SaslHandshakeResponse, 1 to 1;
    // 1 contains the session's lifetime.
    SaslAuthenticate: SaslAuthenticateRequest => SaslAuthenticateResponse, 0 to 2;
}

/// A topic's name in the codec's type.
pub fn topic_name(topic: &str) -> TopicName {
    TopicName(text(topic))
}

/// A string in the codec's type.
pub(crate) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A duration in the protocol's unit.
pub(crate) fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn host_port(host: &str, port: i32) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// The newest version that both sides support.
pub(crate) fn common_version(api: ApiKey, broker: VersionRange) -> Option<i16> {
    let common = api.versions().intersect(&broker);
    (!common.is_empty()).then_some(common.max)
}

/// The largest response to `api` that is accepted, in bytes.
pub(crate) fn frame_bytes_max(api: ApiKey) -> usize {
    match api {
        ApiKey::Fetch => FETCH_FRAME_BYTES_MAX,
        _ => FRAME_BYTES_MAX,
    }
}

/// Appends the whole frame of a request to `out`.
///
/// # Errors
/// The codec's message, when a field is too long, or is set although this version does not have
/// it. `out` is then unchanged.
pub(crate) fn encode_request<R: Request>(
    out: &mut BytesMut,
    request: &R,
    version: i16,
    correlation_id: i32,
    client_id: &str,
) -> Result<(), String> {
    let start = out.len();
    let header = RequestHeader::default()
        .with_request_api_key(R::API.number())
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(StrBytes::from_string(client_id.to_owned())));
    out.extend_from_slice(&[0; 4]);
    let encoded = header
        .encode(out, R::header_version(version))
        .and_then(|()| request.encode(out, version))
        .map_err(|error| error.to_string())
        .and_then(|()| {
            i32::try_from(out.len() - start - 4).map_err(|_| "the frame is too large".to_owned())
        });
    match encoded {
        Ok(length) => {
            out[start..start + 4].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(reason) => {
            out.truncate(start);
            Err(reason)
        }
    }
}

/// The correlation id of a response: its first four bytes, in every version.
pub(crate) fn correlation_id(frame: &[u8]) -> Option<i32> {
    frame
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_be_bytes)
}

/// Decodes a response's frame (without its length).
pub(crate) fn decode_response<R: Request>(
    frame: Bytes,
    version: i16,
) -> Result<R::Response, String> {
    let header = R::Response::header_version(version);
    let mut buf = BoundedBuffer::new(frame, header == 0);
    ResponseHeader::decode(&mut buf, header)
        .and_then(|_| R::Response::decode(&mut buf, version))
        .map_err(|error| error.to_string())
}

/// A buffer that refuses counts larger than the bytes that remain.
///
/// The codec reserves memory for an array's count before it reads the first element. So nine bytes
/// could request gigabytes, and a failed allocation ends the process. The codec reads a count as a
/// varint (new versions) or as an i32 (old ones), and every element takes at least one byte. So a
/// count beyond the remaining bytes is false, and is reported as missing bytes.
struct BoundedBuffer {
    bytes: Bytes,
    /// Whether an i32 may be a count. In newer versions it never is, but may be any node id.
    has_wide_counts: bool,
    /// The varint that is being read, byte by byte, and its width so far in bits.
    varint: u64,
    varint_bits: u32,
}

impl BoundedBuffer {
    fn new(bytes: Bytes, has_wide_counts: bool) -> Self {
        Self {
            bytes,
            has_wide_counts,
            varint: 0,
            varint_bits: 0,
        }
    }

    fn check(&self, claim: usize, harmless: usize) -> Result<(), TryGetError> {
        // Lengths in compact form are stored plus one.
        if claim > harmless && claim > self.bytes.len() + 1 {
            return Err(TryGetError {
                requested: claim,
                available: self.bytes.len(),
            });
        }
        Ok(())
    }
}

impl Buf for BoundedBuffer {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        self.bytes.copy_to_bytes(len)
    }

    /// Booleans are read here too: one byte, never a large count.
    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        let byte = self.bytes.try_get_u8()?;
        if self.varint_bits < 64 {
            self.varint |= u64::from(byte & 0x7f) << self.varint_bits;
        }
        self.varint_bits += 7;
        // The codec stops after five bytes in any case.
        if byte & 0x80 == 0 || self.varint_bits >= 35 {
            let claim = usize::try_from(self.varint).unwrap_or(usize::MAX);
            self.varint = 0;
            self.varint_bits = 0;
            self.check(claim, HARMLESS_COUNT)?;
        }
        Ok(byte)
    }

    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        let number = self.bytes.try_get_i32()?;
        if self.has_wide_counts {
            self.check(usize::try_from(number).unwrap_or(0), HARMLESS_NUMBER)?;
        }
        Ok(number)
    }
}

impl ByteBuf for BoundedBuffer {
    fn peek_bytes(&mut self, range: std::ops::Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.bytes.split_to(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        let broker = |min, max| VersionRange { min, max };
        assert_eq!(common_version(ApiKey::Produce, broker(0, 14)), Some(13));
        assert_eq!(common_version(ApiKey::Produce, broker(0, 7)), Some(7));
        assert_eq!(common_version(ApiKey::Produce, broker(14, 15)), None);
    }

    #[test]
    fn a_request_that_cannot_be_encoded_leaves_the_buffer_alone() {
        let mut out = BytesMut::from(&b"before"[..]);
        let request = MetadataRequest::default().with_allow_auto_topic_creation(false);
        assert!(encode_request(&mut out, &request, 3, 1, "test").is_err());
        assert_eq!(&out[..], b"before");
    }

    #[test]
    fn a_count_beyond_the_frame_is_refused_before_memory_is_reserved() {
        // Correlation id, no tags, throttle time, then "four billion brokers".
        let mut frame = vec![0, 0, 0, 1, 0, 0, 0, 0, 0];
        frame.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
        let error = decode_response::<MetadataRequest>(frame.into(), 12).unwrap_err();
        assert!(error.to_lowercase().contains("bytes"), "{error}");

        // The same in the old fixed-width form: two billion.
        let frame = vec![0, 0, 0, 1, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff];
        assert!(decode_response::<MetadataRequest>(frame.into(), 8).is_err());
    }

    #[test]
    fn a_large_number_is_no_count() {
        let answer = FindCoordinatorResponse::default().with_node_id(BrokerId(i32::MAX));
        let mut frame = BytesMut::new();
        let header = ResponseHeader::default().with_correlation_id(i32::MAX);
        header.encode(&mut frame, 1).unwrap();
        answer.encode(&mut frame, 3).unwrap();
        let decoded = decode_response::<FindCoordinatorRequest>(frame.freeze(), 3);
        assert_eq!(decoded.unwrap(), answer);
    }

    proptest! {
        #[test]
        fn random_bytes_are_an_error_or_a_message_but_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            version in 0i16..14,
        ) {
            let frame = Bytes::from(bytes);
            let _ = decode_response::<MetadataRequest>(frame.clone(), version);
            let _ = decode_response::<ProduceRequest>(frame.clone(), version);
            let _ = decode_response::<FetchRequest>(frame.clone(), version);
            let _ = decode_response::<JoinGroupRequest>(frame.clone(), version);
            let _ = decode_response::<ApiVersionsRequest>(frame, version);
        }
    }
}
