use std::sync::Arc;

use super::*;
use crate::orders::adapters::memory::{Fault, Memory};
use crate::orders::app::fakes::{order, soon};
use crate::orders::domain::Status;

fn pending() -> (Arc<Memory>, CancelOrder, Order) {
    let (memory, order) = (Arc::new(Memory::default()), order());
    memory.put(&order);
    let repository = memory.clone();
    (memory, CancelOrder { repository }, order)
}

#[test]
fn a_pending_order_is_canceled_once_and_for_all() {
    let (memory, cancel, order) = pending();
    let canceled = cancel.handle(order.id, |_| true, soon()).unwrap();
    assert_eq!(canceled.status, Status::Canceled);
    assert_eq!(memory.look(order.id).0, canceled);
    let again = cancel.handle(order.id, |_| true, soon()).unwrap();
    assert_eq!(again, canceled);
}

#[test]
fn what_the_caller_does_not_expect_is_left_alone() {
    let (memory, cancel, order) = pending();
    let refused = cancel.handle(order.id, |_| false, soon());
    assert!(matches!(refused, Err(CancelError::PreconditionFailed)));
    assert_eq!(memory.look(order.id).0, order);
}

#[test]
fn an_order_that_a_worker_claims_first_is_not_canceled() {
    let (memory, cancel, order) = pending();
    let claimed = |_: &Order| {
        // A worker is faster: it claims the order between the read and the update.
        memory.claim(&[order.id], Timestamp::now(), soon()).unwrap();
        true
    };
    let refused = cancel.handle(order.id, claimed, soon());
    let Err(CancelError::NotPending(NotPending(status))) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(status, Status::Processing);
}

#[test]
fn a_cancellation_whose_answer_was_lost_still_meets_its_own_precondition() {
    let (memory, cancel, order) = pending();
    // The update took effect, and its retry found nothing to do.
    memory.fail_at(1, Fault::Twice);
    let canceled = cancel.handle(order.id, |found| *found == order, soon());
    assert_eq!(canceled.unwrap(), memory.look(order.id).0);
    assert!(!memory.mend());
}
