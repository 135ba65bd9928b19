//! Encoding of record batches, format 2.
//!
//! The codec's encoder is not used for two reasons. It keeps headers in a map, so it loses repeated
//! names. It splits a batch where sequence numbers wrap, and a broker refuses the parts. The format
//! is small: kafka.apache.org/documentation/#recordbatch

use bytes::{BufMut, Bytes};

use super::record::Record;
use crate::compression::{Compression, pack};

/// A producer's identity at the brokers, by which they recognise repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster assigns it.
    pub producer_id: i64,
    /// Increases when the producer restarts its sequence numbers.
    pub epoch: i16,
    /// How its batches join a transaction.
    pub transactions: Transactions,
}

/// How the batches of a producer join its transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transactions {
    /// They belong to none.
    #[default]
    None,
    /// The coordinator must know a partition before its first batch (AddPartitionsToTxn).
    Explicit,
    /// A batch adds its partition (KIP-890, `transaction.version` 2).
    Implicit,
}

impl Identity {
    /// The identity of a producer without transactions.
    pub fn idempotent(producer_id: i64, epoch: i16) -> Self {
        Self {
            producer_id,
            epoch,
            transactions: Transactions::None,
        }
    }

    /// Whether its batches belong to a transaction.
    pub(crate) fn is_transactional(&self) -> bool {
        self.transactions != Transactions::None
    }
}

/// The bit of a batch's attributes that says that it belongs to a transaction.
const TRANSACTIONAL: i16 = 0x10;

/// The batch length counts the bytes after itself.
const LENGTH_AT: usize = 8;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const RECORDS_AT: usize = 61;

/// Encodes `records`, each with its timestamp (milliseconds since 1970), as one
/// batch. `out` is an empty buffer to use. Records that compression does not shrink stay as they
/// are.
///
/// # Errors
/// The compressor's message, or that the batch is too large for the format.
pub fn encode<'a>(
    mut out: Vec<u8>,
    records: impl Iterator<Item = (&'a Record, i64)> + Clone,
    compression: Compression,
    identity: Identity,
    base_sequence: i32,
) -> Result<Bytes, String> {
    let too_large = |_| "the batch is too large".to_owned();
    let base_timestamp = records.clone().next().map_or(0, |(_, timestamp)| timestamp);
    let max_timestamp = records
        .clone()
        .map(|(_, timestamp)| timestamp)
        .max()
        .unwrap_or(base_timestamp);
    let count = i32::try_from(records.clone().count()).map_err(too_large)?;

    // `size` is an upper bound, so the buffer never grows.
    let room: usize = records.clone().map(|(record, _)| record.size()).sum();
    out.reserve(RECORDS_AT + room);
    out.put_i64(0); // base offset: the broker fills it in
    out.put_i32(0); // length, below
    out.put_i32(-1); // leader epoch: the broker fills it in
    out.put_i8(2); // magic
    out.put_u32(0); // checksum, below
    let transactional = if identity.is_transactional() {
        TRANSACTIONAL
    } else {
        0
    };
    out.put_i16(transactional); // and the compression, below
    out.put_i32(count - 1); // last offset delta
    out.put_i64(base_timestamp);
    out.put_i64(max_timestamp);
    out.put_i64(identity.producer_id);
    out.put_i16(identity.epoch);
    out.put_i32(base_sequence);
    out.put_i32(count);

    for ((record, timestamp), offset_delta) in records.zip(0i64..) {
        let timestamp_delta = timestamp.saturating_sub(base_timestamp);
        put_length(
            &mut out,
            record_length(record, timestamp_delta, offset_delta),
        );
        put_record(&mut out, record, timestamp_delta, offset_delta);
    }
    if compression != Compression::None {
        let mut packed = out[..RECORDS_AT].to_vec();
        pack(compression, &out[RECORDS_AT..], &mut packed)?;
        // Random bytes grow, and may then exceed the broker's limit.
        if packed.len() < out.len() {
            let attributes = compression.attribute() | transactional;
            packed[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
            out = packed;
        }
    }

    let length = i32::try_from(out.len() - LENGTH_AT - 4).map_err(too_large)?;
    out[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&out[ATTRIBUTES_AT..]);
    out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    Ok(out.into())
}

fn put_record(out: &mut Vec<u8>, record: &Record, timestamp_delta: i64, offset_delta: i64) {
    out.put_i8(0); // attributes: none are defined
    put_varint(out, timestamp_delta);
    put_varint(out, offset_delta);
    put_bytes(out, record.key.as_deref());
    put_bytes(out, record.value.as_deref());
    put_length(out, record.headers.len());
    for (name, value) in &record.headers {
        put_bytes(out, Some(name.as_bytes()));
        put_bytes(out, value.as_deref());
    }
}

/// The bytes that [`put_record`] writes.
fn record_length(record: &Record, timestamp_delta: i64, offset_delta: i64) -> usize {
    let header = |(name, value): &(String, Option<Bytes>)| {
        bytes_length(Some(name.as_bytes())) + bytes_length(value.as_deref())
    };
    1 + varint_length(timestamp_delta)
        + varint_length(offset_delta)
        + bytes_length(record.key.as_deref())
        + bytes_length(record.value.as_deref())
        + length_length(record.headers.len())
        + record.headers.iter().map(header).sum::<usize>()
}

fn bytes_length(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| length_length(bytes.len()) + bytes.len())
}

fn length_length(length: usize) -> usize {
    varint_length(i64::try_from(length).unwrap_or(i64::MAX))
}

fn varint_length(value: i64) -> usize {
    let bits = u64::BITS - zigzag(value).leading_zeros();
    bits.max(1).div_ceil(7) as usize
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            put_length(out, bytes.len());
            out.put_slice(bytes);
        }
        None => put_varint(out, -1),
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    // A length in memory always fits an i64.
    put_varint(out, i64::try_from(length).unwrap_or(i64::MAX));
}

/// Zigzag encoding, then seven bits a byte, low ones first. The format's 32-bit and 64-bit forms
/// are equal for values that fit both.
fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.put_u8((rest as u8 & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::unit_random;
    use kafka_protocol::records::RecordBatchDecoder;
    use proptest::prelude::*;

    const IDENTITY: Identity = Identity {
        producer_id: 4711,
        epoch: 3,
        transactions: Transactions::Implicit,
    };

    fn decoded(bytes: Bytes) -> Vec<kafka_protocol::records::Record> {
        let mut rest = bytes;
        let set = RecordBatchDecoder::decode(&mut rest).unwrap();
        assert!(rest.is_empty(), "one batch, whole");
        set.records
    }

    #[test]
    fn every_compression_is_read_back_by_the_codec() {
        let records: Vec<Record> = (0..500)
            .map(|number| {
                Record::new("t", Some(format!("key-{number}").into()), None)
                    .header("traceparent", format!("00-{number}"))
            })
            .collect();
        for compression in [
            Compression::None,
            Compression::Snappy,
            Compression::Gzip,
            Compression::Lz4,
            Compression::Zstd,
        ] {
            let stamped = records.iter().zip(1000i64..);
            let bytes = encode(Vec::new(), stamped, compression, IDENTITY, 7).unwrap();
            assert_eq!(
                i16::from(bytes[ATTRIBUTES_AT + 1] & 7),
                compression.attribute()
            );
            let read = decoded(bytes);
            assert_eq!(read.len(), 500);
            assert_eq!(read[499].key, records[499].key);
            assert_eq!(read[499].timestamp, 1499);
            assert_eq!(read[499].offset, 499);
            assert_eq!(read[499].sequence, 506);
            assert_eq!(read[499].producer_id, 4711);
            assert_eq!(read[499].producer_epoch, 3);
            assert!(read[499].transactional);
            let header = read[499].headers.get(&b"traceparent"[..]).unwrap();
            assert_eq!(header.as_deref(), Some(&b"00-499"[..]));
        }
    }

    #[test]
    fn records_that_compression_does_not_shrink_stay_as_they_are() {
        let noise: Vec<u8> = std::iter::repeat_with(|| (256.0 * unit_random()) as u8)
            .take(10_000)
            .collect();
        let record = Record::new("t", None, Some(noise.into()));
        let encoded = |compression| {
            let records = std::iter::once((&record, 5));
            encode(Vec::new(), records, compression, IDENTITY, 0).unwrap()
        };
        let plain = encoded(Compression::None);
        for compression in [Compression::Gzip, Compression::Lz4, Compression::Zstd] {
            assert_eq!(encoded(compression), plain);
        }
    }

    #[test]
    fn sequences_that_wrap_stay_in_one_batch() {
        let record = Record::new("t", None, Some("v".into()));
        let records = std::iter::repeat_n((&record, 5), 3);
        let bytes = encode(
            Vec::new(),
            records,
            Compression::None,
            IDENTITY,
            i32::MAX - 1,
        )
        .unwrap();
        assert_eq!(decoded(bytes).len(), 3);
    }

    #[test]
    fn a_numbers_length_is_that_of_its_bytes() {
        let powers = (0..63).map(|bit| 1i64 << bit);
        let around = powers.flat_map(|power| [power - 1, power, -power, -power - 1]);
        for value in around.chain([0, i64::MIN, i64::MAX]) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(varint_length(value), out.len(), "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_record_is_read_back_as_it_was(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
            header in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..30)),
            first in 0i64..4_000_000_000_000,
            second in 0i64..4_000_000_000_000,
        ) {
            let mut record = Record::new("t", key.map(Bytes::from), value.map(Bytes::from));
            record.headers.push(("name".to_owned(), header.map(Bytes::from)));
            let records = [(&record, first), (&record, second)];
            let bytes =
                encode(Vec::new(), records.into_iter(), Compression::None, IDENTITY, 0).unwrap();
            let read = decoded(bytes);
            prop_assert_eq!(&read[1].key, &record.key);
            prop_assert_eq!(&read[1].value, &record.value);
            prop_assert_eq!(read[0].timestamp, first);
            prop_assert_eq!(read[1].timestamp, second);
            prop_assert_eq!(&read[1].headers[0], &record.headers[0].1);
        }
    }
}
