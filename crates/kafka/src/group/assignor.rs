//! Assignors, with which the leader of a group distributes partitions.
//!
//! *range* gives each member a run of neighbouring partitions, topic by topic. *cooperative-sticky*
//! balances all topics together and moves as few partitions as it can. A partition that must move
//! is first assigned to nobody, until its owner has revoked it. The rebalance that follows at once
//! assigns it. Members of other clients can be in the same group, because names and rules are the
//! same (`RangeAssignor`, `CooperativeStickyAssignor` of the Java client).
//!
//! Where the balance leaves a choice, a member gets partitions with a replica in its rack (KIP-881).

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

/// For each topic, the racks of each partition's replicas, by partition number.
pub(crate) type Racks = HashMap<Arc<str>, Vec<BTreeSet<Arc<str>>>>;

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
    /// input. `racks` may lack topics and partitions.
    pub(crate) fn assign(
        self,
        members: &[Member],
        partition_counts: &HashMap<Arc<str>, i32>,
        racks: &Racks,
    ) -> Assignment {
        let mut members: Vec<&Member> = members.iter().collect();
        members.sort_by_key(|member| sort_key(member));
        // If all partitions have replicas in the same racks, no assignment is better.
        let mut replicas = racks.values().flatten();
        let first = replicas.next();
        let matters = replicas.any(|racks| Some(racks) != first);
        let racks = matters.then_some(racks);
        match self {
            Self::Range => range(&members, partition_counts, racks),
            Self::CooperativeSticky => cooperative_sticky(&members, partition_counts, racks),
        }
    }
}

/// Whether a partition has a replica in the member's rack.
fn is_near(racks: Option<&Racks>, member: &Member, topic: &str, number: i32) -> bool {
    let replicas = racks.and_then(|racks| racks.get(topic)?.get(usize::try_from(number).ok()?));
    let rack = member.subscription.rack.as_deref();
    rack.zip(replicas)
        .is_some_and(|(rack, replicas)| replicas.contains(rack))
}

/// Java's order of members: static ones first, by instance id, so that a restart with a new member
/// id changes nothing.
fn sort_key(member: &Member) -> (bool, &str) {
    match &member.instance_id {
        Some(instance_id) => (false, instance_id),
        None => (true, &member.member_id),
    }
}

fn range(
    members: &[&Member],
    partition_counts: &HashMap<Arc<str>, i32>,
    racks: Option<&Racks>,
) -> Assignment {
    let mut assignment = empty_assignment(members);
    // Topics with the same members and as many partitions are divided alike: applications join the
    // partitions of one number.
    let mut alike: BTreeMap<(Vec<usize>, i32), Vec<&Arc<str>>> = BTreeMap::new();
    for (topic, &count) in partition_counts {
        let takes = |member: &usize| members[*member].subscription.topics.contains(topic);
        let subscribed: Vec<usize> = (0..members.len()).filter(takes).collect();
        alike.entry((subscribed, count)).or_default().push(topic);
    }
    for ((subscribed, count), topics) in alike {
        if subscribed.is_empty() {
            continue;
        }
        let size = usize::try_from(count).unwrap_or(0);
        let (share, extra) = (size / subscribed.len(), size % subscribed.len());
        let mut room: Vec<usize> = (0..subscribed.len())
            .map(|place| share + usize::from(place < extra))
            .collect();
        let mut free: Vec<i32> = (0..count).collect();
        // First what is near, then the rest.
        for must_be_near in [racks.is_some(), false] {
            free.retain(|&number| {
                let fits = |place: &usize| {
                    let near = |topic: &&Arc<str>| {
                        is_near(racks, members[subscribed[*place]], topic, number)
                    };
                    room[*place] > 0 && (!must_be_near || topics.iter().all(near))
                };
                let Some(place) = (0..subscribed.len()).find(fits) else {
                    return true;
                };
                room[place] -= 1;
                let taken = topics
                    .iter()
                    .map(|topic| TopicPartition::new(Arc::clone(topic), number));
                let id = &members[subscribed[place]].member_id;
                assignment.entry(id.clone()).or_default().extend(taken);
                false
            });
        }
    }
    sorted(assignment)
}

/// The partitions that each member claims to own, with the generation of the claim.
type Claims = Vec<(i32, BTreeSet<TopicPartition>)>;

/// The owner of each partition. Of rival claims the newest generation wins. Two claims in one
/// generation contradict each other, so neither counts.
fn owners(claims: &Claims) -> BTreeMap<&TopicPartition, Option<usize>> {
    let mut owners: BTreeMap<&TopicPartition, (i32, Option<usize>)> = BTreeMap::new();
    for (member, (generation, owned)) in claims.iter().enumerate() {
        for partition in owned {
            let best = owners
                .entry(partition)
                .or_insert((*generation, Some(member)));
            if *generation > best.0 {
                *best = (*generation, Some(member));
            } else if *generation == best.0 && best.1 != Some(member) {
                best.1 = None;
            }
        }
    }
    let owners = owners.into_iter();
    owners.map(|(name, (_, owner))| (name, owner)).collect()
}

fn cooperative_sticky(
    members: &[&Member],
    partition_counts: &HashMap<Arc<str>, i32>,
    racks: Option<&Racks>,
) -> Assignment {
    let subscribed: Vec<HashSet<&str>> = members
        .iter()
        .map(|member| {
            let topics = member.subscription.topics.iter();
            topics.map(|topic| topic.as_ref()).collect()
        })
        .collect();
    let takes = |member: usize, partition: &TopicPartition| {
        subscribed[member].contains(partition.topic.as_ref())
    };
    // With different subscriptions, a choice by rack could cost balance later.
    let racks = racks.filter(|_| subscribed.windows(2).all(|two| two[0] == two[1]));
    let near = |member: usize, partition: &TopicPartition| {
        let name = partition;
        is_near(racks, members[member], &name.topic, name.partition)
    };
    let claims: Claims = members
        .iter()
        .map(|member| {
            let owned = member.subscription.owned.iter().cloned();
            (claimed_generation(&member.subscription), owned.collect())
        })
        .collect();
    let owners = owners(&claims);

    let mut held: Vec<BTreeSet<TopicPartition>> = vec![BTreeSet::new(); members.len()];
    let mut free: BTreeSet<TopicPartition> = BTreeSet::new();
    for (topic, &count) in partition_counts {
        for number in 0..count {
            let partition = TopicPartition::new(topic.clone(), number);
            match owners.get(&partition).copied().flatten() {
                Some(member) if takes(member, &partition) => {
                    held[member].insert(partition);
                }
                _ => {
                    free.insert(partition);
                }
            }
        }
    }
    let all: usize = held.iter().map(BTreeSet::len).sum::<usize>() + free.len();
    let share = all / members.len().max(1);
    // First what is near, up to each member's share, then the rest.
    for must_be_near in [racks.is_some(), false] {
        free.retain(|partition| {
            let least = (0..members.len())
                .filter(|&member| takes(member, partition))
                .filter(|&member| {
                    !must_be_near || near(member, partition) && held[member].len() < share
                })
                .min_by_key(|&member| (held[member].len(), !near(member, partition), member));
            least.is_none_or(|member| !held[member].insert(partition.clone()))
        });
    }
    while move_one(&mut held, takes, near) {}
    settled(members, &claims, held)
}

/// The assignment of this round. A partition that moves between two present members is assigned to
/// nobody: its owner must revoke it first.
fn settled(
    members: &[&Member],
    claims: &Claims,
    held: Vec<BTreeSet<TopicPartition>>,
) -> Assignment {
    let mut owners: HashMap<&TopicPartition, Vec<usize>> = HashMap::new();
    for (member, (_, owned)) in claims.iter().enumerate() {
        for partition in owned {
            owners.entry(partition).or_default().push(member);
        }
    }
    let mut assignment = empty_assignment(members);
    for (member, partitions) in held.into_iter().enumerate() {
        let settled = partitions.into_iter().filter(|partition| {
            let owners = owners.get(partition);
            owners.is_none_or(|owners| owners.contains(&member))
        });
        assignment.insert(members[member].member_id.clone(), settled.collect());
    }
    sorted(assignment)
}

/// Moves one partition from a member to one with at least two fewer, if possible: the last one that
/// is near the latter, and preferably far from the former. Each move lowers the sum of squares, so a
/// loop over this ends.
fn move_one(
    held: &mut [BTreeSet<TopicPartition>],
    takes: impl Fn(usize, &TopicPartition) -> bool,
    near: impl Fn(usize, &TopicPartition) -> bool,
) -> bool {
    let mut order: Vec<usize> = (0..held.len()).collect();
    order.sort_by_key(|&member| (held[member].len(), member));
    for &from in order.iter().rev() {
        for &to in &order {
            if held[to].len() + 2 > held[from].len() {
                break;
            }
            let movable = held[from].iter().filter(|partition| takes(to, partition));
            let best =
                movable.max_by_key(|partition| (near(to, partition), !near(from, partition)));
            if let Some(partition) = best.cloned() {
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
