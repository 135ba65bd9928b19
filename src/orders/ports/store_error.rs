//! How a store can fail its callers.

/// Why a store could not answer.
///
/// The texts are for the log: they name no statement and no value.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is away, overloaded, or its answer came too late. Trying again
    /// later may help.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The store answered something that trying again will not change.
    #[error("store failed: {0}")]
    Internal(String),
}

impl StoreError {
    /// Whether trying the same again later may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Unavailable(_))
    }
}
