use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const PARTICIPANTS: [Participant; 2] = [Participant::Inventory, Participant::Payments];
const ACTIONS: [Action; 3] = [Action::Hold, Action::Settle, Action::Release];

/// The state after each of `actions` on one saga, and the answers. `admission` decides its hold.
fn history(
    participant: Participant,
    admission: Result<(), Reason>,
    actions: &[Action],
) -> Vec<(State, Answer)> {
    let mut state = None;
    let mut history = Vec::new();
    for action in actions {
        let decided = participant.decide(*action, state.clone(), || admission.clone());
        state = Some(decided.0.clone());
        history.push(decided);
    }
    history
}

proptest! {
    #[test]
    fn the_same_command_has_one_effect_and_always_the_same_answer(
        participant in prop::sample::select(&PARTICIPANTS[..]),
        is_admitted: bool,
        actions in prop::collection::vec(prop::sample::select(&ACTIONS[..]), 1..12),
    ) {
        let admission = if is_admitted { Ok(()) } else { Err("out_of_stock".into()) };
        let history = history(participant, admission, &actions);
        let mut answers = HashMap::new();
        for (action, (_, answer)) in actions.iter().zip(&history) {
            let first = answers.entry(format!("{action:?}")).or_insert_with(|| answer.clone());
            prop_assert_eq!(&*first, answer);
        }
        // Apart from "held", no state changes any more.
        for pair in history.windows(2) {
            prop_assert!(pair[0].0 == State::Held || pair[0].0 == pair[1].0);
        }
        let is_done = |action| answers.get(&format!("{action:?}")) == Some(&Answer::Done);
        prop_assert!(!is_done(Action::Settle) || (is_admitted && !is_done(Action::Release)));
    }
}

#[test]
fn a_compensation_that_overtakes_its_command_cancels_it() {
    for (participant, reason) in PARTICIPANTS.into_iter().zip(["released", "voided"]) {
        let actions = [Action::Release, Action::Hold, Action::Settle];
        let history = history(participant, Ok(()), &actions);
        let answers: Vec<Answer> = history.into_iter().map(|(_, answer)| answer).collect();
        let expected = [
            Answer::Done,
            Answer::Refused(reason.into()),
            Answer::Refused(participant.not_held().into()),
        ];
        assert_eq!(answers, expected);
    }
}

#[test]
fn amounts_are_refused_and_late_on_purpose_by_their_last_two_digits() {
    use Participant::{Inventory, Payments};
    assert_eq!(
        Inventory.refusal_on_purpose(1302),
        Some("out_of_stock".into())
    );
    assert_eq!(Inventory.refusal_on_purpose(1351), None);
    assert_eq!(
        Payments.refusal_on_purpose(1351),
        Some("insufficient_funds".into())
    );
    assert_eq!(Payments.refusal_on_purpose(1302), None);
    assert!(Payments.is_late_on_purpose(Action::Hold, 1319));
    assert!(!Payments.is_late_on_purpose(Action::Settle, 1319));
    assert!(!Inventory.is_late_on_purpose(Action::Hold, 1319));
}

#[test]
fn units_move_and_their_sum_stays() {
    let mut stock = Stock {
        available: 5,
        held: 0,
        sold: 0,
    };
    assert_eq!(stock.hold(6), Err("out_of_stock".into()));
    for units in [2, 2, 1] {
        stock.hold(units).unwrap();
    }
    assert_eq!(stock.hold(1), Err("out_of_stock".into()));
    stock.settle_or_release(2, &State::Settled);
    stock.settle_or_release(1, &State::Released);
    let expected = Stock {
        available: 1,
        held: 2,
        sold: 2,
    };
    assert_eq!(stock, expected);
}
