//! Integers with a prefix of some bits (RFC 7541, section 5.1).

use super::Error;

/// No index and no length is larger: blocks are bounded far below.
const MAX: usize = 1 << 24;

/// Appends `value`, whose first octet has `prefix_bits` bits for it and `flags` in the others.
pub(super) fn encode(value: usize, prefix_bits: u32, flags: u8, output: &mut Vec<u8>) {
    let full = (1 << prefix_bits) - 1;
    if value < full {
        output.push(flags | value as u8);
        return;
    }
    output.push(flags | full as u8);
    let mut rest = value - full;
    while rest >= 0x80 {
        output.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    output.push(rest as u8);
}

/// Takes an integer off the front of `input`.
pub(super) fn decode(input: &mut &[u8], prefix_bits: u32) -> Result<usize, Error> {
    let full = (1 << prefix_bits) - 1;
    let mut value = usize::from(take(input)?) & full;
    if value < full {
        return Ok(value);
    }
    // Four octets hold 28 bits, which is more than `MAX` has.
    for shift in [0, 7, 14, 21] {
        let octet = usize::from(take(input)?);
        value += (octet & 0x7f) << shift;
        if value > MAX {
            return Err(Error::Integer);
        }
        if octet & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Integer)
}

fn take(input: &mut &[u8]) -> Result<u8, Error> {
    let (&octet, rest) = input.split_first().ok_or(Error::Truncated)?;
    *input = rest;
    Ok(octet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_appendix_c_1() {
        for (value, prefix_bits, octets) in [
            (10, 5, &[0x0a][..]),
            (1337, 5, &[0x1f, 0x9a, 0x0a]),
            (42, 8, &[0x2a]),
        ] {
            let mut output = Vec::new();
            encode(value, prefix_bits, 0, &mut output);
            assert_eq!(output, octets);
            assert_eq!(decode(&mut &octets[..], prefix_bits), Ok(value));
        }
    }

    #[test]
    fn an_integer_that_never_ends_is_refused() {
        assert_eq!(
            decode(&mut &[0x1f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00][..], 5),
            Err(Error::Integer)
        );
        assert_eq!(
            decode(&mut &[0x1f, 0xff, 0xff, 0xff, 0x7f][..], 5),
            Err(Error::Integer)
        );
        assert_eq!(decode(&mut &[0x1f, 0x80][..], 5), Err(Error::Truncated));
        assert_eq!(decode(&mut &[][..], 5), Err(Error::Truncated));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(value in 0..MAX, prefix_bits in 1..=8_u32) {
            let mut output = Vec::new();
            encode(value, prefix_bits, 0, &mut output);
            let mut input = &output[..];
            prop_assert_eq!(decode(&mut input, prefix_bits), Ok(value));
            prop_assert!(input.is_empty());
        }
    }
}
