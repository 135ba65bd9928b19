//! What can go wrong between us and a Kafka cluster.

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::ApiKey;

/// A failed exchange with the cluster. Cheap to clone, because one lost
/// connection is told to everybody who waited on it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made; nothing was sent.
    #[error("cannot reach kafka broker {address}: {reason}")]
    Unreachable {
        /// `host:port` as dialled.
        address: String,
        /// The operating system's words.
        reason: String,
    },
    /// An established connection broke; requests in flight may have been done.
    #[error("lost the connection to kafka broker {address}: {reason}")]
    ConnectionLost {
        /// `host:port` as dialled.
        address: String,
        /// What was seen.
        reason: String,
    },
    /// The deadline passed before the work was done; a request in flight may
    /// have been done.
    #[error("timed out waiting for {what}")]
    Timeout {
        /// What was being waited for.
        what: String,
    },
    /// The peer sent bytes that are not a valid answer. The connection is dead.
    #[error("kafka broker {address} sent an invalid answer: {reason}")]
    Protocol {
        /// `host:port` as dialled.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker answered with an error code.
    #[error("kafka refused {api:?}: {code} (code {})", .code.code())]
    Broker {
        /// The request that was refused.
        api: ApiKey,
        /// Kafka's code.
        code: ResponseError,
    },
    /// The broker answered with an error code that concerns one topic.
    #[error("kafka refused {api:?} for topic {topic}: {code} (code {})", .code.code())]
    Topic {
        /// The topic's name.
        topic: Arc<str>,
        /// The request that was refused.
        api: ApiKey,
        /// Kafka's code.
        code: ResponseError,
    },
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
        /// What is wrong, mostly in the broker's words.
        reason: String,
    },
    /// The broker speaks no version of this request that we speak too.
    #[error("kafka broker {address} supports no version of {api:?} that this client speaks")]
    UnsupportedVersion {
        /// `host:port` as dialled.
        address: String,
        /// The request in question.
        api: ApiKey,
    },
    /// The cluster does not know the node we wanted to talk to (any more).
    #[error("kafka node {node} is not part of the known cluster")]
    UnknownNode {
        /// The broker's node id.
        node: i32,
    },
    /// A request cannot be put into bytes in the negotiated version: our own
    /// fault or a field too large. Nothing was sent.
    #[error("cannot encode {api:?}: {reason}")]
    Encode {
        /// The request in question.
        api: ApiKey,
        /// The codec's words.
        reason: String,
    },
    /// What the caller handed over cannot be sent as it is.
    #[error("invalid record: {reason}")]
    InvalidRecord {
        /// What is wrong with it.
        reason: String,
    },
    /// The topic was deleted and another one has its name now, so the offsets that were
    /// asked for mean nothing any more.
    #[error("topic {topic} was deleted and created again: its id was {old} and is {new} now")]
    TopicReplaced {
        /// The topic's name.
        topic: String,
        /// The id of the deleted topic, as Kafka's own tools write it.
        old: String,
        /// The id of the topic that has the name now.
        new: String,
    },
    /// The record is larger than the client's own limit. Nothing was sent.
    #[error("a record of {bytes} bytes is larger than the limit of {limit}")]
    RecordTooLarge {
        /// The record's size in a batch, before compression.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The client was closed by its owner.
    #[error("the kafka client is closed")]
    Closed,
    /// The operating system refused a thread or another resource.
    #[error("cannot start the kafka client: {reason}")]
    Resource {
        /// The operating system's words.
        reason: String,
    },
}

/// Whether the coordinator says that it knows the member, its generation or its epoch no longer.
fn is_membership_over(code: ResponseError) -> bool {
    matches!(
        code,
        ResponseError::UnknownMemberId
            | ResponseError::IllegalGeneration
            | ResponseError::RebalanceInProgress
            | ResponseError::FencedMemberEpoch
            | ResponseError::StaleMemberEpoch
    )
}

impl Error {
    /// Whether the same request may succeed later, with nothing changed on our side. A
    /// membership that is over counts: the consumer joins anew by itself (as Java's does).
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::ConnectionLost { .. }
            | Self::Timeout { .. }
            | Self::UnknownNode { .. }
            // Half a cluster may be of another make or being upgraded, and a
            // garbled answer may have been a proxy's: a new connection decides.
            | Self::Protocol { .. } => true,
            Self::Broker { code, .. } | Self::Topic { code, .. } => {
                code.is_retriable() || is_membership_over(*code)
            }
            // A certificate or a password has to be changed first.
            Self::Tls { .. }
            | Self::Authentication { .. }
            | Self::UnsupportedVersion { .. }
            | Self::Encode { .. }
            | Self::InvalidRecord { .. }
            | Self::TopicReplaced { .. }
            | Self::RecordTooLarge { .. }
            | Self::Closed
            | Self::Resource { .. } => false,
        }
    }

    /// The operation on the topic that the user we log in as would have to be allowed, when
    /// that is the trouble.
    pub fn missing_right(&self) -> Option<&'static str> {
        use ResponseError::{ClusterAuthorizationFailed, TopicAuthorizationFailed};
        let Self::Topic { api, code, .. } = self else {
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

    /// The code, when a broker answered with one.
    pub fn code(&self) -> Option<ResponseError> {
        match self {
            Self::Broker { code, .. } | Self::Topic { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// `Err` with `code` unless it is 0, which means success.
    pub(crate) fn check(api: ApiKey, code: i16) -> Result<(), Self> {
        match ResponseError::try_from_code(code) {
            None => Ok(()),
            Some(code) => Err(Self::Broker { api, code }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_leader_is_transient_and_a_forbidden_topic_is_not() {
        let refused = |code| Error::Broker {
            api: ApiKey::Produce,
            code,
        };
        assert!(refused(ResponseError::NotLeaderOrFollower).is_transient());
        assert!(!refused(ResponseError::TopicAuthorizationFailed).is_transient());
    }

    #[test]
    fn a_member_that_was_thrown_out_may_come_back_and_one_whose_name_was_taken_may_not() {
        let refused = |code| Error::Broker {
            api: ApiKey::JoinGroup,
            code,
        };
        assert!(refused(ResponseError::UnknownMemberId).is_transient());
        assert!(!refused(ResponseError::FencedInstanceId).is_transient());
    }

    #[test]
    fn code_zero_is_success() {
        assert!(Error::check(ApiKey::Metadata, 0).is_ok());
        let error = Error::check(ApiKey::Metadata, 5).unwrap_err();
        assert_eq!(error.code(), Some(ResponseError::LeaderNotAvailable));
        assert_eq!(
            error.to_string(),
            "kafka refused Metadata: LeaderNotAvailable (code 5)"
        );
    }
}
