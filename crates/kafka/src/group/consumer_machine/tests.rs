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
    Err(Failure::Code(ResponseError::try_from_code(code).unwrap()))
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
    assert!(!machine.polled(now), "told once");
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
    assert_eq!(machine.heartbeat_step(late), HeartbeatStep::Wait(None));
    assert_eq!(machine.commit_identity(), Err(CommitVerdict::Lost));
    assert!(machine.polled(late));
    assert!(machine.take_lost());
    assert_eq!(heartbeat(&mut machine, late).identity.generation, 0);
}

#[test]
fn a_commit_with_an_old_epoch_is_made_again_and_one_of_a_fenced_member_is_lost() {
    let now = Instant::now();
    let mut machine = stable(now);
    let code = |code| Failure::Code(ResponseError::try_from_code(code).unwrap());
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
        assert!(matches!(machine.poll_step(now), PollStep::Fail(_)));
        assert!(machine.take_lost());
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
        let _ = heartbeat(&mut machine, now);
        machine.close();
        let HeartbeatStep::Leave(_, leaver) = machine.heartbeat_step(now) else {
            panic!("stays");
        };
        assert_eq!(leaver.generation, epoch);
        assert!(!machine.has_left());
        assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Stop);
        assert!(machine.has_left());
    }
    let mut machine = ConsumerMachine::new(settings(false), now);
    machine.close();
    assert_eq!(machine.heartbeat_step(now), HeartbeatStep::Stop);
}
