//! The Huffman code of HPACK (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: the lengths of its 257 codes determine the codes. So the lengths are the only table here, and
//! the compiler computes the rest.

use super::Error;

/// The number of symbols: every octet, and the end of the string.
const SYMBOLS: usize = 257;

/// The end of the string (EOS). Its code pads the last octet and may not occur as a symbol.
const END: u16 = 256;

/// The longest code, in bits.
const LONGEST: usize = 30;

/// The shortest code, in bits.
const SHORTEST: u32 = 5;

/// The length of each symbol's code, in bits (RFC 7541, appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// What decoding needs to know about the codes of one length.
#[derive(Clone, Copy)]
struct Row {
    /// The first 32-bit window, read from the left, that is beyond the codes of this length.
    end: u64,
    /// The first code of this length.
    first_code: u32,
    /// Where the symbols of this length begin in [`Code::ordered`].
    first_symbol: usize,
}

/// What follows from the lengths.
struct Code {
    /// The code of each symbol, in the low bits.
    codes: [u32; SYMBOLS],
    /// The symbols, ordered by their codes.
    ordered: [u16; SYMBOLS],
    /// By the length of a code.
    rows: [Row; LONGEST + 1],
}

static CODE: Code = compute();

const fn compute() -> Code {
    const NONE: Row = Row {
        end: 0,
        first_code: 0,
        first_symbol: 0,
    };
    let mut computed = Code {
        codes: [0; SYMBOLS],
        ordered: [0; SYMBOLS],
        rows: [NONE; LONGEST + 1],
    };
    let (mut code, mut at, mut length) = (0_u32, 0, 1);
    while length <= LONGEST {
        let (first_code, first_symbol) = (code, at);
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                computed.codes[symbol] = code;
                computed.ordered[at] = symbol as u16;
                code += 1;
                at += 1;
            }
            symbol += 1;
        }
        computed.rows[length] = Row {
            end: (code as u64) << (32 - length),
            first_code,
            first_symbol,
        };
        code <<= 1;
        length += 1;
    }
    computed
}

/// Appends what `input` encodes to `output`.
///
/// # Errors
/// [`Error::Huffman`] for the code of EOS, for padding longer than 7 bits, and for padding that is not all ones.
pub(super) fn decode(input: &[u8], output: &mut Vec<u8>) -> Result<(), Error> {
    let mut pending: u64 = 0;
    let mut bits: u32 = 0;
    for &octet in input {
        // At most 29 bits are left over from the octets before: a whole code would have been taken.
        pending = pending << 8 | u64::from(octet);
        bits += 8;
        while bits >= SHORTEST {
            let window = if bits >= 32 {
                pending >> (bits - 32)
            } else {
                pending << (32 - bits)
            };
            let (symbol, length) = first_symbol(window & 0xffff_ffff);
            if length > bits {
                break;
            }
            output.push(u8::try_from(symbol).map_err(|_| Error::Huffman)?);
            bits -= length;
            pending &= (1 << bits) - 1;
        }
    }
    let is_padding = bits < 8 && pending == (1 << bits) - 1;
    if is_padding {
        Ok(())
    } else {
        Err(Error::Huffman)
    }
}

/// The symbol whose code begins the 32 bits of `window`, and the length of that code.
fn first_symbol(window: u64) -> (u16, u32) {
    let mut length = SHORTEST as usize;
    while length < LONGEST && window >= CODE.rows[length].end {
        length += 1;
    }
    let row = &CODE.rows[length];
    let code = (window >> (32 - length)) as u32;
    let at = row.first_symbol + code.wrapping_sub(row.first_code) as usize;
    (CODE.ordered.get(at).copied().unwrap_or(END), length as u32)
}

/// The number of octets that [`encode`] makes of `input`.
pub(super) fn encoded_len(input: &[u8]) -> usize {
    let bits: usize = input
        .iter()
        .map(|&octet| usize::from(LENGTHS[usize::from(octet)]))
        .sum();
    bits.div_ceil(8)
}

/// Appends the code of `input` to `output`.
pub(super) fn encode(input: &[u8], output: &mut Vec<u8>) {
    let mut pending: u64 = 0;
    let mut bits: u32 = 0;
    for &octet in input {
        let length = u32::from(LENGTHS[usize::from(octet)]);
        pending = pending << length | u64::from(CODE.codes[usize::from(octet)]);
        bits += length;
        while bits >= 8 {
            bits -= 8;
            output.push((pending >> bits) as u8);
        }
    }
    if bits > 0 {
        let padding = 8 - bits;
        output.push((pending << padding | ((1 << padding) - 1)) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut output = Vec::new();
        decode(input, &mut output).map(|()| output)
    }

    #[test]
    fn the_computed_codes_are_those_of_appendix_b() {
        assert_eq!(CODE.codes[usize::from(b'0')], 0x0);
        assert_eq!(CODE.codes[usize::from(b' ')], 0x14);
        assert_eq!(CODE.codes[usize::from(b'~')], 0x1ffd);
        assert_eq!(CODE.codes[0], 0x1ff8);
        assert_eq!(CODE.codes[22], 0x3fff_fffe);
        assert_eq!(CODE.codes[255], 0x3ff_ffee);
        assert_eq!(CODE.codes[256], 0x3fff_ffff);
    }

    #[test]
    fn the_end_of_the_string_is_refused_as_a_symbol() {
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(Error::Huffman));
    }

    #[test]
    fn padding_is_shorter_than_an_octet_and_all_ones() {
        // 'a' is 00011: three bits of padding.
        assert_eq!(decoded(&[0b0001_1111]), Ok(b"a".to_vec()));
        assert_eq!(decoded(&[0b0001_1000]), Err(Error::Huffman));
        assert_eq!(decoded(&[0b0001_1111, 0xff]), Err(Error::Huffman));
        assert_eq!(decoded(&[0xff]), Err(Error::Huffman));
        assert_eq!(decoded(&[]), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut encoded = Vec::new();
            encode(&input, &mut encoded);
            prop_assert_eq!(encoded.len(), encoded_len(&input));
            prop_assert_eq!(decoded(&encoded), Ok(input));
        }

        #[test]
        fn any_octets_are_decoded_or_refused(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(output) = decoded(&input) {
                let mut again = Vec::new();
                encode(&output, &mut again);
                prop_assert_eq!(again, input);
            }
        }
    }
}
