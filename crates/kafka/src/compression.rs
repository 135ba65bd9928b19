//! Compression of record batches, each codec behind the feature of its name.
//!
//! The framing is that of the Java client.

use std::io::Write;

use bytes::Bytes;

use super::batch::BatchError;
#[cfg(any(
    feature = "gzip",
    feature = "snappy",
    feature = "lz4",
    feature = "zstd"
))]
use super::batch::UNPACKED_BYTES_MAX;

/// How the records of a batch are compressed. Each codec needs the crate's feature of its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// No compression: right for small events that come one by one.
    #[default]
    None,
    /// With the Java client's framing.
    Snappy,
    /// Slow and small.
    Gzip,
    /// Fast.
    Lz4,
    /// Fast and small. The only codec that compiles C.
    Zstd,
}

impl Compression {
    const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// Its bits in a batch's attributes.
    pub(crate) fn attribute(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    pub(crate) fn from_attribute(attribute: i16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|codec| codec.attribute() == attribute)
    }

    /// Whether this build of the crate has it.
    pub(crate) fn is_built_in(self) -> bool {
        match self {
            Self::None => true,
            Self::Gzip => cfg!(feature = "gzip"),
            Self::Snappy => cfg!(feature = "snappy"),
            Self::Lz4 => cfg!(feature = "lz4"),
            Self::Zstd => cfg!(feature = "zstd"),
        }
    }

    /// The best codec of this build for a record that is too large for a batch.
    pub(crate) fn for_large_record() -> Self {
        let by_size = [Self::Zstd, Self::Gzip, Self::Lz4, Self::Snappy];
        by_size
            .into_iter()
            .find(|codec| codec.is_built_in())
            .unwrap_or(Self::None)
    }
}

/// Compresses `records` to the end of `out`.
///
/// # Errors
/// The compressor's message, or that this build has no such codec.
pub(crate) fn pack(
    codec: Compression,
    records: &[u8],
    out: &mut (impl Write + ?Sized),
) -> Result<(), String> {
    let packed = match codec {
        Compression::None => out.write_all(records),
        #[cfg(feature = "gzip")]
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            encoder
                .write_all(records)
                .and_then(|()| encoder.finish().map(drop))
        }
        #[cfg(feature = "snappy")]
        Compression::Snappy => snappy::pack(records, out),
        #[cfg(feature = "lz4")]
        Compression::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(out);
            let written = encoder.write_all(records);
            written.and_then(|()| Ok(encoder.finish().map(drop)?))
        }
        #[cfg(feature = "zstd")]
        Compression::Zstd => zstd::stream::copy_encode(records, out, 0),
        #[allow(
            unreachable_patterns,
            reason = "only a build without all codecs comes here"
        )]
        other => return Err(not_built_in(other)),
    };
    packed.map_err(|error| error.to_string())
}

/// Decompresses a batch's records, up to [`UNPACKED_BYTES_MAX`].
pub(crate) fn unpack(codec: Compression, packed: &Bytes) -> Result<Bytes, BatchError> {
    #[allow(unused_variables, reason = "a build without codecs does not use it")]
    let input = packed.as_ref();
    match codec {
        Compression::None => Ok(packed.clone()),
        #[cfg(feature = "gzip")]
        Compression::Gzip => {
            read_bounded(flate2::read::MultiGzDecoder::new(input), UNPACKED_BYTES_MAX)
        }
        #[cfg(feature = "snappy")]
        Compression::Snappy => snappy::unpack(packed),
        #[cfg(feature = "lz4")]
        Compression::Lz4 => read_bounded(
            lz4_flex::frame::FrameDecoder::new(input),
            UNPACKED_BYTES_MAX,
        ),
        #[cfg(feature = "zstd")]
        Compression::Zstd => {
            let reader = zstd::stream::read::Decoder::new(input).map_err(unpack_error)?;
            read_bounded(reader, UNPACKED_BYTES_MAX)
        }
        #[allow(
            unreachable_patterns,
            reason = "only a build without all codecs comes here"
        )]
        other => Err(BatchError::Unpack(not_built_in(other))),
    }
}

fn not_built_in(codec: Compression) -> String {
    format!("this build of tbd-kafka has no {codec:?}; turn on the feature of that name")
}

#[cfg(any(
    feature = "gzip",
    feature = "snappy",
    feature = "lz4",
    feature = "zstd"
))]
fn unpack_error(error: impl std::fmt::Display) -> BatchError {
    BatchError::Unpack(error.to_string())
}

#[cfg(any(test, feature = "gzip", feature = "lz4", feature = "zstd"))]
/// Reads to the end, up to the limit. The buffer grows only as bytes arrive.
fn read_bounded(reader: impl std::io::Read, bytes_max: usize) -> Result<Bytes, BatchError> {
    use std::io::Read;

    let mut unpacked = Vec::new();
    reader
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut unpacked)
        .map_err(unpack_error)?;
    if unpacked.len() > bytes_max {
        return Err(BatchError::TooLarge);
    }
    Ok(unpacked.into())
}

/// Java frames snappy in blocks (`SnappyOutputStream`); librdkafka and others send one raw block.
/// Both are read, as in Java.
#[cfg(feature = "snappy")]
mod snappy {
    use bytes::Buf;

    use super::*;

    /// The first eight bytes of snappy-java's framing; two version numbers follow.
    const MAGIC: &[u8] = b"\x82SNAPPY\x00";
    /// The block size of snappy-java.
    const BLOCK_BYTES: usize = 32 * 1024;

    pub(super) fn pack(records: &[u8], out: &mut (impl Write + ?Sized)) -> std::io::Result<()> {
        out.write_all(MAGIC)?;
        out.write_all(&[0, 0, 0, 1, 0, 0, 0, 1])?;
        let mut encoder = snap::raw::Encoder::new();
        for block in records.chunks(BLOCK_BYTES) {
            let packed = encoder.compress_vec(block)?;
            // A block of 32 KiB never grows beyond four gigabytes.
            let length = u32::try_from(packed.len()).unwrap_or(u32::MAX);
            out.write_all(&length.to_be_bytes())?;
            out.write_all(&packed)?;
        }
        Ok(())
    }

    pub(super) fn unpack(packed: &Bytes) -> Result<Bytes, BatchError> {
        let mut unpacked = Vec::new();
        if !packed.starts_with(MAGIC) {
            unpack_block(packed, &mut unpacked)?;
            return Ok(unpacked.into());
        }
        let mut rest = packed.clone();
        take(&mut rest, MAGIC.len() + 8)?;
        while !rest.is_empty() {
            let size = take(&mut rest, 4)?.get_u32() as usize;
            let block = take(&mut rest, size)?;
            unpack_block(&block, &mut unpacked)?;
        }
        Ok(unpacked.into())
    }

    fn take(input: &mut Bytes, size: usize) -> Result<Bytes, BatchError> {
        if size > input.len() {
            return Err(BatchError::Malformed("length beyond the end"));
        }
        Ok(input.split_to(size))
    }

    fn unpack_block(block: &[u8], unpacked: &mut Vec<u8>) -> Result<(), BatchError> {
        let size = snap::raw::decompress_len(block).map_err(unpack_error)?;
        let start = unpacked.len();
        // Snappy copies at most 64 bytes per three-byte tag. A claim far beyond that ratio is false
        // and gets no memory.
        if size > block.len().saturating_mul(64) {
            return Err(BatchError::Malformed("snappy block claims too much"));
        }
        if start + size > UNPACKED_BYTES_MAX {
            return Err(BatchError::TooLarge);
        }
        unpacked.resize(start + size, 0);
        snap::raw::Decoder::new()
            .decompress(block, &mut unpacked[start..])
            .map_err(unpack_error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_stops_at_the_limit() {
        assert_eq!(
            read_bounded(std::io::repeat(0), 100),
            Err(BatchError::TooLarge)
        );
        assert_eq!(read_bounded([0; 100].as_slice(), 100).unwrap().len(), 100);
    }
}
