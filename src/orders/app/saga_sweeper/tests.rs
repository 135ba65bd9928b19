use jiff::SignedDuration;

use super::*;
use crate::orders::adapters::memory::Memory;
use crate::orders::app::fakes::{Bus, FakeParticipants, RecordingMeter, lock, order, soon};
use crate::orders::domain::EventKind;

#[test]
fn the_event_of_a_saga_that_stands_still_is_published_again_once_in_a_while() {
    let (memory, bus) = (Arc::new(Memory::default()), Arc::new(Bus::default()));
    let participants = Arc::new(FakeParticipants::default());
    let sweeper = SagaSweeper {
        sagas: memory.clone(),
        participants: participants.clone(),
        bus: bus.clone(),
        meter: Arc::new(RecordingMeter::default()),
        stop: StopSignal::new(),
    };
    let order = order();
    memory.put(&order);
    let began = order.created_at;
    memory.begin(&[order.id], began, soon()).unwrap();
    let sweep_after = |seconds| {
        sweeper
            .sweep(began + SignedDuration::from_secs(seconds))
            .unwrap();
        bus.take().len()
    };

    assert_eq!(sweep_after(60), 0, "it may still be in somebody's hand");
    lock(&participants.away).insert(Participant::Payments);
    assert_eq!(sweep_after(61), 0, "it waits for a participant");
    lock(&participants.away).clear();
    sweeper
        .sweep(began + SignedDuration::from_secs(61))
        .unwrap();
    let published = bus.take();
    assert_eq!(published.len(), 1);
    assert_eq!(
        (published[0].kind, published[0].order_id),
        (EventKind::Created, order.id)
    );
    assert_eq!(sweep_after(62), 0, "it is leased");
    assert_eq!(sweep_after(122), 1);
}

#[test]
fn unfinished_sagas_are_measured_by_state_even_when_there_are_none() {
    let meter = Arc::new(RecordingMeter::default());
    let memory = Arc::new(Memory::default());
    let sweeper = SagaSweeper {
        sagas: memory.clone(),
        participants: Arc::new(FakeParticipants::default()),
        bus: Arc::new(Bus::default()),
        meter: meter.clone(),
        stop: StopSignal::new(),
    };
    let order = order();
    memory.put(&order);
    memory.begin(&[order.id], order.created_at, soon()).unwrap();
    sweeper.measure().unwrap();
    let counts = [(SagaState::Running, 1), (SagaState::Compensating, 0)];
    assert_eq!(*lock(&meter.sagas), counts);
}
