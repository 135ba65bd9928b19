//! Errors of the Kafka client.

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::ApiKey;

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
    #[error("timed out waiting for {what}")]
    Timeout {
        /// What the caller waited for.
        what: String,
    },
    /// The peer sent bytes that are not a valid response. The connection cannot be used again.
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
        /// The operating system's message.
        reason: String,
    },
}

/// Whether the coordinator no longer knows the member, its generation or its epoch.
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
            Self::Broker { code, .. } | Self::Topic { code, .. } => {
                code.is_retriable() || is_membership_over(*code)
            }
            // A certificate or a password must change first.
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

    /// The operation on the topic that the user lacks permission for, if that is the cause.
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

    /// Kafka's error code, if a broker sent one.
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
