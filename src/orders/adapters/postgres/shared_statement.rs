//! Shared statements: the thread of one request runs the statement for several.

use std::time::Instant;

use crate::orders::ports::StoreError;
use tbd_deadline::Deadline;
use tbd_postgres::{Coalescer, DatabaseError, Job};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, SpanContext};

/// The outcome of one job, from the thread that ran the statement.
pub struct SharedOutcome<T> {
    pub(super) outcome: Result<T, DatabaseError>,
    /// The span of the statement.
    statement: Option<SpanContext>,
}

/// Adds the statement's span to the outcome of each job.
pub(super) fn with_statement_span<T>(
    outcomes: impl IntoIterator<Item = Result<T, DatabaseError>>,
    statement: Option<SpanContext>,
) -> Vec<SharedOutcome<T>> {
    let shared = |outcome| SharedOutcome {
        outcome,
        statement: statement.clone(),
    };
    outcomes.into_iter().map(shared).collect()
}

/// Records the number of `jobs` in the current statement's span, and returns the span's context.
pub(super) fn shared_by(jobs: usize) -> Option<SpanContext> {
    if jobs > 1 {
        let count = i64::try_from(jobs).unwrap_or(i64::MAX);
        tracing::annotate(semconv::DB_OPERATION_BATCH_SIZE, count);
    }
    tracing::current()
}

/// Runs `job` with `work`, on this thread or on another request's, until `deadline` at most. If
/// another thread ran it, this request's trace gets a span of the wait, named `waited`, with a
/// link to the shared statement.
pub(super) fn run<J: Job<Answer = SharedOutcome<T>>, T>(
    gathering: &Coalescer<J>,
    job: J,
    deadline: Deadline,
    waited: &'static str,
    work: impl Fn(&[&J]) -> Vec<SharedOutcome<T>>,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let mut by_itself = false;
    let shared = gathering.run(job, deadline, |jobs| {
        by_itself = true;
        work(jobs)
    });
    if !by_itself {
        let statement = shared.as_ref().ok().and_then(|it| it.statement.clone());
        let wait = tracing::waited(waited, began.elapsed(), statement.into_iter().collect());
        match shared.as_ref().map(|shared| &shared.outcome) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => wait.fail(error.kind(), &error.to_string()),
            Err(not_done) => wait.fail("not_done", &not_done.to_string()),
        }
    }
    let shared = shared.map_err(|not_done| StoreError::Unavailable(not_done.to_string()))?;
    Ok(shared.outcome?)
}
