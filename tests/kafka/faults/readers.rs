//! Error codes for consumers without a membership, and for `Reader`.

use std::collections::BTreeSet;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_kafka::consumer::StartAt;
use tbd_kafka::{
    ApiKey, Cluster, CommitError, Consumer, ConsumerConfig, Error, ErrorCode, Reader,
    TopicPartition,
};

use super::members::read_three;
use super::tables::ErrorTable;
use super::{At, Case, Kfake, LIMIT, THREADS, check_all, committed, publish_three};
use crate::client::{soon, text, topic};
use crate::support::unique;

fn assigned(cluster: &Cluster, group: &str, topic: &str, start: StartAt) -> Consumer {
    let mut config = ConsumerConfig::without_group();
    config.group_id = group.to_owned();
    let partitions = [(TopicPartition::new(topic, 0), start)];
    Consumer::start_assigned(cluster.clone(), config, partitions, Box::new(())).unwrap()
}

/// `check` meets each case once, with a topic of three records of its own, a handle on the cluster
/// that knows the topic, and the table's reaction.
fn check_topics(apis: &[ApiKey], check: impl Fn(Case, &Kfake, &Cluster, &str, &str) + Sync) {
    let (kfake, table) = (Kfake::start(), ErrorTable::under("### Reading"));
    check_all(apis, THREADS, |case| {
        let cluster = kfake.cluster();
        let topic = topic(&cluster, 1);
        publish_three(&cluster, &topic);
        let reaction = case.reaction(&table, &format!("{:?}", case.api));
        let fault = case.install(&kfake, At::Topic(&topic));
        check(case, &kfake, &cluster, &topic, reaction);
        assert_eq!(fault.hits(), 1, "{case:?}");
    });
}

#[test]
fn an_assigned_consumer_recovers_from_every_code_or_reports_it_and_reads_on() {
    let apis = [ApiKey::Metadata, ApiKey::ListOffsets, ApiKey::Fetch];
    check_topics(&apis, |case, _, cluster, topic, reaction| {
        let mut consumer = assigned(cluster, "", topic, StartAt::Beginning);
        check_reading(case, &mut consumer, reaction);
    });
}

/// These faults meet any client, so there is one at a time.
#[test]
fn a_code_for_the_whole_answer_to_a_fetch_or_about_metadata_is_retried() {
    let kfake = Kfake::start();
    let cluster = kfake.cluster();
    let topic = topic(&cluster, 1);
    publish_three(&cluster, &topic);
    check_all(&[ApiKey::Fetch, ApiKey::Metadata], 1, |case| {
        let fault = case.install(&kfake, At::Whole);
        let mut consumer = assigned(&kfake.cluster(), "", &topic, StartAt::Beginning);
        check_reading(case, &mut consumer, "retry");
        assert_eq!(fault.hits(), 1, "{case:?}");
    });
}

fn check_reading(case: Case, consumer: &mut Consumer, reaction: &str) {
    let mut values = BTreeSet::new();
    let failed = read_three(consumer, &mut values).err();
    let code = failed.as_ref().map(Error::code);
    let expected = (reaction == "report").then_some(Some(case.code));
    assert_eq!(code, expected, "{case:?} {reaction} {failed:?}");
    read_three(consumer, &mut values).unwrap();
}

#[test]
fn a_commit_without_a_membership_is_repeated_after_passing_codes_and_fails_after_others() {
    let kfake = Kfake::start();
    let apis = [
        ApiKey::FindCoordinator,
        ApiKey::OffsetCommit,
        ApiKey::OffsetFetch,
    ];
    check_all(&apis, THREADS, |case| {
        let cluster = kfake.cluster();
        let (topic, group) = (topic(&cluster, 1), unique("group"));
        publish_three(&cluster, &topic);
        let is_passing = case.code.is_retriable() || case.code == ErrorCode::RebalanceInProgress;
        let is_passing = match case.api {
            ApiKey::OffsetFetch => is_passing || is_of_members(case.code),
            _ => is_passing,
        };
        let expected = (!is_passing).then_some(case.code);
        let mut consumer = assigned(&cluster, &group, &topic, StartAt::Beginning);
        read_three(&mut consumer, &mut BTreeSet::new()).unwrap();
        if case.api == ApiKey::OffsetFetch {
            consumer.commit_polled(soon()).unwrap();
        }
        let fault = case.install(&kfake, At::Group(&group));
        let started = std::time::Instant::now();
        let code = match case.api {
            ApiKey::OffsetFetch => {
                let mut consumer = assigned(&cluster, &group, &topic, StartAt::Committed);
                let name = TopicPartition::new(&*topic, 0);
                let end = Deadline::after(LIMIT);
                loop {
                    assert!(!end.is_past(), "{case:?}");
                    match consumer.poll(Deadline::after(Duration::from_millis(50))) {
                        Ok(_) if consumer.position(&name) == Some(3) => break None,
                        Err(error) if !error.is_transient() => break error.code(),
                        _ => {}
                    }
                }
            }
            _ => match consumer.commit_polled(soon()) {
                Ok(()) => None,
                Err(CommitError::Refused(error)) => error.code(),
                Err(error) => panic!("{case:?} {error:?}"),
            },
        };
        assert_eq!(code, expected, "{case:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{case:?}");
        assert_eq!(fault.hits(), 1, "{case:?}");
        consumer.commit_polled(soon()).unwrap();
        assert_eq!(committed(&cluster, &group, &topic), Some(3), "{case:?}");
    });
}

/// Whether the code says that a membership is over.
fn is_of_members(code: ErrorCode) -> bool {
    use ErrorCode as E;
    matches!(
        code,
        E::UnknownMemberId | E::IllegalGeneration | E::FencedMemberEpoch | E::StaleMemberEpoch
    )
}

#[test]
fn a_reader_recovers_from_every_code_or_reports_it_and_reads_on() {
    let apis = [ApiKey::Metadata, ApiKey::Fetch];
    check_topics(&apis, |case, kfake, _, topic, reaction| {
        let mut reader = Reader::new(kfake.cluster(), topic, [(0, 0..3)]);
        let mut values = Vec::new();
        let mut read = || {
            while values.len() < 3 {
                let records = reader.read(soon())?;
                assert!(!records.is_empty(), "{case:?}");
                values.extend(records.iter().map(|one| text(&one.value)));
            }
            Ok(())
        };
        let failed: Option<Error> = read().err();
        // The range's start is there, although the leader denied it.
        let expected = ["report", "reset"]
            .contains(&reaction)
            .then_some(Some(case.code));
        let code = failed.as_ref().map(Error::code);
        assert_eq!(code, expected, "{case:?} {failed:?}");
        read().unwrap();
        assert_eq!(values, ["0:0", "0:1", "0:2"], "{case:?}");
    });
}
