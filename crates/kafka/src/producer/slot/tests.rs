//! The outcome of a record, with and without an owner.

use std::time::Duration;

use super::*;
use crate::error::Error;
use crate::producer::record::{Certainty, ProduceError};

#[test]
fn without_an_owner_only_a_withdrawal_counts() {
    let slot = Arc::new(Slot::default());
    assert!(slot.take_for_sending());
    assert!(slot.complete(&Err(ProduceError::not_sent(Error::Closed))));
    let slot = Arc::new(Slot::default());
    let owner = Arc::clone(&slot);
    owner.wait(Deadline::after(Duration::ZERO)).unwrap_err();
    drop(owner);
    assert!(!slot.take_for_sending());
    assert!(!slot.complete(&Err(ProduceError::not_sent(Error::Closed))));
}

#[test]
fn a_record_given_up_while_queued_can_no_longer_be_sent() {
    let slot = Arc::new(Slot::default());
    let _owner = Arc::clone(&slot);
    let gave_up = slot.wait(Deadline::after(Duration::ZERO)).unwrap_err();
    assert_eq!(gave_up, GaveUp::Withdrawn);
    assert!(!slot.take_for_sending());
    assert!(!slot.complete(&Err(ProduceError::not_sent(Error::Closed))));
}

#[test]
fn a_record_given_up_after_sending_still_gets_its_outcome() {
    let slot = Arc::new(Slot::default());
    let _owner = Arc::clone(&slot);
    assert!(slot.take_for_sending());
    let gave_up = slot.wait(Deadline::after(Duration::ZERO)).unwrap_err();
    assert_eq!(gave_up, GaveUp::Sent);
    assert!(slot.complete(&Err(ProduceError::maybe_sent(Error::Closed))));
    let outcome = slot.wait(Deadline::after(Duration::ZERO)).unwrap();
    assert_eq!(outcome.unwrap_err().certainty, Certainty::MaybeSent);
}
