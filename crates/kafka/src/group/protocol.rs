//! Wire format of group metadata: subscriptions that members send, and assignments that the leader
//! sends.
//!
//! Format: `ConsumerProtocolSubscription` and `ConsumerProtocolAssignment` of Apache Kafka. Newer
//! versions only append fields, so a newer version is read as the newest known one, as Java does.
//! The bytes come from other members, so no length in them is trusted.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::TopicPartition;

/// The subscription version written. Java 3.5 and later write 3.
const SUBSCRIPTION_VERSION: i16 = 3;
/// The assignment's layout has not changed since version 0, which every peer reads.
const ASSIGNMENT_VERSION: i16 = 0;
/// "No generation" in the wire format.
pub(crate) const NO_GENERATION: i32 = -1;

/// Bytes from another member that contradict the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("malformed group metadata: {0}")]
pub struct MalformedMetadata(&'static str);

/// A member's subscription, sent when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subscription {
    /// The topics to read.
    pub topics: Vec<Arc<str>>,
    /// The assignor's own bytes.
    pub user_data: Option<Bytes>,
    /// The partitions still owned (version 1); empty for eager members.
    pub owned: Vec<TopicPartition>,
    /// The generation in which they were owned (version 2), if known.
    pub generation: Option<i32>,
    /// The member's rack (version 3).
    pub rack: Option<String>,
}

impl Subscription {
    /// The bytes for JoinGroup.
    pub fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::new();
        buffer.put_i16(SUBSCRIPTION_VERSION);
        buffer.put_i32(self.topics.len() as i32);
        for topic in &self.topics {
            put_string(&mut buffer, topic);
        }
        put_bytes(&mut buffer, self.user_data.as_deref());
        put_partitions(&mut buffer, &self.owned);
        buffer.put_i32(self.generation.unwrap_or(NO_GENERATION));
        match &self.rack {
            Some(rack) => put_string(&mut buffer, rack),
            None => buffer.put_i16(-1),
        }
        buffer.freeze()
    }

    /// Decodes another member's bytes. Never panics, and allocates no more than they hold.
    ///
    /// # Errors
    /// When the bytes contradict the format.
    pub fn decode(mut input: Bytes) -> Result<Self, MalformedMetadata> {
        let version = get_version(&mut input)?;
        let mut topics = Vec::new();
        for _ in 0..get_count(&mut input)? {
            topics.push(
                get_string(&mut input)?
                    .ok_or(MalformedMetadata("topic name"))?
                    .into(),
            );
        }
        let user_data = get_bytes(&mut input)?;
        let owned = if version >= 1 {
            get_partitions(&mut input)?
        } else {
            Vec::new()
        };
        let generation = if version >= 2 {
            Some(get_i32(&mut input)?)
        } else {
            None
        };
        let rack = if version >= 3 {
            get_string(&mut input)?
        } else {
            None
        };
        Ok(Self {
            topics,
            user_data,
            owned,
            generation: generation.filter(|&generation| generation >= 0),
            rack,
        })
    }
}

/// The bytes of an assignment, for SyncGroup.
pub(crate) fn encode_assignment(partitions: &[TopicPartition]) -> Bytes {
    let mut buffer = BytesMut::new();
    buffer.put_i16(ASSIGNMENT_VERSION);
    put_partitions(&mut buffer, partitions);
    put_bytes(&mut buffer, None);
    buffer.freeze()
}

/// Decodes an assignment. Empty bytes are an empty assignment: a leader that does not know this
/// member leaves them.
///
/// # Errors
/// When the bytes contradict the format.
pub fn decode_assignment(mut input: Bytes) -> Result<Vec<TopicPartition>, MalformedMetadata> {
    if input.is_empty() {
        return Ok(Vec::new());
    }
    get_version(&mut input)?;
    let partitions = get_partitions(&mut input)?;
    get_bytes(&mut input)?;
    Ok(partitions)
}

/// Writes partitions grouped by topic, in order.
fn put_partitions(buffer: &mut BytesMut, partitions: &[TopicPartition]) {
    let mut by_topic: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        by_topic
            .entry(&partition.topic)
            .or_default()
            .push(partition.partition);
    }
    buffer.put_i32(by_topic.len() as i32);
    for (topic, mut numbers) in by_topic {
        numbers.sort_unstable();
        put_string(buffer, topic);
        buffer.put_i32(numbers.len() as i32);
        for number in numbers {
            buffer.put_i32(number);
        }
    }
}

fn put_string(buffer: &mut BytesMut, text: &str) {
    // Topic names have at most 249 characters. A longer rack is cut off.
    let text = &text.as_bytes()[..text.len().min(i16::MAX as usize)];
    buffer.put_i16(text.len() as i16);
    buffer.put_slice(text);
}

fn put_bytes(buffer: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            buffer.put_i32(bytes.len() as i32);
            buffer.put_slice(bytes);
        }
        None => buffer.put_i32(-1),
    }
}

fn get_version(input: &mut Bytes) -> Result<i16, MalformedMetadata> {
    match input.try_get_i16() {
        Ok(version) if version >= 0 => Ok(version),
        _ => Err(MalformedMetadata("version")),
    }
}

fn get_i32(input: &mut Bytes) -> Result<i32, MalformedMetadata> {
    input
        .try_get_i32()
        .map_err(|_| MalformedMetadata("number cut short"))
}

/// An array's length. It is not trusted: elements are read one by one, so a false length fails at
/// the end of the input.
fn get_count(input: &mut Bytes) -> Result<i32, MalformedMetadata> {
    Ok(get_i32(input)?.max(0))
}

fn get_string(input: &mut Bytes) -> Result<Option<String>, MalformedMetadata> {
    let length = input
        .try_get_i16()
        .map_err(|_| MalformedMetadata("string cut short"))?;
    let Ok(length) = usize::try_from(length) else {
        return Ok(None);
    };
    if length > input.len() {
        return Err(MalformedMetadata("string cut short"));
    }
    String::from_utf8(input.split_to(length).to_vec())
        .map(Some)
        .map_err(|_| MalformedMetadata("string is not UTF-8"))
}

fn get_bytes(input: &mut Bytes) -> Result<Option<Bytes>, MalformedMetadata> {
    let Ok(length) = usize::try_from(get_i32(input)?) else {
        return Ok(None);
    };
    if length > input.len() {
        return Err(MalformedMetadata("bytes cut short"));
    }
    Ok(Some(input.split_to(length)))
}

fn get_partitions(input: &mut Bytes) -> Result<Vec<TopicPartition>, MalformedMetadata> {
    let mut partitions = Vec::new();
    for _ in 0..get_count(input)? {
        let topic: Arc<str> = get_string(input)?
            .ok_or(MalformedMetadata("topic name"))?
            .into();
        for _ in 0..get_count(input)? {
            partitions.push(TopicPartition::new(topic.clone(), get_i32(input)?));
        }
    }
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(hex: &str) -> Bytes {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// Output of Java's `ConsumerProtocol.serializeSubscription`: topic "t", cooperative-sticky
    /// user data of generation 7, owning t-0 and t-2.
    const JAVA_V3: &str = "0003 00000001 0001 74 00000004 00000007 \
                           00000001 0001 74 00000002 00000000 00000002 00000007 ffff";

    fn sample() -> Subscription {
        Subscription {
            topics: vec!["t".into()],
            user_data: Some(Bytes::from_static(&[0, 0, 0, 7])),
            owned: vec![TopicPartition::new("t", 0), TopicPartition::new("t", 2)],
            generation: Some(7),
            rack: None,
        }
    }

    #[test]
    fn a_subscription_is_written_and_read_as_java_does() {
        assert_eq!(sample().encode(), bytes_of(JAVA_V3));
        assert_eq!(Subscription::decode(bytes_of(JAVA_V3)), Ok(sample()));
    }

    #[test]
    fn older_and_newer_subscription_versions_are_read() {
        let v0 = bytes_of("0000 00000001 0001 74 ffffffff");
        let v1 = bytes_of("0001 00000001 0001 74 ffffffff 00000001 0001 74 00000001 00000005");
        let v9 = bytes_of(&format!("{} 0102", JAVA_V3.replacen("0003", "0009", 1)));
        let plain = Subscription {
            topics: vec!["t".into()],
            ..Subscription::default()
        };
        assert_eq!(Subscription::decode(v0), Ok(plain.clone()));
        let owning = Subscription {
            owned: vec![TopicPartition::new("t", 5)],
            ..plain
        };
        assert_eq!(Subscription::decode(v1), Ok(owning));
        assert_eq!(Subscription::decode(v9), Ok(sample()));
    }

    #[test]
    fn an_assignment_is_written_and_read_as_java_does() {
        let partitions = [TopicPartition::new("a", 1), TopicPartition::new("b", 0)];
        let bytes =
            bytes_of("0000 00000002 0001 61 00000001 00000001 0001 62 00000001 00000000 ffffffff");
        assert_eq!(encode_assignment(&partitions), bytes);
        assert_eq!(decode_assignment(bytes).unwrap(), partitions);
        // Version 3 has the same layout; empty bytes mean nothing is assigned.
        let v3 = bytes_of("0003 00000001 0001 61 00000001 00000001 ffffffff");
        assert_eq!(decode_assignment(v3).unwrap(), partitions[..1]);
        assert_eq!(decode_assignment(Bytes::new()).unwrap(), []);
    }

    proptest! {
        #[test]
        fn decoding_never_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Subscription::decode(bytes.clone().into());
            let _ = decode_assignment(bytes.into());
        }

        #[test]
        fn decoding_never_panics_on_damaged_metadata(at in 0usize..60, byte: u8, cut in 0usize..60) {
            let mut bytes = sample().encode().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut % bytes.len());
            let _ = Subscription::decode(bytes.into());
        }
    }
}
