//! Offsets that a transactional producer commits instead of the consumer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use super::commit::Offsets;
use super::partitions::Lookup;
use super::reading::Reading;
use super::{CommitError, Consumer};
use crate::group::machine::Identity;
use crate::group::{OffsetAndMetadata, TopicPartition};

/// Offsets of a group, for
/// [`Transaction::send_offsets`](crate::producer::Transaction::send_offsets).
#[derive(Clone, Debug)]
pub struct GroupOffsets {
    pub(crate) group_id: String,
    pub(crate) instance_id: Option<String>,
    /// The member for which they are committed; `None` when it was expelled, or rejoins.
    pub(crate) member: Option<Identity>,
    pub(crate) offsets: Offsets,
    /// How the transaction ended, once that is known.
    pub(crate) is_committed: Arc<OnceLock<bool>>,
}

impl GroupOffsets {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// For each partition the next offset to read.
    pub fn offsets(&self) -> BTreeMap<TopicPartition, i64> {
        let offsets = self.offsets.iter();
        offsets
            .map(|(name, it)| (name.clone(), it.offset))
            .collect()
    }
}

/// Offsets that were given to transactions.
#[derive(Default)]
pub(super) struct Given {
    /// Those whose transaction may be undecided.
    undecided: Vec<(Offsets, Arc<OnceLock<bool>>)>,
    /// Partitions whose committed offset only the coordinator knows.
    unsure: BTreeSet<TopicPartition>,
}

impl Consumer {
    /// The offsets of all records handed out so far, for a transaction to commit: what
    /// [`commit_polled`](Self::commit_polled) would commit. Call it after the poll whose records the
    /// transaction processes, and before the next one.
    ///
    /// If the commit fails, let the producer
    /// [`settle`](crate::producer::TransactionalProducer::settle) the transaction, then call
    /// [`rewind`](Self::rewind). If the consumer is no
    /// member of its group now, the transaction will refuse the offsets.
    pub fn polled_offsets(&mut self) -> GroupOffsets {
        let offsets = self.reading.polled();
        self.give_to_transaction(offsets)
    }

    /// As [`polled_offsets`](Self::polled_offsets), for pairs of a partition and the next offset to
    /// read, an `i64` or an [`OffsetAndMetadata`].
    ///
    /// # Errors
    /// When one of the partitions is not assigned, or an offset is negative.
    pub fn offsets_to_commit<T: Into<OffsetAndMetadata> + Clone>(
        &mut self,
        offsets: &[(TopicPartition, T)],
    ) -> Result<GroupOffsets, CommitError> {
        let offsets = self.reading.to_commit(offsets)?;
        Ok(self.give_to_transaction(offsets))
    }

    fn give_to_transaction(&mut self, offsets: Offsets) -> GroupOffsets {
        let member = match &self.member {
            Some(member) => member.commit_identity().ok(),
            None => Some(Identity::nobody()),
        };
        self.reading.learn_outcomes();
        let given = GroupOffsets {
            group_id: self.reading.config.group_id.clone(),
            instance_id: self.reading.config.group_instance_id.clone(),
            member,
            offsets,
            is_committed: Arc::default(),
        };
        let remembered = (given.offsets.clone(), Arc::clone(&given.is_committed));
        self.reading.given.undecided.push(remembered);
        given
    }
}

impl Reading {
    /// Takes note of the transactions that are over.
    pub(super) fn learn_outcomes(&mut self) {
        for (offsets, outcome) in std::mem::take(&mut self.given.undecided) {
            match outcome.get() {
                Some(false) => {}
                Some(true) => {
                    for (name, wanted) in &offsets {
                        if let Some(partition) = self.partitions.get_mut(name) {
                            partition.committed(wanted);
                        }
                    }
                }
                // Nobody will say it any more.
                None if Arc::strong_count(&outcome) == 1 => {
                    self.given.unsure.extend(offsets.into_keys());
                }
                None => self.given.undecided.push((offsets, outcome)),
            }
        }
    }

    /// Returns to the last commit. Where only the coordinator knows it, it is asked; its answer
    /// waits for the transaction.
    pub(super) fn rewind(&mut self) {
        self.learn_outcomes();
        let mut unsure = std::mem::take(&mut self.given.unsure);
        for (offsets, _) in self.given.undecided.drain(..) {
            unsure.extend(offsets.into_keys());
        }
        for (name, partition) in &mut self.partitions {
            match unsure.contains(name) {
                true => partition.look_up(Lookup::Committed),
                false => partition.rewind(),
            }
        }
    }
}
