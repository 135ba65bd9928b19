//! Shutdown: its parts in order, and each part's share of the 30 s.
//!
//! | Part | Share | Ends |
//! | --- | --- | --- |
//! | work | [`WORK_SHARE`], 20 s | the drain and the requests in flight (api); the orders in hand (worker) |
//! | threads | [`THREADS_SHARE`], 3 s | housekeeping, which another instance takes over, and health checks |
//! | events | [`EVENTS_SHARE`], 3 s | the producer, with the records that are not acknowledged yet |
//! | spans | [`SPANS_SHARE`], 2 s | the export of traces and metrics |
//! | migrations | the rest of the 30 s | a running migration: somebody would have to repair half a migration |
//!
//! A part ends as soon as its work is done. If it waits for a server that never answers, it ends
//! with its share: a warning names it, the next part begins, and the exit code stays 0. No accepted
//! order is lost: it is committed with its event, and its offset is committed after it.

use std::io;
use std::process;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{GrpcServer, Telemetry};
use crate::config::SHUTDOWN_DRAIN_MAX;
use tbd_deadline::{Deadline, StopSignal};
use tbd_http::Server;

/// Time limit of the whole shutdown. `shutdown-watchdog` ends the process with code 1 afterwards.
pub const SHUTDOWN_BUDGET: Duration = Duration::from_secs(30);

/// The largest share, because customers wait for it: the statement (5 s) and the publish (10 s) of
/// the last request, or a drain and most of these.
pub const WORK_SHARE: Duration = Duration::from_secs(20);
/// When a processing step is interrupted. Its consumer uses the rest of [`WORK_SHARE`] to store and
/// announce the results, commit its offsets and leave the group.
pub const ABORT_AFTER: Duration = Duration::from_secs(15);
/// Long enough for any call of these threads to a healthy server.
pub const THREADS_SHARE: Duration = Duration::from_secs(3);
/// Short: every request has ended with its publish, so no caller waits for the remaining records.
pub const EVENTS_SHARE: Duration = Duration::from_secs(3);
/// A collector accepts a batch within milliseconds. Traces do not justify a longer wait.
pub const SPANS_SHARE: Duration = Duration::from_secs(2);

/// Extra time for a part to notice that its share is spent.
const GRACE: Duration = Duration::from_millis(300);
/// The worker's parts: consumers, server, threads, events, spans. The api's migrations come last
/// and have no share.
const PARTS_MAX: u64 = 5;

const _: () = {
    let shares = WORK_SHARE.as_millis()
        + THREADS_SHARE.as_millis()
        + EVENTS_SHARE.as_millis()
        + SPANS_SHARE.as_millis()
        + GRACE.as_millis() * PARTS_MAX as u128;
    assert!(shares < SHUTDOWN_BUDGET.as_millis());
    // A publish (10 s) can still end after the longest drain.
    assert!(SHUTDOWN_DRAIN_MAX.as_secs() + 10 <= WORK_SHARE.as_secs());
};

/// A catcher of SIGTERM and SIGINT, active from its construction.
pub struct ShutdownSignal(Signals);

impl ShutdownSignal {
    /// Starts to catch the signals. A signal before [`wait`](Self::wait) is not lost.
    ///
    /// # Errors
    /// When the signals cannot be caught.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Signals::new([SIGTERM, SIGINT])?))
    }

    /// Waits for the first signal. A second one then ends the process at once with code 1. Gives
    /// `abort` after [`ABORT_AFTER`].
    ///
    /// # Errors
    /// When a thread that watches the shutdown cannot be started.
    pub fn wait(mut self, abort: StopSignal) -> io::Result<Shutdown> {
        // The iterator ends only when it is closed, which never happens.
        if let Some(signal) = self.0.forever().next() {
            log::info!(signal = signal; "stopping; a second signal ends the process at once");
        }
        thread::Builder::new()
            .name("second-signal".into())
            .spawn(move || {
                if self.0.forever().next().is_some() {
                    log::warn!("second signal: ending the process at once");
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
                log::error!(
                    "the shutdown took longer than {SHUTDOWN_BUDGET:?}: ending the process"
                );
                process::exit(1);
            })?;
        Ok(Shutdown {
            began,
            is_complete: true,
        })
    }
}

/// A shutdown in progress.
#[must_use = "`finish` ends the program"]
pub struct Shutdown {
    began: Instant,
    /// Whether every part so far has ended within its share.
    is_complete: bool,
}

impl Shutdown {
    /// Blocks until `drain` has passed since the signal. Readiness fails already, but the listener
    /// still accepts, so that a load balancer notices the shutdown before a client does.
    pub fn drain(&self, drain: Duration) {
        sleep_until(Deadline::after_instant(self.began, drain));
    }

    /// The end of [`WORK_SHARE`], counted from the signal.
    pub fn work(&self) -> Deadline {
        Deadline::after_instant(self.began, WORK_SHARE)
    }

    /// The end of the whole shutdown, for its last part.
    fn rest(&self) -> Deadline {
        Deadline::after_instant(self.began, SHUTDOWN_BUDGET - 2 * GRACE)
    }

    /// Runs `part` on the thread `shutdown-NAME` with its deadline, and waits for it until then and
    /// a moment longer. The end of the process ends a part that is still running.
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
                log::error!("shutdown: cannot start the thread that ends the {name}: {error}");
                self.is_complete = false;
                return;
            }
        };
        // Nothing is ever sent: the channel disconnects when the thread ends or panics.
        match ended.recv_timeout(deadline.remaining() + GRACE) {
            Err(RecvTimeoutError::Disconnected) => join(vec![thread]),
            _ => {
                log::warn!("shutdown: the {name} did not end in time, continuing without waiting");
                self.is_complete = false;
            }
        }
    }

    /// Joins `threads`, which have their stop signal already, as a part of its own.
    pub fn threads(&mut self, threads: Vec<JoinHandle<()>>) {
        let end = Deadline::after(THREADS_SHARE);
        self.part("threads", end, move |_| join(threads));
    }

    /// Sends the last spans and metrics, and joins `migrations`. Returns if every part has ended. If not,
    /// exits with code 0, since the caller might wait for a resource that an unfinished part holds.
    pub fn finish(mut self, telemetry: Telemetry, migrations: Vec<JoinHandle<()>>) {
        let end = Deadline::after(SPANS_SHARE);
        self.part("spans", end, move |end| telemetry.shutdown(end));
        if !migrations.is_empty() {
            self.part("migrations", self.rest(), move |_| join(migrations));
        }
        log::info!("stopped");
        if !self.is_complete {
            process::exit(0);
        }
    }
}

/// Finishes the requests and calls in flight until `deadline`, and stops both servers.
pub fn stop_servers(http: Server, grpc: Option<GrpcServer>, deadline: Deadline) {
    http.stop_accepting();
    // The calls in flight need the HTTP server's threads.
    if let Some(grpc) = grpc {
        grpc.stop(deadline);
    }
    if let Err(error) = http.shutdown(deadline) {
        log::warn!("shutdown: {error}");
    }
}

/// Joins `threads`, which must have their stop signal already. Logs a thread's panic. Waits without
/// a limit.
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
