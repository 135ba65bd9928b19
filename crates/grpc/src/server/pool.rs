//! Where handlers run.

use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, bounded};

use super::job::Job;

/// Runs calls on other threads.
///
/// A closure `Fn(Job)` is one, so an existing pool with a bounded queue serves. An executor must not block: it is called on
/// the thread that reads a connection. A job that it drops is answered with UNAVAILABLE.
pub trait Executor: Send + Sync {
    /// Takes the job, or drops it.
    fn execute(&self, job: Job);
}

impl<F: Fn(Job) + Send + Sync> Executor for F {
    fn execute(&self, job: Job) {
        self(job);
    }
}

/// A fixed number of threads behind a bounded queue. A streaming call occupies a thread until it ends.
///
/// Dropping the pool waits until the queued calls have run.
#[derive(Debug)]
pub struct WorkerPool {
    queue: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl WorkerPool {
    /// Starts `threads` threads named `grpc-worker-N`; at most `queued_max` calls wait for them.
    ///
    /// # Errors
    /// The operating system has no more threads.
    pub fn new(threads: usize, queued_max: usize) -> io::Result<Self> {
        let (sender, receiver) = bounded::<Job>(queued_max);
        let mut pool = Self {
            queue: Some(sender),
            workers: Vec::new(),
        };
        for number in 0..threads.max(1) {
            let receiver = receiver.clone();
            let worker = thread::Builder::new().name(format!("grpc-worker-{number}"));
            pool.workers
                .push(worker.spawn(move || receiver.into_iter().for_each(Job::run))?);
        }
        Ok(pool)
    }
}

impl Executor for WorkerPool {
    fn execute(&self, job: Job) {
        if let Some(queue) = &self.queue {
            // A full queue drops the job.
            let _ = queue.try_send(job);
        }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.queue = None;
        for worker in self.workers.drain(..) {
            // Handlers' panics are caught; nothing else of a worker panics.
            let _ = worker.join();
        }
    }
}
