//! Memory of large messages, used again once nobody refers to it. Fresh memory costs the kernel a
//! page fault and a cleared page for every 4 KiB.

use bytes::{Bytes, BytesMut};

/// Smaller messages are not kept: the allocator has memory for them at hand.
const KEPT_BYTES_MIN: usize = 64 * 1024;

/// The most messages to watch. An application may keep records of any number of answers.
const KEPT_MAX: usize = 32;

/// The last large messages of one connection.
#[derive(Debug, Default)]
pub(super) struct Spares(Vec<Bytes>);

impl Spares {
    /// An empty buffer for a message of `bytes` bytes: the memory of an earlier one that fits, or
    /// none yet.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<u8> {
        // A small message must not hold much more memory than it is counted with.
        let fits = bytes / 2..=bytes.saturating_mul(2);
        let is_free = |one: &Bytes| one.is_unique() && fits.contains(&one.len());
        let free = self.0.iter().position(is_free);
        let free = free.and_then(|index| self.0.remove(index).try_into_mut().ok());
        free.filter(|one| fits.contains(&one.capacity()))
            .map_or_else(Vec::new, |mut one: BytesMut| {
                one.clear();
                one.into()
            })
    }

    /// Watches a message.
    pub(super) fn keep(&mut self, message: &Bytes) {
        if message.len() < KEPT_BYTES_MIN {
            return;
        }
        if self.0.len() >= KEPT_MAX {
            self.0.remove(0);
        }
        self.0.push(message.clone());
    }

    /// Frees what nobody uses.
    pub(super) fn trim(&mut self) {
        self.0.retain(|one| !one.is_unique());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(spares: &mut Spares, bytes: usize) -> Bytes {
        let mut buffer = spares.take(bytes);
        spares.trim();
        buffer.resize(bytes, 1);
        let answer = Bytes::from(buffer);
        spares.keep(&answer);
        answer
    }

    #[test]
    fn memory_is_used_again_once_its_last_record_is_gone() {
        let mut spares = Spares::default();
        let first = answer(&mut spares, 1_000_000);
        let place = first.as_ptr();
        let record = first.slice(500..600);
        drop(first);
        let second = answer(&mut spares, 1_000_000);
        assert_ne!(second.as_ptr(), place);
        assert_eq!(record[..], [1; 100]);
        drop(record);
        let third = spares.take(900_000);
        assert_eq!((third.as_ptr(), third.len()), (place, 0));
    }

    #[test]
    fn what_nobody_uses_can_be_freed() {
        let mut spares = Spares::default();
        let used = answer(&mut spares, 1_000_000);
        drop(answer(&mut spares, 1_000_000));
        assert_eq!(spares.0.len(), 2);
        assert_eq!(answer(&mut spares, 100).len(), 100);
        assert_eq!(spares.0.len(), 1);
        assert!(!used.is_unique());
    }

    #[test]
    fn it_watches_few_messages() {
        let mut spares = Spares::default();
        let used: Vec<Bytes> = (0..40).map(|_| answer(&mut spares, 100_000)).collect();
        assert_eq!(spares.0.len(), KEPT_MAX);
        assert!(used[0].is_unique());
    }
}
