//! Retry of database work, in this one place.

use std::thread;
use std::time::Duration;

use super::error::DatabaseError;
use tbd_deadline::Deadline;

/// Retries after the first failure.
const RETRIES: u32 = 3;
/// The pause before each retry: long enough to replace the sockets of a failed-over or restarted
/// backend, short enough not to be noticed.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs `work`, and retries it up to 3 times, 50 ms apart. It retries while the error is
/// [transient](DatabaseError::is_transient) and `deadline` leaves room for another pause.
///
/// `work` must check out a connection each time, because the old one may be broken. It must be
/// **repeatable**, because after a lost connection the outcome is unknown. Repeatable are:
/// - reads;
/// - an insert whose retry finds its own row (`ON CONFLICT DO NOTHING` on a key the caller chose)
///   and then reads it;
/// - an update or delete guarded by its initial state (`... WHERE id = $1 AND status = 'pending'`),
///   if a caller that finds nothing to change reads the current state instead of reporting a
///   failure.
///
/// Not repeatable: counters, inserts with a key made by the server, any answer of "how many rows
/// changed".
///
/// Blocks as long as `work` does, plus at most 150 ms.
pub fn retry<T>(
    deadline: Deadline,
    mut work: impl FnMut() -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    for _ in 0..RETRIES {
        match work() {
            Err(error) if error.is_transient() && deadline.remaining() > PAUSE => {
                thread::sleep(PAUSE)
            }
            outcome => return outcome,
        }
    }
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> DatabaseError {
        DatabaseError::ConnectionLost("test".to_owned())
    }

    #[test]
    fn work_is_repeated_three_times_at_most() {
        let mut attempts = 0;
        let outcome: Result<(), _> = retry(Deadline::after(Duration::from_secs(60)), || {
            attempts += 1;
            Err(lost())
        });
        assert!(matches!(outcome, Err(DatabaseError::ConnectionLost(_))));
        assert_eq!(attempts, 4);
    }

    #[test]
    fn a_success_ends_the_repetition() {
        let mut attempts = 0;
        let outcome = retry(Deadline::after(Duration::from_secs(60)), || {
            attempts += 1;
            if attempts < 3 {
                Err(lost())
            } else {
                Ok(attempts)
            }
        });
        assert_eq!(outcome.ok(), Some(3));
    }

    #[test]
    fn an_error_that_would_come_again_is_returned_at_once() {
        let mut attempts = 0;
        let outcome: Result<(), _> = retry(Deadline::after(Duration::from_secs(60)), || {
            attempts += 1;
            Err(DatabaseError::StatementTimeout)
        });
        assert!(matches!(outcome, Err(DatabaseError::StatementTimeout)));
        assert_eq!(attempts, 1);
    }

    #[test]
    fn nothing_is_repeated_past_the_deadline() {
        let mut attempts = 0;
        let outcome: Result<(), _> = retry(Deadline::after(Duration::ZERO), || {
            attempts += 1;
            Err(lost())
        });
        assert!(outcome.is_err());
        assert_eq!(attempts, 1);
    }
}
