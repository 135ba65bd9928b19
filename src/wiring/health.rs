//! Health monitors: threads that check dependencies, and verdicts that are read without waiting.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tbd_deadline::{StopSignal, lock};

/// The pause between two checks while the dependency is healthy.
const INTERVAL: Duration = Duration::from_secs(2);
/// The pause while it is unhealthy: short, so that the end of an outage is noticed soon.
const INTERVAL_UNHEALTHY: Duration = Duration::from_millis(250);
/// A good verdict older than this is stale: a frozen server makes the check itself hang. Longer
/// than an interval plus a slow answer, and well within the 10 s in which readiness has to fail.
const VERDICT_LIFETIME: Duration = Duration::from_secs(6);

/// The latest verdict about one dependency. A thread checks it every two seconds, or sooner while
/// it is unhealthy. Clones share the verdict.
#[derive(Clone)]
pub struct Monitor(Arc<Mutex<Verdict>>);

struct Verdict {
    /// `Err` says why the dependency cannot be used.
    health: Result<(), String>,
    at: Instant,
}

impl Monitor {
    /// Starts the thread `name`, which calls `check` at once and then repeatedly, until `stop`.
    /// The caller joins it. A check should answer within 3 seconds.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn start(
        name: &str,
        stop: StopSignal,
        mut check: impl FnMut() -> Result<(), String> + Send + 'static,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let monitor = Self(Arc::new(Mutex::new(Verdict {
            health: Err("not asked yet".to_owned()),
            at: Instant::now(),
        })));
        let written = monitor.clone();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                loop {
                    let health = check();
                    let pause = match health {
                        Ok(()) => INTERVAL,
                        Err(_) => INTERVAL_UNHEALTHY,
                    };
                    let at = Instant::now();
                    *lock(&written.0) = Verdict { health, at };
                    if stop.wait_for(pause) {
                        return;
                    }
                }
            })?;
        Ok((monitor, thread))
    }

    /// The latest verdict: `Err` says why the dependency cannot be used. Never blocks.
    ///
    /// # Errors
    /// The reason, in a sentence without secrets.
    pub fn health(&self) -> Result<(), String> {
        let verdict = lock(&self.0);
        let age = verdict.at.elapsed();
        if verdict.health.is_ok() && age > VERDICT_LIFETIME {
            return Err(format!("no answer for {} s", age.as_secs()));
        }
        verdict.health.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    #[test]
    fn the_verdict_is_what_the_last_check_said() {
        let (verdicts, next) = bounded(0);
        let (asked, check_begins) = bounded(0);
        let stop = StopSignal::new();
        let (monitor, thread) = Monitor::start("test-health", stop.clone(), move || {
            let _ = asked.send(());
            next.recv().unwrap_or(Ok(()))
        })
        .unwrap();
        assert!(monitor.health().is_err(), "nothing is healthy unasked");
        check_begins.recv().unwrap();
        for verdict in [Ok(()), Err("away".to_owned())] {
            verdicts.send(verdict.clone()).unwrap();
            // The next check begins after the verdict is written.
            check_begins.recv().unwrap();
            assert_eq!(monitor.health(), verdict);
        }
        stop.stop();
        drop((verdicts, check_begins));
        thread.join().unwrap();
    }
}
