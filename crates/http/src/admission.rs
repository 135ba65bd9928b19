//! Admission of requests to the queue: bursts may wait, a standing queue may not.
//!
//! A queue that never empties helps nobody. Every request waits as long as the queue is deep, and
//! the oldest are answered after their clients gave up. When the load falls, the backlog is still
//! there. So the queue's length ([`ServerConfig::queue`](super::ServerConfig::queue)) is only the
//! hard bound, for bursts. The standing queue is kept short, in the spirit of `CoDel` (RFC 8289)
//! and its use in servers ("Fail at Scale", ACM Queue 13(8), 2015).
//!
//! - *Overloaded*: for [`ServerConfig::burst`](super::ServerConfig::burst) (0.5 s) without a break,
//!   more requests have waited than may stand. A request that finds the queue longer than that is
//!   refused at once. One that waits already is answered, which is sooner than after a retry.
//!   [`STANDING_PER_THREAD`] requests for each thread may stand. After the first moment a request
//!   then waits about three times as long as one takes to answer. If the threads take more than
//!   that in [`STANDING_TIME`], that many may stand. The overload ends once no request had to be
//!   refused for the same time. It must not end sooner. Threads whose orders share a commit come
//!   back together, and a queue that is empty for a moment would admit the next burst.
//! - *Stuck*: for the same time a request has waited and no thread has taken any. For example, each
//!   thread waits for a database that hangs. All requests are refused until a thread knows an
//!   answer.
//!
//! The measure is the number of requests. The time they have waited tells how long the queue was,
//! not how long it is. Clients that each wait for their answer (as in a load test) can then predict
//! the result on any machine. Up to four of them for each thread are never refused, unless all
//! threads are stuck. Fast threads may have more waiting, because refusing a client that retries at
//! once costs nearly as much as answering it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tbd_deadline::lock;

/// Requests that may stand in the queue, for each thread. This keeps a thread busy, with room for
/// clients that arrive together. Measured in docs/performance.md.
const STANDING_PER_THREAD: usize = 3;

/// Or as many as are taken in this time, at the best recent rate.
const STANDING_TIME: Duration = Duration::from_millis(125);

/// How long taken requests are counted: several shared commits on a slow disk, whose threads come
/// back together.
const COUNTED: Duration = Duration::from_millis(500);

pub(super) struct Admission {
    threads: usize,
    /// Requests that may stand at any rate.
    floor: usize,
    burst: Duration,
    state: Mutex<AdmissionState>,
}

struct AdmissionState {
    overloaded: bool,
    stuck: bool,
    /// When a check last agreed with `overloaded`.
    agreed: Instant,
    /// When a thread last took a request or knew an answer, or a request began to wait.
    progress: Instant,
    /// Threads that wait for a request.
    free: usize,
    /// Requests that may stand now.
    standing: usize,
    /// Requests taken since `counted`.
    taken: usize,
    counted: Instant,
}

impl Admission {
    pub(super) fn new(threads: usize, burst: Duration, now: Instant) -> Self {
        let floor = threads * STANDING_PER_THREAD;
        Self {
            threads,
            floor,
            burst,
            state: Mutex::new(AdmissionState {
                overloaded: false,
                stuck: false,
                agreed: now,
                progress: now,
                free: 0,
                standing: floor,
                taken: 0,
                counted: now,
            }),
        }
    }

    /// Whether a request may wait behind `waiting` others.
    pub(super) fn may_wait(&self, now: Instant, waiting: usize) -> bool {
        let mut state = lock(&self.state);
        if waiting == 0 {
            state.progress = now;
        }
        state.see(now, waiting, self);
        if state.free > waiting {
            return true;
        }
        !(state.stuck || state.overloaded && waiting > state.standing)
    }

    /// Marks a thread as free.
    pub(super) fn free(&self) {
        let mut state = lock(&self.state);
        state.free += 1;
        state.stuck = false;
    }

    /// A thread knows its answer. It is free only once the client has that answer, and a client
    /// that returns sooner must not be refused.
    pub(super) fn answered(&self, now: Instant) {
        let mut state = lock(&self.state);
        state.stuck = false;
        state.progress = now;
    }

    /// A free thread has taken a request and left `waiting` in the queue.
    pub(super) fn take(&self, now: Instant, waiting: usize) {
        let mut state = lock(&self.state);
        state.free = state.free.saturating_sub(1);
        state.progress = now;
        state.count(now, self);
        state.see(now, waiting, self);
    }

    /// Whether the `waiting` requests must be refused because no thread takes them.
    pub(super) fn gives_up(&self, now: Instant, waiting: usize) -> bool {
        let mut state = lock(&self.state);
        if waiting > 0 {
            state.see(now, waiting, self);
        }
        waiting > 0 && state.stuck
    }

    /// Whether no thread has a request and none of the `waiting` waits for one.
    pub(super) fn is_idle(&self, waiting: usize) -> bool {
        waiting == 0 && lock(&self.state).free >= self.threads
    }
}

impl AdmissionState {
    /// Counts one taken request. When the rate falls, `standing` follows slowly. A pause of a
    /// second, or the refusals themselves, must not refuse clients for whom there is room.
    fn count(&mut self, now: Instant, limits: &Admission) {
        self.taken += 1;
        let elapsed = now.saturating_duration_since(self.counted);
        if elapsed >= COUNTED {
            let at_this_rate = self.taken as u128 * STANDING_TIME.as_millis() / elapsed.as_millis();
            self.standing = usize::try_from(at_this_rate)
                .unwrap_or(usize::MAX)
                .max(self.standing * 31 / 32)
                .max(limits.floor);
            self.taken = 0;
            self.counted = now;
        }
    }

    fn see(&mut self, now: Instant, waiting: usize, limits: &Admission) {
        let long_since = |then: Instant| now.saturating_duration_since(then) > limits.burst;
        let too_many = waiting > self.standing;
        if too_many == self.overloaded {
            self.agreed = now;
        } else if long_since(self.agreed) {
            self.overloaded = too_many;
            self.agreed = now;
            if too_many {
                log::warn!(target: "tbd::http", "overloaded: {waiting} requests wait for a thread, more are refused");
            }
        }
        if self.free == 0 && !self.stuck && long_since(self.progress) {
            self.stuck = true;
            log::warn!(target: "tbd::http", "every thread is stuck: requests are refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: Duration = Duration::from_millis(500);
    const THREADS: usize = 10;
    const STANDING: usize = THREADS * STANDING_PER_THREAD;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// All threads are busy and have taken a request just now.
    fn busy(start: Instant) -> Admission {
        Admission::new(THREADS, BURST, start)
    }

    /// The queue has been too long for slightly more than a burst.
    fn overloaded(start: Instant) -> Admission {
        let admission = busy(start);
        for step in 1..=6 {
            let now = start + ms(step * 100);
            assert!(admission.may_wait(now, STANDING + 50) == (step < 6));
            admission.take(now, STANDING + 50);
        }
        admission
    }

    #[test]
    fn a_burst_may_wait() {
        let start = Instant::now();
        let admission = busy(start);
        for waiting in 0..1000 {
            assert!(admission.may_wait(start, waiting));
        }
        for step in 1..=5 {
            admission.take(start + ms(step * 100), 1000);
            assert!(admission.may_wait(start + ms(step * 100), 1000));
        }
    }

    #[test]
    fn clients_that_wait_for_their_answers_are_never_refused_up_to_four_for_each_thread() {
        let start = Instant::now();
        let admission = busy(start);
        for step in 0..1000 {
            let now = start + ms(step * 50);
            assert!(admission.may_wait(now, STANDING - 1));
            admission.take(now, STANDING - 1);
        }
    }

    #[test]
    fn as_many_as_are_taken_in_an_eighth_of_a_second_may_stand_and_a_pause_changes_little() {
        let start = Instant::now();
        let admission = busy(start);
        // 8,000 in a second, 1,000 in an eighth of one.
        let mut now = start;
        for _ in 0..16_000 {
            now += Duration::from_micros(125);
            admission.take(now, 990);
            assert!(admission.may_wait(now, 990));
        }
        admission.take(now + ms(1_000), 960);
        assert!(admission.may_wait(now + ms(1_000), 960));
        for step in 1..=200 {
            admission.take(now + ms(1_000 + step * 500), 960);
        }
        assert!(!admission.may_wait(now + ms(101_000), STANDING + 1));
        assert!(admission.may_wait(now + ms(101_000), STANDING));
    }

    #[test]
    fn a_standing_queue_takes_nobody_until_it_is_no_longer_than_it_may_stand() {
        let start = Instant::now();
        let admission = overloaded(start);
        let now = start + ms(601);
        assert!(!admission.may_wait(now, STANDING + 1));
        admission.take(now, STANDING);
        assert!(admission.may_wait(now, STANDING));
        // The refusals made it shorter.
        assert!(!admission.may_wait(now + ms(1), STANDING + 1));
    }

    #[test]
    fn an_overload_ends_once_nobody_had_to_be_refused_for_as_long_as_a_burst_may_last() {
        let start = Instant::now();
        let admission = overloaded(start);
        let last = start + ms(610);
        assert!(!admission.may_wait(last, STANDING + 1));
        assert!(admission.may_wait(last + ms(10), 0), "room at once");
        admission.take(last + ms(499), 0);
        let burst = last + ms(501);
        assert!(admission.may_wait(burst, 0));
        assert!(admission.may_wait(burst, STANDING + 1));
    }

    #[test]
    fn a_queue_that_is_empty_for_a_moment_ends_no_overload() {
        let start = Instant::now();
        let admission = overloaded(start);
        admission.take(start + ms(700), 0);
        assert!(!admission.may_wait(start + ms(710), STANDING + 1));
        admission.take(start + ms(1_100), 0);
        assert!(!admission.may_wait(start + ms(1_110), STANDING + 1));
    }

    #[test]
    fn while_every_thread_is_stuck_everybody_is_refused() {
        let start = Instant::now();
        let admission = busy(start);
        assert!(admission.may_wait(start, 0));
        assert!(!admission.gives_up(start + BURST, 1));
        let later = start + BURST + ms(1);
        assert!(admission.gives_up(later, 1));
        assert!(!admission.may_wait(later, 0));
        assert!(!admission.may_wait(later + ms(1000), 0));
        assert!(!admission.gives_up(later, 0));
    }

    #[test]
    fn one_free_thread_and_nobody_is_stuck() {
        let start = Instant::now();
        let admission = busy(start);
        assert!(admission.may_wait(start, 0));
        assert!(admission.gives_up(start + ms(600), 1));
        admission.free();
        assert!(!admission.gives_up(start + ms(601), 1));
        assert!(admission.may_wait(start + ms(601), 0));
    }

    #[test]
    fn a_client_that_has_its_answer_may_come_again_before_the_thread_is_free() {
        let start = Instant::now();
        let admission = busy(start);
        assert!(admission.may_wait(start, 0));
        assert!(admission.gives_up(start + ms(600), 1));
        admission.answered(start + ms(700));
        assert!(admission.may_wait(start + ms(701), 0));
        assert!(!admission.gives_up(start + ms(701), 1));
    }

    #[test]
    fn idle_is_when_every_thread_is_free_and_nobody_waits() {
        let start = Instant::now();
        let admission = busy(start);
        for _ in 0..THREADS {
            assert!(!admission.is_idle(0));
            admission.free();
        }
        assert!(admission.is_idle(0));
        assert!(!admission.is_idle(1));
        admission.take(start, 0);
        assert!(!admission.is_idle(0));
    }

    #[test]
    fn threads_that_are_all_busy_with_nobody_waiting_are_not_stuck() {
        let start = Instant::now();
        let admission = busy(start);
        assert!(admission.may_wait(start + ms(5_000), 0));
        assert!(admission.may_wait(start + ms(5_100), 1));
    }
}
