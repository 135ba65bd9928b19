use std::time::Duration;

use bytes::BytesMut;
use kafka_protocol::records::{
    self, Compression, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

use super::*;

#[test]
fn a_truncated_log_is_read_and_committed_again_from_its_divergence() {
    let mut partition = Partition::new(None);
    partition.start_committed(committed(50, 3));
    partition.diverged(49, 40);
    assert_eq!(partition.position(), Some(50), "stale news");
    partition.diverged(50, 40);
    assert_eq!(partition.position(), Some(40));
    assert_eq!(partition.to_commit(), Some((40, -1)));
    assert!(!partition.is_backwards(41));
    // The logs diverge before the position, but the new one is no shorter: nothing is skipped.
    partition.diverged(40, 90);
    assert_eq!(partition.position(), Some(40));
}

#[test]
fn records_are_fetched_from_the_replica_that_the_leader_named_until_the_leader_is_due_or_changes() {
    let now = Instant::now();
    let until = now + Duration::from_secs(1);
    let mut partition = Partition::starting(StartAt::Offset(7));
    assert_eq!(partition.node_to_ask((1, 3), now), 1);
    partition.read_replica = Some(ReadReplica {
        node: 2,
        leader_epoch: 3,
        until,
    });
    assert_eq!(partition.node_to_ask((1, 3), now), 2);
    assert_eq!(partition.node_to_ask((1, 3), until), 1);
    assert_eq!(partition.node_to_ask((5, 4), now), 5);
    // Only the leader knows where the log begins and ends.
    partition.reset(ResetTo::Latest);
    assert_eq!(partition.node_to_ask((1, 3), now), 1);
}

/// A batch with these offsets. `last` may be higher than any of them.
fn batch(offsets: &[i64], last: i64) -> Vec<u8> {
    let records: Vec<records::Record> = offsets
        .iter()
        .map(|&offset| records::Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: 4,
            producer_id: -1,
            producer_epoch: -1,
            timestamp_type: TimestampType::Creation,
            offset,
            sequence: offset as i32,
            timestamp: 0,
            key: None,
            value: Some(Bytes::from_static(b"v")),
            headers: Default::default(),
        })
        .collect();
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    RecordBatchEncoder::encode(&mut bytes, &records, &options).unwrap();
    let delta = (last - offsets[0]) as i32;
    bytes[23..27].copy_from_slice(&delta.to_be_bytes());
    let checksum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    bytes.to_vec()
}

fn name() -> TopicPartition {
    TopicPartition::new("t", 0)
}

fn hand_out(partition: &mut Partition, max: usize) -> Vec<i64> {
    let mut out = Vec::new();
    partition.hand_out(&name(), max, &mut out).unwrap();
    out.iter().map(|record| record.offset).collect()
}

fn fetched(partition: &mut Partition, offset: i64, records: Bytes) -> bool {
    let answer = AnswerBytes::new(records.len());
    partition.fetched(offset, records, Vec::new(), &answer)
}

fn committed(offset: i64, leader_epoch: i32) -> OffsetAndMetadata {
    OffsetAndMetadata {
        leader_epoch,
        ..OffsetAndMetadata::from(offset)
    }
}

fn commit(partition: &mut Partition, offset: impl Into<OffsetAndMetadata>) {
    let wanted = partition.offset_to_commit(offset.into());
    partition.committed(&wanted);
}

fn at(offset: i64) -> Partition {
    let mut partition = Partition::new(None);
    partition.start_committed(committed(offset, 1));
    partition
}

#[test]
fn records_below_the_position_are_dropped_and_gaps_are_passed_over() {
    let mut partition = at(12);
    // A fetch at 12 returns the batch from 10 on, whose end was compacted away.
    assert!(fetched(&mut partition, 12, batch(&[10, 12, 13], 19).into()));
    assert_eq!(hand_out(&mut partition, 9), [12, 13]);
    assert!(partition.is_drained());
    assert_eq!(partition.position(), Some(20));
    assert_eq!(partition.to_commit(), Some((20, 4)));
}

#[test]
fn a_batch_that_compaction_emptied_moves_the_position_on() {
    let mut partition = at(12);
    // All its records are below the position, but the batch extends to 19.
    assert!(fetched(&mut partition, 12, batch(&[10], 19).into()));
    assert_eq!(hand_out(&mut partition, 9), [0; 0]);
    assert_eq!(partition.position(), Some(20));
}

#[test]
fn an_answer_for_an_earlier_position_is_stale() {
    let mut partition = at(0);
    partition.seek(5);
    assert!(!fetched(&mut partition, 0, batch(&[0, 1], 1).into()));
    assert!(partition.is_drained());
    partition.reset(ResetTo::Earliest);
    assert!(!fetched(&mut partition, 5, batch(&[5], 5).into()));
    assert_eq!((partition.position(), partition.to_commit()), (None, None));
}

#[test]
fn a_partly_handed_out_batch_continues_in_order() {
    let mut partition = at(0);
    let mut bytes = batch(&[0, 1, 2], 2);
    bytes.extend(batch(&[3, 4], 4));
    assert!(fetched(&mut partition, 0, bytes.into()));
    assert_eq!(hand_out(&mut partition, 2), [0, 1]);
    assert_eq!(partition.to_commit(), Some((2, 4)));
    assert_eq!(hand_out(&mut partition, 2), [2, 3]);
    assert!(!partition.is_drained());
    assert_eq!(hand_out(&mut partition, 2), [4]);
    assert!(partition.is_drained());
}

#[test]
fn rewinding_goes_back_to_the_last_commit_from_any_point() {
    let mut partition = at(0);
    for handed_out in 0..=3 {
        assert!(fetched(&mut partition, 0, batch(&[0, 1, 2], 2).into()));
        hand_out(&mut partition, handed_out);
        partition.rewind();
        assert_eq!(partition.position(), Some(0));
        if handed_out == 0 {
            assert_eq!(hand_out(&mut partition, 9), [0, 1, 2]);
            partition.rewind();
        }
        assert_eq!(hand_out(&mut partition, 9), [0; 0]);
        assert_eq!(partition.position(), Some(0));
    }
    assert!(fetched(&mut partition, 0, batch(&[0, 1, 2], 2).into()));
    hand_out(&mut partition, 2);
    commit(&mut partition, 2);
    hand_out(&mut partition, 1);
    partition.rewind();
    assert_eq!(partition.position(), Some(2));
}

#[test]
fn rewinding_goes_back_to_where_a_seek_began() {
    let mut partition = Partition::new(None);
    partition.seek(7);
    assert!(fetched(&mut partition, 7, batch(&[7, 8], 8).into()));
    hand_out(&mut partition, 9);
    partition.rewind();
    assert_eq!(partition.position(), Some(7));
}

#[test]
fn a_seek_to_an_end_of_the_log_changes_no_commit() {
    for is_found in [true, false] {
        let mut partition = Partition::new(None);
        partition.start_committed(5.into());
        partition.seek_to(ResetTo::Earliest);
        assert_eq!((partition.position(), partition.to_commit()), (None, None));
        if is_found {
            partition.found(2);
            assert_eq!(partition.position(), Some(2));
        }
        assert_eq!(partition.committed_offset().map(|it| it.offset), Some(5));
        partition.rewind();
        assert_eq!(partition.position(), Some(5));
    }
    // Reading has not begun yet, so it begins there.
    let mut partition = Partition::new(None);
    partition.seek_to(ResetTo::Latest);
    partition.rewind();
    assert_eq!(partition.position(), None);
    partition.found(9);
    assert_eq!(partition.to_commit(), Some((9, -1)));
    partition.rewind();
    assert_eq!(partition.position(), Some(9));
}

#[test]
fn commits_do_not_go_backwards_and_are_not_repeated() {
    let mut partition = at(5);
    assert_eq!(partition.to_commit(), None);
    assert!(partition.is_backwards(4) && !partition.is_backwards(5));
    commit(&mut partition, 4);
    partition.seek(9);
    assert_eq!(partition.to_commit(), Some((9, -1)));
    commit(&mut partition, 9);
    assert_eq!(partition.to_commit(), None);
    partition.rewind();
    assert_eq!(partition.position(), Some(9));
}

#[test]
fn metadata_belongs_to_the_offset_that_it_was_committed_with() {
    let mut partition = Partition::new(None);
    partition.start_committed(OffsetAndMetadata::new(5, "of another client"));
    let stored = |partition: &Partition| partition.committed_offset().unwrap().metadata.clone();
    assert_eq!(stored(&partition).as_deref(), Some("of another client"));
    commit(&mut partition, 5);
    assert_eq!(stored(&partition).as_deref(), Some("of another client"));
    commit(&mut partition, 6);
    assert_eq!(stored(&partition), None);
    commit(&mut partition, OffsetAndMetadata::new(6, "new"));
    assert_eq!(stored(&partition).as_deref(), Some("new"));
    commit(&mut partition, OffsetAndMetadata::new(6, ""));
    assert_eq!(stored(&partition), None);
}

#[test]
fn where_a_new_group_began_is_worth_a_commit() {
    let mut partition = Partition::new(None);
    partition.start_at(7);
    assert_eq!(partition.to_commit(), Some((7, -1)));
    assert!(!partition.is_backwards(3));
}

#[test]
fn lag_counts_what_is_not_committed() {
    let mut partition = at(5);
    assert_eq!(partition.lag(), None);
    partition.end = Some(9);
    partition.seek(8);
    assert_eq!(partition.lag(), Some(4));
    commit(&mut partition, 9);
    assert_eq!(partition.lag(), Some(0));
}

#[test]
fn half_a_batch_is_no_progress_and_damage_is_an_error_once() {
    let mut partition = at(0);
    let whole = batch(&[0], 0);
    assert!(fetched(&mut partition, 0, whole[..40].to_vec().into()));
    assert!(!partition.hand_out(&name(), 9, &mut Vec::new()).unwrap());
    let mut damaged = whole;
    damaged[60] ^= 1;
    assert!(fetched(&mut partition, 0, damaged.into()));
    partition.hand_out(&name(), 9, &mut Vec::new()).unwrap_err();
    assert_eq!(
        (partition.is_drained(), partition.position()),
        (true, Some(0))
    );
}

#[test]
fn one_answer_is_fetched_ahead_of_the_one_that_is_handed_out() {
    let mut partition = at(0);
    let next = batch(&[2], 2);
    // The next batch is truncated and comes again.
    let first = [&batch(&[0, 1], 1)[..], &next[..30]].concat();
    assert!(fetched(&mut partition, 0, first.into()));
    assert_eq!(
        (partition.fetch_position(), partition.fetch_epoch()),
        (Some(2), 4)
    );
    assert!(partition.has_room());
    assert!(fetched(&mut partition, 2, next.into()));
    assert!(!partition.has_room());
    assert_eq!(hand_out(&mut partition, 1), [0]);
    assert_eq!(hand_out(&mut partition, 9), [1, 2]);
    assert!(partition.is_drained());
    assert_eq!(partition.position(), partition.fetch_position());
}

#[test]
fn what_was_fetched_ahead_is_dropped_when_the_position_moves() {
    for seek in [true, false] {
        let mut partition = at(0);
        assert!(fetched(&mut partition, 0, batch(&[0, 1], 1).into()));
        assert!(fetched(&mut partition, 2, batch(&[2], 2).into()));
        assert_eq!(hand_out(&mut partition, 1), [0]);
        match seek {
            true => partition.seek(7),
            // The log diverges after the records handed out.
            false => partition.diverged(3, 2),
        }
        assert!(partition.is_drained());
        assert_eq!(partition.position(), Some(if seek { 7 } else { 1 }));
        assert_eq!(partition.fetch_position(), partition.position());
        assert!(!fetched(&mut partition, 3, batch(&[3], 3).into()), "stale");
    }
}
