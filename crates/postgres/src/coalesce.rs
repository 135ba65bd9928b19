//! Batching of work that arrives while a statement is in flight (group commit).
//!
//! A round trip, or a commit, costs nearly the same for one row as for fifty. So callers queue
//! their jobs, and a caller that finds a writer's place free becomes the writer. It takes the
//! queued jobs, does them in one batch, and gives each caller its own answer. A single job is done
//! at once, alone. The writer works on its caller's thread, so this module starts none. A writer
//! whose own job is done passes its place to the oldest waiting caller.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tbd_deadline::{Deadline, lock};

mod ticket;
use ticket::{Phase, Ticket};

/// A job that can be batched with others.
pub trait Job {
    /// What two jobs of one batch must not share.
    type Key: Hash + Eq;
    /// What the job's caller gets.
    type Answer;

    /// The key of this job, if it has one.
    fn key(&self) -> Option<&Self::Key>;
}

/// For a caller that keeps its job.
impl<J: Job + ?Sized> Job for Arc<J> {
    type Key = J::Key;
    type Answer = J::Answer;

    fn key(&self) -> Option<&Self::Key> {
        J::key(self)
    }
}

/// The queue of jobs, and the places of its writers.
pub struct Coalescer<J: Job> {
    writers_max: usize,
    /// How many writers there may be while batches are slow.
    slow_max: usize,
    patience: Duration,
    batch_max: usize,
    hasher: RandomState,
    state: Mutex<State<J>>,
    answered: Option<Box<Answered<J>>>,
}

/// Called with the jobs of one batch and their answers.
pub type Answered<J> = dyn Fn(&[(&J, &<J as Job>::Answer)]) + Send + Sync;

struct State<J: Job> {
    queue: VecDeque<Arc<Ticket<J>>>,
    writers: usize,
    /// When the latest writer got its place.
    begun: Instant,
    /// How long the latest finished batch took.
    took: Duration,
}

/// Why a job has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// The deadline passed while the job was waiting: it was not begun.
    #[error("no writer was free in time")]
    NotBegun,
    /// The deadline passed, or the writer panicked, while the job was in flight.
    #[error("the outcome is not known")]
    Unknown,
}

impl<J: Job> Coalescer<J> {
    /// A queue served by at most `writers_max` callers at a time, each with at most `batch_max`
    /// jobs.
    pub fn new(writers_max: usize, batch_max: usize) -> Self {
        Self {
            writers_max: writers_max.max(1),
            slow_max: 0,
            patience: Duration::MAX,
            batch_max: batch_max.max(1),
            hasher: RandomState::new(),
            state: Mutex::new(State {
                queue: VecDeque::new(),
                writers: 0,
                begun: Instant::now(),
                took: Duration::ZERO,
            }),
            answered: None,
        }
    }

    /// Allows up to `writers` callers at a time, one more whenever no batch was begun for
    /// `patience`. On a slow database a job would otherwise wait for a whole batch before its own.
    /// Once a batch takes more than twice `patience`, the pause is its share of that time: then the
    /// batches begin evenly spaced, with all writers in use.
    pub fn more_when_slow(self, writers: usize, patience: Duration) -> Self {
        Self {
            slow_max: writers,
            patience,
            ..self
        }
    }

    /// Sets `answered`. The writer of a batch calls it before it wakes any caller, while the next
    /// writer is already at work. So follow-up work for the whole batch can begin at once. It must
    /// not block.
    pub fn on_answered(self, answered: Box<Answered<J>>) -> Self {
        Self {
            answered: Some(answered),
            ..self
        }
    }

    /// Has `job` done by `work`, on this thread or by another caller, in a batch or alone. `work`
    /// gets jobs with different keys and returns their answers in the same order; it must bound its
    /// own time.
    ///
    /// Blocks until `deadline` at most while another caller does the job. As a writer it blocks as
    /// long as `work` takes.
    ///
    /// # Errors
    /// [`NotDone`].
    pub fn run(
        &self,
        job: J,
        deadline: Deadline,
        mut work: impl FnMut(&[&J]) -> Vec<J::Answer>,
    ) -> Result<J::Answer, NotDone> {
        let ticket = Arc::new(Ticket::new(job));
        let mut state = lock(&self.state);
        if self.has_place(&state) {
            state.take_place();
            ticket.set(Phase::Promoted);
        } else {
            state.queue.push_back(Arc::clone(&ticket));
        }
        let mut pause = (self.slow_max > self.writers_max).then(|| self.pause(&state));
        drop(state);
        loop {
            let until = match pause {
                Some(pause) => deadline.earlier_of(Deadline::after(pause)),
                None => deadline,
            };
            match ticket.wait(until) {
                Phase::Done(answer) => return Ok(answer),
                Phase::Abandoned | Phase::Over => return Err(NotDone::Unknown),
                Phase::Promoted => {
                    let batch = self.gather(Arc::clone(&ticket));
                    self.write(batch, &mut work);
                }
                Phase::Waiting if !deadline.is_past() => pause = self.promote(&ticket),
                Phase::Waiting => {
                    if let Some(not_done) = self.withdraw(&ticket) {
                        return Err(not_done);
                    }
                }
            }
        }
    }

    fn has_place(&self, state: &State<J>) -> bool {
        state.writers < self.writers_max
            || state.writers < self.slow_max && state.begun.elapsed() >= self.pause(state)
    }

    /// How long no batch must have begun before there may be one more writer.
    fn pause(&self, state: &State<J>) -> Duration {
        let writers = u32::try_from(self.slow_max).unwrap_or(u32::MAX);
        match state.took / 2 > self.patience {
            true => self.patience.min(state.took / writers),
            false => self.patience,
        }
    }

    /// Makes a caller that has waited long a writer, if there is a place. Returns how long it must
    /// wait before it asks again, if its job is in no batch yet and a place may open.
    fn promote(&self, ticket: &Arc<Ticket<J>>) -> Option<Duration> {
        let mut state = lock(&self.state);
        let index = state.queue.iter().position(|it| Arc::ptr_eq(it, ticket))?;
        if self.has_place(&state) {
            state.queue.remove(index);
            state.take_place();
            ticket.set(Phase::Promoted);
        }
        (state.writers < self.slow_max).then(|| self.pause(&state))
    }

    /// Withdraws a job whose deadline has passed; `None` if its phase has just changed.
    fn withdraw(&self, ticket: &Arc<Ticket<J>>) -> Option<NotDone> {
        let mut state = lock(&self.state);
        let mut phase = lock(&ticket.phase);
        if !matches!(*phase, Phase::Waiting) {
            return None;
        }
        *phase = Phase::Over;
        let queued = state.queue.len();
        state.queue.retain(|waiting| !Arc::ptr_eq(waiting, ticket));
        Some(match state.queue.len() < queued {
            true => NotDone::NotBegun,
            false => NotDone::Unknown,
        })
    }

    /// Makes a batch of the writer's own job and the oldest waiting ones, at most one of each key.
    /// The others stay in the queue.
    fn gather(&self, own: Arc<Ticket<J>>) -> Vec<Arc<Ticket<J>>> {
        // Two keys with one hash are never batched together, which is harmless.
        let mut keys = HashSet::new();
        let mut is_first_of_its_key = |ticket: &Ticket<J>| {
            let key = ticket.job.key();
            key.is_none_or(|key| keys.insert(self.hasher.hash_one(key)))
        };
        is_first_of_its_key(&own);
        let mut batch = vec![own];
        let mut later = Vec::new();
        let mut state = lock(&self.state);
        while batch.len() < self.batch_max
            && let Some(ticket) = state.queue.pop_front()
        {
            match is_first_of_its_key(&ticket) {
                true => batch.push(ticket),
                false => later.push(ticket),
            }
        }
        for ticket in later.into_iter().rev() {
            state.queue.push_front(ticket);
        }
        batch
    }

    fn write(&self, batch: Vec<Arc<Ticket<J>>>, work: &mut impl FnMut(&[&J]) -> Vec<J::Answer>) {
        // Even if `work` panics, no caller waits for an answer that will not come, and the writer's
        // place is passed on.
        let mut writer = Writer {
            coalescer: self,
            has_place: true,
            begun: Instant::now(),
            batch,
            answers: Vec::new(),
        };
        let jobs: Vec<&J> = writer.batch.iter().map(|ticket| &ticket.job).collect();
        let answers = work(&jobs);
        drop(jobs);
        // The next batch is written while this one's answers are handed out.
        writer.pass_on();
        if let Some(answered) = &self.answered {
            let jobs = writer.batch.iter().map(|ticket| &ticket.job);
            answered(&jobs.zip(&answers).collect::<Vec<_>>());
        }
        writer.answers = answers;
    }
}

/// A caller that is the writer. Dropping it gives up its place, if it still has it, and hands out
/// the answers.
struct Writer<'a, J: Job> {
    coalescer: &'a Coalescer<J>,
    has_place: bool,
    begun: Instant,
    batch: Vec<Arc<Ticket<J>>>,
    answers: Vec<J::Answer>,
}

impl<J: Job> Writer<'_, J> {
    fn pass_on(&mut self) {
        if !std::mem::take(&mut self.has_place) {
            return;
        }
        let mut state = lock(&self.coalescer.state);
        state.took = self.begun.elapsed();
        match state.queue.pop_front() {
            // Under the lock: between the two steps the job could be withdrawn, and the place would
            // be lost.
            Some(next) => {
                state.begun = Instant::now();
                next.set(Phase::Promoted);
            }
            None => state.writers -= 1,
        }
    }
}

impl<J: Job> State<J> {
    fn take_place(&mut self) {
        self.writers += 1;
        self.begun = Instant::now();
    }
}

impl<J: Job> Drop for Writer<'_, J> {
    fn drop(&mut self) {
        self.pass_on();
        let mut answers = self.answers.drain(..);
        for ticket in self.batch.drain(..) {
            ticket.set(answers.next().map_or(Phase::Abandoned, Phase::Done));
        }
    }
}

#[cfg(test)]
mod tests;
