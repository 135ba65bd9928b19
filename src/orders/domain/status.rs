//! Where an order stands.

use std::fmt;
use std::str::FromStr;

/// An order's life: `pending -> processing -> completed | failed`, or
/// `pending -> canceled`; and `failed -> processing` when its message is taken out of the
/// dead letters again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Accepted, not yet taken up by a worker. The only status that can be canceled.
    Pending,
    /// A worker has taken it up.
    Processing,
    /// Processed; final.
    Completed,
    /// Every attempt at processing failed; final, unless somebody replays its message.
    Failed,
    /// Canceled by the customer before processing began; final.
    Canceled,
}

impl Status {
    /// Every status, in the order of an order's life.
    pub const ALL: [Status; 5] = [
        Status::Pending,
        Status::Processing,
        Status::Completed,
        Status::Failed,
        Status::Canceled,
    ];

    /// Whether an order of this status may take on `next`: the whole of the rules.
    pub fn may_become(self, next: Status) -> bool {
        use Status::{Canceled, Completed, Failed, Pending, Processing};
        matches!(
            (self, next),
            (Pending, Processing | Canceled)
                | (Processing, Completed | Failed)
                | (Failed, Processing)
        )
    }

    /// The status as it stands in the API, in events and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Processing => "processing",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Canceled => "canceled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is none of the five statuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of pending, processing, completed, failed, canceled")]
pub struct UnknownStatus;

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Status::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or(UnknownStatus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_read_back_from_its_text() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
    }

    #[test]
    fn another_spelling_is_no_status() {
        for text in ["", "Pending", "cancelled", "pending "] {
            assert_eq!(text.parse::<Status>(), Err(UnknownStatus), "{text:?}");
        }
    }
}
