use super::*;
use crate::orders::app::fakes::{Bus, lock, order};
use crate::orders::domain::OrderEvent;

fn message(bus: &Bus) -> Message {
    bus.encode(&OrderEvent::Created(order()))
}

#[test]
fn a_publish_gets_what_is_left_of_the_request_and_never_more_than_its_budget() {
    let bus = Bus::default();
    let (delivery, _inbox) = Delivery::new(DeliveryMode::Direct);
    for seconds in [1, 3600] {
        let deadline = Deadline::after(Duration::from_secs(seconds));
        delivery.deliver(&bus, &message(&bus), deadline).unwrap();
    }
    let left = lock(&bus.time_left);
    assert!(left[0] <= Duration::from_secs(1), "{left:?}");
    assert!(
        left[1] > Duration::from_secs(1) && left[1] <= PUBLISH_BUDGET,
        "{left:?}"
    );
}

#[test]
fn a_cleaner_that_falls_behind_or_is_gone_holds_nobody_up() {
    let bus = Bus::default();
    let (delivery, inbox) = Delivery::new(DeliveryMode::Direct);
    let deliver = || delivery.deliver(&bus, &message(&bus), Deadline::after(PUBLISH_BUDGET));
    for _ in 0..=ACKNOWLEDGED_MAX {
        deliver().unwrap();
    }
    assert_eq!(inbox.acknowledged.len(), ACKNOWLEDGED_MAX);
    drop(inbox);
    deliver().unwrap();
}

#[test]
fn what_is_refused_is_not_acknowledged() {
    let bus = Bus::default();
    let (delivery, inbox) = Delivery::new(DeliveryMode::Direct);
    let refused = message(&bus);
    lock(&bus.refused).push(refused.order_id);
    let answer = delivery.deliver(&bus, &refused, Deadline::after(PUBLISH_BUDGET));
    assert!(matches!(answer, Err(PublishError::Refused(_))));
    assert!(inbox.acknowledged.is_empty());
}
