//! Whole transactions against a broker that answers one request with an error code.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::api_versions_response::FinalizedFeatureKey;
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;

use super::*;
use crate::consumer::{ConsumerConfig, StartAt};
use crate::fake_broker::{FakeBroker, Incoming, Reply};
use crate::producer::tests::written;
use crate::wire::{text, topic_name};
use crate::{ClientConfig, Consumer, TopicPartition, lock};

/// A broker with one level of `transaction.version`, and what it was asked.
struct Broker {
    broker: FakeBroker,
    asked: Arc<Mutex<Vec<String>>>,
}

/// A request that is answered with a code, this often. NETWORK_EXCEPTION stands for a connection that
/// ends without an answer.
type Fault = (crate::ApiKey, ErrorCode, usize);

impl Broker {
    fn start(level: i16, fault: Fault) -> Self {
        let (asked, state) = (Arc::default(), Mutex::new(State { fault, epoch: 0 }));
        let log: Arc<Mutex<Vec<String>>> = Arc::clone(&asked);
        let broker = FakeBroker::start(move |incoming, address| {
            let mut state = lock(&state);
            let code = state.code(incoming.api);
            let name = format!("{:?}", incoming.api);
            if !["ApiVersions", "Metadata", "FindCoordinator"].contains(&&*name) {
                lock(&log).push(name);
            }
            match ErrorCode::from_code(code) {
                Some(ErrorCode::NetworkException) => Reply::BytesThenClose(Vec::new()),
                _ => state.answer(incoming, address, level, code),
            }
        });
        Self { broker, asked }
    }

    fn cluster(&self) -> Cluster {
        Cluster::new(ClientConfig {
            brokers: vec![self.broker.address()],
            reconnect_backoff: Duration::from_millis(1),
            reconnect_backoff_max: Duration::from_millis(5),
            ..ClientConfig::default()
        })
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.asked))
    }
}

struct State {
    fault: Fault,
    epoch: i16,
}

impl State {
    fn code(&mut self, api: crate::ApiKey) -> i16 {
        let (faulty, code, left) = &mut self.fault;
        if *faulty != api || *left == 0 {
            return 0;
        }
        *left -= 1;
        code.code()
    }

    fn answer(&mut self, it: &Incoming, own: SocketAddr, level: i16, code: i16) -> Reply {
        match it.api {
            crate::ApiKey::ApiVersions => {
                let feature = FinalizedFeatureKey::default()
                    .with_name(StrBytes::from_static_str("transaction.version"))
                    .with_max_version_level(level);
                let features = it.versions().with_finalized_features(vec![feature]);
                it.answer(&features.with_finalized_features_epoch(1))
            }
            crate::ApiKey::Metadata => it.answer(&it.metadata(own, 2)),
            crate::ApiKey::FindCoordinator => it.answer(
                &FindCoordinatorResponse::default()
                    .with_error_code(code)
                    .with_node_id(BrokerId(1))
                    .with_host(text(&own.ip().to_string()))
                    .with_port(i32::from(own.port())),
            ),
            crate::ApiKey::InitProducerId => {
                self.epoch += i16::from(code == 0);
                it.answer(
                    &InitProducerIdResponse::default()
                        .with_error_code(code)
                        .with_producer_id(ProducerId(7))
                        .with_producer_epoch(self.epoch),
                )
            }
            crate::ApiKey::AddPartitionsToTxn => it.answer(&partitions_added(it, code)),
            crate::ApiKey::AddOffsetsToTxn => {
                it.answer(&AddOffsetsToTxnResponse::default().with_error_code(code))
            }
            crate::ApiKey::TxnOffsetCommit => it.answer(&offsets_taken(it, code)),
            crate::ApiKey::Produce => it.answer(&written(it, code, 0)),
            crate::ApiKey::EndTxn => {
                let request: EndTxnRequest = it.decode();
                let mut response = EndTxnResponse::default().with_error_code(code);
                if it.version >= 5 && code == 0 {
                    self.epoch += 1;
                    response = response
                        .with_producer_id(request.producer_id)
                        .with_producer_epoch(self.epoch);
                }
                it.answer(&response)
            }
            other => panic!("a transaction does not ask {other:?}"),
        }
    }
}

fn partitions_added(it: &Incoming, code: i16) -> AddPartitionsToTxnResponse {
    let request: AddPartitionsToTxnRequest = it.decode();
    let topics = request.v3_and_below_topics.into_iter().map(|topic| {
        let results = topic.partitions.iter().map(|partition| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*partition)
                .with_partition_error_code(code)
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name)
            .with_results_by_partition(results.collect())
    });
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics.collect())
}

fn offsets_taken(it: &Incoming, code: i16) -> TxnOffsetCommitResponse {
    let request: TxnOffsetCommitRequest = it.decode();
    assert_eq!((&*request.member_id, request.generation_id), ("", -1));
    let topic = TxnOffsetCommitResponseTopic::default()
        .with_name(topic_name("in"))
        .with_partitions(vec![
            TxnOffsetCommitResponsePartition::default().with_error_code(code),
        ]);
    TxnOffsetCommitResponse::default().with_topics(vec![topic])
}

fn in_ms(ms: u64) -> Deadline {
    Deadline::after(Duration::from_millis(ms))
}

/// Offsets of a consumer without a membership.
fn offsets(cluster: &Cluster) -> GroupOffsets {
    let mut config = ConsumerConfig::without_group();
    config.group_id = "group".to_owned();
    let partition = TopicPartition::new("in", 0);
    let start = [(partition.clone(), StartAt::Offset(5))];
    let mut consumer =
        Consumer::start_assigned(cluster.clone(), config, start, Box::new(())).unwrap();
    consumer.offsets_to_commit(&[(partition, 9)]).unwrap()
}

/// A record, offsets, and the commit.
fn transact(producer: &mut TransactionalProducer, patience: u64) -> Result<(), TransactionError> {
    let offsets = offsets(&producer.producer.shared.cluster);
    let mut transaction = producer.begin(in_ms(patience))?;
    let record = Record::new("t", Some("key".into()), Some("value".into()));
    transaction.send(record, in_ms(5_000))?;
    transaction.send_offsets(&offsets, in_ms(patience))?;
    let committed = transaction.commit(in_ms(patience));
    let outcome = offsets.is_committed.get().copied();
    match &committed {
        Ok(()) => assert_eq!(outcome, Some(true)),
        Err(TransactionError::Aborted(_)) => assert_eq!(outcome, Some(false)),
        Err(TransactionError::Unknown(_)) => assert_eq!(outcome, None),
        Err(_) => {}
    }
    committed
}

fn start(broker: &Broker) -> TransactionalProducer {
    let (cluster, config) = (broker.cluster(), ProducerConfig::default());
    TransactionalProducer::start(cluster, "id", config, Arc::new(())).unwrap()
}

fn word(result: &Result<(), TransactionError>) -> &'static str {
    match result {
        Ok(()) => "ok",
        Err(TransactionError::Fenced(_)) => "fenced",
        Err(TransactionError::Aborted(_)) => "aborted",
        Err(TransactionError::Unknown(_)) => "unknown",
        Err(TransactionError::Failed(_)) => "failed",
    }
}

#[test]
fn a_broker_of_either_kind_is_asked_for_no_more_than_it_needs() {
    let none = (crate::ApiKey::Metadata, ErrorCode::UnknownServerError, 0);
    let explicit = [
        "InitProducerId",
        "AddPartitionsToTxn",
        "Produce",
        "AddOffsetsToTxn",
        "TxnOffsetCommit",
        "EndTxn",
    ];
    let implicit = ["InitProducerId", "Produce", "TxnOffsetCommit", "EndTxn"];
    for (level, expected) in [(1, &explicit[..]), (2, &implicit[..])] {
        let broker = Broker::start(level, none);
        let mut producer = start(&broker);
        transact(&mut producer, 5_000).unwrap();
        // The sender is at work while offsets are sent.
        let sorted = |mut all: Vec<String>| {
            all.sort();
            all
        };
        let expected = expected.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!(sorted(broker.asked()), sorted(expected));
        transact(&mut producer, 5_000).unwrap();
        assert!(!broker.asked().contains(&"InitProducerId".to_owned()));
        producer.close(in_ms(5_000)).unwrap();
        assert!(broker.asked().is_empty());
    }
}

#[test]
fn after_a_lost_answer_the_next_transaction_has_another_epoch() {
    use crate::ApiKey as A;
    let apis = [
        A::AddPartitionsToTxn,
        A::AddOffsetsToTxn,
        A::TxnOffsetCommit,
        A::EndTxn,
    ];
    for (api, level) in apis.into_iter().flat_map(|api| [(api, 1), (api, 2)]) {
        let broker = Broker::start(level, (api, ErrorCode::NetworkException, 1));
        let mut producer = start(&broker);
        for expected in [true, level == 1, false] {
            transact(&mut producer, 5_000).unwrap();
            let is_renewed = broker.asked().contains(&"InitProducerId".to_owned());
            assert_eq!(is_renewed, expected, "{api:?} at level {level}");
        }
        producer.close(in_ms(5_000)).unwrap();
    }
}

/// What one such answer to a request of the transaction leads to.
fn expected(api: crate::ApiKey, code: ErrorCode, level: i16) -> &'static str {
    use crate::ApiKey as A;
    let is_asked = level < 2 || !matches!(api, A::AddPartitionsToTxn | A::AddOffsetsToTxn);
    if !is_asked {
        return "ok";
    }
    match machine::reaction(api, code) {
        machine::Reaction::Retry | machine::Reaction::FindCoordinator => "ok",
        machine::Reaction::Fenced => "fenced",
        machine::Reaction::Abort => "aborted",
        machine::Reaction::Report if api == A::EndTxn => "unknown",
        machine::Reaction::Report => "failed",
    }
}

#[test]
fn an_error_code_of_any_request_leads_to_what_the_table_says_and_the_producer_goes_on() {
    use crate::ApiKey as A;
    let apis = [
        A::FindCoordinator,
        A::InitProducerId,
        A::AddPartitionsToTxn,
        A::AddOffsetsToTxn,
        A::TxnOffsetCommit,
        A::EndTxn,
    ];
    let codes = [
        ErrorCode::UnknownServerError,
        ErrorCode::RequestTimedOut,
        ErrorCode::CoordinatorLoadInProgress,
        ErrorCode::CoordinatorNotAvailable,
        ErrorCode::NotCoordinator,
        ErrorCode::IllegalGeneration,
        ErrorCode::UnknownMemberId,
        ErrorCode::GroupAuthorizationFailed,
        ErrorCode::InvalidRequest,
        ErrorCode::InvalidProducerEpoch,
        ErrorCode::InvalidTxnState,
        ErrorCode::InvalidProducerIdMapping,
        ErrorCode::ConcurrentTransactions,
        ErrorCode::TransactionalIdAuthorizationFailed,
        ErrorCode::UnknownProducerId,
        ErrorCode::FencedInstanceId,
        ErrorCode::ProducerFenced,
        ErrorCode::StaleMemberEpoch,
        ErrorCode::TransactionAbortable,
    ];
    let cases: Vec<(A, ErrorCode, i16)> = codes
        .into_iter()
        .flat_map(|code| apis.map(|api| (api, code)))
        .flat_map(|(api, code)| [1, 2].map(|level| (api, code, level)))
        .collect();
    let share = cases.len().div_ceil(8);
    std::thread::scope(|scope| {
        for cases in cases.chunks(share) {
            scope.spawn(move || {
                cases
                    .iter()
                    .for_each(|(api, code, level)| check(*api, *code, *level))
            });
        }
    });
}

fn check(api: crate::ApiKey, code: ErrorCode, level: i16) {
    let broker = Broker::start(level, (api, code, 1));
    let mut producer = start(&broker);
    let result = transact(&mut producer, 5_000);
    let case = format!("{api:?} {code} at level {level}: {result:?}");
    assert_eq!(word(&result), expected(api, code, level), "{case}");
    let settled = producer.settle(in_ms(5_000));
    match result {
        Err(TransactionError::Fenced(_)) => {
            assert!(
                matches!(settled, Err(TransactionError::Fenced(_))),
                "{case}"
            );
            return;
        }
        Ok(()) | Err(TransactionError::Unknown(_)) => {
            assert_eq!(settled.unwrap(), Some(Ended::Committed), "{case}");
        }
        Err(TransactionError::Aborted(_)) => {
            assert_eq!(settled.unwrap(), Some(Ended::Aborted), "{case}");
        }
        _ => assert_eq!(settled.unwrap(), None, "{case}"),
    }
    assert!(transact(&mut producer, 5_000).is_ok(), "{case}");
    producer.close(in_ms(5_000)).unwrap();
}

#[test]
fn a_refused_batch_aborts_its_transaction_or_is_retried_and_the_producer_goes_on() {
    use ErrorCode as E;
    let table = HashMap::from([
        (E::ConcurrentTransactions, "ok"),
        (E::CoordinatorNotAvailable, "ok"),
        (E::NotLeaderOrFollower, "ok"),
        (E::NotEnoughReplicas, "ok"),
        (E::InvalidTxnState, "aborted"),
        (E::TransactionAbortable, "aborted"),
        (E::InvalidProducerIdMapping, "aborted"),
        (E::UnknownProducerId, "aborted"),
        (E::OutOfOrderSequenceNumber, "aborted"),
        (E::TopicAuthorizationFailed, "aborted"),
        (E::InvalidProducerEpoch, "fenced"),
        (E::ProducerFenced, "fenced"),
    ]);
    for level in [1, 2] {
        for (code, expected) in &table {
            let broker = Broker::start(level, (crate::ApiKey::Produce, *code, 1));
            let mut producer = start(&broker);
            let result = transact(&mut producer, 5_000);
            assert_eq!(
                word(&result),
                *expected,
                "{code} at level {level}: {result:?}"
            );
            if *expected != "fenced" {
                assert!(transact(&mut producer, 5_000).is_ok(), "{code} at {level}");
            }
        }
    }
}
