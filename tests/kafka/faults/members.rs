//! Error codes for members of a group, under both protocols.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_kafka::consumer::{ConsumerHooks, GroupMetadata, GroupProtocol};
use tbd_kafka::{ApiKey, Cluster, CommitError, Consumer, ConsumerConfig, Error, TopicPartition};

use super::tables::ErrorTable;
use super::{At, Case, Kfake, LIMIT, THREADS, check_all, committed, moment, publish_three};
use crate::client::{soon, text, topic};
use crate::support::unique;

/// When a fault meets a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    /// It has its partitions and has read everything.
    Stable,
    Leaving,
}

/// Counts how often partitions were lost.
struct Losses(Arc<AtomicUsize>);

impl ConsumerHooks for Losses {
    fn lost(&self, _: &[TopicPartition]) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub fn group_consumer(
    cluster: &Cluster,
    group: &str,
    topic: &str,
    protocol: GroupProtocol,
    losses: Option<&Arc<AtomicUsize>>,
) -> Consumer {
    let mut config = ConsumerConfig::new(group, [topic]);
    config.group_protocol = protocol;
    config.set_session_timeout(Duration::from_secs(6));
    // Also the time-out of a heartbeat on a busy machine. After a join they are more frequent.
    config.heartbeat_interval = Duration::from_secs(2);
    let hooks = Losses(losses.map(Arc::clone).unwrap_or_default());
    Consumer::start(cluster.clone(), config, Box::new(hooks)).unwrap()
}

/// Polls until the three records are there, or a permanent error.
pub fn read_three(consumer: &mut Consumer, values: &mut BTreeSet<String>) -> Result<(), Error> {
    let end = Deadline::after(LIMIT);
    while values.len() < 3 {
        assert!(!end.is_past(), "{values:?}");
        match consumer.poll(moment()) {
            Ok(records) => values.extend(records.iter().map(|one| text(&one.value))),
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Commits until it succeeds. No error is permanent.
fn commit(consumer: &mut Consumer) {
    let end = Deadline::after(LIMIT);
    loop {
        assert!(!end.is_past(), "no commit");
        match consumer.commit_polled(Deadline::after(Duration::from_secs(2))) {
            Ok(()) if consumer.lag().iter().any(|(_, lag)| *lag == 0) => return,
            // Lost partitions come back with the next polls.
            Ok(()) | Err(CommitError::Lost) => {}
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        poll(consumer).unwrap();
    }
}

/// One poll that fails only for good.
fn poll(consumer: &mut Consumer) -> Result<(), Error> {
    match consumer.poll(moment()) {
        Err(error) if !error.is_transient() => Err(error),
        _ => Ok(()),
    }
}

struct Member<'a> {
    kfake: &'a Kfake,
    case: Case,
    protocol: GroupProtocol,
    group: String,
    losses: Arc<AtomicUsize>,
    consumer: Consumer,
}

impl Member<'_> {
    /// Polls until the member is stable, has read everything and has sent `heartbeats` more.
    fn rest(&mut self, heartbeats: usize) -> Result<GroupMetadata, Error> {
        let api = match self.protocol {
            GroupProtocol::Consumer => ApiKey::ConsumerGroupHeartbeat,
            _ => ApiKey::Heartbeat,
        };
        let watch = self.kfake.watch(api, &self.group);
        let end = Deadline::after(LIMIT);
        while watch.hits() < heartbeats
            || self.consumer.rebalance_pending()
            || !self.has_read_everything()
        {
            assert!(!end.is_past(), "{:?}", self.case);
            poll(&mut self.consumer)?;
        }
        watch.remove();
        Ok(self.consumer.group_metadata().expect("a member"))
    }

    /// So that there is something to commit, also after a busy machine cost it the partition.
    fn has_read_everything(&self) -> bool {
        let partitions = self.consumer.assignment();
        let read = |partition| self.consumer.position(partition) == Some(3);
        !partitions.is_empty() && partitions.iter().all(read)
    }

    /// Meets the code while nothing else happens, and checks what becomes of the membership. Returns
    /// the error that ends it.
    fn meet(&mut self, reaction: &str) -> Option<Error> {
        let before = self.rest(1).unwrap();
        let lost_before = self.losses.load(Ordering::Relaxed);
        let lookups = self.kfake.watch(ApiKey::FindCoordinator, &self.group);
        let fault = self.case.install(self.kfake, At::Group(&self.group));
        let is_commit = self.case.api == ApiKey::OffsetCommit;
        let ended = match is_commit {
            true => self.meet_in_commit(reaction),
            false => {
                let end = Deadline::after(LIMIT);
                loop {
                    assert!(!end.is_past(), "{:?} was not asked for", self.case);
                    match poll(&mut self.consumer) {
                        Ok(()) if fault.hits() == 0 => {}
                        polled => break polled.err(),
                    }
                }
            }
        };
        if ended.is_some() {
            return ended;
        }
        let after = match self.rest(2) {
            Ok(after) => after,
            Err(error) => return Some(error),
        };
        let is_lost = self.losses.load(Ordering::Relaxed) > lost_before;
        let is_classic = self.protocol == GroupProtocol::Classic;
        let case = self.case;
        assert_eq!(is_lost, reaction.starts_with("new"), "{case:?} {reaction}");
        let is_renamed = after.member_id != before.member_id;
        assert_eq!(
            is_renamed,
            is_classic && reaction == "new member",
            "{case:?} {reaction}"
        );
        if is_classic {
            // Under the consumer protocol the epoch changes for reasons of its own.
            let is_next = after.generation > before.generation;
            let rejoins = is_lost || reaction == "rejoin";
            assert_eq!(is_next, rejoins, "{case:?} {reaction}");
        }
        let is_found = lookups.hits() > 0;
        assert_eq!(is_found, reaction == "find", "{case:?} {reaction}");
        lookups.remove();
        None
    }

    fn meet_in_commit(&mut self, reaction: &str) -> Option<Error> {
        let is_classic = self.protocol == GroupProtocol::Classic;
        let result = self.consumer.commit_polled(soon());
        let case = self.case;
        match (reaction, result) {
            ("rejoin", Err(CommitError::Rebalancing)) if is_classic => None,
            ("rejoin", Ok(())) if !is_classic => None,
            ("retry" | "find", Ok(())) => None,
            ("new generation" | "new member", Err(CommitError::Lost)) => None,
            ("report", Err(CommitError::Refused(error))) => {
                assert_eq!(error.code(), Some(case.code), "{case:?} {error}");
                None
            }
            ("end", Err(CommitError::Fatal(error))) => Some(error),
            (_, result) => panic!("{case:?} {reaction}: {result:?}"),
        }
    }
}

fn check_member(kfake: &Kfake, case: Case, protocol: GroupProtocol, stage: Stage) {
    let column = match (stage, case.api) {
        (Stage::Leaving, _) => "LeaveGroup".to_owned(),
        (_, api) => format!("{api:?}"),
    };
    let table = match case.api {
        ApiKey::Fetch | ApiKey::ListOffsets | ApiKey::Metadata => ErrorTable::under("### Reading"),
        _ => ErrorTable::under("### Requests of a member"),
    };
    let reaction = case.reaction(&table, &column);
    let cluster = kfake.cluster();
    let (topic, group) = (topic(&cluster, 1), unique("group"));
    publish_three(&cluster, &topic);
    let early = (stage == Stage::Starting).then(|| {
        let at = match case.api {
            ApiKey::Fetch | ApiKey::ListOffsets | ApiKey::Metadata => At::Topic(&topic),
            _ => At::Group(&group),
        };
        case.install(kfake, at)
    });
    let losses = Arc::default();
    // It knows no metadata yet.
    let consumer = group_consumer(&kfake.cluster(), &group, &topic, protocol, Some(&losses));
    let mut member = Member {
        kfake,
        case,
        protocol,
        group: group.clone(),
        losses,
        consumer,
    };
    let mut values = BTreeSet::new();
    let mut ended = read_three(&mut member.consumer, &mut values).err();
    if let (Some(error), "report") = (&ended, reaction) {
        assert_eq!(error.code(), Some(case.code), "{case:?} {error}");
        ended = read_three(&mut member.consumer, &mut values).err();
    }
    if stage == Stage::Stable {
        assert!(ended.is_none(), "{case:?} {ended:?}");
        ended = member.meet(reaction);
    }
    if let Some(error) = &ended {
        assert_eq!(error.code(), Some(case.code), "{case:?} {error}");
    }
    assert_eq!(
        ended.is_some(),
        reaction == "end",
        "{case:?} {reaction} {ended:?}"
    );
    if let Some(fault) = early {
        assert_eq!(fault.hits(), 1, "{case:?}");
    }
    if ended.is_some() {
        // The next member takes the place that this one has left.
        let next = group_consumer(&cluster, &group, &topic, protocol, None);
        let last = std::mem::replace(&mut member.consumer, next);
        last.close(soon()).unwrap();
        read_three(&mut member.consumer, &mut BTreeSet::new()).unwrap();
    }
    commit(&mut member.consumer);
    let late = (stage == Stage::Leaving).then(|| {
        let at = match protocol {
            GroupProtocol::Consumer => At::Leave(&group),
            _ => At::Group(&group),
        };
        case.install(kfake, at)
    });
    let closed = member.consumer.close(soon());
    let refused = (stage == Stage::Leaving && reaction == "report").then_some(case.code);
    let got = closed.as_ref().err().map(Error::code);
    assert_eq!(got, refused.map(Some), "{case:?} {reaction} {closed:?}");
    if let Some(fault) = late {
        assert_eq!(fault.hits(), 1, "{case:?} {closed:?}");
    }
    assert_eq!(committed(&cluster, &group, &topic), Some(3), "{case:?}");
}

/// Checks a member at each stage of its life.
fn check_stages(protocol: GroupProtocol, stages: &[(Stage, &[ApiKey])]) {
    let kfake = Kfake::start();
    for (stage, apis) in stages {
        check_all(apis, THREADS, |case| {
            check_member(&kfake, case, protocol, *stage);
        });
    }
}

#[test]
fn a_member_of_the_classic_protocol_does_what_the_table_says_for_every_code_of_every_request() {
    let starting = [
        ApiKey::Metadata,
        ApiKey::FindCoordinator,
        ApiKey::JoinGroup,
        ApiKey::SyncGroup,
        ApiKey::OffsetFetch,
        ApiKey::ListOffsets,
        ApiKey::Fetch,
    ];
    let stable = [ApiKey::Heartbeat, ApiKey::OffsetCommit];
    check_stages(
        GroupProtocol::Classic,
        &[
            (Stage::Starting, &starting),
            (Stage::Stable, &stable),
            (Stage::Leaving, &[ApiKey::LeaveGroup]),
        ],
    );
}

#[test]
fn a_member_of_the_consumer_protocol_does_what_the_table_says_for_every_code_of_every_request() {
    let starting = [
        ApiKey::Metadata,
        ApiKey::FindCoordinator,
        ApiKey::ConsumerGroupHeartbeat,
        ApiKey::OffsetFetch,
        ApiKey::ListOffsets,
        ApiKey::Fetch,
    ];
    let stable = [ApiKey::ConsumerGroupHeartbeat, ApiKey::OffsetCommit];
    check_stages(
        GroupProtocol::Consumer,
        &[
            (Stage::Starting, &starting),
            (Stage::Stable, &stable),
            (Stage::Leaving, &[ApiKey::ConsumerGroupHeartbeat]),
        ],
    );
}
