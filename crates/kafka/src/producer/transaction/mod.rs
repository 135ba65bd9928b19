//! Transactional producer: records of several partitions, and the offsets of consumed records, take
//! effect together or not at all.
//!
//! The caller's thread asks the coordinators; the producer's own threads send the records.

mod coordinator;
mod machine;

use std::sync::{Arc, MutexGuard, OnceLock};

use self::coordinator::Link;
use self::machine::{Machine, Step};
use super::batch::{Identity, Transactions};
use super::{Producer, ProducerConfig, ProducerHooks, ProducerState, Record};
use crate::consumer::{GroupMetadata, GroupOffsets};
use crate::error::ConfigError;
use crate::group::coordinator::Kind;
use crate::{ApiKey, Cluster, Error, ErrorCode};
use tbd_deadline::Deadline;

/// The newest versions of EndTxn and TxnOffsetCommit for a producer that registers what its
/// transactions contain.
const EXPLICIT_MAX: i16 = 4;

/// A producer whose records are written in transactions.
///
/// Its transactional id names it across restarts: [`settle`](Self::settle), and so
/// [`begin`](Self::begin), ends the open transaction of a former producer with the same id, and
/// fences that producer. Each running producer needs an id of its own.
///
/// Consumers see the records of a committed transaction only, if they ask for
/// [`Isolation::ReadCommitted`](crate::consumer::Isolation::ReadCommitted).
///
/// Dropping it without [`close`](Self::close) leaves an open transaction to
/// [`ProducerConfig::transaction_timeout`].
///
/// ```no_run
/// use std::sync::Arc;
/// use std::time::Duration;
/// use tbd_kafka::producer::Record;
/// use tbd_kafka::{ClientConfig, Cluster, Deadline, ProducerConfig, TransactionalProducer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = Cluster::new(ClientConfig::new(["localhost:9092"]));
/// let config = ProducerConfig::default();
/// let mut producer = TransactionalProducer::start(cluster, "transfers-1", config, Arc::new(()))?;
/// let soon = Deadline::after(Duration::from_secs(30));
/// let mut transaction = producer.begin(soon)?;
/// for topic in ["debits", "credits"] {
///     transaction.send(Record::new(topic, None, Some("7".into())), soon)?;
/// }
/// transaction.commit(soon)?; // both or neither
/// producer.close(soon)?;
/// # Ok(())
/// # }
/// ```
#[doc(alias = "transactional.id")]
pub struct TransactionalProducer {
    producer: Producer,
    id: String,
    machine: Machine,
    coordinator: Link,
    /// The coordinator of the group whose offsets were sent last.
    group: Option<Link>,
    /// Whether a request under this identity may still arrive. It must not become part of another
    /// transaction.
    is_doubtful: bool,
    /// Where consumers learn whether the offsets of this transaction are committed.
    outcomes: Vec<Arc<OnceLock<bool>>>,
}

impl std::fmt::Debug for TransactionalProducer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TransactionalProducer")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// All of it has taken effect.
    Committed,
    /// Nothing of it has taken effect, nor will.
    Aborted,
}

/// A transaction, or a call about one, has failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// Another producer has the transactional id, or the transaction has outlived its time-out. No
    /// later call succeeds: close this producer.
    ///
    /// The transaction is not committed, except after [`Transaction::commit`]: another answer to
    /// that call may have been lost before. The group's committed offsets tell.
    #[error(
        "another producer has the transactional id, or the transaction has outlived its time-out: {0}"
    )]
    Fenced(#[source] Error),
    /// Nothing of the transaction takes effect. [`TransactionalProducer::begin`] aborts what is left
    /// of it; the application can do the same work in another transaction.
    #[error("the transaction is aborted: {0}")]
    Aborted(#[source] Error),
    /// The coordinator did not say in time whether the transaction is committed.
    /// [`TransactionalProducer::settle`] finds out.
    #[error("the transaction may be committed: {0}")]
    Unknown(#[source] Error),
    /// The coordinator did not do what was asked. The call can be repeated.
    #[error("the transaction's coordinator failed: {0}")]
    Failed(#[source] Error),
}

impl TransactionError {
    /// Whether another attempt may succeed without a change in this program: of the transaction's
    /// work if it is aborted, of the call otherwise.
    pub fn is_transient(&self) -> bool {
        use ErrorCode as E;
        match self {
            Self::Fenced(_) => false,
            Self::Unknown(_) => true,
            Self::Failed(error) => error.is_transient(),
            Self::Aborted(Error::Aborted) => true,
            Self::Aborted(error) => {
                let is_state = matches!(
                    error.code(),
                    Some(
                        E::TransactionAbortable
                            | E::InvalidTxnState
                            | E::InvalidProducerIdMapping
                            | E::UnknownProducerId
                            | E::OutOfOrderSequenceNumber
                            | E::ConcurrentTransactions
                    )
                );
                is_state || error.is_transient()
            }
        }
    }
}

/// An open transaction. It is aborted when it is dropped: its records fail at once, and the
/// producer's next call, [`TransactionalProducer::begin`] for example, tells the coordinator.
///
/// After the first error it takes nothing more.
#[derive(Debug)]
pub struct Transaction<'a> {
    owner: &'a mut TransactionalProducer,
}

impl TransactionalProducer {
    /// Starts a producer with this transactional id. Does no I/O, and succeeds while the cluster is
    /// unreachable.
    ///
    /// # Errors
    /// As [`Producer::start`].
    pub fn start(
        cluster: Cluster,
        transactional_id: impl Into<String>,
        config: ProducerConfig,
        hooks: Arc<dyn ProducerHooks>,
    ) -> Result<Self, Error> {
        let id = transactional_id.into();
        let field = "TransactionalProducer::start";
        ConfigError::check(!id.is_empty(), field, "the transactional id is empty")?;
        let coordinator = Link::new(&cluster, Kind::Transaction, &id, config.request_timeout);
        Ok(Self {
            producer: Producer::start_for(cluster, config, Some(id.clone()), hooks)?,
            id,
            machine: Machine::new(),
            coordinator,
            group: None,
            is_doubtful: false,
            outcomes: Vec::new(),
        })
    }

    /// Gets ready for the next transaction, at most until `deadline`, and says how the last one
    /// ended; `None` if there was none.
    ///
    /// The first call asks for a producer id; this fences a former producer with the same
    /// transactional id, and aborts its open transaction. Later calls end the transaction that was
    /// dropped, or whose outcome is unknown. [`begin`](Self::begin) does all this, too.
    ///
    /// # Errors
    /// [`TransactionError::Fenced`], or [`TransactionError::Failed`]: then the call can be repeated.
    #[doc(alias = "initTransactions")]
    pub fn settle(&mut self, deadline: Deadline) -> Result<Option<Ended>, TransactionError> {
        loop {
            match self.machine.step()? {
                Step::Initialize => self.initialize(deadline)?,
                Step::End(ended) => self.end(ended, deadline)?,
                Step::Nothing => return Ok(self.machine.last()),
            }
        }
    }

    /// Begins a transaction. Waits, at most until `deadline`, only if [`settle`](Self::settle)
    /// would.
    ///
    /// # Errors
    /// As [`settle`](Self::settle).
    #[doc(alias = "beginTransaction")]
    pub fn begin(&mut self, deadline: Deadline) -> Result<Transaction<'_>, TransactionError> {
        self.settle(deadline)?;
        if let Some(identity) = self.machine.begin() {
            self.state().records.begin_transaction(identity);
        }
        Ok(Transaction { owner: self })
    }

    /// Ends the open transaction as [`settle`](Self::settle) does, and joins all threads, at most
    /// until `deadline`. See [`Producer::close`].
    ///
    /// # Errors
    /// When the transaction could not be ended. The cluster aborts it after its time-out, unless a
    /// commit was asked for.
    pub fn close(mut self, deadline: Deadline) -> Result<(), TransactionError> {
        let settled = match self.machine.is_pending() {
            true => self.settle(deadline).map(drop),
            false => Ok(()),
        };
        let closed = self.producer.close(deadline);
        settled.and(closed.map_err(TransactionError::Failed))
    }

    fn state(&self) -> MutexGuard<'_, ProducerState> {
        self.producer.shared.state()
    }

    fn initialize(&mut self, deadline: Deadline) -> Result<(), TransactionError> {
        let timeout = self.producer.shared.config.transaction_timeout;
        let request = coordinator::init_request(&self.id, self.machine.identity(), timeout);
        let answer = self
            .coordinator
            .ask(&request, i16::MAX, deadline, |answer| {
                Error::check(ApiKey::InitProducerId, answer.error_code)
            });
        match answer {
            Ok(answer) => {
                self.coordinator.take_lost();
                self.is_doubtful = false;
                self.machine.initialized(Identity {
                    producer_id: answer.producer_id.0,
                    epoch: answer.producer_epoch,
                    transactions: match self.coordinator.has_implicit_transactions() {
                        true => Transactions::Implicit,
                        false => Transactions::Explicit,
                    },
                });
                Ok(())
            }
            Err(error) => self.machine.failed(error).map_or(Ok(()), Err),
        }
    }

    fn send(&mut self, record: Record, deadline: Deadline) -> Result<(), TransactionError> {
        self.check_open()?;
        if let Err(error) = self.producer.send(record, deadline) {
            return Err(self.give_up(error.cause));
        }
        if !self.machine.is_explicit() {
            self.machine.registered();
        }
        self.register_partitions(deadline)
    }

    /// Fails if the transaction takes nothing more. A record that has failed aborts it.
    fn check_open(&mut self) -> Result<(), TransactionError> {
        self.machine.check_open()?;
        let failure = self.state().records.failure().cloned();
        failure.map_or(Ok(()), |error| Err(self.give_up(error)))
    }

    fn register_partitions(&mut self, deadline: Deadline) -> Result<(), TransactionError> {
        let partitions = self.state().records.unregistered();
        let Some(identity) = self.machine.identity().filter(|_| !partitions.is_empty()) else {
            return Ok(());
        };
        self.machine.registered();
        let request = coordinator::add_partitions_request(&self.id, identity, &partitions);
        let check = coordinator::check_partitions;
        let answer = self.coordinator.ask(&request, i16::MAX, deadline, check);
        if let Err(error) = answer {
            return Err(self.give_up(error));
        }
        let mut state = self.state();
        state.records.registered(&partitions);
        state.wake_all();
        Ok(())
    }

    fn send_offsets(
        &mut self,
        offsets: &GroupOffsets,
        deadline: Deadline,
    ) -> Result<(), TransactionError> {
        self.check_open()?;
        let Some(identity) = self.machine.identity().filter(|_| !offsets.is_empty()) else {
            return Ok(());
        };
        self.machine.registered();
        self.outcomes.push(Arc::clone(&offsets.is_committed));
        // Without a name and a generation the coordinator would not recognise an expelled member.
        let code = ErrorCode::RebalanceInProgress;
        let expelled = || Error::refused(ApiKey::TxnOffsetCommit, code);
        let member = offsets.member.as_ref().ok_or_else(expelled);
        let sent = member.and_then(|it| self.try_send_offsets(identity, offsets, it, deadline));
        sent.map_err(|error| self.give_up(error))
    }

    fn try_send_offsets(
        &mut self,
        identity: Identity,
        offsets: &GroupOffsets,
        member: &GroupMetadata,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let mut newest = i16::MAX;
        if self.machine.is_explicit() {
            newest = EXPLICIT_MAX;
            let request = coordinator::add_offsets_request(&self.id, identity, &offsets.group_id);
            self.coordinator
                .ask(&request, i16::MAX, deadline, |answer| {
                    Error::check(ApiKey::AddOffsetsToTxn, answer.error_code)
                })?;
        }
        let request = coordinator::commit_request(&self.id, identity, offsets, member);
        let shared = &self.producer.shared;
        let known = self.group.take().filter(|it| it.key() == offsets.group_id);
        let group = known.unwrap_or_else(|| {
            let timeout = shared.config.request_timeout;
            Link::new(&shared.cluster, Kind::Group, &offsets.group_id, timeout)
        });
        let group = self.group.insert(group);
        let check = coordinator::check_commit;
        let answer = group.ask(&request, newest, deadline, check);
        self.is_doubtful |= group.take_lost();
        answer.map(drop)
    }

    fn commit(&mut self, deadline: Deadline) -> Result<(), TransactionError> {
        self.check_open()?;
        // Records that were placed again are in other partitions now.
        self.register_partitions(deadline)?;
        let flushed = self.producer.flush_unless(deadline, |records| {
            records.failure().is_some() || !records.has_identity()
        });
        let failure = {
            let records = &self.state().records;
            let spoilt = (!records.has_identity()).then_some(Error::Aborted);
            records.failure().cloned().or(flushed.err()).or(spoilt)
        };
        if let Some(error) = failure {
            return Err(self.give_up(error));
        }
        match self.machine.commit() {
            true => self.end(Ended::Committed, deadline),
            false => Ok(()),
        }
    }

    /// Asks the coordinator to end the transaction.
    fn end(&mut self, ended: Ended, deadline: Deadline) -> Result<(), TransactionError> {
        if ended == Ended::Aborted {
            // A batch in flight could arrive after the transaction's end.
            let flushed = self.producer.flush(deadline);
            flushed.map_err(TransactionError::Failed)?;
        }
        let Some(identity) = self.machine.identity() else {
            return Ok(());
        };
        let newest = match self.machine.is_explicit() {
            true => EXPLICIT_MAX,
            false => i16::MAX,
        };
        let commits = ended == Ended::Committed;
        let request = coordinator::end_request(&self.id, identity, commits);
        let answer = self.coordinator.ask(&request, newest, deadline, |answer| {
            Error::check(ApiKey::EndTxn, answer.error_code)
        });
        match answer {
            Ok(answer) => {
                let renewed = (answer.producer_id.0 >= 0).then_some(Identity {
                    producer_id: answer.producer_id.0,
                    epoch: answer.producer_epoch,
                    ..identity
                });
                self.is_doubtful |= self.coordinator.take_lost();
                let is_usable = self.state().records.has_identity() && !self.is_doubtful;
                self.is_doubtful &= renewed.is_none();
                self.machine.ended(renewed, is_usable);
                self.decide(commits);
                Ok(())
            }
            Err(error) => {
                let failed = self.machine.failed(error);
                if let Some(TransactionError::Aborted(_)) = failed {
                    self.decide(false);
                }
                failed.map_or(Ok(()), Err)
            }
        }
    }

    /// The open transaction has failed. Returns what to tell the application.
    fn give_up(&mut self, error: Error) -> TransactionError {
        let failed = self.machine.failed(error);
        self.drop_records();
        failed.unwrap_or(TransactionError::Aborted(Error::Aborted))
    }

    fn abandon(&mut self) {
        if self.machine.is_open() {
            self.machine.abandon();
            self.drop_records();
        }
    }

    /// Fails the records that are not in flight.
    fn drop_records(&mut self) {
        let dropped = self.state().records.abort(&Error::Aborted);
        self.producer.shared.tell(dropped);
        self.decide(false);
    }

    /// Consumers learn what became of their offsets.
    fn decide(&mut self, is_committed: bool) {
        for outcome in self.outcomes.drain(..) {
            // The first one counts.
            let _ = outcome.set(is_committed);
        }
    }
}

impl Transaction<'_> {
    /// Adds a record, for delivery by `deadline`. Waits, at most until then, as [`Producer::send`]
    /// does; with brokers before Kafka 4.0 also for the coordinator, once for each partition.
    ///
    /// [`commit`](Self::commit) waits for the record's acknowledgement.
    ///
    /// # Errors
    /// [`TransactionError::Aborted`] and [`TransactionError::Fenced`]. Also for a failure of an
    /// earlier record.
    pub fn send(&mut self, record: Record, deadline: Deadline) -> Result<(), TransactionError> {
        self.owner.send(record, deadline)
    }

    /// Adds offsets of a group: they are committed if and when the transaction is. Waits, at most
    /// until `deadline`, for the coordinators.
    ///
    /// [`Consumer::polled_offsets`](crate::Consumer::polled_offsets) has those of all records that a
    /// consumer has handed out.
    ///
    /// # Errors
    /// As [`send`](Self::send). The group refuses a member that it has expelled, so that no record
    /// is processed twice.
    #[doc(alias = "sendOffsetsToTransaction")]
    pub fn send_offsets(
        &mut self,
        offsets: &GroupOffsets,
        deadline: Deadline,
    ) -> Result<(), TransactionError> {
        self.owner.send_offsets(offsets, deadline)
    }

    /// Waits, at most until `deadline`, for all acknowledgements, and commits the transaction.
    ///
    /// # Errors
    /// [`TransactionError::Aborted`], also if an acknowledgement is missing at the deadline;
    /// [`TransactionError::Unknown`] when the coordinator's answer is; [`TransactionError::Fenced`].
    #[doc(alias = "commitTransaction")]
    pub fn commit(self, deadline: Deadline) -> Result<(), TransactionError> {
        self.owner.commit(deadline)
    }

    /// Aborts the transaction, and waits for the coordinator, at most until `deadline`.
    ///
    /// # Errors
    /// As [`TransactionalProducer::settle`]. The transaction is not committed in any case.
    #[doc(alias = "abortTransaction")]
    pub fn abort(self, deadline: Deadline) -> Result<(), TransactionError> {
        self.owner.abandon();
        self.owner.settle(deadline).map(drop)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.owner.abandon();
    }
}

#[cfg(test)]
mod tests;
