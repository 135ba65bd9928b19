use bytes::{BufMut, BytesMut};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    self, Compression, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use proptest::prelude::*;

use super::*;

const COMPRESSIONS: [Compression; 5] = [
    Compression::None,
    Compression::Gzip,
    Compression::Snappy,
    Compression::Lz4,
    Compression::Zstd,
];

/// A batch written by the codec: `count` records from `base_offset` on.
fn batch_of(base_offset: i64, count: usize, compression: Compression) -> Vec<u8> {
    let records: Vec<records::Record> = (0..count)
        .map(|index| records::Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: 3,
            producer_id: -1,
            producer_epoch: -1,
            timestamp_type: TimestampType::Creation,
            offset: base_offset + index as i64,
            sequence: index as i32,
            timestamp: 1_000 + index as i64,
            key: (index % 2 == 0).then(|| Bytes::from(format!("k{index}"))),
            value: (index % 3 != 2).then(|| Bytes::from(format!("value {index} ").repeat(20))),
            headers: [(
                StrBytes::from_static_str("h"),
                Some(Bytes::from_static(b"1")),
            )]
            .into(),
        })
        .collect();
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression,
    };
    RecordBatchEncoder::encode(&mut bytes, &records, &options).unwrap();
    bytes.to_vec()
}

/// Corrects length and checksum after a change.
fn seal(mut bytes: Vec<u8>) -> Bytes {
    let length = (bytes.len() - PREFIX_BYTES) as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let checksum = crc32c::crc32c(&bytes[CRC_START..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    bytes.into()
}

/// A header that claims `count` records, followed by `packed`.
fn handmade(attributes: i16, count: i32, packed: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i64(100);
    bytes.put_i32(0);
    bytes.put_i32(0);
    bytes.put_i8(2);
    bytes.put_u32(0);
    bytes.put_i16(attributes);
    bytes.put_i32(9);
    bytes.put_i64(1_000);
    bytes.put_i64(7_777);
    bytes.put_i64(-1);
    bytes.put_i16(-1);
    bytes.put_i32(-1);
    bytes.put_i32(count);
    bytes.put_slice(packed);
    seal(bytes.to_vec())
}

fn walk(bytes: Bytes) -> Result<Vec<Record>, BatchError> {
    let mut input = bytes;
    let mut all = Vec::new();
    while let Some(batch) = next_batch(&mut input)? {
        all.extend(batch.records()?);
    }
    Ok(all)
}

#[test]
fn every_compression_is_read() {
    for compression in COMPRESSIONS {
        let mut input = Bytes::from(batch_of(40, 5, compression));
        let batch = next_batch(&mut input).unwrap().unwrap();
        assert_eq!((batch.next_offset(), batch.leader_epoch), (45, 3));
        let records = batch.records().unwrap();
        let offsets: Vec<i64> = records.iter().map(|record| record.offset).collect();
        assert_eq!(offsets, [40, 41, 42, 43, 44], "{compression:?}");
        assert_eq!(records[1].timestamp_ms, 1_001);
        assert_eq!(records[0].key.as_deref(), Some(b"k0".as_slice()));
        assert_eq!((&records[1].key, &records[2].value), (&None, &None));
        assert_eq!(
            records[0].headers,
            [("h".to_owned(), Some(Bytes::from_static(b"1")))]
        );
    }
}

#[test]
fn batches_follow_each_other_and_one_cut_short_ends_the_walk() {
    let mut bytes = batch_of(0, 2, Compression::None);
    bytes.extend(batch_of(2, 3, Compression::Lz4));
    let whole = walk(bytes.clone().into()).unwrap();
    assert_eq!(whole.len(), 5);
    let first = batch_of(0, 2, Compression::None).len();
    for cut in first..bytes.len() {
        assert_eq!(walk(bytes[..cut].to_vec().into()).unwrap(), whole[..2]);
    }
}

#[test]
fn a_compacted_batch_still_says_where_to_continue() {
    // All records, the one at the end included, were compacted away.
    let mut input = handmade(0, 0, b"");
    let batch = next_batch(&mut input).unwrap().unwrap();
    assert_eq!(
        (batch.records().unwrap().len(), batch.next_offset()),
        (0, 110)
    );
}

#[test]
fn a_control_batch_has_no_records_for_users() {
    let mut input = handmade(0b10_0000, 1, &[0x10, 0, 0, 0, 1, 1, 1, 1, 0]);
    let batch = next_batch(&mut input).unwrap().unwrap();
    assert!(batch.is_control && batch.records().unwrap().is_empty());
    assert_eq!(batch.next_offset(), 110);
}

/// Offset delta 3, timestamp delta 2, no key, value "v", header "h" twice.
const TWIN_HEADERS: &[u8] = &[26, 0, 4, 6, 1, 2, b'v', 4, 2, b'h', 2, b'1', 2, b'h'];

#[test]
fn repeated_headers_are_kept_in_order() {
    let mut record = TWIN_HEADERS.to_vec();
    record.push(1);
    record[0] = 2 * (record.len() as u8 - 1);
    let records = walk(handmade(0, 1, &record)).unwrap();
    let one = Some(Bytes::from_static(b"1"));
    assert_eq!(
        records[0].headers,
        [("h".to_owned(), one), ("h".to_owned(), None)]
    );
    assert_eq!((records[0].offset, records[0].timestamp_ms), (103, 1_002));
    assert_eq!(records[0].value.as_deref(), Some(b"v".as_slice()));
}

#[test]
fn log_append_time_applies_to_every_record() {
    let mut record = TWIN_HEADERS.to_vec();
    record.push(1);
    record[0] = 2 * (record.len() as u8 - 1);
    let records = walk(handmade(0b1000, 1, &record)).unwrap();
    assert_eq!(records[0].timestamp_ms, 7_777);
}

#[test]
fn snappy_is_read_raw_and_in_javas_blocks() {
    let plain = batch_of(7, 4, Compression::None);
    let expected = walk(plain.clone().into()).unwrap();
    let body = &plain[HEADER_BYTES..];
    let raw = snap::raw::Encoder::new().compress_vec(body).unwrap();
    let mut framed = b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01".to_vec();
    for block in body.chunks(50) {
        let block = snap::raw::Encoder::new().compress_vec(block).unwrap();
        framed.extend((block.len() as u32).to_be_bytes());
        framed.extend(block);
    }
    for packed in [raw, framed] {
        let mut bytes = plain[..HEADER_BYTES].to_vec();
        bytes[22] = 2;
        bytes.extend(packed);
        assert_eq!(walk(seal(bytes)).unwrap(), expected);
    }
}

#[test]
fn damage_is_noticed() {
    let mut bytes = batch_of(0, 3, Compression::None);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert_eq!(
        walk(bytes.into()),
        Err(BatchError::Checksum { base_offset: 0 })
    );
}

#[test]
fn old_formats_are_refused_by_name() {
    let mut bytes = batch_of(0, 1, Compression::None);
    bytes[16] = 1;
    assert_eq!(walk(bytes.into()), Err(BatchError::UnsupportedMagic(1)));
}

#[test]
fn claims_beyond_what_is_there_get_no_memory() {
    let claims = [
        handmade(0, i32::MAX, &[14, 0, 0, 0, 1, 1, 0, 0]),
        // Two billion headers in a small record.
        handmade(0, 1, &[20, 0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f]),
        // A gigabyte of value.
        handmade(0, 1, &[20, 0, 0, 0, 1, 0x80, 0x80, 0x80, 0x80, 0x08, 0]),
        // Snappy: four gigabytes unpacked.
        handmade(2, 1, &[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0]),
    ];
    for bytes in claims {
        assert!(matches!(walk(bytes), Err(BatchError::Malformed(_))));
    }
}

proptest! {
    #[test]
    fn walking_never_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = walk(bytes.into());
    }

    #[test]
    fn walking_never_panics_on_any_bytes_behind_a_good_header(
        attributes in 0i16..64, count in any::<i32>(), packed in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = walk(handmade(attributes, count, &packed));
    }

    #[test]
    fn walking_never_panics_on_damaged_batches_that_pass_their_checksum(
        codec in 0usize..5,
        count in 1usize..20,
        changes in proptest::collection::vec((12usize..4000, any::<u8>()), 1..6),
        cut in 0usize..40,
    ) {
        let mut bytes = batch_of(5, count, COMPRESSIONS[codec]);
        for (at, byte) in changes {
            let at = CRC_START + at % (bytes.len() - CRC_START);
            bytes[at] = byte;
        }
        bytes.truncate((bytes.len() - cut).max(HEADER_BYTES));
        let _ = walk(seal(bytes));
    }

    #[test]
    fn what_the_codec_writes_is_what_is_read(
        codec in 0usize..5, count in 1usize..50, base in 0i64..i64::MAX / 2,
    ) {
        let bytes = batch_of(base, count, COMPRESSIONS[codec]);
        let ours = walk(bytes.clone().into()).unwrap();
        let theirs = records::RecordBatchDecoder::decode(&mut Bytes::from(bytes)).unwrap().records;
        prop_assert_eq!(ours.len(), theirs.len());
        for (our, their) in ours.iter().zip(theirs) {
            prop_assert_eq!(our.offset, their.offset);
            prop_assert_eq!(our.timestamp_ms, their.timestamp);
            prop_assert_eq!(&our.key, &their.key);
            prop_assert_eq!(&our.value, &their.value);
        }
    }
}
