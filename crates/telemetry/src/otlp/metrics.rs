//! Periodic export of the registry's metrics, on the thread `otlp-metrics`.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use opentelemetry_sdk::Resource;
use tbd_deadline::Deadline;

use super::convert::export_request;
use super::{Client, Metrics, WarningLimit};
use crate::metrics::Registry;

/// Owner of the thread that exports metrics.
#[derive(Debug)]
#[must_use = "the last export happens on shutdown"]
pub struct MetricsExport {
    stop: Sender<()>,
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

impl MetricsExport {
    /// Starts the thread. It sends all metrics of `registry` every `interval`, with their sums since the start of the
    /// process. A lost export loses nothing but its moment.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn start(
        registry: Registry,
        resource: &Resource,
        client: Client,
        interval: Duration,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(1);
        let (running, ended) = bounded(0);
        let resource = resource.into();
        let start = SystemTime::now();
        let thread = thread::Builder::new()
            .name("otlp-metrics".to_owned())
            .spawn(move || {
                let warnings = WarningLimit::default();
                loop {
                    let is_last = stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
                    let request = export_request(&registry.gather(), &resource, start);
                    let failure = match client.export::<Metrics>(&request) {
                        Ok(partial) => partial.message,
                        Err(reason) => reason,
                    };
                    if !failure.is_empty() && warnings.is_due() {
                        log::warn!("the collector did not accept all metrics: {failure}");
                    }
                    if is_last {
                        // Nothing is ever sent: the channel's end says that the last export is over.
                        return drop(running);
                    }
                }
            })?;
        Ok(Self {
            stop,
            ended,
            thread,
        })
    }

    /// Exports once more and ends the thread. Waits for the collector until `deadline`, and returns whether it had
    /// answered by then.
    pub fn shutdown(self, deadline: Deadline) -> bool {
        let _ = self.stop.send(());
        let wait = self.ended.recv_timeout(deadline.remaining());
        wait == Err(RecvTimeoutError::Disconnected) && self.thread.join().is_ok()
    }
}
