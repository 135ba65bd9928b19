use proptest::prelude::*;

use super::*;

fn member(id: usize, topics: &[&str]) -> Member {
    Member {
        member_id: format!("member-{id:02}"),
        instance_id: None,
        subscription: Subscription {
            topics: topics.iter().map(|&topic| topic.into()).collect(),
            ..Subscription::default()
        },
    }
}

fn member_in(rack: &str, id: usize, topics: &[&str]) -> Member {
    let mut member = member(id, topics);
    member.subscription.rack = Some(rack.to_owned());
    member
}

/// The racks of each partition of a topic, one letter each.
fn racks(topics: &[(&str, &[&str])]) -> Racks {
    let set = |racks: &&str| racks.chars().map(|rack| rack.to_string().into()).collect();
    let of_topic = |partitions: &[&str]| partitions.iter().map(set).collect();
    topics
        .iter()
        .map(|&(topic, partitions)| (topic.into(), of_topic(partitions)))
        .collect()
}

fn counts(topics: &[(&str, i32)]) -> HashMap<Arc<str>, i32> {
    topics
        .iter()
        .map(|&(topic, count)| (topic.into(), count))
        .collect()
}

fn all(partition_counts: &HashMap<Arc<str>, i32>) -> BTreeSet<TopicPartition> {
    partition_counts
        .iter()
        .flat_map(|(topic, &count)| {
            (0..count).map(move |number| TopicPartition::new(topic.clone(), number))
        })
        .collect()
}

fn flat(assignment: &Assignment) -> Vec<TopicPartition> {
    assignment.values().flatten().cloned().collect()
}

/// The members rejoin owning their assigned partitions, as real ones do.
fn rejoin(members: &mut [Member], assignment: &Assignment, generation: i32) {
    for member in members {
        member.subscription.owned = assignment[&member.member_id].clone();
        member.subscription.generation = Some(generation);
    }
}

/// Runs rebalances until nothing changes. Returns the result and the number of rounds.
fn settle(
    members: &mut [Member],
    partition_counts: &HashMap<Arc<str>, i32>,
) -> (Assignment, usize) {
    settle_in(members, partition_counts, &Racks::new())
}

fn settle_in(
    members: &mut [Member],
    partition_counts: &HashMap<Arc<str>, i32>,
    racks: &Racks,
) -> (Assignment, usize) {
    let mut last = Assignment::new();
    for round in 0..5 {
        let assignment = Assignor::CooperativeSticky.assign(members, partition_counts, racks);
        rejoin(members, &assignment, 10 + round as i32);
        if assignment == last {
            return (assignment, round);
        }
        last = assignment;
    }
    panic!("does not settle");
}

fn numbers(partitions: &[TopicPartition]) -> Vec<i32> {
    partitions
        .iter()
        .map(|partition| partition.partition)
        .collect()
}

#[test]
fn range_gives_runs_and_the_first_members_one_more() {
    let members = [member(2, &["t"]), member(1, &["t"]), member(3, &["other"])];
    let assignment = Assignor::Range.assign(&members, &counts(&[("t", 5)]), &Racks::new());
    assert_eq!(numbers(&assignment["member-01"]), [0, 1, 2]);
    assert_eq!(numbers(&assignment["member-02"]), [3, 4]);
    assert_eq!(numbers(&assignment["member-03"]), [0; 0]);
}

#[test]
fn range_orders_static_members_by_their_lasting_name() {
    let mut members = [member(1, &["t"]), member(2, &["t"])];
    members[0].instance_id = Some("zebra".into());
    members[1].instance_id = Some("ant".into());
    let assignment = Assignor::Range.assign(&members, &counts(&[("t", 2)]), &Racks::new());
    assert_eq!(numbers(&assignment["member-02"]), [0]);
}

#[test]
fn a_newcomer_gets_its_share_in_two_rounds_and_nothing_is_owned_twice() {
    let partition_counts = counts(&[("t", 6)]);
    let mut members = vec![member(1, &["t"]), member(2, &["t"])];
    settle(&mut members, &partition_counts);
    members.push(member(3, &["t"]));
    let first = Assignor::CooperativeSticky.assign(&members, &partition_counts, &Racks::new());
    assert_eq!(first["member-03"], []);
    assert_eq!(flat(&first).len(), 4);
    rejoin(&mut members, &first, 11);
    let second = Assignor::CooperativeSticky.assign(&members, &partition_counts, &Racks::new());
    assert_eq!(second["member-03"].len(), 2);
    assert_eq!(flat(&second).len(), 6);
}

#[test]
fn a_claim_of_an_older_generation_does_not_win() {
    let mut members = vec![member(1, &["t"]), member(2, &["t"])];
    members[0].subscription.owned = vec![TopicPartition::new("t", 0)];
    members[0].subscription.generation = Some(4);
    members[1].subscription.owned = vec![TopicPartition::new("t", 0)];
    members[1].subscription.generation = Some(5);
    let assignment =
        Assignor::CooperativeSticky.assign(&members, &counts(&[("t", 1)]), &Racks::new());
    assert_eq!(numbers(&assignment["member-02"]), [0]);
}

#[test]
fn an_old_peers_generation_is_read_from_its_user_data() {
    let mut members = vec![member(1, &["t"]), member(2, &["t"])];
    for (index, generation) in [(0, 9), (1, 3)] {
        members[index].subscription.owned = vec![TopicPartition::new("t", 0)];
        members[index].subscription.user_data =
            Assignor::CooperativeSticky.user_data(Some(generation));
    }
    let assignment =
        Assignor::CooperativeSticky.assign(&members, &counts(&[("t", 1)]), &Racks::new());
    assert_eq!(numbers(&assignment["member-01"]), [0]);
}

#[test]
fn different_subscriptions_are_balanced_as_far_as_they_allow() {
    let partition_counts = counts(&[("a", 4), ("b", 2)]);
    let mut members = vec![member(1, &["a", "b"]), member(2, &["a"]), member(3, &["b"])];
    let (assignment, _) = settle(&mut members, &partition_counts);
    assert_eq!(flat(&assignment).len(), 6);
    assert!(
        assignment.values().all(|partitions| partitions.len() == 2),
        "{assignment:?}"
    );
}

#[test]
fn each_member_gets_the_partitions_with_a_replica_in_its_rack() {
    let members = [
        member_in("a", 1, &["t"]),
        member_in("b", 2, &["t"]),
        member_in("elsewhere", 3, &["t"]),
    ];
    let racks = racks(&[("t", &["bc", "a", "bc", "ac", "c", "c"])]);
    for assignor in [Assignor::Range, Assignor::CooperativeSticky] {
        let assignment = assignor.assign(&members, &counts(&[("t", 6)]), &racks);
        assert_eq!(numbers(&assignment["member-01"]), [1, 3], "{assignor:?}");
        assert_eq!(numbers(&assignment["member-02"]), [0, 2], "{assignor:?}");
        assert_eq!(numbers(&assignment["member-03"]), [4, 5], "{assignor:?}");
    }
}

#[test]
fn range_divides_topics_with_as_many_partitions_alike_whatever_their_racks() {
    let members = [
        member_in("a", 1, &["t", "u"]),
        member_in("b", 2, &["t", "u"]),
    ];
    let partition_counts = counts(&[("t", 4), ("u", 4)]);
    let t: &[&str] = &["b", "a", "b", "a"];
    for (u, first) in [
        (&["b", "a", "b", "a"], [1, 3]),
        (&["a", "b", "a", "b"], [0, 1]),
        (&["b", "a", "a", "b"], [1, 2]),
    ] {
        let racks = racks(&[("t", t), ("u", u)]);
        let assignment = Assignor::Range.assign(&members, &partition_counts, &racks);
        let numbers = numbers(&assignment["member-01"]);
        assert_eq!(numbers, [first, first].concat(), "{u:?}");
    }
}

#[test]
fn a_newcomer_gets_what_is_near_it_and_nothing_moves_for_a_rack_alone() {
    let partition_counts = counts(&[("t", 6)]);
    let racks = racks(&[("t", &["b", "a", "b", "a", "b", "a"])]);
    let mut members = vec![member_in("a", 1, &["t"])];
    settle_in(&mut members, &partition_counts, &racks);
    members.push(member_in("b", 2, &["t"]));
    let (assignment, _) = settle_in(&mut members, &partition_counts, &racks);
    assert_eq!(numbers(&assignment["member-01"]), [1, 3, 5]);
    members[0].subscription.rack = Some("b".to_owned());
    members[1].subscription.rack = Some("a".to_owned());
    let (again, _) = settle_in(&mut members, &partition_counts, &racks);
    assert_eq!(again, assignment);
}

#[test]
fn racks_that_all_partitions_have_change_nothing() {
    let mut members = vec![member_in("b", 1, &["t"]), member_in("a", 2, &["t"])];
    members.push(member(0, &["t"]));
    let racks = racks(&[("t", &["ab"; 7])]);
    for assignor in [Assignor::Range, Assignor::CooperativeSticky] {
        let with = assignor.assign(&members, &counts(&[("t", 7)]), &racks);
        let without = assignor.assign(&members, &counts(&[("t", 7)]), &Racks::new());
        assert_eq!(with, without);
    }
}

#[test]
fn names_are_those_of_the_other_clients() {
    for assignor in [Assignor::Range, Assignor::CooperativeSticky] {
        assert_eq!(Assignor::from_name(assignor.name()), Some(assignor));
    }
    assert_eq!(Assignor::from_name("roundrobin"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_partition_is_assigned_once_and_loads_differ_by_one_at_most(
        member_count in 1usize..9, partition_count in 0i32..40, second_topic in 0i32..10,
    ) {
        let partition_counts = counts(&[("t", partition_count), ("u", second_topic)]);
        let mut members: Vec<Member> = (0..member_count).map(|id| member(id, &["t", "u"])).collect();
        let (sticky, _) = settle(&mut members, &partition_counts);
        let range = Assignor::Range.assign(&members, &counts(&[("t", partition_count)]), &Racks::new());
        for (assignment, expected) in [(&sticky, all(&partition_counts)), (&range, all(&counts(&[("t", partition_count)])))] {
            let given = flat(assignment);
            prop_assert_eq!(given.len(), expected.len());
            prop_assert_eq!(given.into_iter().collect::<BTreeSet<_>>(), expected);
            let loads: Vec<usize> = assignment.values().map(Vec::len).collect();
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn members_come_and_go_and_only_what_must_move_moves(
        before in 1usize..8, leaving in 0usize..4, joining in 0usize..4, partition_count in 1i32..40,
    ) {
        let partition_counts = counts(&[("t", partition_count)]);
        let mut members: Vec<Member> = (0..before).map(|id| member(id, &["t"])).collect();
        let (old, _) = settle(&mut members, &partition_counts);
        members.drain(..leaving.min(before - 1));
        members.extend((0..joining).map(|id| member(20 + id, &["t"])));
        let stayed: Vec<String> = members.iter().map(|member| member.member_id.clone()).filter(|id| old.contains_key(id)).collect();

        // No member ever gets a partition that another present member still owns.
        let first = Assignor::CooperativeSticky.assign(&members, &partition_counts, &Racks::new());
        for (id, partitions) in &first {
            for other in stayed.iter().filter(|other| *other != id) {
                prop_assert!(partitions.iter().all(|partition| !old[other].contains(partition)));
            }
        }
        let (new, rounds) = settle(&mut members, &partition_counts);
        prop_assert!(rounds <= 2);
        prop_assert_eq!(flat(&new).len(), partition_count as usize);
        // A member that stayed keeps what it had, up to the fair share rounded down.
        let fair_floor = partition_count as usize / members.len();
        for id in &stayed {
            let kept = new[id].iter().filter(|partition| old[id].contains(partition)).count();
            prop_assert!(kept >= old[id].len().min(fair_floor), "{id} kept {kept} of {:?}", old[id]);
        }
    }

    #[test]
    fn racks_cost_no_balance(
        homes in proptest::collection::vec(0usize..4, 1..9),
        replicas in proptest::collection::vec("[abc]{0,2}", 0..40),
        before in 0usize..9,
        is_mixed in any::<bool>(),
    ) {
        // Some members are in no rack. In a mixed group one reads only one topic.
        let member_of = |(id, rack): (usize, &usize)| {
            let topics: &[&str] = if is_mixed && id == 0 { &["t"] } else { &["t", "u"] };
            ["a", "b", "c"].get(*rack).map_or_else(|| member(id, topics), |rack| member_in(rack, id, topics))
        };
        let mut members: Vec<Member> = homes.iter().enumerate().map(member_of).collect();
        let replicas: Vec<&str> = replicas.iter().map(String::as_str).collect();
        let count = replicas.len() as i32;
        let partition_counts = counts(&[("t", count), ("u", count / 2)]);
        let racks = racks(&[("t", &replicas), ("u", &replicas[..replicas.len() / 2])]);
        let loads = |assignment: &Assignment| -> Vec<usize> { assignment.values().map(Vec::len).collect() };

        let with = Assignor::Range.assign(&members, &partition_counts, &racks);
        let without = Assignor::Range.assign(&members, &partition_counts, &Racks::new());
        prop_assert_eq!(loads(&with), loads(&without));
        let (mut with, mut without) = (flat(&with), flat(&without));
        with.sort();
        without.sort();
        prop_assert_eq!(with, without);

        if is_mixed && members.len() > 1 {
            let with = Assignor::CooperativeSticky.assign(&members, &partition_counts, &racks);
            let without = Assignor::CooperativeSticky.assign(&members, &partition_counts, &Racks::new());
            prop_assert_eq!(with, without);
            return Ok(());
        }
        // The first members are there before the others.
        let mut others = members.split_off(before.min(members.len()));
        let mut unracked = members.clone();
        settle_in(&mut members, &partition_counts, &racks);
        settle(&mut unracked, &partition_counts);
        unracked.extend(others.iter().cloned());
        members.append(&mut others);
        let (with, rounds) = settle_in(&mut members, &partition_counts, &racks);
        let (without, _) = settle(&mut unracked, &partition_counts);
        prop_assert!(rounds <= 2);
        prop_assert_eq!(flat(&with).into_iter().collect::<BTreeSet<_>>(), flat(&without).into_iter().collect());
        prop_assert_eq!(flat(&with).len(), flat(&without).len());
        let sorted = |mut loads: Vec<usize>| { loads.sort_unstable(); loads };
        prop_assert_eq!(sorted(loads(&with)), sorted(loads(&without)));
    }

    #[test]
    fn garbage_claims_never_break_the_result(
        claims in proptest::collection::vec((0usize..4, 0i32..12, -1i32..5), 0..30),
    ) {
        let partition_counts = counts(&[("t", 8)]);
        let mut members: Vec<Member> = (0..4).map(|id| member(id, &["t"])).collect();
        for (id, partition, generation) in claims {
            members[id].subscription.owned.push(TopicPartition::new("t", partition));
            members[id].subscription.generation = Some(generation);
        }
        let (assignment, _) = settle(&mut members, &partition_counts);
        let given = flat(&assignment);
        prop_assert_eq!(given.len(), 8);
        prop_assert_eq!(given.into_iter().collect::<BTreeSet<_>>(), all(&partition_counts));
    }
}
