//! The status of an order.

use std::fmt;
use std::str::FromStr;

use super::words;

words! {
    /// The status of an order: `pending -> processing -> completed | failed`, or
    /// `pending -> canceled`. A replay of its dead letter leads from `failed` back to `processing`.
    pub enum Status {
        /// Accepted, and not yet claimed by a worker. Only a pending order can be canceled.
        Pending = "pending",
        /// Claimed by a worker.
        Processing = "processing",
        /// Processed; final.
        Completed = "completed",
        /// Every attempt at processing failed; final, unless somebody replays its dead letter.
        Failed = "failed",
        /// Canceled by the customer before processing began; final.
        Canceled = "canceled",
    }
}

impl Status {
    /// Whether an order may change from this status to `next`. This is the only place of the rule.
    pub fn may_become(self, next: Status) -> bool {
        use Status::{Canceled, Completed, Failed, Pending, Processing};
        matches!(
            (self, next),
            (Pending, Processing | Canceled)
                | (Processing, Completed | Failed)
                | (Failed, Processing)
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not one of the five statuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of pending, processing, completed, failed, canceled")]
pub struct UnknownStatus;

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Status::from_word(text).ok_or(UnknownStatus)
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
