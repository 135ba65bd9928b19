//! Error codes for producers, idempotent and transactional.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_kafka::consumer::{GroupProtocol, Isolation};
use tbd_kafka::producer::{Certainty, Ended, ProduceError, TransactionError};
use tbd_kafka::{ApiKey, Cluster, ErrorCode, ProducerConfig, TransactionalProducer};

use super::members::{group_consumer, read_three};
use super::tables::ErrorTable;
use super::{At, Case, Kfake, LIMIT, THREADS, check_all, committed, publish_three};
use crate::client::{check_promises, consume, record, soon, start, text, topic};
use crate::support::{eventually, unique};

#[test]
fn a_producer_recovers_from_every_error_code_or_reports_it_and_its_next_record_is_written() {
    let (kfake, table) = (Kfake::start(), ErrorTable::under("### Produce"));
    check_all(&[ApiKey::Produce, ApiKey::Metadata], THREADS, |case| {
        check_producer(&kfake, case, |topic| At::Topic(topic), &table);
    });
}

/// These faults meet any client, so there is one at a time.
#[test]
fn a_producer_recovers_from_every_code_of_the_requests_that_name_nothing() {
    let (kfake, table) = (Kfake::start(), ErrorTable::under("### Produce"));
    check_all(&[ApiKey::InitProducerId], 1, |case| {
        check_producer(&kfake, case, |_| At::Any, &table);
    });
}

#[test]
fn a_record_that_waits_for_metadata_or_a_producer_id_fails_at_its_deadline_and_names_the_code() {
    let kfake = Kfake::start();
    let cluster = kfake.cluster();
    let topic = topic(&cluster, 1);
    for api in [ApiKey::Metadata, ApiKey::InitProducerId] {
        let case = Case {
            api,
            code: ErrorCode::ClusterAuthorizationFailed,
        };
        let at = match api {
            ApiKey::Metadata => At::Topic(&topic),
            _ => At::Any,
        };
        let fault = case.install_for_good(&kfake, at);
        let producer = start(&kfake.cluster(), ProducerConfig::default());
        let publish = |deadline| {
            let one = record(&topic, "k".to_owned(), "0:0".to_owned());
            producer.publish(vec![one], deadline).remove(0)
        };
        // On a busy machine the first deadline may pass before the first answer.
        eventually(LIMIT, "an error that names the code", || {
            let error = publish(Deadline::after(Duration::from_secs(1))).unwrap_err();
            assert_eq!(error.certainty, Certainty::NotSent, "{error}");
            (error.cause.code() == Some(case.code)).then_some(())
        });
        fault.remove();
        publish(soon()).unwrap();
        producer.close(soon()).unwrap();
    }
}

fn check_producer(kfake: &Kfake, case: Case, at: fn(&str) -> At<'_>, table: &ErrorTable) {
    let cluster = kfake.cluster();
    let topic = topic(&cluster, 1);
    let fault = case.install(kfake, at(&topic));
    let producer = start(&cluster, ProducerConfig::default());
    let outcomes: Vec<_> = ["0:0", "0:1"]
        .into_iter()
        .map(|value| {
            let one = record(&topic, "k".to_owned(), value.to_owned());
            let outcome = producer.publish(vec![one], soon()).remove(0);
            (value.to_owned(), outcome)
        })
        .collect();
    producer.close(soon()).unwrap();
    assert_eq!(fault.hits(), 1);
    let reaction = match case.api {
        ApiKey::Produce => case.reaction(table, "Produce"),
        _ => "sent again",
    };
    let certainty = match reaction {
        it if it.ends_with("not sent") => Some(Certainty::NotSent),
        it if it.ends_with("maybe sent") => Some(Certainty::MaybeSent),
        _ => None,
    };
    let failed = outcomes[0].1.as_ref().err();
    let what = |error: &ProduceError| (error.certainty, error.cause.code());
    let expected = certainty.map(|certainty| (certainty, Some(case.code)));
    assert_eq!(failed.map(what), expected, "{case:?} {reaction}");
    assert!(outcomes[1].1.is_ok(), "{case:?} {outcomes:?}");
    match reaction {
        // kfake has not written it, although it says so.
        "written" => check_promises(&cluster, &topic, &outcomes[1..]),
        _ => check_promises(&cluster, &topic, &outcomes),
    }
}

#[test]
fn a_transaction_that_met_an_error_code_is_visible_as_a_whole_or_not_at_all() {
    let kfake = Kfake::start();
    let apis = [
        ApiKey::FindCoordinator,
        ApiKey::InitProducerId,
        ApiKey::Produce,
        ApiKey::TxnOffsetCommit,
        ApiKey::EndTxn,
    ];
    check_all(&apis, THREADS, |case| check_transaction(&kfake, case));
}

#[test]
fn before_kafka_4_a_transaction_that_met_an_error_code_is_visible_as_a_whole_or_not_at_all() {
    let kfake = Kfake::old();
    let apis = [
        ApiKey::AddPartitionsToTxn,
        ApiKey::AddOffsetsToTxn,
        ApiKey::EndTxn,
    ];
    check_all(&apis, THREADS, |case| check_transaction(&kfake, case));
}

fn check_transaction(kfake: &Kfake, case: Case) {
    let table = match case.api {
        ApiKey::Produce => ErrorTable::under("### Produce"),
        _ => ErrorTable::under("## Transactions"),
    };
    let reaction = match case.api {
        ApiKey::Produce => case.reaction(&table, "Produce in a transaction"),
        api => case.reaction(&table, &format!("{api:?}")),
    };
    if reaction == "written" {
        // kfake has not written it, although it says so.
        return;
    }
    let cluster = kfake.cluster();
    // Each record is a batch of its own, in a partition of its own.
    let (input, output) = (topic(&cluster, 1), topic(&cluster, 3));
    let (group, id) = (unique("group"), unique("tx"));
    publish_three(&cluster, &input);
    let mut consumer = group_consumer(&cluster, &group, &input, GroupProtocol::Classic, None);
    read_three(&mut consumer, &mut BTreeSet::new()).unwrap();
    let fault = match case.api {
        ApiKey::Produce => case.install(kfake, At::Topic(&output)),
        _ => case.install(kfake, At::Id(&id)),
    };
    let new = || {
        let config = ProducerConfig::default();
        TransactionalProducer::start(cluster.clone(), &*id, config, Arc::new(())).unwrap()
    };
    let mut producer = new();
    let mut expected = Vec::new();
    for attempt in 0..2 {
        let offsets = consumer.polled_offsets();
        let done = (|| {
            let mut transaction = producer.begin(soon())?;
            for number in 0..3 {
                let mut one = record(&output, "k".to_owned(), format!("{attempt}:{number}"));
                one.partition = Some(number);
                transaction.send(one, soon())?;
            }
            transaction.send_offsets(&offsets, soon())?;
            transaction.commit(soon())
        })();
        let outcome = match &done {
            Ok(()) => None,
            Err(TransactionError::Fenced(error)) => Some(("`Fenced`", error)),
            Err(TransactionError::Failed(error)) => Some(("`Failed`", error)),
            Err(TransactionError::Aborted(error)) => Some(("`Aborted`", error)),
            Err(TransactionError::Unknown(error)) => Some(("`Unknown`", error)),
            Err(_) => panic!("{case:?} {done:?}"),
        };
        // A commit's part of the cell.
        let first = reaction.split(';').next().unwrap_or_default();
        let wanted = ["`Fenced`", "`Failed`", "`Aborted`", "`Unknown`"];
        let wanted = wanted.into_iter().find(|it| match case.api {
            ApiKey::Produce => reaction.ends_with(it),
            _ => first.ends_with(it),
        });
        let wanted = wanted.filter(|_| attempt == 0);
        let got = outcome.map(|(kind, error)| (kind, error.code()));
        assert_eq!(
            got,
            wanted.map(|it| (it, Some(case.code))),
            "{case:?} {reaction}"
        );
        if let Some(("`Fenced`", _)) = outcome {
            producer.close(soon()).unwrap();
            producer = new();
        }
        let is_committed = match done {
            Ok(()) => true,
            Err(TransactionError::Unknown(_)) => {
                producer.settle(soon()).unwrap() == Some(Ended::Committed)
            }
            Err(_) => false,
        };
        if is_committed {
            expected.extend((0..3).map(|number| format!("{attempt}:{number}")));
        }
    }
    producer.close(soon()).unwrap();
    consumer.close(soon()).unwrap();
    assert_eq!(fault.hits(), 1, "{case:?}");
    assert_eq!(read(&cluster, &output), expected, "{case:?}");
    assert_eq!(committed(&cluster, &group, &input), Some(3), "{case:?}");
}

fn read(cluster: &Cluster, topic: &str) -> Vec<String> {
    let read = consume(cluster, topic, Isolation::ReadCommitted);
    let mut read: Vec<String> = read.iter().map(|one| text(&one.value)).collect();
    read.sort_unstable();
    read
}
