//! Header blocks in (RFC 7541, sections 3 and 6).

use bytes::Bytes;

use super::table::Table;
use super::{Error, Header, huffman, integer};

/// Decodes the header blocks of one connection, in the order in which they arrive.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What our SETTINGS frame allows the peer's table.
    table_bytes_max: usize,
}

/// Whether a header list was kept whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListSize {
    /// All of it was kept.
    Within,
    /// The list is larger than the limit, and only its beginning was kept. The decoder is still in step with the peer.
    Exceeded,
}

impl Decoder {
    /// A decoder whose dynamic table takes at most `table_bytes_max` octets.
    pub fn new(table_bytes_max: usize) -> Self {
        Self {
            table: Table::new(table_bytes_max),
            table_bytes_max,
        }
    }

    /// Decodes a whole block and appends its fields to `headers`, up to `list_bytes_max` octets as RFC 9113, section
    /// 6.5.2, counts them. Does not block.
    ///
    /// # Errors
    /// Any error of a block is a connection error of type COMPRESSION_ERROR (RFC 9113, section 4.3).
    pub fn decode(
        &mut self,
        block: &[u8],
        list_bytes_max: usize,
        headers: &mut Vec<Header>,
    ) -> Result<ListSize, Error> {
        let mut input = block;
        let mut bytes = 0;
        let mut is_first = true;
        while let Some(&octet) = input.first() {
            if octet & 0xe0 == 0x20 {
                // A new size of the table belongs before the first field (RFC 7541, section 4.2).
                if !is_first {
                    return Err(Error::TableSize);
                }
                self.resize(&mut input)?;
                continue;
            }
            is_first = false;
            let header = self.field(octet, &mut input)?;
            // Beyond the limit the block is only read, so that the table stays that of the peer.
            bytes += header.size();
            if bytes <= list_bytes_max {
                headers.push(header);
            }
        }
        Ok(match bytes <= list_bytes_max {
            true => ListSize::Within,
            false => ListSize::Exceeded,
        })
    }

    fn resize(&mut self, input: &mut &[u8]) -> Result<(), Error> {
        let bytes_max = integer::decode(input, 5)?;
        if bytes_max > self.table_bytes_max {
            return Err(Error::TableSize);
        }
        self.table.resize(bytes_max);
        Ok(())
    }

    /// One field, whose first octet is `octet`.
    fn field(&mut self, octet: u8, input: &mut &[u8]) -> Result<Header, Error> {
        if octet & 0x80 != 0 {
            let index = integer::decode(input, 7)?;
            return self.table.get(index).ok_or(Error::Index);
        }
        let is_inserted = octet & 0x40 != 0;
        let index = integer::decode(input, if is_inserted { 6 } else { 4 })?;
        let name = match index {
            0 => string(input)?,
            index => self.table.get(index).ok_or(Error::Index)?.name,
        };
        let header = Header {
            name,
            value: string(input)?,
        };
        if is_inserted {
            self.table.insert(header.clone());
        }
        Ok(header)
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

/// Takes a string off the front of `input`. What it decodes to is at most 8/5 of its length.
fn string(input: &mut &[u8]) -> Result<Bytes, Error> {
    let is_huffman = input.first().is_some_and(|octet| octet & 0x80 != 0);
    let length = integer::decode(input, 7)?;
    let (octets, rest) = input.split_at_checked(length).ok_or(Error::Truncated)?;
    *input = rest;
    if !is_huffman {
        return Ok(Bytes::copy_from_slice(octets));
    }
    let mut decoded = Vec::with_capacity(octets.len() * 8 / 5);
    huffman::decode(octets, &mut decoded)?;
    Ok(decoded.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(block: &[u8]) -> Result<Vec<Header>, Error> {
        let mut headers = Vec::new();
        Decoder::new(4096)
            .decode(block, 16_384, &mut headers)
            .map(|_| headers)
    }

    #[test]
    fn a_block_that_is_cut_off_is_refused() {
        assert_eq!(decode(&[0x40, 0x05, b'a']), Err(Error::Truncated));
        assert_eq!(decode(&[0x40]), Err(Error::Truncated));
        assert_eq!(decode(&[0xff]), Err(Error::Truncated));
    }

    #[test]
    fn an_index_without_an_entry_is_refused() {
        assert_eq!(decode(&[0x80]), Err(Error::Index));
        assert_eq!(decode(&[0xbe]), Err(Error::Index));
        assert_eq!(decode(&[0x7f, 0x00, 0x00]), Err(Error::Index));
    }

    #[test]
    fn the_table_grows_no_further_than_allowed_and_never_within_a_block() {
        assert_eq!(decode(&[0x3f, 0xe2, 0x1f]), Err(Error::TableSize)); // 4097
        assert_eq!(decode(&[0x82, 0x20]), Err(Error::TableSize));
        assert_eq!(
            decode(&[0x20, 0x3f, 0xe1, 0x1f, 0x82]).map(|headers| headers.len()),
            Ok(1)
        );
    }

    #[test]
    fn a_block_that_expands_is_read_but_not_kept() {
        let mut decoder = Decoder::new(4096);
        let mut headers = Vec::new();
        // One entry of 3 KB in the table, named ten thousand times.
        let mut block = vec![0x40, 0x01, b'a'];
        integer::encode(3000, 7, 0, &mut block);
        block.extend([b'x'; 3000]);
        block.extend([0xbe; 10_000]);
        let size = decoder.decode(&block, 16_384, &mut headers);
        assert_eq!(size, Ok(ListSize::Exceeded));
        assert_eq!(headers.len(), 5);
        // The next block is decoded with the right table.
        headers.clear();
        assert_eq!(
            decoder.decode(&[0xbe], 16_384, &mut headers),
            Ok(ListSize::Within)
        );
        assert_eq!(headers[0].value.len(), 3000);
    }
}
