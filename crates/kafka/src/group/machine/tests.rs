use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings {
        session_timeout: 10 * SECOND,
        heartbeat_interval: 3 * SECOND,
        max_poll_interval: 300 * SECOND,
        retry_backoff: SECOND / 10,
        retry_backoff_max: SECOND,
        is_static: false,
    }
}

fn here() -> Coordinator {
    Coordinator {
        node_id: 1,
        address: "here:1".into(),
    }
}

fn code(code: i16) -> Failure {
    Failure::Code(ErrorCode::from_code(code).unwrap())
}

fn me(generation: i32) -> Identity {
    Identity {
        member_id: "me".into(),
        generation,
    }
}

fn at(phase: Phase, start: Instant) -> Machine {
    let mut machine = Machine::new(settings(), start);
    machine.coordinator_found(here(), start);
    if phase != Phase::Unjoined {
        machine.start_join();
    }
    if matches!(phase, Phase::Syncing | Phase::Stable) {
        assert!(machine.joined("me".into(), 5, start));
    }
    if phase == Phase::Stable {
        assert!(machine.synced(&me(5), start));
    }
    machine
}

/// The visible state of a machine after an answer.
#[derive(Debug, PartialEq)]
struct After {
    phase: Phase,
    knows_coordinator: bool,
    member: &'static str,
    generation: i32,
    is_lost: bool,
    is_fatal: bool,
    rejoins: bool,
}

fn after(machine: &Machine) -> After {
    After {
        phase: machine.phase,
        knows_coordinator: machine.coordinator.is_some(),
        member: match machine.identity.member_id.as_str() {
            "" => "",
            "me" => "me",
            _ => "new",
        },
        generation: machine.identity.generation,
        is_lost: machine.lost,
        is_fatal: machine.fatal.is_some(),
        rejoins: machine.rejoin_wanted,
    }
}

/// Stable in generation 5 and unchanged.
const FINE: After = After {
    phase: Phase::Stable,
    knows_coordinator: true,
    member: "me",
    generation: 5,
    is_lost: false,
    is_fatal: false,
    rejoins: false,
};
/// Rejoins under the same identity.
const UNJOINED: After = After {
    phase: Phase::Unjoined,
    ..FINE
};
/// Rejoins after finding the coordinator.
const UNJOINED_AWAY: After = After {
    knows_coordinator: false,
    ..UNJOINED
};
/// Stable, and must find the coordinator.
const AWAY: After = After {
    knows_coordinator: false,
    ..FINE
};
/// Thrown out, without a member id.
const FORGOTTEN: After = After {
    phase: Phase::Unjoined,
    member: "",
    generation: -1,
    is_lost: true,
    ..FINE
};
/// Thrown out of the generation, with a member id.
const OUTDATED: After = After {
    member: "me",
    ..FORGOTTEN
};
const DEAD: After = After {
    is_fatal: true,
    ..OUTDATED
};

const FATAL_CODES: [i16; 6] = [82, 23, 24, 26, 30, 81];

#[test]
fn a_member_joins_syncs_and_beats() {
    let start = Instant::now();
    let mut machine = Machine::new(settings(), start);
    assert_eq!(machine.poll_step(start), PollStep::FindCoordinator);
    assert_eq!(machine.heartbeat_step(start), HeartbeatStep::Wait(None));
    machine.coordinator_found(here(), start);
    assert_eq!(machine.poll_step(start), PollStep::Join(here()));
    machine.start_join();
    assert_eq!(machine.poll_step(start), PollStep::AwaitAnswer);
    // Heartbeats begin after the join's answer, before the sync's.
    assert_eq!(machine.heartbeat_step(start), HeartbeatStep::Wait(None));
    assert!(machine.joined("me".into(), 5, start));
    assert_eq!(
        machine.heartbeat_step(start),
        HeartbeatStep::Wait(Some(start + BRISK_INTERVAL))
    );
    assert_eq!(
        machine.heartbeat_step(start + BRISK_INTERVAL),
        HeartbeatStep::Send(here(), me(5))
    );
    // Later heartbeats come at the normal interval.
    let later = start + BRISK_FOR;
    assert_eq!(
        machine.heartbeat_step(later),
        HeartbeatStep::Send(here(), me(5))
    );
    assert_eq!(
        machine.heartbeat_step(later),
        HeartbeatStep::Wait(Some(later + 3 * SECOND))
    );
    assert!(machine.synced(&me(5), start));
    assert_eq!(machine.poll_step(start), PollStep::Ready(here()));
    assert!(!machine.is_rebalancing());
}

#[test]
fn a_subscription_that_changes_during_a_rebalance_needs_another_one() {
    let start = Instant::now();
    for phase in [Phase::Joining, Phase::Syncing, Phase::Stable] {
        let mut machine = at(phase, start);
        machine.subscription_changed();
        if phase == Phase::Joining {
            assert!(machine.joined("me".into(), 5, start));
        }
        machine.synced(&me(5), start);
        assert_eq!(
            machine.poll_step(start),
            PollStep::Join(here()),
            "{phase:?}"
        );
        machine.start_join();
        assert!(machine.joined("me".into(), 6, start));
        assert!(machine.synced(&me(6), start));
        assert_eq!(machine.poll_step(start), PollStep::Ready(here()));
    }
}

#[test]
fn each_join_error_has_its_consequence() {
    for (error, rejoining, expected) in [
        (code(14), true, UNJOINED),
        (code(27), true, UNJOINED),
        (code(15), true, UNJOINED_AWAY),
        (code(16), true, UNJOINED_AWAY),
        (Failure::Transport, true, UNJOINED_AWAY),
        (code(25), true, FORGOTTEN),
        (
            code(79),
            false,
            After {
                member: "new",
                generation: -1,
                ..UNJOINED
            },
        ),
    ] {
        let start = Instant::now();
        let mut machine = at(
            if rejoining {
                Phase::Stable
            } else {
                Phase::Unjoined
            },
            start,
        );
        machine.start_join();
        machine.join_failed(error, Some("new".into()), start);
        assert_eq!(after(&machine), expected, "{error:?}");
        // Only a new member id is used at once; all other failures pause.
        let pauses = matches!(machine.poll_step(start), PollStep::Wait(_));
        assert_eq!(pauses, error != code(79), "{error:?}");
    }
    for fatal in FATAL_CODES {
        let start = Instant::now();
        let mut machine = at(Phase::Stable, start);
        machine.start_join();
        machine.join_failed(code(fatal), None, start);
        assert_eq!(after(&machine), DEAD, "{fatal}");
    }
}

#[test]
fn each_sync_error_has_its_consequence() {
    for (error, expected) in [
        (code(27), UNJOINED),
        (code(14), UNJOINED),
        (code(15), UNJOINED_AWAY),
        (code(16), UNJOINED_AWAY),
        (Failure::Transport, UNJOINED_AWAY),
        (code(22), OUTDATED),
        (code(25), FORGOTTEN),
    ] {
        let start = Instant::now();
        let mut machine = at(Phase::Syncing, start);
        machine.sync_failed(&me(5), error, start);
        assert_eq!(after(&machine), expected, "{error:?}");
    }
    for fatal in FATAL_CODES {
        let start = Instant::now();
        let mut machine = at(Phase::Syncing, start);
        machine.sync_failed(&me(5), code(fatal), start);
        assert_eq!(after(&machine), DEAD, "{fatal}");
    }
}

#[test]
fn each_heartbeat_error_has_its_consequence() {
    for (error, expected, is_news) in [
        (
            code(27),
            After {
                rejoins: true,
                ..FINE
            },
            true,
        ),
        (code(14), FINE, false),
        (code(15), AWAY, false),
        (code(16), AWAY, false),
        (Failure::Transport, AWAY, false),
        (code(22), OUTDATED, true),
        (code(25), FORGOTTEN, true),
    ] {
        let start = Instant::now();
        let mut machine = at(Phase::Stable, start);
        assert_eq!(
            machine.heartbeat_answered(&me(5), Err(error), start),
            is_news,
            "{error:?}"
        );
        assert_eq!(after(&machine), expected, "{error:?}");
    }
    for fatal in FATAL_CODES {
        let start = Instant::now();
        let mut machine = at(Phase::Stable, start);
        assert!(machine.heartbeat_answered(&me(5), Err(code(fatal)), start));
        assert_eq!(after(&machine), DEAD, "{fatal}");
    }
}

/// Ways to meet an error in a stable member, or on the way there.
fn met(by: GroupApi, error: Failure) -> Machine {
    let start = Instant::now();
    let mut machine = match by {
        GroupApi::Sync => at(Phase::Syncing, start),
        _ => at(Phase::Stable, start),
    };
    match by {
        GroupApi::Join => {
            machine.start_join();
            machine.join_failed(error, None, start);
        }
        GroupApi::Sync => machine.sync_failed(&me(5), error, start),
        GroupApi::Heartbeat => {
            machine.heartbeat_answered(&me(5), Err(error), start);
        }
        GroupApi::OffsetCommit => {
            machine.commit_failed(&me(5), error);
        }
        GroupApi::OffsetFetch => {
            machine.offset_fetch_failed(&me(5), error, start);
        }
        _ => machine.coordinator_not_found(error, start),
    }
    machine
}

#[test]
fn a_member_that_can_never_continue_leaves_before_its_owner_hears_of_it() {
    let apis = [
        GroupApi::FindCoordinator,
        GroupApi::Join,
        GroupApi::Sync,
        GroupApi::Heartbeat,
        GroupApi::OffsetCommit,
        GroupApi::OffsetFetch,
    ];
    for api in apis {
        for fatal in FATAL_CODES.into_iter().filter(|fatal| *fatal != 82) {
            let later = Instant::now() + 99 * SECOND;
            let mut machine = met(api, code(fatal));
            assert_eq!(after(&machine), DEAD, "{api:?} {fatal}");
            let leave = HeartbeatStep::Leave(Some(here()), me(-1));
            assert_eq!(machine.heartbeat_step(later), leave, "{api:?} {fatal}");
            assert_eq!(machine.poll_step(later), PollStep::AwaitAnswer);
            // Another leave, which began earlier, ends.
            machine.leave_ended(&me(5));
            assert_eq!(machine.heartbeat_step(later), leave);
            machine.leave_ended(&me(-1));
            assert_eq!(machine.heartbeat_step(later), HeartbeatStep::Wait(None));
            assert!(matches!(machine.poll_step(later), PollStep::Fail(_)));
            assert_eq!(machine.take_leaver(), None, "it has left");
        }
    }
}

#[test]
fn a_member_that_failed_leaves_although_its_coordinator_is_unknown() {
    let start = Instant::now();
    let mut machine = at(Phase::Stable, start);
    machine.commit_failed(&me(5), Failure::Transport);
    machine.coordinator_not_found(code(30), start);
    let leave = HeartbeatStep::Leave(None, me(-1));
    assert_eq!(machine.heartbeat_step(start), leave);
}

#[test]
fn a_failed_member_that_the_group_does_not_have_has_nothing_to_leave() {
    let start = Instant::now();
    // Its first join is refused: it has no id. Another process has taken its place. It is static.
    let mut stranger = at(Phase::Joining, start);
    stranger.join_failed(code(30), None, start);
    let fenced = met(GroupApi::Heartbeat, code(82));
    let mut named = at(Phase::Stable, start);
    named.settings.is_static = true;
    named.heartbeat_answered(&me(5), Err(code(30)), start);
    for mut machine in [stranger, fenced, named] {
        assert_eq!(machine.heartbeat_step(start), HeartbeatStep::Wait(None));
        assert!(matches!(machine.poll_step(start), PollStep::Fail(_)));
    }
}

#[test]
fn each_commit_error_has_its_consequence() {
    for (error, verdict, expected) in [
        (code(14), CommitVerdict::Retry, FINE),
        (code(3), CommitVerdict::Retry, FINE),
        (code(15), CommitVerdict::Retry, AWAY),
        (code(16), CommitVerdict::Retry, AWAY),
        (code(7), CommitVerdict::Retry, AWAY),
        (Failure::Transport, CommitVerdict::Retry, AWAY),
        (
            code(27),
            CommitVerdict::Rebalancing,
            After {
                rejoins: true,
                ..FINE
            },
        ),
        (code(22), CommitVerdict::Lost, OUTDATED),
        (code(25), CommitVerdict::Lost, FORGOTTEN),
        (
            code(12),
            CommitVerdict::Report(ErrorCode::OffsetMetadataTooLarge),
            FINE,
        ),
        (
            code(29),
            CommitVerdict::Report(ErrorCode::TopicAuthorizationFailed),
            FINE,
        ),
    ] {
        let mut machine = at(Phase::Stable, Instant::now());
        assert_eq!(machine.commit_failed(&me(5), error), verdict, "{error:?}");
        assert_eq!(after(&machine), expected, "{error:?}");
    }
    for fatal in FATAL_CODES {
        let mut machine = at(Phase::Stable, Instant::now());
        let verdict = machine.commit_failed(&me(5), code(fatal));
        assert!(matches!(verdict, CommitVerdict::Fatal(_)), "{fatal}");
        assert_eq!(after(&machine), DEAD, "{fatal}");
        assert_eq!(machine.commit_identity(), Err(verdict));
    }
}

#[test]
fn an_answer_for_an_older_generation_changes_nothing() {
    for error in [code(22), code(25), code(27), code(16)] {
        let start = Instant::now();
        let mut machine = at(Phase::Stable, start);
        assert!(!machine.heartbeat_answered(&me(4), Err(error), start));
        assert_eq!(after(&machine), FINE, "heartbeat {error:?}");
        machine.sync_failed(&me(4), error, start);
        assert!(!machine.synced(&me(4), start));
        assert_eq!(after(&machine), FINE, "sync {error:?}");
    }
    // A commit of generation 4 that is refused in generation 5 has no other effect.
    let mut machine = at(Phase::Stable, Instant::now());
    assert_eq!(
        machine.commit_failed(&me(4), code(22)),
        CommitVerdict::Rebalancing
    );
    assert_eq!(after(&machine), FINE);
}

#[test]
fn a_commit_refused_during_a_rebalance_does_not_disturb_it() {
    for phase in [Phase::Joining, Phase::Syncing] {
        for error in [code(22), code(25), code(27)] {
            let mut machine = at(phase, Instant::now());
            machine.identity = me(5);
            assert_eq!(
                machine.commit_failed(&me(5), error),
                CommitVerdict::Rebalancing
            );
            assert_eq!(machine.phase, phase, "{error:?}");
            assert!(!machine.lost);
        }
    }
}

#[test]
fn commits_are_refused_here_when_there_is_no_generation_to_speak_for() {
    let start = Instant::now();
    assert_eq!(
        at(Phase::Unjoined, start).commit_identity(),
        Err(CommitVerdict::Lost)
    );
    for phase in [Phase::Joining, Phase::Syncing] {
        assert_eq!(
            at(phase, start).commit_identity(),
            Err(CommitVerdict::Rebalancing)
        );
    }
    assert_eq!(at(Phase::Stable, start).commit_identity(), Ok(me(5)));
}

#[test]
fn a_heartbeat_reports_a_rebalance_once_and_not_during_one() {
    let start = Instant::now();
    let mut machine = at(Phase::Stable, start);
    assert!(machine.heartbeat_answered(&me(5), Err(code(27)), start));
    assert!(!machine.heartbeat_answered(&me(5), Err(code(27)), start));
    assert_eq!(machine.poll_step(start), PollStep::Join(here()));
    let mut machine = at(Phase::Syncing, start);
    assert!(!machine.heartbeat_answered(&me(5), Err(code(27)), start));
    assert_eq!(machine.phase, Phase::Syncing);
}

#[test]
fn an_owner_that_does_not_poll_makes_the_member_leave() {
    let start = Instant::now();
    let mut machine = at(Phase::Stable, start);
    machine.polled(start + 10 * SECOND);
    let stuck = start + 310 * SECOND;
    assert!(!matches!(
        machine.heartbeat_step(stuck - SECOND),
        HeartbeatStep::Leave(..)
    ));
    machine.coordinator_found(here(), stuck);
    assert_eq!(
        machine.heartbeat_step(stuck),
        HeartbeatStep::Leave(Some(here()), me(5))
    );
    assert_eq!(after(&machine), FORGOTTEN);
    assert_eq!(machine.heartbeat_step(stuck), HeartbeatStep::Wait(None));
    assert_eq!(machine.commit_identity(), Err(CommitVerdict::Lost));
    assert!(machine.take_lost());
    assert!(!machine.take_lost());
}

#[test]
fn a_static_member_never_says_it_leaves() {
    let start = Instant::now();
    let mut machine = at(Phase::Stable, start);
    machine.settings.is_static = true;
    assert_eq!(
        machine.heartbeat_step(start + 300 * SECOND),
        HeartbeatStep::Wait(None)
    );
    assert_eq!(after(&machine), OUTDATED);
    assert_eq!(machine.take_leaver(), None);
}

#[test]
fn a_session_without_signs_makes_the_coordinator_be_found_again() {
    let start = Instant::now();
    let mut machine = at(Phase::Stable, start);
    let silent = start + 10 * SECOND;
    assert_eq!(
        machine.heartbeat_step(silent),
        HeartbeatStep::FindCoordinator
    );
    machine.heartbeat_coordinator_not_found(Failure::Transport, silent);
    assert!(matches!(
        machine.heartbeat_step(silent),
        HeartbeatStep::Wait(Some(_))
    ));
    machine.coordinator_found(here(), silent + SECOND);
    assert_eq!(
        machine.heartbeat_step(silent + SECOND),
        HeartbeatStep::Send(here(), me(5))
    );
}

#[test]
fn a_coordinator_lost_during_a_sync_ends_that_rebalance() {
    let start = Instant::now();
    let mut machine = at(Phase::Syncing, start);
    assert!(machine.heartbeat_answered(&me(5), Err(Failure::Transport), start));
    assert_eq!(machine.poll_step(start), PollStep::FindCoordinator);
    machine.coordinator_found(here(), start);
    assert_eq!(machine.poll_step(start), PollStep::Join(here()));
}

#[test]
fn pauses_grow_to_their_limit_and_end_with_success() {
    let start = Instant::now();
    let mut machine = Machine::new(settings(), start);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        machine.coordinator_not_found(code(15), start);
        let PollStep::Wait(until) = machine.poll_step(start) else {
            panic!("no pause");
        };
        pauses.push((until - start).as_millis());
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
    machine.coordinator_found(here(), start);
    machine.start_join();
    machine.joined("me".into(), 1, start);
    machine.synced(&me(1), start);
    assert_eq!(machine.poll_step(start), PollStep::Ready(here()));
}

#[test]
fn closing_works_in_every_phase() {
    let start = Instant::now();
    assert_eq!(Machine::new(settings(), start).take_leaver(), None);
    assert_eq!(at(Phase::Joining, start).take_leaver(), None);
    for phase in [Phase::Syncing, Phase::Stable] {
        let mut machine = at(phase, start);
        machine.close();
        assert_eq!(machine.take_leaver(), Some((Some(here()), me(5))));
        assert_eq!(machine.take_leaver(), None);
        assert_eq!(machine.heartbeat_step(start), HeartbeatStep::Stop);
    }
}
