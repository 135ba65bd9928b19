//! Whether the database answers, known at any time without asking it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::config::DatabaseConfig;
use super::connection::Connection;
use super::error::DatabaseError;
use super::hooks::NoHooks;
use super::migrations::Migrator;
use crate::deadline::Deadline;

/// How often the database is asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A verdict older than this is no longer believed: the check itself hangs, which is what a frozen server does to
/// it. Longer than an interval and a slow answer together, well within the 10 s in which readiness has to fail.
const VERDICT_LIFETIME: Duration = Duration::from_secs(6);

/// The thread `database-health`, which asks the database every two seconds on a connection of its own: one more
/// than `max_conns`, so that a pool that is merely busy is not taken for a database that is away.
pub struct Monitor {
    verdict: Arc<Mutex<Verdict>>,
    stop: Sender<()>,
    /// Closed by the thread as it ends.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

struct Verdict {
    /// Why the database is not usable, or that it is.
    health: Result<(), String>,
    at: Instant,
}

impl Monitor {
    /// Starts checking, the first time at once. With `schema`, the database is healthy only while its schema is at
    /// least as new as those migrations, and clean.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn start(config: DatabaseConfig, schema: Option<Migrator>) -> io::Result<Self> {
        let verdict = Verdict {
            health: Err("not asked yet".to_owned()),
            at: Instant::now(),
        };
        let verdict = Arc::new(Mutex::new(verdict));
        let (stop, stopped) = bounded(1);
        let (ending, ended) = bounded(0);
        let mut checker = Checker {
            config,
            schema,
            connection: None,
        };
        let written = Arc::clone(&verdict);
        let thread = thread::Builder::new()
            .name("database-health".to_owned())
            .spawn(move || {
                let _ending: Sender<()> = ending;
                loop {
                    let health = checker.run_once();
                    *written.lock().unwrap_or_else(PoisonError::into_inner) = Verdict {
                        health,
                        at: Instant::now(),
                    };
                    match stopped.recv_timeout(INTERVAL) {
                        Err(RecvTimeoutError::Timeout) => {}
                        Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            })?;
        Ok(Self {
            verdict,
            stop,
            ended,
            thread: Some(thread),
        })
    }

    /// The latest verdict: `Err` says why the database cannot be used. Never waits for the database.
    pub fn health(&self) -> Result<(), String> {
        let verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        let age = verdict.at.elapsed();
        if verdict.health.is_ok() && age > VERDICT_LIFETIME {
            return Err(format!(
                "the database has not answered for {} s",
                age.as_secs()
            ));
        }
        verdict.health.clone()
    }

    /// Ends the thread. Waits for a check under way, until `deadline`; a thread that hangs longer in a frozen
    /// server's hands is left to the end of the process, and `false` says so.
    pub fn stop(mut self, deadline: Deadline) -> bool {
        let _ = self.stop.try_send(());
        if self.ended.recv_deadline(deadline.instant())
            == Err(crossbeam_channel::RecvTimeoutError::Timeout)
        {
            return false;
        }
        self.thread
            .take()
            .is_none_or(|thread| thread.join().is_ok())
    }
}

struct Checker {
    config: DatabaseConfig,
    schema: Option<Migrator>,
    connection: Option<Connection>,
}

impl Checker {
    /// One check. A kept connection that fails is replaced at once: what broke may have been the connection alone.
    fn run_once(&mut self) -> Result<(), String> {
        if let Some(mut connection) = self.connection.take()
            && let Ok(problem) = self.examine(&mut connection)
        {
            self.connection = Some(connection);
            return problem.map_or(Ok(()), Err);
        }
        let outcome =
            Connection::open(&self.config, Arc::new(NoHooks)).and_then(|mut connection| {
                let problem = self.examine(&mut connection)?;
                self.connection = Some(connection);
                Ok(problem)
            });
        match outcome {
            Ok(problem) => problem.map_or(Ok(()), Err),
            Err(error) => Err(error.to_string()),
        }
    }

    fn examine(&self, connection: &mut Connection) -> Result<Option<String>, DatabaseError> {
        connection.ping(ANSWER_TIMEOUT)?;
        match &self.schema {
            Some(schema) => Ok(schema.status(connection)?.problem()),
            None => Ok(None),
        }
    }
}
