//! Admin client: topics, configurations, offsets and groups.
//!
//! Every call opens its own connections, and retries transient failures with back-off until its
//! deadline. All calls are safe to repeat. A call about several topics, partitions or groups
//! returns a result for each; [`all`] makes one of them.

mod configs;
mod group_offsets;
mod groups;
mod offsets;
mod topics;

use std::collections::{BTreeMap, BTreeSet};

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

/// Admin client for one cluster; see the [module](self).
///
/// ```no_run
/// use std::time::Duration;
/// use tbd_kafka::admin::{Admin, TopicSpec, all};
/// use tbd_kafka::{ClientConfig, Cluster, Deadline};
///
/// # fn main() -> Result<(), tbd_kafka::Error> {
/// let admin = Admin::new(Cluster::new(ClientConfig::new(["localhost:9092"])));
/// let soon = || Deadline::after(Duration::from_secs(10));
/// all(admin.create_topics(&[TopicSpec::new("topic", 6, 3)], soon())?)?;
/// for (partition, lag) in admin.lag("group", "topic", soon())? {
///     match lag {
///         Ok(lag) => println!("{partition}: {lag} records behind"),
///         Err(error) => println!("{partition}: {error}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[doc(alias = "AdminClient")]
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

    /// As [`Admin::repeat`], for an attempt with a result for each item. It is repeated for the
    /// items that failed for a transient reason; the others keep their results.
    fn repeat_each<K: Ord, T>(
        &self,
        deadline: Deadline,
        items: impl IntoIterator<Item = K>,
        mut attempt: impl FnMut(&BTreeSet<K>) -> Result<Results<K, T>, Error>,
    ) -> Result<Results<K, T>, Error> {
        let mut left: BTreeSet<K> = items.into_iter().collect();
        let mut results = Results::new();
        let attempts = || {
            for (item, result) in attempt(&left)? {
                let is_wanted = match &result {
                    Err(error) if error.is_transient_for_nobody() => left.contains(&item),
                    _ => left.remove(&item),
                };
                if is_wanted {
                    results.insert(item, result);
                }
            }
            Ok(left.is_empty())
        };
        match self.repeat_until(deadline, |is_done| *is_done, attempts) {
            Err(error) if results.is_empty() => Err(error),
            _ => Ok(results),
        }
    }

    /// As [`Admin::repeat_each`], for groups, each of which is asked for alone.
    fn repeat_groups<G: AsRef<str>, T>(
        &self,
        groups: &[G],
        deadline: Deadline,
        ask: impl Fn(&str, Deadline) -> Result<T, Error>,
    ) -> Result<Results<String, T>, Error> {
        let groups = groups.iter().map(|group| group.as_ref().to_owned());
        self.repeat_each(deadline, groups, |left| {
            // Without any broker the call as a whole fails.
            self.cluster.refresh(&[] as &[&str], deadline)?;
            Ok(each(left.iter().cloned(), deadline, |group, share| {
                ask(group, share)
            }))
        })
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

/// Asks for one item after another, each with its share of the time left: one without an answer
/// leaves time for the others.
fn each<K: Ord, T>(
    items: impl ExactSizeIterator<Item = K>,
    deadline: Deadline,
    mut ask: impl FnMut(&K, Deadline) -> Result<T, Error>,
) -> Results<K, T> {
    let mut untried = u32::try_from(items.len()).unwrap_or(u32::MAX);
    let answered = items.map(|item| {
        let share = deadline.earlier_of(Deadline::after(deadline.remaining() / untried.max(1)));
        untried = untried.saturating_sub(1);
        let result = ask(&item, share);
        (item, result)
    });
    answered.collect()
}

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
