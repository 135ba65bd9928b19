//! Groups that pass from Java to this client and back while records are being written.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tbd_deadline::StopSignal;
use tbd_kafka::admin::all;
use tbd_kafka::consumer::GroupProtocol;
use tbd_kafka::{Admin, ProducerConfig, Reader};

use crate::client::{cluster, record, soon, start};
use crate::mixed::{Group, PARTITIONS, PATIENCE};
use crate::support::eventually;
use crate::support::features::has_consumer_protocol;

/// Time between two writes.
const INTERVAL: Duration = Duration::from_millis(50);

/// Writes five records to each partition in each interval until `stop`. Returns the number of
/// records in each partition.
fn write(topic: &str, stop: &StopSignal) -> i64 {
    let producer = start(&cluster(), ProducerConfig::default());
    let mut written = 0;
    while !stop.is_stopped() {
        let records = (0..5 * PARTITIONS).map(|number| {
            let mut one = record(topic, number.to_string(), "v".to_owned());
            one.partition = Some(number % PARTITIONS);
            one
        });
        for outcome in producer.publish(records.collect(), soon()) {
            outcome.unwrap();
        }
        written += 5;
        stop.wait_for(INTERVAL);
    }
    producer.close(soon()).unwrap();
    written
}

/// Waits until the group has read two hundred more records.
fn wait_for_progress(group: &Group) {
    let count = || group.seen.lock().unwrap().read.len();
    let before = count();
    eventually(PATIENCE, "more records to be read", || {
        (count() >= before + 200).then_some(())
    });
}

fn text(bytes: &mut Bytes) -> String {
    let length = bytes.get_u16();
    let text = bytes.split_to(length.into());
    String::from_utf8(text.to_vec()).unwrap()
}

/// All commits of the group in the order of the coordinator's log: partition and offset.
fn commits(group: &Group) -> Vec<(i32, i64)> {
    const OFFSETS: &str = "__consumer_offsets";
    let ranges = Reader::ranges(&cluster(), OFFSETS, soon()).unwrap();
    // The group's partition, as brokers find it: Java's hash of its name.
    let hash = group.group.bytes().fold(0_i32, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(i32::from(byte))
    });
    let number = hash.checked_abs().unwrap_or(0) % i32::try_from(ranges.len()).unwrap();
    let range = ranges[usize::try_from(number).unwrap()].clone();
    let mut reader = Reader::new(cluster(), OFFSETS, [(number, range)]);
    let mut commits = Vec::new();
    loop {
        let records = reader.read(soon()).unwrap();
        if records.is_empty() {
            return commits;
        }
        for record in records {
            let (Some(mut key), Some(mut value)) = (record.key, record.value) else {
                continue;
            };
            // Versions 0 and 1 of a key are a commit's.
            if key.get_i16() > 1 || text(&mut key) != group.group {
                continue;
            }
            assert_eq!(text(&mut key), group.topic);
            value.advance(2);
            commits.push((key.get_i32(), value.get_i64()));
        }
    }
}

fn pass_to_and_fro(protocol: GroupProtocol) {
    let group = Group::of(protocol);
    let stop = StopSignal::new();
    let writer = {
        let (topic, stop) = (group.topic.clone(), stop.clone());
        thread::spawn(move || write(&topic, &stop))
    };
    let mut member = group.join("java");
    group.wait_for_shares(&["java"]);
    wait_for_progress(&group);
    for (old, new) in [("java", "ours"), ("ours", "java")] {
        let next = group.join(new);
        group.wait_for_shares(&[old, new]);
        wait_for_progress(&group);
        drop(std::mem::replace(&mut member, next));
        group.wait_for_shares(&[new]);
        wait_for_progress(&group);
    }
    stop.stop();
    let written = writer.join().unwrap();

    let admin = Admin::new(cluster());
    eventually(PATIENCE, "all to be committed", || {
        let committed = admin.committed_offsets(&group.group, soon());
        let committed = committed.and_then(all).ok()?;
        let mut offsets = committed.values().map(|it| it.offset);
        (committed.len() == PARTITIONS as usize && offsets.all(|it| it == written)).then_some(())
    });
    drop(member);
    let read: BTreeSet<(i64, i64)> = group.seen.lock().unwrap().read.iter().copied().collect();
    for partition in 0..i64::from(PARTITIONS) {
        let mut offsets = 0..written;
        assert!(
            offsets.all(|offset| read.contains(&(partition, offset))),
            "partition {partition} has unread records"
        );
    }
    let mut last = BTreeMap::new();
    for (partition, offset) in commits(&group) {
        let before = last.insert(partition, offset).unwrap_or(0);
        assert!(
            before <= offset,
            "partition {partition}: {before}, then {offset}"
        );
    }
    assert_eq!(
        last.len(),
        PARTITIONS as usize,
        "the commits are in the log"
    );
}

#[test]
fn a_busy_group_passes_from_java_to_this_client_and_back_without_a_gap() {
    pass_to_and_fro(GroupProtocol::Classic);
}

#[test]
fn a_busy_group_of_the_consumer_protocol_passes_from_java_to_this_client_and_back_without_a_gap() {
    if has_consumer_protocol() {
        pass_to_and_fro(GroupProtocol::Consumer);
    }
}
