//! Replicas that exchange deltas over a network that loses, repeats and reorders them.

use std::collections::BTreeMap;

use super::{Replica, ReplicaDelta, ReplicaKey};
use proptest::prelude::*;
use relay_core::{ConnectionId, JsonObject, NodeId, UserId};

#[derive(Debug, Clone)]
enum Step {
    /// A connection of a replica's node joins or changes its state.
    Put(usize, u128, u8),
    Remove(usize, u128),
    /// A delta reaches a replica; it may be lost for others, and come again.
    Deliver(usize, prop::sample::Index),
    /// The whole of one replica reaches another.
    Sync(usize, usize),
}

const REPLICAS: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let replica = 0..REPLICAS;
    let step = prop_oneof![
        3 => (replica.clone(), 0_u128..3, any::<u8>()).prop_map(|(at, who, state)| Step::Put(at, who, state)),
        2 => (replica.clone(), 0_u128..3).prop_map(|(at, who)| Step::Remove(at, who)),
        4 => (replica.clone(), any::<prop::sample::Index>()).prop_map(|(to, which)| Step::Deliver(to, which)),
        1 => (replica.clone(), replica).prop_map(|(from, to)| Step::Sync(from, to)),
    ];
    prop::collection::vec(step, 1..100)
}

/// The states that a replica holds, by node and connection.
fn shown(replica: &Replica) -> BTreeMap<(u64, u128), String> {
    let entry =
        |key: &ReplicaKey, state: &str| ((key.node.as_u64(), key.connection.as_u128()), state.to_owned());
    replica.iter().map(|(key, one)| entry(key, one.state.as_str())).collect()
}

proptest! {
    #[test]
    fn replicas_agree_with_each_other_and_with_what_was_done(steps in steps()) {
        let mut replicas: Vec<Replica> =
            (0..REPLICAS).map(|node| Replica::new(NodeId::from_u64(node as u64))).collect();
        let mut model: BTreeMap<(u64, u128), String> = BTreeMap::new();
        let mut deltas: Vec<ReplicaDelta> = Vec::new();
        let user = UserId::new("ada").unwrap();
        for step in steps {
            match step {
                Step::Put(at, who, state) => {
                    let state = format!("{{\"v\":{state}}}");
                    let connection = ConnectionId::from_u128(who);
                    let (_, delta) = replicas[at].put(connection, user.clone(), serde_json::from_str(&state).unwrap());
                    model.insert((at as u64, who), state);
                    deltas.push(delta);
                }
                Step::Remove(at, who) => {
                    let removed = replicas[at].remove(ConnectionId::from_u128(who));
                    prop_assert_eq!(removed.is_some(), model.remove(&(at as u64, who)).is_some());
                    deltas.extend(removed.map(|(_, delta)| delta));
                }
                Step::Deliver(to, which) => if !deltas.is_empty() {
                    let delta = which.get(&deltas).clone();
                    replicas[to].merge(&delta);
                    // Once more changes nothing.
                    let before = replicas[to].whole();
                    let again = replicas[to].merge(&delta);
                    prop_assert!(again.added.is_empty() && again.removed.is_empty());
                    prop_assert_eq!(replicas[to].whole(), before);
                },
                Step::Sync(from, to) => {
                    let whole = replicas[from].whole();
                    replicas[to].merge(&whole);
                }
            }
            // Deltas of others never change a node's own entries.
            for (node, replica) in replicas.iter().enumerate() {
                let own = |(key, _): &(&(u64, u128), &String)| key.0 == node as u64;
                let shown = shown(replica);
                prop_assert!(shown.iter().filter(own).eq(model.iter().filter(own)));
            }
        }
        // Whole states make up for lost deltas, once each replica has merged all others.
        for _ in 0..2 {
            for from in 0..REPLICAS {
                for to in 0..REPLICAS {
                    let whole = replicas[from].whole();
                    replicas[to].merge(&whole);
                }
            }
        }
        for replica in &replicas {
            prop_assert_eq!(shown(replica), model.clone());
        }
        // No old delta brings anything back.
        for delta in &deltas {
            let merged = replicas[0].merge(delta);
            prop_assert!(merged.added.is_empty() && merged.removed.is_empty());
        }
        // The entries of a node that is gone are removed for good.
        replicas[0].remove_node(NodeId::from_u64(1));
        let others = replicas[2].whole();
        deltas.iter().chain([&others]).for_each(|delta| { replicas[0].merge(delta); });
        prop_assert!(replicas[0].iter().all(|(key, _)| key.node != NodeId::from_u64(1)));
    }

    #[test]
    fn the_order_of_merging_makes_no_difference(steps in steps(), order in any::<prop::sample::Index>()) {
        let mut author: Vec<Replica> =
            (0..REPLICAS).map(|node| Replica::new(NodeId::from_u64(node as u64))).collect();
        let user = UserId::new("ada").unwrap();
        let mut deltas = Vec::new();
        for step in steps {
            match step {
                Step::Put(at, who, state) => {
                    let state = serde_json::from_str(&format!("{{\"v\":{state}}}")).unwrap();
                    deltas.push(author[at].put(ConnectionId::from_u128(who), user.clone(), state).1);
                }
                Step::Remove(at, who) => {
                    deltas.extend(author[at].remove(ConnectionId::from_u128(who)).map(|(_, delta)| delta));
                }
                Step::Deliver(..) | Step::Sync(..) => {}
            }
        }
        let merged = |deltas: &[ReplicaDelta]| {
            let mut replica = Replica::new(NodeId::from_u64(99));
            for delta in deltas {
                replica.merge(delta);
            }
            replica.whole()
        };
        let forward = merged(&deltas);
        let mut other = deltas.clone();
        other.reverse();
        if !other.is_empty() {
            let at = order.index(other.len());
            other.rotate_left(at);
        }
        prop_assert_eq!(merged(&other), forward);
    }
}

fn replica(node: u64) -> Replica {
    Replica::new(NodeId::from_u64(node))
}

fn put(replica: &mut Replica, connection: u128) -> ReplicaDelta {
    replica.put(ConnectionId::from_u128(connection), UserId::new("ada").unwrap(), JsonObject::empty()).1
}

#[test]
fn nothing_of_a_node_that_is_gone_comes_back_however_late_it_is_told() {
    let (mut here, mut there, mut dead) = (replica(1), replica(2), replica(3));
    let (known, late) = (put(&mut dead, 1), put(&mut dead, 2));
    here.merge(&known);
    there.merge(&dead.whole());
    assert_eq!(here.remove_node(NodeId::from_u64(3)).removed.len(), 1);
    for delta in [&late, &there.whole(), &dead.whole()] {
        assert!(here.merge(delta).added.is_empty());
    }
    // A replica that merges the whole of one that knows removes them, too.
    assert_eq!(there.merge(&here.whole()).removed.len(), 2);
    assert!(there.merge(&late).added.is_empty() && there.is_empty());
}

#[test]
fn a_node_that_others_take_for_gone_keeps_its_own_people() {
    let (mut here, mut there) = (replica(1), replica(2));
    put(&mut here, 1);
    there.merge(&here.whole());
    there.remove_node(NodeId::from_u64(1));
    assert!(here.merge(&there.whole()).removed.is_empty());
    put(&mut here, 2);
    assert_eq!(here.iter().count(), 2);
    // It does not remove itself, and ignores its own entries in deltas of others.
    here.remove_node(NodeId::from_u64(1));
    assert_eq!(here.iter().count(), 2);
    let old = here.whole();
    here.remove(ConnectionId::from_u128(1));
    here.merge(&old);
    assert_eq!(here.iter().count(), 1);
}
