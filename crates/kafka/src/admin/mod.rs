//! Admin client: topics, configurations, offsets and groups.
//!
//! Every call opens its own connections, and retries transient failures with back-off until its
//! deadline. All calls are safe to repeat. A call about several topics, partitions or groups
//! returns a result for each; [`all`] makes one of them.

mod configs;
mod groups;
mod offsets;
mod topics;

use std::collections::BTreeMap;

use kafka_protocol::messages::GroupId;
use uuid::Uuid;

pub use configs::{ConfigEntry, ConfigResource};
pub use groups::{GroupDescription, GroupListing, GroupMemberDescription};
pub use offsets::OffsetAt;
pub use topics::{
    BrokerDescription, ClusterDescription, PartitionDescription, TopicDescription, TopicSpec,
};

use super::cluster::Cluster;
use super::config::Backoff;
use super::error::Error;
use super::group::coordinator;
use super::wire::{self, Request};
use tbd_deadline::Deadline;

/// Admin client for one cluster; see the module documentation.
#[derive(Clone, Debug)]
pub struct Admin {
    cluster: Cluster,
}

impl Admin {
    /// Creates an admin client for `cluster`. No I/O.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// Sends a request to the controller, which is looked up each time, because it moves. Brokers
    /// of a KRaft cluster name any of themselves, and forward the request.
    fn ask_controller<R: Request>(
        &self,
        request: &R,
        deadline: Deadline,
    ) -> Result<R::Response, Error> {
        self.cluster.refresh(&[] as &[&str], deadline)?;
        let mut connection = match self.cluster.controller() {
            Some(node) => self.cluster.connect(node, deadline)?,
            None => self.cluster.connect_any(deadline)?,
        };
        connection.call(request, deadline)
    }

    fn ask_coordinator<R: Request>(
        &self,
        group: &str,
        request: &R,
        deadline: Deadline,
    ) -> Result<R::Response, Error> {
        coordinator::ask(&self.cluster, group, request, deadline)
    }

    /// Retries `attempt` until it succeeds, fails permanently, or the deadline leaves no time for
    /// another pause. `attempt` must be safe to repeat.
    pub(super) fn repeat<T>(
        &self,
        deadline: Deadline,
        attempt: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.repeat_until(deadline, |_| true, attempt)
    }

    /// As [`Admin::repeat`], for an attempt with a result for each item: it is repeated while one
    /// of them failed for a transient reason.
    fn repeat_each<K: Ord, T>(
        &self,
        deadline: Deadline,
        attempt: impl FnMut() -> Result<Results<K, T>, Error>,
    ) -> Result<Results<K, T>, Error> {
        let is_final = |result: &Result<T, Error>| {
            result
                .as_ref()
                .err()
                .is_none_or(|error| !error.is_transient_for_nobody())
        };
        self.repeat_until(deadline, |results| results.values().all(is_final), attempt)
    }

    fn repeat_until<T>(
        &self,
        deadline: Deadline,
        is_done: impl Fn(&T) -> bool,
        mut attempt: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let config = self.cluster.config();
        let mut backoff = Backoff::new(config.reconnect_backoff, config.reconnect_backoff_max);
        loop {
            let result = attempt();
            let is_over = match &result {
                Ok(value) => is_done(value),
                Err(error) => !error.is_transient_for_nobody(),
            };
            let pause = backoff.next_pause();
            if is_over || pause >= deadline.remaining() {
                return result;
            }
            std::thread::sleep(pause);
        }
    }
}

/// Makes one result of many: all values, or the first error.
///
/// # Errors
/// The first one.
pub fn all<K: Ord, T>(results: BTreeMap<K, Result<T, Error>>) -> Result<BTreeMap<K, T>, Error> {
    let results = results.into_iter();
    results.map(|(item, result)| Ok((item, result?))).collect()
}

/// A result for each item of a call.
type Results<K, T> = BTreeMap<K, Result<T, Error>>;

fn group_id(name: &str) -> GroupId {
    GroupId(wire::text(name))
}

/// The id, unless the broker sent none.
fn some_id(id: Uuid) -> Option<Uuid> {
    (!id.is_nil()).then_some(id)
}

/// The time-out for the broker: half of the time left, so that its answer still arrives in time.
fn broker_timeout(deadline: Deadline) -> i32 {
    wire::millis(deadline.remaining() / 2)
}

#[cfg(test)]
mod tests;
