//! Executors of handlers: a bounded pool of threads, and threads of their own for health and reflection.

use std::fmt;
use std::io;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, bounded};
use tbd_deadline::lock;

use super::job::Job;
use crate::code::Code;
use crate::method::MethodKind;
use crate::status::Status;

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

impl fmt::Debug for dyn Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Executor")
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

/// Runs the calls of health and reflection: unary ones at once, since they do not block; others on threads of their own.
/// So neither a full executor nor open streams keep `Check` from its answer.
#[derive(Debug)]
pub(super) struct OwnThreads {
    threads_max: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl OwnThreads {
    pub(super) fn new(threads_max: usize) -> Self {
        Self {
            threads_max,
            threads: Mutex::default(),
        }
    }

    pub(super) fn execute(&self, job: Job) {
        if job.call().kind() == MethodKind::Unary {
            return job.run();
        }
        let mut threads = lock(&self.threads);
        for ended in threads.extract_if(.., |thread| thread.is_finished()) {
            let _ = ended.join();
        }
        if threads.len() >= self.threads_max {
            drop(threads);
            let full = "too many streams of health and reflection are open";
            return job.refuse(Status::new(Code::ResourceExhausted, full));
        }
        let builder = thread::Builder::new().name("grpc-own-stream".to_owned());
        match builder.spawn(|| job.run()) {
            Ok(thread) => threads.push(thread),
            // The job was dropped, and so answered with UNAVAILABLE.
            Err(error) => log::warn!("a thread for a stream could not be started: {error}"),
        }
    }
}

impl Drop for OwnThreads {
    /// The connections have ended, and with them the calls.
    fn drop(&mut self) {
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }
}
