use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn settings(is_static: bool) -> Settings {
    Settings {
        session_timeout: 10 * SECOND,
        heartbeat_interval: 3 * SECOND,
        max_poll_interval: 5 * MINUTE,
        retry_backoff: SECOND / 10,
        retry_backoff_max: SECOND,
        is_static,
    }
}

fn here() -> Coordinator {
    Coordinator {
        node_id: 1,
        address: "here:1".into(),
    }
}

fn target(partitions: &[i32]) -> Target {
    vec![(Uuid::from_u128(7), partitions.to_vec())]
}

fn answer(epoch: i32, target: Option<Target>) -> Result<Answer, Failure> {
    Ok(Answer {
        epoch,
        interval: SECOND,
        target,
    })
}

fn refused(code: i16) -> Result<Answer, Failure> {
    Err(Failure::Code(ErrorCode::from_code(code).unwrap()))
}

/// The heartbeat that is due now.
fn heartbeat(machine: &mut ConsumerMachine, now: Instant) -> HeartbeatRequest {
    match machine.heartbeat_step(now) {
        HeartbeatStep::SendConsumer(coordinator, heartbeat) => {
            assert_eq!(coordinator, here());
            heartbeat
        }
        other => panic!("{other:?}"),
    }
}

/// A member of epoch 3 that owns partitions 0 and 1.
fn stable(now: Instant) -> ConsumerMachine {
    let mut machine = ConsumerMachine::new(settings(false), now);
    assert!(machine.polled(now));
    machine.coordinator_found(here());
    let join = heartbeat(&mut machine, now);
    assert!(machine.heartbeat_answered(&join, answer(3, Some(target(&[0, 1]))), now));
    machine.reconciled(&target(&[0, 1]));
    let acknowledgement = heartbeat(&mut machine, now);
    machine.heartbeat_answered(&acknowledgement, answer(3, None), now);
    assert_eq!(machine.phase, Phase::Stable);
    machine
}

#[test]
fn a_member_joins_when_polled_takes_its_target_over_and_says_so_at_once() {
    let now = Instant::now();
    let mut machine = ConsumerMachine::new(settings(false), now);
    assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Wait(None));
    assert!(machine.polled(now));
    assert!(!machine.polled(now), "reported once");
    assert_eq!(machine.heartbeat_step(now), HeartbeatStep::FindCoordinator);
    machine.coordinator_found(here());

    let join = heartbeat(&mut machine, now);
    assert_eq!((join.identity.generation, join.is_full), (0, true));
    assert_eq!(join.owned, Some(Target::new()));
    assert_eq!(machine.poll_step(now), PollStep::AwaitAnswer);
    assert!(machine.heartbeat_answered(&join, answer(1, Some(target(&[4]))), now));
    assert_eq!(machine.poll_step(now), PollStep::Reconcile(target(&[4])));
    // Nothing is sent before the target is reached.
    assert!(
        matches!(machine.heartbeat_step(now), HeartbeatStep::Wait(Some(at)) if at == now + SECOND)
    );

    machine.reconciled(&target(&[4]));
    assert_eq!(machine.poll_step(now), PollStep::Ready(here()));
    let acknowledgement = heartbeat(&mut machine, now);
    assert_eq!(acknowledgement.owned, Some(target(&[4])));
    assert!(!acknowledgement.is_full);
    machine.heartbeat_answered(&acknowledgement, answer(1, None), now);
    assert!(!machine.is_rebalancing());

    // From then on at the coordinator's interval, with no content.
    let due = now + SECOND;
    assert!(matches!(machine.heartbeat_step(now), HeartbeatStep::Wait(Some(at)) if at == due));
    let usual = heartbeat(&mut machine, due);
    assert_eq!((usual.is_full, usual.owned), (false, None));
}

#[test]
fn a_subscription_that_changes_while_a_heartbeat_is_under_way_is_sent_with_the_next_one_at_once() {
    let now = Instant::now();
    let mut machine = stable(now);
    let before = heartbeat(&mut machine, now + SECOND);
    assert!(!before.is_full);
    machine.subscription_changed();
    machine.heartbeat_answered(&before, answer(3, None), now + SECOND);
    assert!(heartbeat(&mut machine, now + SECOND).is_full);
}

#[test]
fn a_target_replaced_before_it_was_reached_is_not_acknowledged() {
    let now = Instant::now();
    let mut machine = stable(now);
    let first = heartbeat(&mut machine, now + SECOND);
    assert!(machine.heartbeat_answered(&first, answer(4, Some(target(&[0]))), now));
    let second = heartbeat(&mut machine, now + 2 * SECOND);
    machine.heartbeat_answered(&second, answer(5, Some(target(&[1]))), now);
    machine.reconciled(&target(&[0]));
    assert_eq!(machine.poll_step(now), PollStep::Reconcile(target(&[1])));
}

#[test]
fn partitions_given_up_while_a_heartbeat_is_under_way_are_reported_with_the_next_one_at_once() {
    let now = Instant::now();
    let mut machine = stable(now);
    let usual = heartbeat(&mut machine, now + SECOND);
    assert!(machine.heartbeat_answered(&usual, answer(4, Some(target(&[0]))), now + SECOND));
    let during = heartbeat(&mut machine, now + 2 * SECOND);
    machine.reconciled(&target(&[0]));
    machine.heartbeat_answered(&during, answer(4, None), now + 2 * SECOND);
    assert!(machine.is_rebalancing(), "the coordinator waits for it");
    let acknowledgement = heartbeat(&mut machine, now + 2 * SECOND);
    assert_eq!(acknowledgement.owned, Some(target(&[0])));
    machine.heartbeat_answered(&acknowledgement, answer(4, None), now + 2 * SECOND);
    assert!(!machine.is_rebalancing());
}

#[test]
fn a_fenced_or_forgotten_member_joins_again_once_its_partitions_are_given_up() {
    for code in [25, 110] {
        let now = Instant::now();
        let mut machine = stable(now);
        let name = machine.identity().member_id.clone();
        let fenced = heartbeat(&mut machine, now + SECOND);
        assert!(machine.heartbeat_answered(&fenced, refused(code), now));
        assert_eq!(machine.commit_identity(), Err(CommitVerdict::Lost));
        assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Wait(None));
        assert!(machine.take_lost());
        let join = heartbeat(&mut machine, now + SECOND);
        assert_eq!(join.identity.member_id, name);
        assert_eq!((join.identity.generation, join.is_full), (0, true));
        assert_eq!(join.owned, Some(Target::new()));
    }
}

#[test]
fn after_a_failure_everything_is_sent_again() {
    let now = Instant::now();
    let mut machine = stable(now);
    let lost = heartbeat(&mut machine, now + SECOND);
    assert!(!machine.heartbeat_answered(&lost, Err(Failure::Transport), now + SECOND));
    assert!(matches!(
        machine.heartbeat_step(now + SECOND),
        HeartbeatStep::Wait(Some(_))
    ));
    assert_eq!(
        machine.heartbeat_step(now + 2 * SECOND),
        HeartbeatStep::FindCoordinator
    );
    machine.coordinator_found(here());
    let again = heartbeat(&mut machine, now + 2 * SECOND);
    assert_eq!((again.is_full, again.owned), (true, Some(target(&[0, 1]))));
    assert_eq!(again.identity.generation, 3);
}

#[test]
fn an_owner_that_does_not_poll_leaves_and_joins_when_it_polls_again() {
    let now = Instant::now();
    let mut machine = stable(now);
    let late = now + 5 * MINUTE;
    let HeartbeatStep::Leave(_, leaver) = machine.heartbeat_step(late) else {
        panic!("stays");
    };
    assert_eq!(leaver.generation, -1);
    machine.leave_ended();
    assert_eq!(machine.heartbeat_step(late), HeartbeatStep::Wait(None));
    assert_eq!(machine.commit_identity(), Err(CommitVerdict::Lost));
    assert!(machine.polled(late));
    assert!(machine.take_lost());
    assert_eq!(heartbeat(&mut machine, late).identity.generation, 0);
}

#[test]
fn a_member_that_has_joined_again_commits_nothing_before_it_has_given_up_what_it_lost() {
    let now = Instant::now();
    let mut machine = stable(now);
    let late = now + 5 * MINUTE;
    machine.heartbeat_step(late);
    machine.leave_ended();
    // The poll was woken before it went on.
    machine.polled(late);
    let join = heartbeat(&mut machine, late);
    machine.heartbeat_answered(&join, answer(9, None), late);
    assert_eq!(machine.commit_identity(), Err(CommitVerdict::Lost));
    assert!(machine.take_lost());
    assert_eq!(machine.commit_identity().unwrap().generation, 9);
}

#[test]
fn a_commit_with_an_old_epoch_is_made_again_and_one_of_a_fenced_member_is_lost() {
    let now = Instant::now();
    let mut machine = stable(now);
    let code = |code| Failure::Code(ErrorCode::from_code(code).unwrap());
    let sent = machine.commit_identity().unwrap();
    // Stale member epoch.
    assert_eq!(
        machine.commit_failed(&sent, code(113)),
        CommitVerdict::Retry
    );
    let bump = heartbeat(&mut machine, now + SECOND);
    machine.heartbeat_answered(&bump, answer(4, None), now);
    assert_eq!(
        machine.commit_failed(&sent, code(110)),
        CommitVerdict::Retry
    );
    let sent = machine.commit_identity().unwrap();
    assert_eq!(machine.commit_failed(&sent, code(25)), CommitVerdict::Lost);
    assert!(machine.take_lost());
}

#[test]
fn a_permanent_error_is_reported_and_ends_the_membership() {
    // Unsupported assignor, not authorized, version unknown to the broker.
    for code in [112, 30, 35] {
        let now = Instant::now();
        let mut machine = stable(now);
        let sent = heartbeat(&mut machine, now + SECOND);
        assert!(machine.heartbeat_answered(&sent, refused(code), now));
        assert!(machine.take_lost());
        machine.leave_ended();
        assert!(matches!(machine.poll_step(now), PollStep::Fail(_)));
    }
}

/// Ends the membership with an error.
type End = fn(&mut ConsumerMachine, Failure);

const ENDS: [End; 4] = [
    |machine, failure| {
        let sent = machine.commit_identity().unwrap();
        machine.commit_failed(&sent, failure);
    },
    |machine, failure| {
        machine.offset_fetch_failed(failure, machine.last_poll);
    },
    |machine, failure| machine.coordinator_not_found(failure, machine.last_poll),
    |machine, failure| {
        let now = machine.last_poll + MINUTE;
        let sent = heartbeat(machine, now);
        machine.heartbeat_answered(&sent, Err(failure), now);
    },
];

#[test]
fn a_member_that_can_never_continue_leaves_before_its_owner_hears_of_it() {
    for end in ENDS {
        for (is_static, epoch) in [(false, -1), (true, -2)] {
            let now = Instant::now();
            let mut machine = stable(now);
            machine.settings.is_static = is_static;
            end(
                &mut machine,
                Failure::Code(ErrorCode::GroupAuthorizationFailed),
            );
            let HeartbeatStep::Leave(coordinator, leaver) = machine.heartbeat_step(now) else {
                panic!("stays");
            };
            assert_eq!((coordinator, leaver.generation), (Some(here()), epoch));
            assert_eq!(machine.poll_step(now), PollStep::AwaitAnswer);
            machine.leave_ended();
            assert!(matches!(machine.poll_step(now), PollStep::Fail(_)));
            assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Wait(None));
            machine.polled(now);
            machine.close();
            assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Stop);
        }
    }
}

#[test]
fn a_failed_member_that_the_group_does_not_have_has_nothing_to_leave() {
    let now = Instant::now();
    let mut stranger = ConsumerMachine::new(settings(false), now);
    stranger.polled(now);
    stranger.coordinator_found(here());
    let join = heartbeat(&mut stranger, now);
    stranger.heartbeat_answered(&join, refused(30), now);
    let mut fenced = stable(now);
    fenced.settings.is_static = true;
    let sent = fenced.commit_identity().unwrap();
    fenced.commit_failed(&sent, Failure::Code(ErrorCode::FencedInstanceId));
    for mut machine in [stranger, fenced] {
        assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Wait(None));
        assert!(matches!(machine.poll_step(now), PollStep::Fail(_)));
        machine.close();
        assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Stop);
    }
    let mut forgotten = stable(now);
    let sent = forgotten.commit_identity().unwrap();
    forgotten.commit_failed(&sent, Failure::Code(ErrorCode::UnknownMemberId));
    forgotten.close();
    assert_eq!(forgotten.heartbeat_step(now), HeartbeatStep::Stop);
}

#[test]
fn a_member_whose_coordinator_is_unknown_leaves_nevertheless() {
    let now = Instant::now();
    let lose = |machine: &mut ConsumerMachine| {
        let sent = machine.commit_identity().unwrap();
        machine.commit_failed(&sent, Failure::Transport);
    };
    let mut failed = stable(now);
    lose(&mut failed);
    failed.coordinator_not_found(Failure::Code(ErrorCode::GroupAuthorizationFailed), now);
    let mut closed = stable(now);
    lose(&mut closed);
    closed.close();
    let mut stuck = stable(now);
    lose(&mut stuck);
    for (mut machine, at) in [(failed, now), (closed, now), (stuck, now + 5 * MINUTE)] {
        let step = machine.heartbeat_step(at);
        assert!(matches!(step, HeartbeatStep::Leave(None, _)), "{step:?}");
    }
}

#[test]
fn closing_leaves_once_in_every_state() {
    let now = Instant::now();
    for (is_static, epoch) in [(false, -1), (true, -2)] {
        let mut machine = ConsumerMachine::new(settings(is_static), now);
        machine.polled(now);
        machine.coordinator_found(here());
        // Its join may have arrived.
        let join = heartbeat(&mut machine, now);
        machine.heartbeat_answered(&join, Err(Failure::Transport), now);
        machine.close();
        let HeartbeatStep::Leave(_, leaver) = machine.heartbeat_step(now) else {
            panic!("stays");
        };
        assert_eq!(leaver.generation, epoch);
        assert!(!machine.has_left());
        machine.leave_ended();
        assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Stop);
        assert!(machine.has_left());
    }
    let mut machine = ConsumerMachine::new(settings(false), now);
    machine.close();
    assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Stop);
}
