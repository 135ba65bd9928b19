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
fn a_job_does_not_wait_for_a_slow_batch_once_none_was_begun_for_a_while() {
    let coalescer = Coalescer::new(1, 50).more_when_slow(2, Duration::from_millis(1));
    let (begun, has_begun) = mpsc::channel();
    let (release, released) = mpsc::channel();
    thread::scope(|scope| {
        let slow = scope.spawn(|| {
            coalescer.run(Number(1), far(), move |jobs| {
                begun.send(()).unwrap();
                released.recv().unwrap();
                double(jobs)
            })
        });
        has_begun.recv().unwrap();
        assert_eq!(coalescer.run(Number(2), far(), double), Ok(4));
        release.send(()).unwrap();
        assert_eq!(slow.join().unwrap(), Ok(2));
    });
    assert_eq!(lock(&coalescer.state).writers, 0);
}

#[test]
fn slow_batches_begin_a_share_of_their_own_time_apart() {
    let millis = Duration::from_millis;
    let coalescer = Coalescer::new(2, 50).more_when_slow(16, millis(8));
    assert_eq!(coalescer.run(Number(1), far(), double), Ok(2));
    let mut state = lock(&coalescer.state);
    assert!(state.took > Duration::ZERO, "the time of a batch is noted");
    for (took, pause) in [(0, 8), (16, 8), (48, 3), (80, 5), (1_000, 8)] {
        state.took = millis(took);
        assert_eq!(coalescer.pause(&state), millis(pause), "after {took} ms");
    }
}

#[test]
fn beyond_the_last_place_even_a_slow_batch_is_waited_for() {
    let coalescer = Coalescer::new(1, 50).more_when_slow(1, Duration::ZERO);
    while_one_writes(&coalescer, 1, || {
        let written = coalescer.run(Number(2), far(), |jobs| {
            assert_eq!(lock(&coalescer.state).writers, 1);
            double(jobs)
        });
        assert_eq!(written, Ok(4));
    });
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
fn many_threads_and_several_writers_lose_no_answer() {
    let coalescer = Coalescer::new(2, 7).more_when_slow(4, Duration::from_micros(20));
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
