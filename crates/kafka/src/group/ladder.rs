//! Group error codes: a member's reaction to each, as one table.
//!
//! The rules are those of Java's `AbstractCoordinator` and `ConsumerCoordinator`. A code that says
//! that a membership is over is never fatal, not even where no broker sends it. Two cells are
//! milder: "coordinator is loading" in answer to SyncGroup and to Heartbeat. Java calls it
//! unexpected there and gives up. Apache Kafka never sends it there. A broker that does is
//! starting, so a member that waits soon recovers.

use crate::ErrorCode;

/// The request that the error code answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum GroupApi {
    /// FindCoordinator.
    FindCoordinator,
    /// JoinGroup.
    Join,
    /// SyncGroup.
    Sync,
    /// Heartbeat.
    Heartbeat,
    /// ConsumerGroupHeartbeat, the consumer protocol's only request apart from offsets.
    ConsumerHeartbeat,
    /// OffsetCommit, for the whole answer or one partition of it.
    OffsetCommit,
    /// OffsetFetch, for the whole answer or one partition of it.
    OffsetFetch,
}

/// A member's reaction to an error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reaction {
    /// Back off and retry.
    Retry,
    /// The coordinator has moved or is down: find it, then continue.
    FindCoordinator,
    /// Join again with the member id from the answer.
    TakeMemberId,
    /// Join again; member id, generation and partitions are kept until then.
    Rejoin,
    /// The generation is over: partitions are lost, the member id is kept.
    ResetGeneration,
    /// The group has forgotten the member: partitions and member id are lost.
    ResetMember,
    /// The request failed permanently; the membership is unaffected.
    Report,
    /// No retry can help; the member stops.
    Fatal,
}

/// Looks up the reaction in the table.
pub(crate) fn reaction(api: GroupApi, code: ErrorCode) -> Reaction {
    use ErrorCode as E;
    use GroupApi::{
        ConsumerHeartbeat, FindCoordinator, Heartbeat, Join, OffsetCommit, OffsetFetch, Sync,
    };
    match (api, code) {
        (_, E::FencedInstanceId) => Reaction::Fatal,
        (
            _,
            E::InconsistentGroupProtocol
            | E::InvalidGroupId
            | E::InvalidSessionTimeout
            | E::GroupAuthorizationFailed
            | E::GroupMaxSizeReached,
        ) => Reaction::Fatal,

        (FindCoordinator, E::CoordinatorNotAvailable | E::NotCoordinator) => Reaction::Retry,
        (_, E::CoordinatorNotAvailable | E::NotCoordinator) => Reaction::FindCoordinator,
        (OffsetCommit, E::RequestTimedOut) => Reaction::FindCoordinator,

        (Sync, E::CoordinatorLoadInProgress) => Reaction::Rejoin,
        (_, E::CoordinatorLoadInProgress) => Reaction::Retry,

        (ConsumerHeartbeat | OffsetCommit | OffsetFetch, E::FencedMemberEpoch) => {
            Reaction::ResetGeneration
        }
        (ConsumerHeartbeat, E::UnknownMemberId) => Reaction::ResetGeneration,
        // The next heartbeat returns the current epoch.
        (OffsetCommit | OffsetFetch, E::StaleMemberEpoch) => Reaction::Retry,
        // The previous owner of the name is gone after a session time-out (Java gives up).
        (ConsumerHeartbeat, E::UnreleasedInstanceId) => Reaction::Retry,

        (Join, E::MemberIdRequired) => Reaction::TakeMemberId,
        (Join, E::RebalanceInProgress) => Reaction::Retry,
        (Sync | Heartbeat | OffsetCommit, E::RebalanceInProgress) => Reaction::Rejoin,
        (Sync | Heartbeat | OffsetCommit | OffsetFetch, E::IllegalGeneration) => {
            Reaction::ResetGeneration
        }
        (Join | Sync | Heartbeat | OffsetCommit | OffsetFetch, E::UnknownMemberId) => {
            Reaction::ResetMember
        }

        // Such codes say that a membership is over, whatever was asked: joining again helps.
        (
            _,
            E::IllegalGeneration
            | E::UnknownMemberId
            | E::RebalanceInProgress
            | E::FencedMemberEpoch
            | E::StaleMemberEpoch,
        ) => match api {
            FindCoordinator => Reaction::Retry,
            _ => Reaction::ResetGeneration,
        },

        // This includes an unknown topic (3), which the next metadata resolves.
        (_, code) if code.is_retriable() => Reaction::Retry,
        (OffsetCommit | OffsetFetch, _) => Reaction::Report,
        _ => Reaction::Fatal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table by error code; columns Join, Sync, Heartbeat, OffsetCommit.
    #[test]
    fn the_ladder_is_javas() {
        use Reaction::{
            Fatal, FindCoordinator as Find, Rejoin, Report, ResetGeneration as Gen,
            ResetMember as Member, Retry, TakeMemberId as Take,
        };
        let table = [
            (79, [Take, Fatal, Fatal, Report]),
            (14, [Retry, Rejoin, Retry, Retry]),
            (15, [Find, Find, Find, Find]),
            (16, [Find, Find, Find, Find]),
            (27, [Retry, Rejoin, Rejoin, Rejoin]),
            (22, [Gen, Gen, Gen, Gen]),
            (110, [Gen, Gen, Gen, Gen]),
            (25, [Member, Member, Member, Member]),
            (82, [Fatal; 4]),
            (23, [Fatal; 4]),
            (24, [Fatal; 4]),
            (26, [Fatal; 4]),
            (30, [Fatal; 4]),
            (81, [Fatal; 4]),
            (3, [Retry; 4]),
            (7, [Retry, Retry, Retry, Find]),
            (12, [Fatal, Fatal, Fatal, Report]),
            (28, [Fatal, Fatal, Fatal, Report]),
            (29, [Fatal, Fatal, Fatal, Report]),
            (-1, [Fatal, Fatal, Fatal, Report]),
            (999, [Fatal, Fatal, Fatal, Report]),
        ];
        let apis = [
            GroupApi::Join,
            GroupApi::Sync,
            GroupApi::Heartbeat,
            GroupApi::OffsetCommit,
        ];
        for (code, expected) in table {
            let error = ErrorCode::from_code(code).unwrap();
            assert_eq!(
                apis.map(|api| reaction(api, error)),
                expected,
                "code {code}"
            );
        }
    }

    #[test]
    fn the_ladder_is_the_table_in_the_design() {
        use crate::error_tables::ErrorTable;
        let table = ErrorTable::under("### Requests of a member");
        let apis = [
            ("FindCoordinator", GroupApi::FindCoordinator),
            ("JoinGroup", GroupApi::Join),
            ("SyncGroup", GroupApi::Sync),
            ("Heartbeat", GroupApi::Heartbeat),
            ("ConsumerGroupHeartbeat", GroupApi::ConsumerHeartbeat),
            ("OffsetCommit", GroupApi::OffsetCommit),
            ("OffsetFetch", GroupApi::OffsetFetch),
        ];
        let mut named: Vec<String> = table.codes().collect();
        for code in ErrorCode::all() {
            named.retain(|name| !name.eq_ignore_ascii_case(code.name()));
            for (name, api) in apis {
                let expected = match reaction(api, code) {
                    Reaction::Retry => "retry",
                    Reaction::FindCoordinator => "find",
                    Reaction::TakeMemberId => "take the id",
                    Reaction::Rejoin => "rejoin",
                    Reaction::ResetGeneration => "new generation",
                    Reaction::ResetMember => "new member",
                    Reaction::Report => "report",
                    Reaction::Fatal => "end",
                };
                let written = table.reaction(name, code.name(), code.is_retriable());
                assert_eq!(written, expected, "{name} {code}");
            }
        }
        assert!(named.is_empty(), "unknown codes: {named:?}");
    }

    #[test]
    fn looking_for_the_coordinator_and_for_offsets_waits_where_waiting_helps() {
        for (api, code, expected) in [
            (GroupApi::FindCoordinator, 15, Reaction::Retry),
            (GroupApi::FindCoordinator, 14, Reaction::Retry),
            (GroupApi::FindCoordinator, 30, Reaction::Fatal),
            (GroupApi::OffsetFetch, 14, Reaction::Retry),
            (GroupApi::OffsetFetch, 16, Reaction::FindCoordinator),
            (GroupApi::OffsetFetch, 88, Reaction::Retry),
            (GroupApi::OffsetFetch, 25, Reaction::ResetMember),
            (GroupApi::OffsetFetch, 29, Reaction::Report),
        ] {
            let error = ErrorCode::from_code(code).unwrap();
            assert_eq!(reaction(api, error), expected, "{api:?} {code}");
        }
    }
}
