//! Messages on a stream: the prefix of five octets, and gzip (gRPC over HTTP/2, "Length-Prefixed-Message").

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use prost::Message;

use crate::code::Code;
use crate::status::Status;

/// The octets before each message: a flag and a length.
pub(crate) const PREFIX_BYTES: usize = 5;

/// What `grpc-accept-encoding` says.
pub(crate) const ACCEPTED_ENCODINGS: &str = "identity,gzip";

/// A message as it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) is_compressed: bool,
    pub(crate) payload: Bytes,
}

/// Puts messages together from pieces of any size. Takes no memory for what was only announced.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    buffer: BytesMut,
}

impl Assembler {
    /// Adds a piece and appends the messages that are whole now.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED for a message that announces more than `bytes_max` octets, INTERNAL for an unknown flag.
    pub(crate) fn push(
        &mut self,
        piece: &[u8],
        bytes_max: usize,
        whole: &mut VecDeque<Received>,
    ) -> Result<(), Status> {
        self.buffer.extend_from_slice(piece);
        while let Some(&[flag, a, b, c, d]) = self.buffer.first_chunk() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if flag > 1 {
                return Err(Status::internal("a message has an unknown flag"));
            }
            if length > bytes_max {
                let text =
                    format!("a message of {length} bytes is larger than the limit of {bytes_max}");
                return Err(Status::new(Code::ResourceExhausted, text));
            }
            if self.buffer.len() < PREFIX_BYTES + length {
                break;
            }
            let mut message = self.buffer.split_to(PREFIX_BYTES + length).freeze();
            whole.push_back(Received {
                is_compressed: flag == 1,
                payload: message.split_off(PREFIX_BYTES),
            });
        }
        Ok(())
    }

    /// Octets of the message that is not whole.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }
}

/// A message for the wire, compressed if `gzip`.
pub(crate) fn encode<M: Message>(message: &M, gzip: bool) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let mut plain = BytesMut::with_capacity(PREFIX_BYTES + length);
    let too_large = |_| Status::new(Code::ResourceExhausted, "a message of more than 4 GiB");
    plain.put_u8(0);
    plain.put_u32(u32::try_from(length).map_err(too_large)?);
    let encoded = message.encode(&mut plain);
    encoded.map_err(|error| Status::internal(format!("cannot encode a message: {error}")))?;
    if !gzip {
        return Ok(plain.freeze());
    }
    pack(&plain[PREFIX_BYTES..])
        .map(Bytes::from)
        .map_err(|error| Status::internal(format!("cannot compress a message: {error}")))
}

fn pack(plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(vec![1, 0, 0, 0, 0], Compression::fast());
    encoder.write_all(plain)?;
    let mut packed = encoder.finish()?;
    let length = u32::try_from(packed.len() - PREFIX_BYTES).map_err(io::Error::other)?;
    packed[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(packed)
}

/// The encoding that a peer names for its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    #[default]
    Identity,
    Gzip,
}

impl Encoding {
    /// The encoding of a `grpc-encoding` header.
    ///
    /// # Errors
    /// UNIMPLEMENTED for one that is unknown.
    pub(crate) fn from_header(value: Option<&[u8]>) -> Result<Self, Status> {
        match value {
            None | Some(b"identity") => Ok(Self::Identity),
            Some(b"gzip") => Ok(Self::Gzip),
            Some(other) => {
                let text = format!("the encoding {} is not supported", other.escape_ascii());
                Err(Status::new(Code::Unimplemented, text))
            }
        }
    }
}

/// Decodes a message, decompressed to at most `bytes_max` octets.
///
/// # Errors
/// INTERNAL for octets that are no message, RESOURCE_EXHAUSTED for more than `bytes_max` of them.
pub(crate) fn decode<M: Message + Default>(
    received: Received,
    encoding: Encoding,
    bytes_max: usize,
) -> Result<M, Status> {
    let payload = match (received.is_compressed, encoding) {
        (false, _) => received.payload,
        (true, Encoding::Gzip) => unpack(&received.payload, bytes_max)?,
        (true, Encoding::Identity) => {
            let text = "a message is compressed, but grpc-encoding names no encoding";
            return Err(Status::internal(text));
        }
    };
    M::decode(payload)
        .map_err(|error| Status::internal(format!("cannot decode a message: {error}")))
}

fn unpack(packed: &[u8], bytes_max: usize) -> Result<Bytes, Status> {
    let mut plain = Vec::new();
    // One octet more than allowed tells the two apart.
    let limit = (bytes_max as u64).saturating_add(1);
    let unpacked = MultiGzDecoder::new(packed)
        .take(limit)
        .read_to_end(&mut plain);
    unpacked.map_err(|error| Status::internal(format!("cannot decompress a message: {error}")))?;
    if plain.len() > bytes_max {
        let text =
            format!("a message is larger than the limit of {bytes_max} bytes when decompressed");
        return Err(Status::new(Code::ResourceExhausted, text));
    }
    Ok(plain.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assemble(pieces: &[&[u8]], bytes_max: usize) -> Result<VecDeque<Received>, Status> {
        let (mut assembler, mut whole) = (Assembler::default(), VecDeque::new());
        for piece in pieces {
            assembler.push(piece, bytes_max, &mut whole)?;
        }
        Ok(whole)
    }

    #[test]
    fn a_message_larger_than_the_limit_is_refused_at_its_prefix() {
        let status = assemble(&[&[0, 0, 0, 0, 11]], 10).unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            assemble(&[&[2, 0, 0, 0, 1]], 10).unwrap_err().code(),
            Code::Internal
        );
    }

    #[test]
    fn a_small_message_that_unpacks_to_a_large_one_is_refused() {
        let packed = encode(&vec![0_u8; 1_000_000], true).unwrap();
        assert!(packed.len() < 10_000);
        let whole = || assemble(&[&packed], 10_000).unwrap().pop_front().unwrap();
        let refused = decode::<Vec<u8>>(whole(), Encoding::Gzip, 10_000).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(
            decode::<Vec<u8>>(whole(), Encoding::Gzip, 2_000_000)
                .unwrap()
                .len(),
            1_000_000
        );
        let unnamed = decode::<Vec<u8>>(whole(), Encoding::Identity, 2_000_000).unwrap_err();
        assert_eq!(unnamed.code(), Code::Internal);
    }

    #[test]
    fn an_unknown_encoding_is_unimplemented() {
        assert_eq!(
            Encoding::from_header(Some(b"br")).unwrap_err().code(),
            Code::Unimplemented
        );
    }

    proptest! {
        #[test]
        fn messages_are_whole_however_they_are_cut(
            messages in proptest::collection::vec((".*", any::<bool>()), 0..5),
            cut in 1..50_usize,
        ) {
            let mut wire = Vec::new();
            for (message, gzip) in &messages {
                wire.extend_from_slice(&encode(message, *gzip).unwrap());
            }
            let pieces: Vec<&[u8]> = wire.chunks(cut).collect();
            let whole = assemble(&pieces, 1_000_000).unwrap();
            let received: Vec<String> =
                whole.into_iter().map(|whole| decode(whole, Encoding::Gzip, 1_000_000).unwrap()).collect();
            let sent: Vec<String> = messages.into_iter().map(|(message, _)| message).collect();
            prop_assert_eq!(received, sent);
        }
    }
}
