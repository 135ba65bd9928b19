use std::sync::Arc;

use super::*;
use crate::orders::adapters::memory::{Fault, Memory};
use crate::orders::app::fakes::{RecordingMeter, Step, lock, order, soon};
use crate::orders::domain::saga::SagaState;
use crate::orders::ports::{OrderRepository, SagaStore};

struct Bench<F> {
    memory: Arc<Memory>,
    step: Arc<Step<F>>,
    meter: Arc<RecordingMeter>,
    process: ProcessOrders,
}

fn bench<F>(stop: StopSignal, work: F) -> Bench<F>
where
    F: Fn(OrderId, usize) -> Result<(), StepError> + Send + Sync + 'static,
{
    let memory = Arc::new(Memory::default());
    let (step, meter) = (
        Arc::new(Step::new(work)),
        Arc::new(RecordingMeter::default()),
    );
    let process = ProcessOrders {
        repository: memory.clone(),
        step: step.clone(),
        meter: meter.clone(),
        max_attempts: 3,
        stop,
    };
    Bench {
        memory,
        step,
        meter,
        process,
    }
}

impl<F> Bench<F> {
    fn pending(&self, count: usize) -> Vec<OrderId> {
        let put = |_| {
            let order = order();
            self.memory.put(&order);
            order.id
        };
        (0..count).map(put).collect()
    }

    fn statuses(&self, ids: &[OrderId]) -> Vec<Status> {
        ids.iter()
            .map(|id| self.memory.look(*id).0.status)
            .collect()
    }
}

/// First attempts.
fn tasks(ids: &[OrderId]) -> Vec<Task> {
    tasks_after(ids, 0)
}

fn tasks_after(ids: &[OrderId], failed_attempts: u32) -> Vec<Task> {
    let task = |&id| Task {
        id,
        failed_attempts,
    };
    ids.iter().map(task).collect()
}

fn failure(id: OrderId) -> [Failure; 1] {
    let reason = "because".to_owned();
    [Failure { id, reason }]
}

fn fine(_: OrderId, _: usize) -> Result<(), StepError> {
    Ok(())
}

fn no(_: OrderId, _: usize) -> Result<(), StepError> {
    Err(StepError::Failed("no".into()))
}

#[test]
fn every_message_gets_the_outcome_of_its_order() {
    let bench = bench(StopSignal::new(), fine);
    let memory = &bench.memory;
    let ids = bench.pending(4);
    let (pending, canceled, completed, failed) = (ids[0], ids[1], ids[2], ids[3]);
    let now = Timestamp::now();
    let old = memory.look(canceled).0;
    let new = old.cancel(now).unwrap();
    memory.replace(&old, &new, soon()).unwrap();
    memory.claim(&ids[2..], now, soon()).unwrap();
    memory.complete(&[completed], now, soon()).unwrap();
    memory.fail(&failure(failed), now, soon()).unwrap();
    let unknown = order().id;

    let all = tasks(&[pending, canceled, completed, failed, unknown]);
    let results = bench.process.handle(&all, &[], soon()).unwrap();
    let look = |id| memory.look(id).0;
    assert_eq!(results[&pending], Processed::Completed(look(pending)));
    assert_eq!(results[&canceled], Processed::Canceled);
    assert_eq!(results[&completed], Processed::Completed(look(completed)));
    let still = Processed::Failed {
        order: look(failed),
        reason: "because".into(),
        attempts: 3,
    };
    assert_eq!(results[&failed], still);
    assert_eq!(results[&unknown], Processed::Unknown);
    assert_eq!(look(pending).status, Status::Completed);
    assert_eq!(*lock(&bench.step.tried), [pending]);
    let outcomes = [
        Outcome::Canceled,
        Outcome::Duplicate,
        Outcome::Duplicate,
        Outcome::Completed,
    ];
    assert_eq!(*lock(&bench.meter.outcomes), outcomes);
    let pending = look(pending);
    let delay = pending.updated_at.duration_since(pending.created_at);
    assert_eq!(*lock(&bench.meter.delays), [delay.unsigned_abs()]);
    assert_eq!(lock(&bench.meter.steps).len(), 1);
}

#[test]
fn each_order_is_attempted_once_and_one_that_failed_is_to_be_tried_again() {
    let bench = bench(StopSignal::new(), |id, before| match before {
        0 | 2 => no(id, before),
        _ => Ok(()),
    });
    let ids = bench.pending(3);
    let results = bench.process.handle(&tasks(&ids), &[], soon()).unwrap();
    let retry = Processed::Retry { failed_attempts: 1 };
    assert_eq!((&results[&ids[0]], &results[&ids[2]]), (&retry, &retry));
    let statuses = [Status::Processing, Status::Completed, Status::Processing];
    assert_eq!(bench.statuses(&ids), statuses);

    let again = tasks_after(&[ids[0], ids[2]], 1);
    let results = bench.process.handle(&again, &[], soon()).unwrap();
    assert!(
        results
            .values()
            .all(|r| matches!(r, Processed::Completed(_)))
    );
    let tried = [ids[0], ids[1], ids[2], ids[0], ids[2]];
    assert_eq!(*lock(&bench.step.tried), tried);
}

#[test]
fn orders_fail_after_their_last_attempt_all_at_once_and_hold_up_no_other() {
    let mut bench = bench(StopSignal::new(), |id, before| match before {
        0 | 1 => no(id, before),
        _ => Ok(()),
    });
    bench.process.max_attempts = 2;
    let ids = bench.pending(3);
    let calls = bench.memory.calls();
    let last = tasks_after(&ids, 1);
    let results = bench.process.handle(&last, &[], soon()).unwrap();
    let calls = bench.memory.calls() - calls;
    assert_eq!(
        calls, 3,
        "one to claim, one to complete, one to fail them all"
    );
    for id in &ids[..2] {
        let failed = Processed::Failed {
            order: bench.memory.look(*id).0,
            reason: "no".into(),
            attempts: 2,
        };
        assert_eq!(results[id], failed);
        assert_eq!(bench.memory.look(*id).1, Some("no".into()));
    }
    let statuses = [Status::Failed, Status::Failed, Status::Completed];
    assert_eq!(bench.statuses(&ids), statuses);
}

#[test]
fn pauses_grow_and_the_last_one_stays() {
    let pauses: Vec<Duration> = (0..=4).map(pause_after).collect();
    let [first, second, third] = BACKOFF;
    assert_eq!(pauses, [first, first, second, third, third]);
}

#[test]
fn when_the_time_is_over_no_further_attempt_begins_and_what_is_done_is_kept() {
    let bench = bench(StopSignal::new(), fine);
    let ids = bench.pending(3);
    let over = Deadline::after(Duration::ZERO);
    for (round, id) in ids.iter().enumerate() {
        let left = tasks(&ids[round..]);
        let results = bench.process.handle(&left, &[], over).unwrap();
        assert_eq!(results.len(), 1, "one at least, and no more");
        assert!(matches!(results[id], Processed::Completed(_)));
    }
    assert_eq!(*lock(&bench.step.tried), ids);
}

#[test]
fn on_a_stop_the_orders_that_are_done_are_the_first_ones() {
    for done in 0..5 {
        let stop = StopSignal::new();
        let given = stop.clone();
        let bench = bench(stop, move |_, before| match before == done {
            true => {
                given.stop();
                Err(StepError::Stopped)
            }
            false => Ok(()),
        });
        let mut ids = bench.pending(5);
        // At the end: an order that is completed already, and one that does not exist.
        let ended = bench.pending(1)[0];
        let memory = &bench.memory;
        let now = Timestamp::now();
        memory.claim(&[ended], now, soon()).unwrap();
        memory.complete(&[ended], now, soon()).unwrap();
        ids.extend([ended, order().id]);

        let results = bench.process.handle(&tasks(&ids), &[], soon()).unwrap();
        for (index, id) in ids.iter().enumerate() {
            let is_done = results.contains_key(id);
            assert_eq!(is_done, index < done, "{index} of {done}: {results:?}");
        }
        // The next worker to get the messages finishes the rest.
        let next = ProcessOrders {
            stop: StopSignal::new(),
            step: Arc::new(Step::new(fine)),
            ..bench.process
        };
        let results = next.handle(&tasks(&ids), &[], soon()).unwrap();
        assert_eq!(results.len(), ids.len());
        assert_eq!(bench.step.tried.lock().unwrap().len(), done + 1);
    }
}

#[test]
fn a_stop_fails_no_order_and_begins_no_further_one() {
    let stop = StopSignal::new();
    let given = stop.clone();
    let bench = bench(stop, move |id, before| {
        given.stop();
        no(id, before)
    });
    let ids = bench.pending(2);
    let results = bench.process.handle(&tasks(&ids), &[], soon()).unwrap();
    assert_eq!(results.len(), 1);
    assert_eq!(results[&ids[0]], Processed::Retry { failed_attempts: 1 });
    assert_eq!(bench.statuses(&ids), [Status::Processing; 2]);
    assert_eq!(lock(&bench.step.tried).len(), 1);
}

#[test]
fn wherever_the_store_fails_working_on_the_same_orders_again_resumes() {
    for fault in [Fault::Before, Fault::After, Fault::Twice] {
        for call in 0.. {
            // The second of them fails, the first time and ever.
            let unlucky = Arc::new(std::sync::OnceLock::new());
            let known = unlucky.clone();
            let mut bench = bench(StopSignal::new(), move |id, before| {
                match known.get() == Some(&id) {
                    true => no(id, before),
                    false => Ok(()),
                }
            });
            bench.process.max_attempts = 1;
            let ids = bench.pending(3);
            unlucky.set(ids[1]).unwrap();
            bench.memory.fail_at(call, fault);
            let first = bench.process.handle(&tasks(&ids), &[], soon());
            if bench.memory.mend() {
                assert!(call >= 3, "claiming, completing and failing are calls");
                break;
            }
            if let Err(error) = first {
                assert!(matches!(error, StoreError::Unavailable(_)));
            }
            let results = bench.process.handle(&tasks(&ids), &[], soon()).unwrap();
            let ends = [Status::Completed, Status::Failed, Status::Completed];
            assert_eq!(bench.statuses(&ids), ends, "{fault:?} {call}");
            for (id, end) in ids.iter().zip(ends) {
                match &results[id] {
                    Processed::Completed(order) => assert_eq!(end, order.status),
                    Processed::Failed { order, reason, .. } => {
                        assert_eq!((end, &**reason), (order.status, "no"));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_failed_order_is_attempted_again_when_it_is_replayed() {
    let bench = bench(StopSignal::new(), fine);
    let ids = bench.pending(1);
    let id = ids[0];
    let now = Timestamp::now();
    bench.memory.claim(&ids, now, soon()).unwrap();
    bench.memory.fail(&failure(id), now, soon()).unwrap();
    let failed_at = bench.memory.look(id).0.updated_at;
    let replay = |replayed_at| [Replay { id, replayed_at }];

    let results = bench
        .process
        .handle(&tasks(&ids), &replay(failed_at), soon())
        .unwrap();
    assert!(
        matches!(results[&id], Processed::Failed { .. }),
        "not later"
    );
    let later = failed_at + jiff::SignedDuration::from_micros(1);
    let results = bench
        .process
        .handle(&tasks(&ids), &replay(later), soon())
        .unwrap();
    assert!(matches!(results[&id], Processed::Completed(_)));
    assert_eq!(bench.memory.look(id).1, None, "the reason is forgotten");
}

#[test]
fn an_order_with_an_unfinished_saga_is_left_to_it() {
    let bench = bench(StopSignal::new(), |_, _| Ok(()));
    let memory = &bench.memory;
    let ids = bench.pending(2);
    let begun = memory.begin(&ids, Timestamp::now(), soon()).unwrap();
    let [open, mut over] = [0, 1].map(|index| begun[index].saga.clone().unwrap());
    over.state = SagaState::Failed;
    over.version += 1;
    memory.save(&[over], soon()).unwrap();

    let results = bench.process.handle(&tasks(&ids), &[], soon()).unwrap();
    assert_eq!(results[&open.order_id], Processed::LeftToSaga);
    assert_eq!(memory.look(open.order_id).0.status, Status::Processing);
    assert!(matches!(results[&ids[1]], Processed::Failed { .. }));
    assert!(lock(&bench.step.tried).is_empty());
}
