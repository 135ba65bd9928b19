//! The reactions as a table, and the stages of a producer.

use super::*;

#[test]
fn each_error_code_has_the_reaction_of_the_table() {
    use ApiKey as A;
    use ErrorCode as E;
    use Reaction::{Abort, Fenced, FindCoordinator as Find, Report, Retry};
    let apis = [
        A::InitProducerId,
        A::AddPartitionsToTxn,
        A::TxnOffsetCommit,
        A::EndTxn,
    ];
    let table = [
        (E::ProducerFenced, [Fenced, Fenced, Fenced, Fenced]),
        (E::InvalidProducerEpoch, [Fenced, Fenced, Fenced, Fenced]),
        (E::NotCoordinator, [Find, Find, Find, Find]),
        (E::CoordinatorNotAvailable, [Find, Find, Find, Find]),
        (E::CoordinatorLoadInProgress, [Retry, Retry, Retry, Retry]),
        (E::ConcurrentTransactions, [Retry, Retry, Retry, Retry]),
        (E::UnknownTopicOrPartition, [Retry, Retry, Retry, Retry]),
        (E::UnknownServerError, [Retry, Retry, Retry, Retry]),
        (E::InvalidTxnState, [Report, Abort, Abort, Abort]),
        (E::InvalidProducerIdMapping, [Report, Abort, Abort, Abort]),
        (E::UnknownProducerId, [Report, Abort, Abort, Abort]),
        (E::TransactionAbortable, [Report, Abort, Abort, Abort]),
        (E::IllegalGeneration, [Report, Abort, Abort, Report]),
        (E::UnknownMemberId, [Report, Abort, Abort, Report]),
        (E::FencedInstanceId, [Report, Abort, Abort, Report]),
        (E::StaleMemberEpoch, [Report, Abort, Abort, Report]),
        (E::GroupAuthorizationFailed, [Report, Abort, Abort, Report]),
        (E::TopicAuthorizationFailed, [Report, Abort, Abort, Report]),
        (E::InvalidTransactionTimeout, [Report, Abort, Abort, Report]),
        (
            E::TransactionalIdAuthorizationFailed,
            [Report, Abort, Abort, Report],
        ),
        (E::Unknown(999), [Report, Abort, Abort, Report]),
    ];
    for (code, expected) in table {
        assert_eq!(apis.map(|api| reaction(api, code)), expected, "{code}");
    }
}

const IDENTITY: Identity = Identity {
    producer_id: 7,
    epoch: 0,
    transactions: Transactions::Explicit,
};

/// A machine with an open transaction that the coordinator may know of.
fn open() -> Machine {
    let mut machine = Machine::new();
    machine.initialized(IDENTITY);
    assert_eq!(machine.begin(), Some(IDENTITY));
    machine.registered();
    machine
}

fn refused(api: ApiKey, code: ErrorCode) -> Error {
    Error::refused(api, code)
}

#[test]
fn a_commit_without_an_answer_can_only_be_asked_for_again() {
    let mut machine = open();
    assert!(machine.commit());
    let failed = machine.failed(Error::timeout("the coordinator"));
    assert!(matches!(failed, Some(TransactionError::Unknown(_))));
    assert_eq!(machine.step().unwrap(), Step::End(Ended::Committed));
    assert!(machine.begin().is_none());
    machine.ended(None, true);
    assert_eq!(machine.last(), Some(Ended::Committed));
    assert_eq!(machine.step().unwrap(), Step::Nothing);
}

#[test]
fn a_commit_that_the_coordinator_rules_out_is_an_abort_under_another_epoch() {
    let mut machine = open();
    machine.commit();
    let failed = machine.failed(refused(ApiKey::EndTxn, ErrorCode::InvalidTxnState));
    assert!(matches!(failed, Some(TransactionError::Aborted(_))));
    assert_eq!(machine.step().unwrap(), Step::End(Ended::Aborted));
    // Nor is there anything to abort.
    let failed = machine.failed(refused(ApiKey::EndTxn, ErrorCode::InvalidTxnState));
    assert!(failed.is_none());
    assert_eq!(machine.last(), Some(Ended::Aborted));
    assert_eq!(machine.step().unwrap(), Step::Initialize);
    assert_eq!(machine.identity(), Some(IDENTITY), "whose epoch is raised");
}

#[test]
fn a_transaction_of_which_the_coordinator_knows_nothing_ends_without_it() {
    let mut machine = Machine::new();
    machine.initialized(IDENTITY);
    machine.begin();
    assert!(!machine.commit());
    assert_eq!(machine.last(), Some(Ended::Committed));
    machine.begin();
    machine.abandon();
    assert_eq!(machine.last(), Some(Ended::Aborted));
    assert_eq!(machine.step().unwrap(), Step::Nothing);
}

#[test]
fn a_spoilt_identity_is_renewed_after_the_abort_unless_the_answer_has_another() {
    let next = Identity {
        epoch: 1,
        ..IDENTITY
    };
    for (renewed, step) in [(None, Step::Initialize), (Some(next), Step::Nothing)] {
        let mut machine = open();
        machine.failed(refused(ApiKey::Produce, ErrorCode::UnknownProducerId));
        assert_eq!(machine.step().unwrap(), Step::End(Ended::Aborted));
        machine.ended(renewed, false);
        assert_eq!(machine.step().unwrap(), step);
    }
}

#[test]
fn no_call_leads_out_of_the_fenced_stage() {
    let mut machine = open();
    let failed = machine.failed(refused(ApiKey::Produce, ErrorCode::InvalidProducerEpoch));
    assert!(matches!(failed, Some(TransactionError::Fenced(_))));
    assert!(matches!(machine.step(), Err(TransactionError::Fenced(_))));
    assert!(matches!(
        machine.check_open(),
        Err(TransactionError::Fenced(_))
    ));
    assert!(machine.begin().is_none() && !machine.is_pending());
}
