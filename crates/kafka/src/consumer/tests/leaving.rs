//! A member whose membership is over for good leaves its group, so that others take over at once.

use super::*;

/// A broker of either protocol, and the number of leaves that it got. It answers the second
/// heartbeat and each after it as `late` says.
fn counting(late: ErrorCode) -> (FakeBroker, Arc<AtomicUsize>) {
    let (beats, leaves) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let count = leaves.clone();
    let code = move || match beats.fetch_add(1, Ordering::SeqCst) {
        0 => 0,
        _ => late.code(),
    };
    let broker = broker(move |incoming, _| match incoming.api {
        ApiKey::Heartbeat => {
            let answer = HeartbeatResponse::default().with_error_code(code());
            Some(incoming.answer(&answer))
        }
        ApiKey::ConsumerGroupHeartbeat => {
            let request: ConsumerGroupHeartbeatRequest = incoming.decode();
            let answer = ConsumerGroupHeartbeatResponse::default()
                .with_member_epoch(request.member_epoch.max(1))
                .with_heartbeat_interval_ms(100);
            let is_leaving = request.member_epoch < 0;
            count.fetch_add(usize::from(is_leaving), Ordering::SeqCst);
            let code = if is_leaving { 0 } else { code() };
            Some(incoming.answer(&answer.with_error_code(code)))
        }
        ApiKey::LeaveGroup => {
            count.fetch_add(1, Ordering::SeqCst);
            None
        }
        _ => None,
    });
    (broker, leaves)
}

/// A member that has joined.
fn member(broker: &FakeBroker, protocol: GroupProtocol) -> Consumer {
    let mut config = ConsumerConfig::new("g", ["t"]);
    config.group_protocol = protocol;
    let mut consumer = start(broker, config, Box::new(()));
    let give_up = soon();
    while consumer.rebalance_pending() {
        assert!(!give_up.is_past());
        let _ = consumer.poll(Deadline::after(Duration::from_millis(10)));
    }
    consumer
}

const PROTOCOLS: [GroupProtocol; 2] = [GroupProtocol::Classic, GroupProtocol::Consumer];

#[test]
fn a_member_that_failed_has_left_when_the_poll_says_so() {
    for protocol in PROTOCOLS {
        let (broker, leaves) = counting(ErrorCode::GroupAuthorizationFailed);
        let mut consumer = member(&broker, protocol);
        let give_up = soon();
        let error = loop {
            assert!(!give_up.is_past());
            match consumer.poll(soon()) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), Some(ErrorCode::GroupAuthorizationFailed));
        assert_eq!(leaves.load(Ordering::SeqCst), 1, "{protocol:?}");
        // It does not leave again.
        consumer.close(soon()).unwrap();
        assert_eq!(leaves.load(Ordering::SeqCst), 1, "{protocol:?}");
    }
}

#[test]
fn a_member_whose_heartbeat_thread_panicked_leaves_with_the_next_poll_or_when_it_closes() {
    for protocol in PROTOCOLS {
        for closes in [false, true] {
            let (broker, leaves) = counting(ErrorCode::RebalanceInProgress);
            let mut consumer = member(&broker, protocol);
            consumer.member.as_ref().unwrap().shared.die();
            if closes {
                consumer.close(soon()).unwrap();
            } else {
                for _ in 0..2 {
                    let error = consumer.poll(soon()).unwrap_err();
                    assert!(matches!(error, Error::Panicked { .. }), "{error}");
                }
            }
            assert_eq!(leaves.load(Ordering::SeqCst), 1, "{protocol:?}");
        }
    }
}

#[test]
fn a_member_that_closes_looks_for_its_coordinator_until_it_is_found() {
    const SEARCHES: usize = 5;
    for protocol in PROTOCOLS {
        let leaves = Arc::new(AtomicUsize::new(0));
        let count = leaves.clone();
        let code = move || match count.fetch_add(1, Ordering::SeqCst) {
            SEARCHES.. => 0,
            _ => ErrorCode::NotCoordinator.code(),
        };
        let broker = broker(move |incoming, _| match incoming.api {
            ApiKey::ConsumerGroupHeartbeat => {
                let request: ConsumerGroupHeartbeatRequest = incoming.decode();
                let is_leaving = request.member_epoch < 0;
                let answer = ConsumerGroupHeartbeatResponse::default()
                    .with_member_epoch(1)
                    .with_heartbeat_interval_ms(100)
                    .with_error_code(if is_leaving { code() } else { 0 });
                Some(incoming.answer(&answer))
            }
            ApiKey::LeaveGroup => {
                let answer = LeaveGroupResponse::default().with_error_code(code());
                Some(incoming.answer(&answer))
            }
            _ => None,
        });
        member(&broker, protocol).close(soon()).unwrap();
        assert_eq!(leaves.load(Ordering::SeqCst), SEARCHES + 1, "{protocol:?}");
    }
}
