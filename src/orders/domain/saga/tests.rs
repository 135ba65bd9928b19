use proptest::prelude::*;

use super::fake::Ledger;
use super::*;

/// What may happen next. Workers remember a saga as they last saw it, however old that is.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The worker reads the saga and announces one more attempt at its command.
    Resume(usize),
    /// The worker sends the command that its saga announces. The command may stay on the way.
    Send(usize),
    /// A command on the way arrives; another copy of it stays there.
    Arrive(usize),
    /// A worker gets an answer, perhaps not its own and perhaps for the second time, and stores what follows.
    Answer(usize, usize),
    /// The worker dies and forgets everything.
    Crash(usize),
}

const WORKERS: usize = 2;

fn event() -> impl Strategy<Value = Event> {
    let worker = 0..WORKERS;
    prop_oneof![
        worker.clone().prop_map(Event::Resume),
        worker.clone().prop_map(Event::Send),
        (0..20_usize).prop_map(Event::Arrive),
        (worker.clone(), 0..20_usize).prop_map(|(worker, which)| Event::Answer(worker, which)),
        worker.prop_map(Event::Crash),
    ]
}

struct World {
    stored: Saga,
    workers: [Option<Saga>; WORKERS],
    on_the_way: Vec<(Uuid, Command)>,
    answers: Vec<(Uuid, Command, Answer)>,
    participants: Ledger,
}

impl World {
    fn new(refuse: &[Command]) -> Self {
        let order_id = OrderId(Uuid::from_u128(1));
        Self {
            stored: Saga::start(order_id, Timestamp::UNIX_EPOCH),
            workers: [None, None],
            on_the_way: Vec::new(),
            answers: Vec::new(),
            participants: Ledger {
                refuse: refuse.iter().copied().collect(),
                ..Ledger::default()
            },
        }
    }

    /// As the store does it: only on top of the version before.
    fn store(&mut self, next: Saga) -> Option<Saga> {
        (next.version == self.stored.version + 1).then(|| {
            self.stored = next.clone();
            next
        })
    }

    fn apply(&mut self, event: Event) {
        let now = Timestamp::UNIX_EPOCH;
        match event {
            Event::Resume(worker) => {
                let next = self.stored.next(Input::Resumed, now);
                self.workers[worker] = next.and_then(|next| self.store(next));
            }
            Event::Send(worker) => {
                let saga = self.workers[worker].as_ref();
                self.on_the_way
                    .extend(saga.and_then(|saga| Some((saga.id, saga.announced()?))));
            }
            Event::Arrive(which) => {
                if let Some(&(id, command)) = self.on_the_way.get(which) {
                    let answer = self.participants.execute(id, command);
                    self.answers.push((id, command, answer));
                }
            }
            Event::Answer(worker, which) => {
                let Some((id, command, answer)) = self.answers.get(which).cloned() else {
                    return;
                };
                let Some(saga) = self.workers[worker].take() else {
                    return;
                };
                let next = saga.next(Input::Answered(command, answer), now);
                let next = next.filter(|next| next.id == id);
                self.workers[worker] = match next {
                    Some(next) => self.store(next),
                    None => Some(saga),
                };
            }
            Event::Crash(worker) => self.workers[worker] = None,
        }
    }

    /// Everything works again: one worker takes the saga to its end.
    fn settle(&mut self) {
        let now = Timestamp::UNIX_EPOCH;
        for _ in 0..20 {
            let Some(command) = self.stored.announced() else {
                return;
            };
            let answer = self.participants.execute(self.stored.id, command);
            self.stored = self
                .stored
                .next(Input::Answered(command, answer), now)
                .expect("it moves");
        }
        panic!("no end: {:?}", self.stored);
    }

    fn check(&self) {
        let Ledger {
            held,
            sold,
            authorized,
            captured,
            ..
        } = self.participants;
        let expected = match self.stored.state {
            SagaState::Completed => (0, 1, 0, 1),
            SagaState::Failed => (0, 0, 0, 0),
            other => panic!("{other:?} is no end"),
        };
        assert_eq!((held, sold, authorized, captured), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_crashes_is_late_or_comes_twice_all_is_done_or_nothing(
        events in prop::collection::vec(event(), 0..60),
        refused in prop::option::of(0..3_usize),
    ) {
        let refuse: Vec<Command> = refused.map(|index| STEPS[index].command).into_iter().collect();
        let mut world = World::new(&refuse);
        for event in events {
            world.apply(event);
        }
        world.settle();
        world.check();
        prop_assert_eq!(world.stored.state == SagaState::Completed, refuse.is_empty());
        // Commands that were still on the way arrive after the end, and change nothing.
        for (id, command) in world.on_the_way.clone() {
            world.participants.execute(id, command);
        }
        world.check();
    }
}

fn run(refuse: &[Command]) -> Saga {
    let mut world = World::new(refuse);
    world.settle();
    world.check();
    world.stored
}

fn commands(saga: &Saga) -> Vec<Command> {
    saga.calls.iter().map(|call| call.command).collect()
}

#[test]
fn a_saga_that_nobody_refuses_runs_the_table_from_top_to_bottom() {
    let saga = run(&[]);
    assert_eq!(commands(&saga), STEPS.map(|step| step.command));
    assert_eq!(saga.refusal(), None);
    // Four answers: each is one transition.
    assert_eq!(saga.version, 5);
}

#[test]
fn a_refusal_compensates_what_was_done_in_reverse() {
    use Command::{
        AuthorizePayment, CapturePayment, ReleaseReservation, ReserveStock, VoidPayment,
    };
    assert_eq!(commands(&run(&[ReserveStock])), [ReserveStock]);
    let payment = [ReserveStock, AuthorizePayment, ReleaseReservation];
    assert_eq!(commands(&run(&[AuthorizePayment])), payment);
    let capture = run(&[CapturePayment]);
    assert_eq!(
        commands(&capture)[2..],
        [CapturePayment, VoidPayment, ReleaseReservation]
    );
    assert_eq!(capture.refusal(), Some("refused"));
}

#[test]
fn after_the_pivot_and_in_compensations_a_refusal_changes_nothing() {
    let refused = |command| Input::Answered(command, Answer::Refused("no".into()));
    let now = Timestamp::UNIX_EPOCH;
    let mut saga = Saga::start(OrderId(Uuid::nil()), now);
    for step in &STEPS[..3] {
        saga = saga
            .next(Input::Answered(step.command, Answer::Done), now)
            .unwrap();
    }
    assert_eq!(saga.next(refused(Command::ConfirmReservation), now), None);

    let mut saga = Saga::start(OrderId(Uuid::nil()), now);
    saga = saga
        .next(Input::Answered(Command::ReserveStock, Answer::Done), now)
        .unwrap();
    saga = saga.next(refused(Command::AuthorizePayment), now).unwrap();
    assert_eq!(saga.state, SagaState::Compensating);
    assert_eq!(saga.next(refused(Command::ReleaseReservation), now), None);
}

#[test]
fn a_failed_saga_begins_again_under_a_new_id_and_no_other_does() {
    let now = Timestamp::UNIX_EPOCH;
    let (failed, completed) = (run(&[Command::ReserveStock]), run(&[]));
    let id = Uuid::from_u128(7);
    let again = failed
        .next(Input::Restarted(id), now)
        .expect("it begins again");
    assert_eq!((again.id, again.version), (id, failed.version + 1));
    assert_eq!(again.announced(), Some(Command::ReserveStock));
    assert_eq!(completed.next(Input::Restarted(id), now), None);
    assert_eq!(again.next(Input::Restarted(id), now), None);
    assert_eq!(failed.next(Input::Resumed, now), None);
}
