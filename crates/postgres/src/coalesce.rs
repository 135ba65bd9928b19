//! Batching of work that arrives while a statement is in flight (group commit).
//!
//! A round trip, or a commit, costs nearly the same for one row as for fifty. So callers queue
//! their jobs, and a caller that finds a writer's place free becomes the writer. It takes the
//! queued jobs, does them in one batch, and gives each caller its own answer. There is no timer and
//! no added wait: a single job is done at once, alone. The writer works on its caller's thread, so
//! this module starts none. A writer whose own job is done passes its place to the oldest waiting
//! caller.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tbd_deadline::{Deadline, lock};

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
}

struct Ticket<J: Job> {
    job: J,
    /// Lock order: after the state's lock, or without it.
    phase: Mutex<Phase<J::Answer>>,
    changed: Condvar,
}

enum Phase<R> {
    /// In the queue, or in another writer's batch.
    Waiting,
    /// Out of the queue: the caller must become a writer.
    Promoted,
    /// The answer.
    Done(R),
    /// The writer panicked, or gave no answer.
    Abandoned,
    /// The answer was taken, or the caller has gone.
    Over,
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
            batch_max: batch_max.max(1),
            hasher: RandomState::new(),
            state: Mutex::new(State {
                queue: VecDeque::new(),
                writers: 0,
            }),
            answered: None,
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
        let ticket = Arc::new(Ticket {
            job,
            phase: Mutex::new(Phase::Waiting),
            changed: Condvar::new(),
        });
        {
            let mut state = lock(&self.state);
            if state.writers < self.writers_max {
                state.writers += 1;
                ticket.set(Phase::Promoted);
            } else {
                state.queue.push_back(Arc::clone(&ticket));
            }
        }
        loop {
            match ticket.wait(deadline) {
                Phase::Done(answer) => return Ok(answer),
                Phase::Abandoned | Phase::Over => return Err(NotDone::Unknown),
                Phase::Promoted => {
                    let batch = self.gather(Arc::clone(&ticket));
                    self.write(batch, &mut work);
                }
                Phase::Waiting => {
                    if let Some(not_done) = self.withdraw(&ticket) {
                        return Err(not_done);
                    }
                }
            }
        }
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
    batch: Vec<Arc<Ticket<J>>>,
    answers: Vec<J::Answer>,
}

impl<J: Job> Writer<'_, J> {
    fn pass_on(&mut self) {
        if !std::mem::take(&mut self.has_place) {
            return;
        }
        let mut state = lock(&self.coalescer.state);
        match state.queue.pop_front() {
            // Under the lock: between the two steps the job could be withdrawn, and the place would
            // be lost.
            Some(next) => next.set(Phase::Promoted),
            None => state.writers -= 1,
        }
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

impl<J: Job> Ticket<J> {
    /// Sets the phase, unless the caller has gone.
    fn set(&self, phase: Phase<J::Answer>) {
        let mut now = lock(&self.phase);
        if !matches!(*now, Phase::Over) {
            *now = phase;
            drop(now);
            self.changed.notify_one();
        }
    }

    /// Waits for the next phase; [`Phase::Waiting`] if there is none by `deadline`.
    fn wait(&self, deadline: Deadline) -> Phase<J::Answer> {
        let mut phase = lock(&self.phase);
        loop {
            match std::mem::replace(&mut *phase, Phase::Waiting) {
                Phase::Waiting => {}
                moved_on => return moved_on,
            }
            let left = deadline.remaining();
            if left.is_zero() {
                return Phase::Waiting;
            }
            phase = self
                .changed
                .wait_timeout(phase, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    struct Number(u32);

    impl Job for Number {
        type Key = u32;
        type Answer = u32;

        fn key(&self) -> Option<&u32> {
            Some(&self.0)
        }
    }

    fn far() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    fn double(jobs: &[&Number]) -> Vec<u32> {
        jobs.iter().map(|job| job.0 * 2).collect()
    }

    /// Keeps a writer at work until `queued` jobs wait behind it, while `meanwhile` runs.
    fn while_one_writes<R>(
        coalescer: &Coalescer<Number>,
        queued: usize,
        meanwhile: impl FnOnce() -> R,
    ) -> R {
        let (begun, has_begun) = mpsc::channel();
        thread::scope(|scope| {
            let writer = scope.spawn(move || {
                coalescer.run(Number(1000), far(), |jobs| {
                    begun.send(()).unwrap();
                    while lock(&coalescer.state).queue.len() < queued {
                        thread::yield_now();
                    }
                    double(jobs)
                })
            });
            has_begun.recv().unwrap();
            let result = meanwhile();
            assert_eq!(writer.join().unwrap(), Ok(2000));
            result
        })
    }

    #[test]
    fn a_lone_job_is_done_at_once_and_alone() {
        let coalescer = Coalescer::new(1, 50);
        let answer = coalescer.run(Number(21), far(), |jobs| {
            assert_eq!(jobs.len(), 1);
            double(jobs)
        });
        assert_eq!(answer, Ok(42));
    }

    #[test]
    fn jobs_that_come_while_one_is_written_are_carried_together_and_each_gets_its_own_answer() {
        let coalescer = Coalescer::new(1, 50);
        let sizes = Mutex::new(Vec::new());
        while_one_writes(&coalescer, 20, || {
            thread::scope(|scope| {
                for n in 0..20 {
                    let (coalescer, sizes) = (&coalescer, &sizes);
                    scope.spawn(move || {
                        let answer = coalescer.run(Number(n), far(), |jobs| {
                            sizes.lock().unwrap().push(jobs.len());
                            double(jobs)
                        });
                        assert_eq!(answer, Ok(n * 2));
                    });
                }
            });
        });
        assert_eq!(sizes.into_inner().unwrap(), [20]);
    }

    #[test]
    fn each_answer_is_heard_of_once_and_before_its_caller() {
        let (heard, hears) = mpsc::channel();
        let ends = heard.clone();
        let coalescer = Coalescer::new(1, 7).on_answered(Box::new(move |jobs| {
            for (Number(n), answer) in jobs {
                heard.send((*n, **answer)).unwrap();
            }
        }));
        thread::scope(|scope| {
            for n in 0..20 {
                let (coalescer, ends) = (&coalescer, ends.clone());
                scope.spawn(move || {
                    coalescer.run(Number(n), far(), double).unwrap();
                    ends.send((n, 0)).unwrap();
                });
            }
        });
        let heard: Vec<(u32, u32)> = hears.try_iter().collect();
        for n in 0..20 {
            let mine = heard.iter().filter(|it| it.0 == n).map(|it| it.1);
            assert_eq!(mine.collect::<Vec<_>>(), [n * 2, 0]);
        }
    }

    #[test]
    fn two_jobs_with_one_key_are_never_in_one_piece() {
        let coalescer = Coalescer::new(1, 50);
        while_one_writes(&coalescer, 8, || {
            thread::scope(|scope| {
                for n in 0..8 {
                    let coalescer = &coalescer;
                    scope.spawn(move || {
                        let answer = coalescer.run(Number(n % 4), far(), |jobs| {
                            let keys: HashSet<u32> = jobs.iter().map(|job| job.0).collect();
                            assert_eq!(keys.len(), jobs.len());
                            double(jobs)
                        });
                        assert_eq!(answer, Ok(n % 4 * 2));
                    });
                }
            });
        });
    }

    #[test]
    fn a_writer_that_panics_leaves_nobody_waiting_and_gives_up_its_place() {
        let coalescer: Coalescer<Number> = Coalescer::new(1, 50);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            coalescer.run(Number(1), far(), |_| panic!("the work's own fault"))
        }));
        assert!(panicked.is_err());
        assert_eq!(coalescer.run(Number(2), far(), double), Ok(4));
    }

    #[test]
    fn a_job_whose_time_is_over_before_its_turn_is_never_begun() {
        let coalescer = Coalescer::new(1, 50);
        // The writer continues once a job waits; the one in time comes after the late one.
        while_one_writes(&coalescer, 1, || {
            let late = coalescer.run(Number(1), Deadline::after(Duration::ZERO), |_| {
                panic!("it was begun")
            });
            assert_eq!(late, Err(NotDone::NotBegun));
            assert_eq!(coalescer.run(Number(1), far(), double), Ok(2));
        });
    }

    #[test]
    fn many_threads_and_two_writers_lose_no_answer() {
        let coalescer = Coalescer::new(2, 7);
        thread::scope(|scope| {
            for thread in 0..16 {
                let coalescer = &coalescer;
                scope.spawn(move || {
                    for n in 0..500 {
                        let n = (thread + n) % 40;
                        assert_eq!(coalescer.run(Number(n), far(), double), Ok(n * 2));
                    }
                });
            }
        });
        let state = lock(&coalescer.state);
        assert!(state.queue.is_empty() && state.writers == 0);
    }
}
