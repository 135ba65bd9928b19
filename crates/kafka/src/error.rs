//! Errors of the Kafka client.

use std::sync::Arc;

use crate::{ApiKey, ErrorCode, TopicPartition};

/// A failed exchange with the cluster. Cheap to clone, because each request in flight on a lost
/// connection gets its error.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made; nothing was sent.
    #[error("cannot reach kafka broker {address}: {reason}")]
    Unreachable {
        /// `host:port` as dialled.
        address: String,
        /// The operating system's message.
        reason: String,
    },
    /// An established connection was lost; the outcome of requests in flight is unknown.
    #[error("lost the connection to kafka broker {address}: {reason}")]
    ConnectionLost {
        /// `host:port` as dialled.
        address: String,
        /// How it was lost.
        reason: String,
    },
    /// The deadline passed before the work was done; the outcome of a request in flight is unknown.
    #[error("timed out waiting for {what}{}", because(.cause.as_deref()))]
    Timeout {
        /// What the caller waited for.
        what: String,
        /// The last failure meanwhile, if there was one.
        #[source]
        cause: Option<Box<Error>>,
    },
    /// The peer sent bytes that are not a valid response. The connection cannot be used again.
    #[error("kafka broker {address} sent an invalid answer: {reason}")]
    Protocol {
        /// `host:port` as dialled.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A broker answered with an error code.
    #[error("kafka{} refused {api:?}{}: {code}{}",
        at(.broker.as_deref()), place(.topic.as_deref(), *.partition), hint(*.api, *.code))]
    Refused {
        /// The request that was refused.
        api: ApiKey,
        /// Kafka's code.
        code: ErrorCode,
        /// The topic that it concerns, if it concerns one.
        topic: Option<Arc<str>>,
        /// The partition that it concerns, if it concerns one.
        partition: Option<i32>,
        /// `host:port` of the broker that refused it, as dialled. `None` for what the metadata say,
        /// and in results of the admin client.
        broker: Option<Arc<str>>,
    },
    /// A setting is out of its range. Nothing was sent.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The connection cannot be encrypted as configured, or the broker is not trusted.
    #[error("no TLS session with kafka broker {address}: {reason}")]
    Tls {
        /// `host:port` as dialled.
        address: String,
        /// What is wrong, and what may help.
        reason: String,
    },
    /// The broker does not accept the login, or could not prove that it knows the
    /// password itself. Never shows a password.
    #[error("kafka broker {address} does not accept the login: {reason}")]
    Authentication {
        /// `host:port` as dialled.
        address: String,
        /// What is wrong; mostly the broker's message.
        reason: String,
    },
    /// The broker and this client have no version of this request in common.
    #[error("kafka broker {address} supports no version of {api:?} that this client speaks")]
    UnsupportedVersion {
        /// `host:port` as dialled.
        address: String,
        /// The request in question.
        api: ApiKey,
    },
    /// The cluster does not know the node, or no longer knows it.
    #[error("kafka node {node} is not part of the known cluster")]
    UnknownNode {
        /// The broker's node id.
        node: i32,
    },
    /// A request cannot be encoded in the negotiated version: a bug in this client, or a field that
    /// is too large. Nothing was sent.
    #[error("cannot encode {api:?}: {reason}")]
    Encode {
        /// The request in question.
        api: ApiKey,
        /// The codec's message.
        reason: String,
    },
    /// The caller's record cannot be sent as it is.
    #[error("invalid record: {reason}")]
    InvalidRecord {
        /// What is wrong with it.
        reason: String,
    },
    /// The topic was deleted and another one has its name now, so the requested offsets no longer
    /// mean anything.
    #[error("topic {topic} was deleted and created again: its id was {old} and is {new} now")]
    TopicReplaced {
        /// The topic's name.
        topic: String,
        /// The id of the deleted topic, as Kafka's own tools write it.
        old: String,
        /// The id of the topic that has the name now.
        new: String,
    },
    /// The offset is negative. Nothing was changed.
    #[error("{partition} has no offset {offset}: offsets begin at 0")]
    InvalidOffset {
        /// The partition.
        partition: TopicPartition,
        /// The offset given.
        offset: i64,
    },
    /// The record is larger than the client's own limit. Nothing was sent.
    #[error("a record of {bytes} bytes is larger than the limit of {limit}")]
    RecordTooLarge {
        /// The record's size in a batch, before compression.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The transaction that the record belongs to was aborted.
    #[error("the transaction was aborted")]
    Aborted,
    /// The client was closed by its owner.
    #[error("the kafka client is closed")]
    Closed,
    /// A thread of the client has ended by a panic; the log has its message. Close the client and
    /// start another one.
    #[error("the kafka client's thread {thread} has panicked")]
    Panicked {
        /// The thread's name.
        thread: String,
    },
    /// The operating system refused a thread or another resource.
    #[error("cannot start the kafka client: {reason}")]
    Resource {
        /// The operating system's message.
        reason: String,
    },
}

/// A setting that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kafka setting {field}: {reason}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field's name, for example `ProducerConfig::linger`.
    pub field: &'static str,
    /// What is wrong with its value.
    pub reason: String,
}

impl ConfigError {
    /// Fails with `reason` unless `is_valid`.
    pub(crate) fn check(
        is_valid: bool,
        field: &'static str,
        reason: impl Into<String>,
    ) -> Result<(), Self> {
        match is_valid {
            true => Ok(()),
            false => Err(Self {
                field,
                reason: reason.into(),
            }),
        }
    }
}

fn because(cause: Option<&Error>) -> String {
    cause.map_or_else(String::new, |cause| format!(" ({cause})"))
}

fn at(broker: Option<&str>) -> String {
    broker.map_or_else(String::new, |broker| format!(" broker {broker}"))
}

fn place(topic: Option<&str>, partition: Option<i32>) -> String {
    match (topic, partition) {
        (Some(topic), Some(partition)) => format!(" for topic {topic}, partition {partition}"),
        (Some(topic), None) => format!(" for topic {topic}"),
        _ => String::new(),
    }
}

fn hint(api: ApiKey, code: ErrorCode) -> String {
    way_out(api, code).map_or_else(String::new, |way_out| format!("; {way_out}"))
}

/// How to fix the cause of an error code, where its name does not say it.
fn way_out(api: ApiKey, code: ErrorCode) -> Option<&'static str> {
    use ErrorCode as E;
    Some(match code {
        E::MessageTooLarge => "raise the topic's max.message.bytes",
        E::InvalidTimestamp => {
            "set the clock of this machine, or the topic's message.timestamp limits"
        }
        E::InvalidRecord => "a compacted topic takes no record without a key",
        E::TopicAuthorizationFailed if api == ApiKey::Produce => {
            "allow this program to write to the topic"
        }
        E::GroupAuthorizationFailed => "allow this user the operation Read on the group",
        E::InconsistentGroupProtocol => "all members of a group need an assignor in common",
        E::InvalidSessionTimeout => {
            "the brokers limit it by group.min.session.timeout.ms and group.max.session.timeout.ms"
        }
        E::FencedInstanceId => "give each member an instance id of its own",
        E::UnsupportedVersion if api == ApiKey::ConsumerGroupHeartbeat => {
            "the consumer protocol needs Kafka 4.0; older brokers know the classic one"
        }
        E::InvalidTransactionTimeout => "the brokers limit it by transaction.max.timeout.ms",
        E::TransactionalIdAuthorizationFailed => {
            "allow this user the operation Write on the transactional id"
        }
        E::InvalidReplicationFactor => "the cluster has fewer brokers than replicas wanted",
        E::NonEmptyGroup => "stop the group's members first",
        _ => return None,
    })
}

/// Whether the coordinator no longer knows the member, its generation or its epoch.
fn is_membership_over(api: ApiKey, code: ErrorCode) -> bool {
    use ApiKey as A;
    let is_of_members = matches!(
        api,
        A::FindCoordinator
            | A::JoinGroup
            | A::SyncGroup
            | A::Heartbeat
            | A::ConsumerGroupHeartbeat
            | A::LeaveGroup
            | A::OffsetCommit
            | A::OffsetFetch
            | A::TxnOffsetCommit
    );
    is_of_members
        && matches!(
            code,
            ErrorCode::UnknownMemberId
                | ErrorCode::IllegalGeneration
                | ErrorCode::RebalanceInProgress
                | ErrorCode::FencedMemberEpoch
                | ErrorCode::StaleMemberEpoch
        )
}

impl Error {
    /// Whether the same request may succeed later without a change in this program. A membership
    /// that is over counts: the consumer joins again by itself, as Java's does.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::ConnectionLost { .. }
            | Self::Timeout { .. }
            | Self::UnknownNode { .. }
            // The invalid response may come from a proxy, or from a broker of another version
            // during an upgrade. A new connection may reach another broker.
            | Self::Protocol { .. } => true,
            Self::Refused { api, code, .. } => {
                code.is_retriable() || is_membership_over(*api, *code)
            }
            // A certificate or a password must change first.
            Self::Tls { .. }
            | Self::Authentication { .. }
            | Self::UnsupportedVersion { .. }
            | Self::Encode { .. }
            | Self::InvalidRecord { .. }
            | Self::TopicReplaced { .. }
            | Self::InvalidOffset { .. }
            | Self::RecordTooLarge { .. }
            | Self::Config(_)
            | Self::Panicked { .. }
            | Self::Aborted
            | Self::Closed
            | Self::Resource { .. } => false,
        }
    }

    /// As [`Error::is_transient`], for a request that no membership is behind. The coordinator then
    /// refuses who is no member, and nobody joins again.
    pub(crate) fn is_transient_for_nobody(&self) -> bool {
        match self {
            Self::Refused { api, code, .. } if is_membership_over(*api, *code) => {
                *code == ErrorCode::RebalanceInProgress
            }
            error => error.is_transient(),
        }
    }

    /// This error of a request that will be repeated, so that it counts as transient.
    #[must_use]
    pub(crate) fn of_repeated(self) -> Self {
        match self.is_transient() {
            true => self,
            false => Self::Timeout {
                what: "a broker to recover".to_owned(),
                cause: Some(Box::new(self)),
            },
        }
    }

    /// The operation on the topic that the user lacks permission for, if that is the cause.
    pub fn missing_right(&self) -> Option<&'static str> {
        use ErrorCode::{ClusterAuthorizationFailed, TopicAuthorizationFailed};
        let Self::Refused {
            api,
            code,
            topic: Some(_),
            ..
        } = self
        else {
            return None;
        };
        match (code, api) {
            (ClusterAuthorizationFailed | TopicAuthorizationFailed, ApiKey::CreateTopics) => {
                Some("Create")
            }
            (TopicAuthorizationFailed, ApiKey::Metadata) => Some("Describe"),
            (TopicAuthorizationFailed, ApiKey::Produce) => Some("Write"),
            _ => None,
        }
    }

    /// Kafka's error code, if a broker sent one. For a time-out, the code of its cause.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Timeout { cause, .. } => cause.as_ref()?.code(),
            _ => None,
        }
    }

    /// Whether brokers do not admit this client: it needs another certificate or password.
    pub(crate) fn is_no_admission(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::Authentication { .. })
    }

    pub(crate) fn timeout(what: impl Into<String>) -> Self {
        Self::Timeout {
            what: what.into(),
            cause: None,
        }
    }

    pub(crate) fn resource(error: &std::io::Error) -> Self {
        Self::Resource {
            reason: error.to_string(),
        }
    }

    pub(crate) fn refused(api: ApiKey, code: ErrorCode) -> Self {
        Self::Refused {
            api,
            code,
            topic: None,
            partition: None,
            broker: None,
        }
    }

    pub(crate) fn check_offset(partition: &TopicPartition, offset: i64) -> Result<(), Self> {
        match offset {
            0.. => Ok(()),
            _ => Err(Self::InvalidOffset {
                partition: partition.clone(),
                offset,
            }),
        }
    }

    pub(crate) fn refused_topic(api: ApiKey, code: ErrorCode, topic: &str) -> Self {
        Self::Refused {
            api,
            code,
            topic: Some(topic.into()),
            partition: None,
            broker: None,
        }
    }

    pub(crate) fn refused_partition(
        api: ApiKey,
        code: ErrorCode,
        partition: &TopicPartition,
    ) -> Self {
        Self::Refused {
            api,
            code,
            topic: Some(Arc::clone(&partition.topic)),
            partition: Some(partition.partition),
            broker: None,
        }
    }

    /// Names the broker that refused the request, if it is known and not named yet. Other errors stay
    /// as they are.
    #[must_use]
    pub(crate) fn of_broker(mut self, address: Option<&str>) -> Self {
        if let Self::Refused { broker, .. } = &mut self
            && broker.is_none()
        {
            *broker = address.map(Arc::from);
        }
        self
    }

    /// `Err` with `code` unless it is 0, which means success.
    pub(crate) fn check(api: ApiKey, code: i16) -> Result<(), Self> {
        ErrorCode::from_code(code).map_or(Ok(()), |code| Err(Self::refused(api, code)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_leader_is_transient_and_a_forbidden_topic_is_not() {
        let refused = |code| Error::refused(ApiKey::Produce, code);
        assert!(refused(ErrorCode::NotLeaderOrFollower).is_transient());
        assert!(!refused(ErrorCode::TopicAuthorizationFailed).is_transient());
    }

    #[test]
    fn a_member_that_was_thrown_out_may_come_back_and_one_whose_name_was_taken_may_not() {
        let refused = |code| Error::refused(ApiKey::JoinGroup, code);
        assert!(refused(ErrorCode::UnknownMemberId).is_transient());
        assert!(!refused(ErrorCode::FencedInstanceId).is_transient());
    }

    #[test]
    fn code_zero_is_success() {
        assert!(Error::check(ApiKey::Metadata, 0).is_ok());
        let error = Error::check(ApiKey::Metadata, 5).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::LeaderNotAvailable));
        assert_eq!(
            error.to_string(),
            "kafka refused Metadata: LeaderNotAvailable (code 5)"
        );
    }

    #[test]
    fn a_refusal_names_the_first_broker_that_it_is_told() {
        let partition = TopicPartition::new("orders", 3);
        let error =
            Error::refused_partition(ApiKey::Produce, ErrorCode::MessageTooLarge, &partition);
        let error = error
            .of_broker(None)
            .of_broker(Some("kafka-1:9092"))
            .of_broker(Some("kafka-2:9092"));
        assert_eq!(
            error.to_string(),
            "kafka broker kafka-1:9092 refused Produce for topic orders, partition 3: \
             MessageTooLarge (code 10); raise the topic's max.message.bytes"
        );
        assert!(matches!(
            Error::Closed.of_broker(Some("kafka-1:9092")),
            Error::Closed
        ));
    }
}
