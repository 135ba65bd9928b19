//! The partition of a key, as the Java client computes it.
//!
//! The same rule in all clients puts a key into the same partition:
//! `(murmur2(key) & 0x7fffffff) % partitions` (`org.apache.kafka.common.utils.Utils.murmur2`).

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use crate::error::Error;

type Rule = dyn Fn(&str, Option<&[u8]>, i32) -> Option<i32> + Send + Sync;

/// A rule for the partition of a record that names none. The default is that of the Java client.
#[derive(Clone, Default)]
pub struct Partitioner(Option<Arc<Rule>>);

impl Partitioner {
    /// A rule that gets a record's topic, its key and the number of partitions. It returns a
    /// partition, or `None` for one that gathers a batch. The producer calls it with a lock held:
    /// it must be quick, and must not use the producer. If it panics, the record fails.
    pub fn new(
        rule: impl Fn(&str, Option<&[u8]>, i32) -> Option<i32> + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(rule)))
    }

    /// # Errors
    /// When the rule panics: other records and the producer's threads must not suffer for it.
    pub(super) fn partition(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        count: i32,
    ) -> Result<Option<i32>, Error> {
        let Some(rule) = &self.0 else {
            return Ok(key.map(|key| partition_for_key(key, count)));
        };
        let call = AssertUnwindSafe(|| rule(topic, key, count));
        std::panic::catch_unwind(call).map_err(|_| Error::InvalidRecord {
            reason: format!("the partitioner panicked for a record of topic {topic}"),
        })
    }
}

impl fmt::Debug for Partitioner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Partitioner")
    }
}

/// The partition of `key` among `partitions`; 0 when there are none.
pub fn partition_for_key(key: &[u8], partitions: i32) -> i32 {
    if partitions <= 0 {
        return 0;
    }
    let positive = murmur2(key) & 0x7fff_ffff;
    // Both are below 2^31, so the conversion is exact.
    i32::try_from(positive).unwrap_or(0) % partitions
}

/// MurmurHash2, 32 bit, with Kafka's seed.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    // Java's lengths have 32 bits; a longer key cannot be sent anyway.
    let mut hash = SEED ^ (data.len() as u32);
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        k = k.wrapping_mul(M);
        k ^= k >> R;
        k = k.wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_are_those_of_the_java_client() {
        let vectors: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (key, hash) in vectors {
            assert_eq!(murmur2(key), hash as u32, "{key:?}");
        }
    }

    #[test]
    fn a_partition_is_always_within_the_topic() {
        for key in [&b""[..], b"a", b"order", b"21"] {
            assert!((0..16).contains(&partition_for_key(key, 16)));
        }
        assert_eq!(partition_for_key(b"a", 0), 0);
    }
}
