//! Stopping: the parts in their order, and each part's share of the 30 s.
//!
//! | Part | Share | What it ends |
//! | --- | --- | --- |
//! | work | [`WORK_SHARE`], 20 s | the drain and the requests in flight (api); the orders in hand (worker) |
//! | threads | [`THREADS_SHARE`], 3 s | housekeeping and health checks, which another instance takes over |
//! | events | [`EVENTS_SHARE`], 3 s | the producer, with the records that are not acknowledged yet |
//! | spans | [`SPANS_SHARE`], 2 s | the export of traces |
//! | migrations | what is left of the 30 s | a migration under way: half of one needs a person to mend it |
//!
//! A part ends as soon as it has nothing left to do. A part that waits for a server that never
//! answers ends with its share: a warning names it, the next part begins, and the exit code
//! stays 0. Nothing accepted is lost: an order is committed with its event, and an offset only
//! after its order.

use std::io;
use std::process;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::SHUTDOWN_DRAIN_MAX;
use tbd_deadline::Deadline;
use tbd_deadline::StopSignal;
use tbd_http::Server;

/// All that stopping may take. `shutdown-watchdog` ends the process with code 1 afterwards.
pub const SHUTDOWN_BUDGET: Duration = Duration::from_secs(30);

/// The largest share, for what a customer waits for: a statement (5 s) and a publish (10 s) of
/// a request that came last, or a drain and most of them.
pub const WORK_SHARE: Duration = Duration::from_secs(20);
/// When a processing step is cut short. Its consumer has the rest of [`WORK_SHARE`] to write
/// what is done, announce it, commit its offsets and leave the group.
pub const ABORT_AFTER: Duration = Duration::from_secs(15);
/// A server that answers takes no longer for what these threads are waiting for.
pub const THREADS_SHARE: Duration = Duration::from_secs(3);
/// Every publish has ended with its request by now. What is left has no caller any more.
pub const EVENTS_SHARE: Duration = Duration::from_secs(3);
/// A collector takes a batch in milliseconds. Traces are worth no longer wait.
pub const SPANS_SHARE: Duration = Duration::from_secs(2);

/// How much longer a part may take to notice that its share is spent.
const GRACE: Duration = Duration::from_millis(300);
/// The worker's: consumers, server, threads, events, spans. The api's migrations come last and
/// have no share of their own.
const PARTS_MAX: u64 = 5;

const _: () = {
    let shares = WORK_SHARE.as_millis()
        + THREADS_SHARE.as_millis()
        + EVENTS_SHARE.as_millis()
        + SPANS_SHARE.as_millis()
        + GRACE.as_millis() * PARTS_MAX as u128;
    assert!(shares < SHUTDOWN_BUDGET.as_millis());
    // After the longest drain a publish (10 s) can still end.
    assert!(SHUTDOWN_DRAIN_MAX.as_secs() + 10 <= WORK_SHARE.as_secs());
};

/// SIGTERM and SIGINT, caught from its making on.
pub struct ShutdownSignal(Signals);

impl ShutdownSignal {
    /// Catches the signals: one that comes before [`wait`](Self::wait) is not lost.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Signals::new([SIGTERM, SIGINT])?))
    }

    /// Waits for the first signal. From then on a second one ends the process at once,
    /// with code 1. `abort` is given after [`ABORT_AFTER`].
    ///
    /// # Errors
    /// When one of the threads that watch the shutdown cannot be started.
    pub fn wait(mut self, abort: StopSignal) -> io::Result<Shutdown> {
        // The iterator only ends when it is closed, which nobody does.
        if let Some(signal) = self.0.forever().next() {
            log::info!(signal = signal; "stopping; a second signal ends the process at once");
        }
        thread::Builder::new()
            .name("second-signal".into())
            .spawn(move || {
                if self.0.forever().next().is_some() {
                    log::warn!("second signal, not waiting any longer");
                    process::exit(1);
                }
            })?;
        let began = Instant::now();
        thread::Builder::new()
            .name("shutdown-watchdog".into())
            .spawn(move || {
                sleep_until(Deadline::after_instant(began, ABORT_AFTER));
                abort.stop();
                sleep_until(Deadline::after_instant(began, SHUTDOWN_BUDGET));
                log::error!("not everything ended within {SHUTDOWN_BUDGET:?}, ending anyway");
                process::exit(1);
            })?;
        Ok(Shutdown {
            began,
            is_complete: true,
        })
    }
}

/// A shutdown under way.
#[must_use = "`end` ends the program"]
pub struct Shutdown {
    began: Instant,
    /// Whether every part so far has ended within its share.
    is_complete: bool,
}

impl Shutdown {
    /// Blocks until `drain` is over, counted from the signal. Readiness fails already and the
    /// listener still accepts, so that a load balancer learns of the end before a client does.
    pub fn drain(&self, drain: Duration) {
        sleep_until(Deadline::after_instant(self.began, drain));
    }

    /// The end of [`WORK_SHARE`], which begins with the signal.
    pub fn work(&self) -> Deadline {
        Deadline::after_instant(self.began, WORK_SHARE)
    }

    /// The end of the whole shutdown, for its last part.
    pub fn rest(&self) -> Deadline {
        Deadline::after_instant(self.began, SHUTDOWN_BUDGET - 2 * GRACE)
    }

    /// Runs `part` on the thread `shutdown-NAME`, gives it its deadline and waits for it until
    /// then, and a moment longer. A part that has not ended is left to the end of the process.
    pub fn part(
        &mut self,
        name: &str,
        deadline: Deadline,
        part: impl FnOnce(Deadline) + Send + 'static,
    ) {
        let (running, ended) = bounded::<()>(0);
        let thread = thread::Builder::new()
            .name(format!("shutdown-{name}"))
            .spawn(move || {
                part(deadline);
                drop(running);
            });
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => {
                log::error!("shutdown: no thread to end the {name} on: {error}");
                self.is_complete = false;
                return;
            }
        };
        // Nothing is ever sent: the channel is disconnected when the thread ends or panics.
        match ended.recv_timeout(deadline.remaining() + GRACE) {
            Err(RecvTimeoutError::Disconnected) => join(vec![thread]),
            _ => {
                log::warn!("shutdown: the {name} did not end in time, going on without");
                self.is_complete = false;
            }
        }
    }

    /// The end of the program: returns if every part has ended. If not, ends the process with
    /// code 0, since the caller could wait for what an unfinished part still holds.
    pub fn end(self) {
        log::info!("stopped");
        if !self.is_complete {
            process::exit(0);
        }
    }
}

/// Answers what is in flight until `deadline`, and stops `server`.
pub fn stop_server(server: Server, deadline: Deadline) {
    if let Err(error) = server.shutdown(deadline) {
        log::warn!("shutdown: {error}");
    }
}

/// Joins `threads`, each of which has been told to end; a panic of one is logged.
/// Waits for as long as they take.
pub fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        let name = thread.thread().name().unwrap_or("unnamed").to_owned();
        if thread.join().is_err() {
            log::error!(thread = name; "the thread had panicked");
        }
    }
}

fn sleep_until(deadline: Deadline) {
    thread::sleep(deadline.remaining());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shutdown() -> Shutdown {
        Shutdown {
            began: Instant::now(),
            is_complete: true,
        }
    }

    #[test]
    fn a_part_that_never_ends_costs_its_share_and_no_more() {
        let mut shutdown = shutdown();
        let (_never, blocked) = bounded::<()>(0);
        let share = Duration::from_millis(50);
        shutdown.part("test", Deadline::after(share), move |_| {
            let _ = blocked.recv();
        });
        let took = shutdown.began.elapsed();
        assert!(took >= share && took < Duration::from_secs(5), "{took:?}");
        assert!(!shutdown.is_complete);
    }

    #[test]
    fn a_part_that_is_done_or_panics_costs_no_share() {
        let mut shutdown = shutdown();
        shutdown.part("test", shutdown.work(), |_| {});
        shutdown.part("test", shutdown.work(), |_| panic!("a mistake"));
        assert!(shutdown.began.elapsed() < WORK_SHARE / 2);
        assert!(shutdown.is_complete);
    }
}
