//! Assignors, with which the leader of a group distributes partitions.
//!
//! *range* gives each member a run of neighbouring partitions, topic by topic. *cooperative-sticky*
//! balances all topics together and moves as few partitions as it can. A partition that must move
//! is first assigned to nobody, until its owner has revoked it. The rebalance that follows at once
//! assigns it. Members of other clients can be in the same group, because names and rules are the
//! same (`RangeAssignor`, `CooperativeStickyAssignor` of the Java client).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::TopicPartition;
use super::protocol::Subscription;

/// A distribution strategy, under the name that all clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Assignor {
    /// Neighbouring partitions; all are revoked before each rebalance.
    Range,
    /// Balanced over all topics; moves few partitions and keeps the rest running.
    CooperativeSticky,
}

/// A member as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// The id from the coordinator.
    pub member_id: String,
    /// The instance id of a static member.
    pub instance_id: Option<String>,
    /// The subscription from its JoinGroup.
    pub subscription: Subscription,
}

/// Partitions by member id; every member has an entry.
pub(crate) type Assignment = BTreeMap<String, Vec<TopicPartition>>;

impl Assignor {
    /// The protocol name in JoinGroup.
    pub fn name(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::CooperativeSticky => "cooperative-sticky",
        }
    }

    /// The assignor with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Range, Self::CooperativeSticky]
            .into_iter()
            .find(|assignor| assignor.name() == name)
    }

    /// Whether members keep their partitions while they rejoin.
    pub fn is_cooperative(self) -> bool {
        matches!(self, Self::CooperativeSticky)
    }

    /// The assignor's own bytes in a subscription. Cooperative-sticky repeats the generation there,
    /// for peers older than subscription version 2.
    pub(crate) fn user_data(self, generation: Option<i32>) -> Option<Bytes> {
        match self {
            Self::Range => None,
            Self::CooperativeSticky => {
                let generation = generation.unwrap_or(super::protocol::NO_GENERATION);
                Some(Bytes::copy_from_slice(&generation.to_be_bytes()))
            }
        }
    }

    /// Distributes the partitions 0..n of each topic in `partition_counts` among the members
    /// subscribed to it. Other topics are ignored. The result does not depend on the order of the
    /// input.
    pub(crate) fn assign(
        self,
        members: &[Member],
        partition_counts: &HashMap<Arc<str>, i32>,
    ) -> Assignment {
        let mut members: Vec<&Member> = members.iter().collect();
        members.sort_by_key(|member| sort_key(member));
        match self {
            Self::Range => range(&members, partition_counts),
            Self::CooperativeSticky => cooperative_sticky(&members, partition_counts),
        }
    }
}

/// Java's order of members: static ones first, by instance id, so that a restart with a new member
/// id changes nothing.
fn sort_key(member: &Member) -> (bool, &str) {
    match &member.instance_id {
        Some(instance_id) => (false, instance_id),
        None => (true, &member.member_id),
    }
}

fn range(members: &[&Member], partition_counts: &HashMap<Arc<str>, i32>) -> Assignment {
    let mut assignment = empty_assignment(members);
    for (topic, &count) in partition_counts {
        let subscribed: Vec<&&Member> = members
            .iter()
            .filter(|member| member.subscription.topics.contains(topic))
            .collect();
        let count = usize::try_from(count).unwrap_or(0);
        if subscribed.is_empty() {
            continue;
        }
        let (share, extra) = (count / subscribed.len(), count % subscribed.len());
        let mut next = 0;
        for (index, member) in subscribed.iter().enumerate() {
            let size = share + usize::from(index < extra);
            let run =
                (next..next + size).map(|number| TopicPartition::new(topic.clone(), number as i32));
            assignment
                .entry(member.member_id.clone())
                .or_default()
                .extend(run);
            next += size;
        }
    }
    sorted(assignment)
}

fn cooperative_sticky(
    members: &[&Member],
    partition_counts: &HashMap<Arc<str>, i32>,
) -> Assignment {
    let subscribed: Vec<HashSet<&str>> = members
        .iter()
        .map(|member| {
            member
                .subscription
                .topics
                .iter()
                .map(|topic| topic.as_ref())
                .collect()
        })
        .collect();
    let takes = |member: usize, partition: &TopicPartition| {
        subscribed[member].contains(partition.topic.as_ref())
    };

    // The partitions that each member claims to own. Of rival claims the newest generation wins.
    // Two claims in one generation contradict each other, so neither counts.
    let claims: Vec<(i32, BTreeSet<TopicPartition>)> = members
        .iter()
        .map(|member| {
            (
                claimed_generation(&member.subscription),
                member.subscription.owned.iter().cloned().collect(),
            )
        })
        .collect();
    let mut owner: BTreeMap<TopicPartition, (i32, Option<usize>)> = BTreeMap::new();
    for (member, (generation, owned)) in claims.iter().enumerate() {
        for partition in owned {
            let best = owner
                .entry(partition.clone())
                .or_insert((*generation, Some(member)));
            if *generation > best.0 {
                *best = (*generation, Some(member));
            } else if *generation == best.0 && best.1 != Some(member) {
                best.1 = None;
            }
        }
    }

    let mut held: Vec<BTreeSet<TopicPartition>> = vec![BTreeSet::new(); members.len()];
    let mut free: BTreeSet<TopicPartition> = BTreeSet::new();
    for (topic, &count) in partition_counts {
        for number in 0..count {
            let partition = TopicPartition::new(topic.clone(), number);
            match owner.get(&partition).and_then(|&(_, member)| member) {
                Some(member) if takes(member, &partition) => {
                    held[member].insert(partition);
                }
                _ => {
                    free.insert(partition);
                }
            }
        }
    }
    for partition in free {
        let least = (0..members.len())
            .filter(|&member| takes(member, &partition))
            .min_by_key(|&member| (held[member].len(), member));
        if let Some(member) = least {
            held[member].insert(partition);
        }
    }
    while move_one(&mut held, takes) {}

    // A partition that moves between two present members is assigned to nobody in this round: its
    // owner must revoke it first.
    let still_owned: HashMap<&TopicPartition, Vec<usize>> = {
        let mut owners: HashMap<&TopicPartition, Vec<usize>> = HashMap::new();
        for (member, (_, owned)) in claims.iter().enumerate() {
            for partition in owned {
                owners.entry(partition).or_default().push(member);
            }
        }
        owners
    };
    let mut assignment = empty_assignment(members);
    for (member, partitions) in held.into_iter().enumerate() {
        let settled = partitions.into_iter().filter(|partition| {
            still_owned
                .get(partition)
                .is_none_or(|owners| owners.contains(&member))
        });
        assignment.insert(members[member].member_id.clone(), settled.collect());
    }
    sorted(assignment)
}

/// Moves one partition from a member to one with at least two fewer, if possible. Each move lowers
/// the sum of squares, so a loop over this ends.
fn move_one(
    held: &mut [BTreeSet<TopicPartition>],
    takes: impl Fn(usize, &TopicPartition) -> bool,
) -> bool {
    let mut order: Vec<usize> = (0..held.len()).collect();
    order.sort_by_key(|&member| (held[member].len(), member));
    for &from in order.iter().rev() {
        for &to in &order {
            if held[to].len() + 2 > held[from].len() {
                break;
            }
            if let Some(partition) = held[from]
                .iter()
                .rev()
                .find(|partition| takes(to, partition))
                .cloned()
            {
                held[from].remove(&partition);
                held[to].insert(partition);
                return true;
            }
        }
    }
    false
}

/// The generation of a member's claim: the subscription's field, or the assignor's user data of
/// peers older than that field.
fn claimed_generation(subscription: &Subscription) -> i32 {
    let from_user_data = || {
        subscription
            .user_data
            .as_ref()
            .and_then(|data| data.as_ref().try_get_i32().ok())
    };
    subscription
        .generation
        .or_else(from_user_data)
        .unwrap_or(super::protocol::NO_GENERATION)
}

fn empty_assignment(members: &[&Member]) -> Assignment {
    members
        .iter()
        .map(|member| (member.member_id.clone(), Vec::new()))
        .collect()
}

fn sorted(mut assignment: Assignment) -> Assignment {
    for partitions in assignment.values_mut() {
        partitions.sort();
    }
    assignment
}

#[cfg(test)]
mod tests;
