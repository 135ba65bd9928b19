//! HPACK, the compression of header lists (RFC 7541), bounded in memory and time.
//!
//! A [`Decoder`] holds a dynamic table of at most the size it was made with, and keeps at most the given number of octets
//! of a header list. So a short block that names the same long entry a thousand times costs no memory.

mod decoder;
mod encoder;
mod huffman;
mod integer;
mod table;
#[cfg(test)]
mod vectors;

use std::fmt;

use bytes::Bytes;

pub use decoder::{Decoder, ListSize};
pub use encoder::Encoder;

/// The size of the dynamic table before any SETTINGS frame (RFC 9113, section 6.5.2), in octets.
pub const DEFAULT_TABLE_BYTES: usize = 4096;

/// A name and a value. Pseudo-header fields are headers whose names begin with a colon.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Header {
    /// The name, in lower case on the wire (RFC 9113, section 8.2).
    pub name: Bytes,
    /// The value, as octets.
    pub value: Bytes,
}

impl Header {
    /// A header of two parts, which are not copied.
    pub fn new(name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }

    /// What the header counts against a table or a header list: both lengths and 32 octets (RFC 7541, section 4.1).
    pub fn size(&self) -> usize {
        self.name.len() + self.value.len() + 32
    }
}

/// A header's value may be a secret, so only its length is shown.
impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} bytes)",
            self.name.escape_ascii(),
            self.value.len()
        )
    }
}

/// Why a header block cannot be decoded. The tables of both ends then differ, so the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The block ends within a field.
    #[error("the header block is cut off")]
    Truncated,
    /// An integer is larger than any index or length can be.
    #[error("an integer of the header block is too large")]
    Integer,
    /// An index names no entry.
    #[error("an index of the header block names no entry")]
    Index,
    /// A string is no valid Huffman code.
    #[error("a string of the header block is not Huffman-coded")]
    Huffman,
    /// The dynamic table would grow beyond what was allowed, or changes its size within a block.
    #[error("the header block changes the size of the table against the rules")]
    TableSize,
}
