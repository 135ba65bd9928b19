//! Errors of a store.

/// Why a store could not answer.
///
/// The texts are for the log. They contain no statement and no value.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is unavailable or overloaded, or its answer came too late. A retry may succeed.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The store failed in a way that a retry will not change.
    #[error("store failed: {0}")]
    Internal(String),
}
