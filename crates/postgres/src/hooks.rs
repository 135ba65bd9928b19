//! Hooks for observing a pool; the crate itself knows no metrics.

use std::time::Duration;

use super::migrations::SchemaState;

/// Called on the thread that uses the connection, between two operations. Must be quick and must
/// not block.
pub trait Hooks: Send + Sync {
    /// A statement ended after `duration` (round trip included). `ok` is false when it failed.
    fn query_finished(&self, _name: &'static str, _duration: Duration, _ok: bool) {}

    /// A check-out ended, successful or not, after `duration`.
    fn connection_waited(&self, _duration: Duration) {}

    /// A health check found the schema in this state.
    fn schema_checked(&self, _state: SchemaState) {}
}

/// Does nothing.
pub struct NoHooks;

impl Hooks for NoHooks {}
