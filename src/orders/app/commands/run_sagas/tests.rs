use std::collections::HashSet;

use jiff::SignedDuration;

use super::*;
use crate::orders::adapters::memory::{Fault, Memory};
use crate::orders::app::fakes::{FakeParticipants, RecordingMeter, lock, order, soon};
use crate::orders::domain::Status;
use crate::orders::domain::saga::{Participant, STEPS};

struct Bench {
    memory: Arc<Memory>,
    participants: Arc<FakeParticipants>,
    meter: Arc<RecordingMeter>,
    sagas: RunSagas,
    ids: Vec<OrderId>,
}

fn bench(orders: usize) -> Bench {
    let memory = Arc::new(Memory::default());
    let participants = Arc::new(FakeParticipants::default());
    let meter = Arc::new(RecordingMeter::default());
    let sagas = RunSagas {
        repository: memory.clone(),
        sagas: memory.clone(),
        participants: participants.clone(),
        meter: meter.clone(),
        stop: StopSignal::new(),
    };
    let put = |_| {
        let order = order();
        memory.put(&order);
        order.id
    };
    let ids = (0..orders).map(put).collect();
    Bench {
        memory,
        participants,
        meter,
        sagas,
        ids,
    }
}

impl Bench {
    fn refuse(&self, commands: &[Command]) {
        lock(&self.participants.ledger).refuse = commands.iter().copied().collect();
    }

    fn try_handle(&self, replays: &[Replay]) -> Result<Results, StoreError> {
        let task = |&id| Task {
            id,
            failed_attempts: 0,
        };
        let tasks: Vec<Task> = self.ids.iter().map(task).collect();
        self.sagas.handle(&tasks, replays, soon())
    }

    fn handle(&self) -> Results {
        self.try_handle(&[]).expect("the store works")
    }

    fn statuses(&self) -> HashSet<Status> {
        self.memory
            .orders()
            .iter()
            .map(|order| order.status)
            .collect()
    }

    /// Units held and sold, amounts authorized and captured.
    fn books(&self) -> (i32, i32, i32, i32) {
        let ledger = lock(&self.participants.ledger);
        (ledger.held, ledger.sold, ledger.authorized, ledger.captured)
    }

    fn saga(&self, index: usize) -> Saga {
        self.memory
            .find(self.ids[index], soon())
            .unwrap()
            .expect("a saga")
    }
}

#[test]
fn a_batch_takes_one_call_for_each_step_and_one_statement_for_each_transition() {
    let bench = bench(3);
    let results = bench.handle();
    assert!(
        results
            .values()
            .all(|it| matches!(it, Processed::Completed(_)))
    );
    let calls = STEPS.map(|step| (step.command, 3));
    assert_eq!(*lock(&bench.participants.calls), calls);
    assert_eq!(bench.memory.calls(), 5, "the beginning and four answers");
    assert_eq!(bench.books(), (0, 3, 0, 3));
    assert_eq!(lock(&bench.meter.saga_steps).len(), 12);
    assert_eq!(*lock(&bench.meter.sagas_ended), [SagaState::Completed; 3]);
}

#[test]
fn a_refusal_is_compensated_and_becomes_the_orders_reason() {
    let bench = bench(2);
    bench.refuse(&[Command::AuthorizePayment]);
    let results = bench.handle();
    for id in &bench.ids {
        let (order, reason) = bench.memory.look(*id);
        assert_eq!(reason.as_deref(), Some("refused"));
        let failed = Processed::Failed {
            order,
            reason: "refused".into(),
            attempts: 1,
        };
        assert_eq!(results[id], failed);
    }
    assert_eq!(bench.books(), (0, 0, 0, 0));
    assert_eq!(*lock(&bench.meter.outcomes), [Outcome::Failed; 2]);

    let calls = lock(&bench.participants.calls).len();
    assert_eq!(
        bench.handle(),
        results,
        "a repeated message changes nothing"
    );
    assert_eq!(lock(&bench.participants.calls).len(), calls);
}

#[test]
fn while_a_participant_is_away_orders_wait_and_nothing_fails() {
    let bench = bench(2);
    lock(&bench.participants.away).insert(Participant::Payments);
    for _ in 0..3 {
        let results = bench.handle();
        let reason = "payments unavailable: away".to_owned();
        let waiting = Processed::Waiting { reason };
        assert!(results.values().all(|it| *it == waiting), "{results:?}");
        assert_eq!(bench.statuses(), [Status::Processing].into());
    }
    assert_eq!(
        bench.saga(0).calls[1].attempts,
        1,
        "only attempts that were made count"
    );
    lock(&bench.participants.away).clear();
    bench.handle();
    assert_eq!(bench.statuses(), [Status::Completed].into());
    assert_eq!(bench.saga(0).calls[1].attempts, 2);
}

#[test]
fn a_refusal_of_what_must_succeed_leaves_the_order_to_its_saga_and_holds_up_nobody() {
    let bench = bench(1);
    bench.refuse(&[Command::ConfirmReservation]);
    let id = bench.ids[0];
    for attempts in [1, 2] {
        assert_eq!(bench.handle()[&id], Processed::LeftToSaga);
        let call = bench.saga(0).call(Command::ConfirmReservation).cloned();
        assert_eq!(call.map(|it| it.attempts), Some(attempts));
    }
    assert_eq!(bench.statuses(), [Status::Processing].into());

    bench.refuse(&[]);
    let refused = (id.0, Command::ConfirmReservation);
    lock(&bench.participants.ledger).answers.remove(&refused);
    assert!(matches!(bench.handle()[&id], Processed::Completed(_)));
    assert_eq!(bench.books(), (0, 1, 0, 1));
}

/// Every combination of a fault of the store and a lost answer, in sagas with and without a refusal.
#[test]
fn wherever_the_store_fails_or_an_answer_is_lost_the_same_orders_again_resume() {
    for refused in [
        None,
        Some(Command::AuthorizePayment),
        Some(Command::CapturePayment),
    ] {
        for fault in [Fault::Before, Fault::After, Fault::Twice] {
            for (call, answer) in (0..8).flat_map(|call| (0..7).map(move |it| (call, it))) {
                let bench = bench(2);
                bench.refuse(refused.as_slice());
                bench.memory.fail_at(call, fault);
                *lock(&bench.participants.lost_answer) = Some(answer);
                for _ in 0..4 {
                    let _ = bench.try_handle(&[]);
                }
                bench.memory.mend();
                let place = format!("{refused:?} {fault:?} {call} {answer}");
                let (end, books) = match refused {
                    None => (Status::Completed, (0, 2, 0, 2)),
                    Some(_) => (Status::Failed, (0, 0, 0, 0)),
                };
                assert_eq!(bench.statuses(), [end].into(), "{place}");
                assert_eq!(bench.books(), books, "{place}");
                assert_eq!(bench.handle().len(), 2, "{place}: the ends are known");
            }
        }
    }
}

#[test]
fn of_two_workers_with_one_saga_one_is_fenced() {
    let bench = bench(1);
    let now = Timestamp::now();
    let late = bench
        .memory
        .begin(&bench.ids, now, soon())
        .unwrap()
        .remove(0)
        .saga
        .unwrap();
    bench.handle();
    let done = late
        .next(Input::Answered(Command::ReserveStock, Answer::Done), now)
        .unwrap();
    assert_eq!(bench.memory.save(&[done], soon()).unwrap(), []);
    assert_eq!(bench.saga(0).state, SagaState::Completed);
}

#[test]
fn on_a_stop_no_further_command_is_sent_and_the_next_worker_resumes() {
    let mut bench = bench(1);
    bench.sagas.stop.stop();
    assert_eq!(bench.handle(), Results::new());
    assert_eq!(lock(&bench.participants.calls).len(), 0);
    bench.sagas.stop = StopSignal::new();
    bench.handle();
    assert_eq!(bench.statuses(), [Status::Completed].into());
}

#[test]
fn a_replay_of_the_dead_letter_begins_a_refused_saga_again_and_only_once() {
    let bench = bench(1);
    let id = bench.ids[0];
    bench.refuse(&[Command::ReserveStock]);
    bench.handle();
    bench.refuse(&[]);
    let failed_at = bench.memory.look(id).0.updated_at;
    let replay = |replayed_at| [Replay { id, replayed_at }];

    let earlier = bench.try_handle(&replay(failed_at)).unwrap();
    assert!(
        matches!(earlier[&id], Processed::Failed { .. }),
        "it failed later"
    );
    let later = failed_at + SignedDuration::from_micros(1);
    let again = bench.try_handle(&replay(later)).unwrap();
    assert!(matches!(again[&id], Processed::Completed(_)));
    assert_ne!(
        bench.saga(0).id,
        id.0,
        "participants refuse the old id for ever"
    );
    bench.try_handle(&replay(later)).unwrap();
    assert_eq!(bench.books(), (0, 1, 0, 1));
}
