//! Decoder for the record batches of a fetch answer, safe on any bytes.
//!
//! The codec's own record decoder discards a batch's last offset, so a compacted topic would be
//! fetched for ever. It also trusts claimed counts when it reserves memory, merges duplicate
//! headers, and decompresses without a limit. This decoder allocates nothing because a length field
//! says so, and checks every addition. A batch cut short at the end of an answer is normal and ends
//! the input.
//!
//! Format: Kafka protocol guide, "Record Batch" (magic 2). Older magics are refused with a typed
//! error.

use std::fmt;

use bytes::{Buf, Bytes};
use thiserror::Error;

use super::compression::{self, Compression};

/// Bytes before those that the length field counts: base offset (8) and length (4).
const PREFIX_BYTES: usize = 12;
/// Bytes of a whole batch header, up to the first record.
const HEADER_BYTES: usize = 61;
/// The checksum covers everything from the attributes on.
const CRC_START: usize = 21;
/// The most bytes that one batch may decompress to. The frame limit bounds the compressed size;
/// this limit bounds the memory that a few hostile kilobytes can claim.
pub(crate) const UNPACKED_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The kind of a control record that aborts a transaction.
const ABORT: [u8; 2] = [0, 0];
/// The smallest possible record: length, attributes, two deltas, key and value length, header
/// count, one byte each.
const RECORD_BYTES_MIN: usize = 7;

/// Why bytes are not a record batch. Not transient, but damage in transit may be gone after another
/// fetch.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BatchError {
    /// A message format this client does not read (magic 0 and 1 ended with Kafka 0.11).
    #[error("record format with magic {0} is not supported, only 2")]
    UnsupportedMagic(i8),
    /// An undefined compression code.
    #[error("unknown compression code {0}")]
    UnknownCompression(i16),
    /// The checksum of a whole batch does not match.
    #[error("record batch at offset {base_offset} fails its checksum")]
    Checksum {
        /// The batch's first offset.
        base_offset: i64,
    },
    /// The bytes contradict the format.
    #[error("malformed record batch: {0}")]
    Malformed(&'static str),
    /// The compressed part cannot be decompressed.
    #[error("record batch does not unpack: {0}")]
    Unpack(String),
    /// The compressed part would decompress to more than [`UNPACKED_BYTES_MAX`].
    #[error("record batch unpacks to more than {UNPACKED_BYTES_MAX} bytes")]
    TooLarge,
}

/// One record of the log.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Position in the partition.
    pub offset: i64,
    /// Milliseconds since 1970 UTC; -1 when there is none. The producer's time, or the broker's for
    /// topics with log-append time.
    pub timestamp_ms: i64,
    /// The key, if any.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in order; repeated names are kept.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl fmt::Debug for Record {
    // Keys and values are user data and must not appear in logs.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Record")
            .field("offset", &self.offset)
            .field("timestamp_ms", &self.timestamp_ms)
            .field("value_bytes", &self.value.as_ref().map(Bytes::len))
            .field("headers", &self.headers.len())
            .finish()
    }
}

/// One batch: its header, and its records still packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedBatch {
    /// Offset of the batch's first record when it was written.
    pub base_offset: i64,
    /// Offset of the batch's last record when it was written. Compaction may have removed that
    /// record; fetching still continues after it.
    pub last_offset: i64,
    /// Epoch of the leader that wrote the batch; -1 when unknown.
    pub leader_epoch: i32,
    /// Whether this is a control batch (transaction marker), which has no records for users.
    pub is_control: bool,
    /// Whether its records belong to a transaction.
    pub is_transactional: bool,
    /// The id of the producer that wrote it; -1 when it has none.
    pub producer_id: i64,
    /// The compression of the records.
    pub codec: Compression,
    /// The broker's append time, if it replaces the timestamps of all records.
    log_append_time_ms: Option<i64>,
    base_timestamp_ms: i64,
    record_count: usize,
    packed: Bytes,
}

/// The extent of the whole batches at the front of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeBatches {
    /// Their size in bytes.
    pub bytes: usize,
    /// The next offset to fetch after them.
    pub next_offset: i64,
    /// Epoch of the leader that wrote the last of them; -1 when unknown.
    pub leader_epoch: i32,
}

/// Finds the whole batches at the front of `input` by their headers alone; [`next_batch`] checks
/// their content. `None` when there is no whole batch at the front, or its format is unsupported.
pub fn whole_batches(input: &[u8]) -> Option<WholeBatches> {
    let mut whole = None;
    let mut end = 0;
    while let Some(header) = input.get(end..end + HEADER_BYTES) {
        let (mut front, magic, mut delta) = (header, header[16], &header[23..]);
        let base_offset = front.get_i64();
        let length = usize::try_from(front.get_i32()).ok();
        let leader_epoch = front.get_i32();
        let total = length.map_or(0, |length| length.saturating_add(PREFIX_BYTES));
        if magic != 2 || total < HEADER_BYTES || total > input.len() - end {
            break;
        }
        end += total;
        whole = Some(WholeBatches {
            bytes: end,
            next_offset: base_offset.saturating_add(i64::from(delta.get_i32()) + 1),
            leader_epoch,
        });
    }
    whole
}

/// Takes the next whole batch off the front of `input`.
///
/// `Ok(None)`: nothing is left, or only the beginning of a batch, which `input` then holds. After
/// an error `input` is unspecified: fetch again.
///
/// # Errors
/// When a whole batch is there but cannot be decoded.
pub fn next_batch(input: &mut Bytes) -> Result<Option<FetchedBatch>, BatchError> {
    if input.len() < PREFIX_BYTES {
        return Ok(None);
    }
    let mut prefix = &input[..PREFIX_BYTES];
    let base_offset = prefix.get_i64();
    let length = usize::try_from(prefix.get_i32())
        .map_err(|_| BatchError::Malformed("negative batch length"))?;
    let total = PREFIX_BYTES
        .checked_add(length)
        .ok_or(BatchError::Malformed("batch length"))?;
    // Every format has the magic at the same place. Check it first: an old message set must not
    // pass for a short batch.
    if let Some(&magic) = input.get(16)
        && magic != 2
    {
        return Err(BatchError::UnsupportedMagic(magic as i8));
    }
    if input.len() < total {
        return Ok(None);
    }
    if total < HEADER_BYTES {
        return Err(BatchError::Malformed("batch shorter than its header"));
    }
    let mut batch = input.split_to(total);
    let checksum_found = crc32c::crc32c(&batch[CRC_START..]);
    batch.advance(PREFIX_BYTES);
    let leader_epoch = batch.get_i32();
    batch.advance(1); // magic, seen above
    let checksum = batch.get_u32();
    if checksum != checksum_found {
        return Err(BatchError::Checksum { base_offset });
    }
    let attributes = batch.get_i16();
    let last_offset_delta = batch.get_i32();
    let base_timestamp_ms = batch.get_i64();
    let max_timestamp_ms = batch.get_i64();
    let producer_id = batch.get_i64();
    batch.advance(2 + 4); // producer epoch, base sequence
    let record_count = usize::try_from(batch.get_i32())
        .map_err(|_| BatchError::Malformed("negative record count"))?;
    if base_offset < 0 || last_offset_delta < 0 {
        return Err(BatchError::Malformed("negative offset"));
    }
    let last_offset = base_offset
        .checked_add(i64::from(last_offset_delta))
        // The offset after the last one must exist too.
        .filter(|&last_offset| last_offset < i64::MAX)
        .ok_or(BatchError::Malformed("offset beyond the range"))?;
    let codec = attributes & 0b111;
    let codec = Compression::from_attribute(codec).ok_or(BatchError::UnknownCompression(codec))?;
    Ok(Some(FetchedBatch {
        base_offset,
        last_offset,
        leader_epoch,
        is_control: attributes & 0b10_0000 != 0,
        is_transactional: attributes & 0b1_0000 != 0,
        producer_id,
        codec,
        log_append_time_ms: (attributes & 0b1000 != 0).then_some(max_timestamp_ms),
        base_timestamp_ms,
        record_count,
        packed: batch,
    }))
}

impl FetchedBatch {
    /// The next offset to fetch after this batch.
    pub fn next_offset(&self) -> i64 {
        self.last_offset + 1
    }

    /// Whether this is the marker that ends an aborted transaction.
    ///
    /// # Errors
    /// As [`FetchedBatch::records`].
    pub fn is_abort_marker(&self) -> Result<bool, BatchError> {
        if !self.is_control {
            return Ok(false);
        }
        // The key is a version and the marker's kind.
        let markers = self.all_records()?;
        let kind = |record: &Record| record.key.as_ref()?.get(2..4).map(|kind| kind == ABORT);
        Ok(markers.first().and_then(kind).unwrap_or(false))
    }

    /// Unpacks the records, in order. A control batch has none for users, and a batch emptied by
    /// compaction has none at all.
    ///
    /// # Errors
    /// When the packed part is damaged or too large; no record is returned then.
    pub fn records(&self) -> Result<Vec<Record>, BatchError> {
        match self.is_control {
            true => Ok(Vec::new()),
            false => self.all_records(),
        }
    }

    fn all_records(&self) -> Result<Vec<Record>, BatchError> {
        if self.record_count == 0 {
            return Ok(Vec::new());
        }
        let unpacked = compression::unpack(self.codec, &self.packed)?;
        // The count is a claim; the bytes present limit what it may reserve.
        if self.record_count > unpacked.len() / RECORD_BYTES_MIN {
            return Err(BatchError::Malformed("more records claimed than fit"));
        }
        let mut records: Vec<Record> = Vec::with_capacity(self.record_count);
        let mut input = Cursor {
            bytes: &unpacked,
            at: 0,
            end: unpacked.len(),
        };
        for _ in 0..self.record_count {
            let record = self.record(&mut input)?;
            if record.offset > self.last_offset
                || records
                    .last()
                    .is_some_and(|last| last.offset >= record.offset)
            {
                return Err(BatchError::Malformed("record offsets out of order"));
            }
            records.push(record);
        }
        Ok(records)
    }

    fn record(&self, input: &mut Cursor<'_>) -> Result<Record, BatchError> {
        let size = length(input.varint()?)?.ok_or(BatchError::Malformed("record length"))?;
        let mut body = input.part(size)?;
        body.part(1)?; // attributes, unused so far
        let timestamp_delta = body.varint()?;
        let offset_delta = body.varint()?;
        if !(0..=i64::from(i32::MAX)).contains(&offset_delta) {
            return Err(BatchError::Malformed("offset delta"));
        }
        let offset = self
            .base_offset
            .checked_add(offset_delta)
            .ok_or(BatchError::Malformed("offset delta"))?;
        let timestamp_ms = match self.log_append_time_ms {
            Some(time_ms) => time_ms,
            None => self
                .base_timestamp_ms
                .checked_add(timestamp_delta)
                .ok_or(BatchError::Malformed("timestamp delta"))?,
        };
        let key = body.nullable()?;
        let value = body.nullable()?;
        let header_count = length(body.varint()?)?.ok_or(BatchError::Malformed("header count"))?;
        // Each header takes at least two bytes.
        if header_count > body.left() / 2 {
            return Err(BatchError::Malformed("more headers claimed than fit"));
        }
        let mut headers = Vec::with_capacity(header_count);
        for _ in 0..header_count {
            let name = body
                .nullable()?
                .ok_or(BatchError::Malformed("header without name"))?;
            // A header name that is not UTF-8 violates the format. Failing the whole record would
            // stop the partition for ever.
            let name = String::from_utf8_lossy(&name).into_owned();
            headers.push((name, body.nullable()?));
        }
        Ok(Record {
            offset,
            timestamp_ms,
            key,
            value,
            headers,
        })
    }
}

/// A read position in a part of the unpacked bytes. Only what a record keeps becomes a slice:
/// reference counting costs more than reading.
struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.end - self.at
    }

    /// Splits off the next `size` bytes as their own cursor.
    fn part(&mut self, size: usize) -> Result<Cursor<'a>, BatchError> {
        if size > self.left() {
            return Err(BatchError::Malformed("length beyond the end"));
        }
        let at = self.at;
        self.at += size;
        Ok(Cursor {
            bytes: self.bytes,
            at,
            end: self.at,
        })
    }

    /// Reads a zigzag varint of at most 64 bits.
    fn varint(&mut self) -> Result<i64, BatchError> {
        let mut value = 0u64;
        let bytes = &self.bytes[self.at..self.end];
        for (index, &byte) in bytes.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.at += index + 1;
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(BatchError::Malformed("number does not end"))
    }

    /// Reads bytes after their length; length -1 means none.
    fn nullable(&mut self) -> Result<Option<Bytes>, BatchError> {
        match length(self.varint()?)? {
            None => Ok(None),
            Some(size) => {
                let part = self.part(size)?;
                Ok(Some(self.bytes.slice(part.at..part.end)))
            }
        }
    }
}

/// Converts a length field: -1 means absent, other negative numbers are refused.
fn length(value: i64) -> Result<Option<usize>, BatchError> {
    match value {
        -1 => Ok(None),
        _ => usize::try_from(value)
            .map(Some)
            .map_err(|_| BatchError::Malformed("negative length")),
    }
}

#[cfg(test)]
mod tests;
