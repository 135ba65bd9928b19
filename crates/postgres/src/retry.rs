//! The one place where database work is repeated.

use std::thread;
use std::time::Duration;

use super::error::DatabaseError;
use tbd_deadline::Deadline;

/// How often work is repeated after its first failure.
const RETRIES: u32 = 3;
/// The pause before each repetition: long enough for a failed-over or restarted backend's sockets to be replaced,
/// short enough not to be noticed.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs `work`, and again up to 3 times at 50 ms while it fails with a
/// [transient](DatabaseError::is_transient) error and `deadline` leaves room for another pause.
///
/// `work` must take its connection anew each time (the old one may be the broken one) and must be **repeatable**,
/// because after a lost connection nobody knows whether it took effect. Repeatable are:
/// - anything that only reads;
/// - an insert whose second try meets its own first row (`ON CONFLICT DO NOTHING` on a key the caller chose) and
///   then reads it;
/// - an update or delete guarded by the state it starts from (`... WHERE id = $1 AND status = 'pending'`), provided
///   the caller, finding nothing left to change, looks at what is there instead of reporting a failure.
///
/// Not repeatable: counters, inserts with a key made by the server, anything whose answer is "how many rows changed".
///
/// Blocks for as long as `work` does, plus at most 150 ms.
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
