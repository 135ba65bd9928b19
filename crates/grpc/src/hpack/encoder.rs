//! Header blocks out (RFC 7541, section 6).

use super::table::{Found, Table};
use super::{DEFAULT_TABLE_BYTES, Header, huffman, integer};

/// The headers whose values recur from call to call. Only these enter the dynamic table: anything else would evict them,
/// and a table that holds secrets can be made to tell them (RFC 7541, section 7.1).
const RECURRING: [&[u8]; 8] = [
    b":authority",
    b":path",
    b"content-type",
    b"grpc-accept-encoding",
    b"grpc-encoding",
    b"grpc-status",
    b"te",
    b"user-agent",
];

/// The headers that no intermediary may put into a table either (RFC 7541, section 6.2.3).
const SECRET: [&[u8]; 3] = [b"authorization", b"cookie", b"set-cookie"];

/// Encodes the header blocks of one connection, in the order in which they are sent.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// The smallest size since the last block, when the size has changed: the peer hears of it before the next block.
    resized_to: Option<usize>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            table: Table::new(DEFAULT_TABLE_BYTES),
            resized_to: None,
        }
    }
}

impl Encoder {
    /// An encoder whose peer has not said anything about the size of the table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Obeys the peer's SETTINGS_HEADER_TABLE_SIZE. A larger table than the default is not used.
    pub fn set_table_bytes_max(&mut self, bytes_max: usize) {
        let bytes_max = bytes_max.min(DEFAULT_TABLE_BYTES);
        if bytes_max != self.table.bytes_max() {
            self.resized_to = Some(self.resized_to.unwrap_or(bytes_max).min(bytes_max));
            self.table.resize(bytes_max);
        }
    }

    /// Appends the block of `headers` to `output`. Does not block.
    pub fn encode<'a>(
        &mut self,
        headers: impl IntoIterator<Item = &'a Header>,
        output: &mut Vec<u8>,
    ) {
        if let Some(smallest) = self.resized_to.take() {
            let current = self.table.bytes_max();
            if smallest < current {
                integer::encode(smallest, 5, 0x20, output);
            }
            integer::encode(current, 5, 0x20, output);
        }
        for header in headers {
            self.field(header, output);
        }
    }

    fn field(&mut self, header: &Header, output: &mut Vec<u8>) {
        let found = self.table.find(header);
        let name_index = match found {
            Found::Both(index) => return integer::encode(index, 7, 0x80, output),
            Found::Name(index) => index,
            Found::Nothing => 0,
        };
        if RECURRING.contains(&&header.name[..]) {
            integer::encode(name_index, 6, 0x40, output);
            self.table.insert(header.clone());
        } else if SECRET.contains(&&header.name[..]) {
            integer::encode(name_index, 4, 0x10, output);
        } else {
            integer::encode(name_index, 4, 0x00, output);
        }
        if name_index == 0 {
            string(&header.name, output);
        }
        string(&header.value, output);
    }
}

fn string(octets: &[u8], output: &mut Vec<u8>) {
    let coded = huffman::encoded_len(octets);
    if coded < octets.len() {
        integer::encode(coded, 7, 0x80, output);
        huffman::encode(octets, output);
    } else {
        integer::encode(octets.len(), 7, 0x00, output);
        output.extend_from_slice(octets);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Decoder;
    use super::*;
    use proptest::prelude::*;

    fn round_trip(encoder: &mut Encoder, decoder: &mut Decoder, headers: &[Header]) -> usize {
        let mut block = Vec::new();
        encoder.encode(headers, &mut block);
        let mut decoded = Vec::new();
        decoder.decode(&block, usize::MAX, &mut decoded).unwrap();
        assert_eq!(decoded, headers);
        block.len()
    }

    #[test]
    fn a_recurring_header_takes_one_octet_the_second_time() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        let headers = [Header::new("content-type", "application/grpc")];
        assert!(round_trip(&mut encoder, &mut decoder, &headers) > 1);
        assert_eq!(round_trip(&mut encoder, &mut decoder, &headers), 1);
    }

    #[test]
    fn a_secret_enters_no_table_on_its_way() {
        let mut encoder = Encoder::new();
        let mut block = Vec::new();
        encoder.encode(&[Header::new("authorization", "Bearer x")], &mut block);
        assert_eq!(block[0] & 0xf0, 0x10);
        assert_eq!(encoder.table.dynamic_entries().0, []);
    }

    #[test]
    fn the_peer_hears_of_the_smallest_and_of_the_last_size() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        encoder.set_table_bytes_max(0);
        encoder.set_table_bytes_max(4096);
        let mut block = Vec::new();
        encoder.encode(&[], &mut block);
        assert_eq!(block, [0x20, 0x3f, 0xe1, 0x1f]);
        assert!(decoder.decode(&block, 100, &mut Vec::new()).is_ok());
        block.clear();
        encoder.encode(&[], &mut block);
        assert_eq!(block, []);
    }

    fn any_header() -> impl Strategy<Value = Header> {
        let name = prop_oneof![
            Just("content-type".to_owned()),
            Just(":path".to_owned()),
            Just("authorization".to_owned()),
            "[a-z-]{1,20}",
        ];
        let value = proptest::collection::vec(any::<u8>(), 0..60);
        (name, value).prop_map(|(name, value)| Header::new(name, bytes::Bytes::from(value)))
    }

    proptest! {
        #[test]
        fn any_headers_arrive_whatever_becomes_of_the_table(
            lists in proptest::collection::vec((proptest::collection::vec(any_header(), 0..10), 0..5000_usize), 1..10)
        ) {
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
            for (headers, table_bytes_max) in lists {
                round_trip(&mut encoder, &mut decoder, &headers);
                encoder.set_table_bytes_max(table_bytes_max);
            }
        }

        #[test]
        fn any_block_is_decoded_or_refused(block in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut headers = Vec::new();
            let _ = Decoder::new(4096).decode(&block, 1000, &mut headers);
            prop_assert!(headers.iter().map(Header::size).sum::<usize>() <= 1000);
        }
    }
}
