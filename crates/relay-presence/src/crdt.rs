//! Presence as data that merges: an observed-remove map in which additions win, with a causal context instead of tombstones
//! (Almeida, Shoker and Baquero, "Delta State Replicated Data Types", 2018: the optimised add-wins set). Phoenix's tracker is
//! built on the same.
//!
//! Each change by a node has a *dot*: the node, and a number that only grows. An entry carries the dot of the change that made
//! it; the context tells which dots were seen. An entry whose dot the other side has seen, and which the other side does not
//! have, was removed there. So merging is commutative, associative and idempotent, and an old delta brings nothing back that was
//! removed. A later exchange of whole states makes up for a delta that was lost.
//!
//! Only the node of a connection changes that connection's entry. A node ignores the presence of its own connections in deltas.
//! When a node is gone, all of its dots count as seen, so that none of its late deltas adds anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use relay_core::{ConnectionId, JsonObject, NodeId, UserId};

#[cfg(test)]
mod tests;

/// The number of a change among those of its node: 1 for the first.
pub(crate) type ChangeNumber = u64;

/// The key of an entry: a connection of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ReplicaKey {
    /// The node that the connection belongs to.
    pub(crate) node: NodeId,
    /// The first of the connections that took the entry over from one another.
    pub(crate) connection: ConnectionId,
}

impl ReplicaKey {
    /// The first key in their order.
    pub(crate) const LEAST: Self = Self { node: NodeId::from_u64(0), connection: ConnectionId::from_u128(0) };
}

/// The presence of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicaEntry {
    /// The change that made the entry.
    pub(crate) counter: ChangeNumber,
    /// The change whose entry it replaced.
    pub(crate) previous: Option<ChangeNumber>,
    /// The user.
    pub(crate) user: UserId,
    /// The state.
    pub(crate) state: JsonObject,
}

impl ReplicaEntry {
    /// About the bytes that the entry takes in memory.
    pub(crate) fn approx_bytes(&self) -> usize {
        Self::bytes_of(&self.user, &self.state)
    }

    /// About the bytes that an entry of this user and state takes.
    pub(crate) fn bytes_of(user: &UserId, state: &JsonObject) -> usize {
        128 + user.as_str().len() + state.as_str().len()
    }
}

/// The changes that were seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct CausalContext {
    /// For each node, the number up to which all its changes were seen.
    seen: BTreeMap<NodeId, ChangeNumber>,
    /// The further changes that were seen, after gaps.
    beyond: BTreeSet<(NodeId, ChangeNumber)>,
}

impl CausalContext {
    /// True when the change was seen.
    pub(crate) fn contains(&self, node: NodeId, counter: ChangeNumber) -> bool {
        self.seen.get(&node).is_some_and(|seen| counter <= *seen) || self.beyond.contains(&(node, counter))
    }

    fn add(&mut self, node: NodeId, counter: ChangeNumber) {
        self.beyond.insert((node, counter));
    }

    fn merge(&mut self, other: &Self) {
        for (&node, &counter) in &other.seen {
            let seen = self.seen.entry(node).or_default();
            *seen = counter.max(*seen);
        }
        self.beyond.extend(&other.beyond);
        self.compact();
    }

    /// Moves the changes that follow without a gap from `beyond` into `seen`.
    fn compact(&mut self) {
        let Self { seen, beyond } = self;
        beyond.retain(|&(node, counter)| {
            let seen = seen.entry(node).or_default();
            if seen.checked_add(1) == Some(counter) {
                *seen = counter;
            }
            counter > *seen
        });
        seen.retain(|_, counter| *counter > 0);
    }
}

/// Changes of one document's presence, for another server to merge: a few of them, or all that a server knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaDelta {
    entries: HashMap<ReplicaKey, ReplicaEntry>,
    context: CausalContext,
}

impl ReplicaDelta {
    fn of(dots: impl IntoIterator<Item = (NodeId, ChangeNumber)>) -> Self {
        let mut delta = Self::default();
        for (node, counter) in dots {
            delta.context.add(node, counter);
        }
        delta.context.compact();
        delta
    }
}

/// The entries that a merge has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MergeResult {
    /// The entries that are new, or that replace a removed one.
    pub(crate) added: Vec<ReplicaKey>,
    /// The entries that are gone or were replaced.
    pub(crate) removed: Vec<(ReplicaKey, ReplicaEntry)>,
}

/// One document's presence, as one node knows it.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    node: NodeId,
    entries: HashMap<ReplicaKey, ReplicaEntry>,
    context: CausalContext,
}

impl Replica {
    /// The replica of `node`, without entries.
    pub(crate) fn new(node: NodeId) -> Self {
        Self { node, entries: HashMap::new(), context: CausalContext::default() }
    }

    /// The key of a connection of this node.
    pub(crate) fn key(&self, connection: ConnectionId) -> ReplicaKey {
        ReplicaKey { node: self.node, connection }
    }

    /// The entry of `key`.
    pub(crate) fn get(&self, key: ReplicaKey) -> Option<&ReplicaEntry> {
        self.entries.get(&key)
    }

    /// The entries of all nodes, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ReplicaKey, &ReplicaEntry)> {
        self.entries.iter()
    }

    /// True when there are no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds or replaces the entry of a connection of this node. Returns the replaced entry, and the delta for other nodes.
    pub(crate) fn put(
        &mut self,
        connection: ConnectionId,
        user: UserId,
        state: JsonObject,
    ) -> (Option<ReplicaEntry>, ReplicaDelta) {
        let (node, key) = (self.node, self.key(connection));
        let counter = self.context.seen.get(&node).copied().unwrap_or_default() + 1;
        self.context.seen.insert(node, counter);
        let previous = self.entries.get(&key).map(|entry| entry.counter);
        let entry = ReplicaEntry { counter, previous, user, state };
        let replaced = self.entries.insert(key, entry.clone());
        let mut delta =
            ReplicaDelta::of(previous.into_iter().chain([counter]).map(|counter| (node, counter)));
        delta.entries.insert(key, entry);
        (replaced, delta)
    }

    /// Removes the entry of a connection of this node. Returns the entry, and the delta for other nodes.
    pub(crate) fn remove(&mut self, connection: ConnectionId) -> Option<(ReplicaEntry, ReplicaDelta)> {
        let entry = self.entries.remove(&self.key(connection))?;
        let delta = ReplicaDelta::of([(self.node, entry.counter)]);
        Some((entry, delta))
    }

    /// Removes the entries of a node that is gone, for good. Deltas of the node that are still under way add nothing, and other
    /// replicas that merge this one remove its entries, too. A node that comes back has another id. The replica's own node is
    /// never removed.
    pub(crate) fn remove_node(&mut self, node: NodeId) -> MergeResult {
        if node == self.node {
            return MergeResult::default();
        }
        self.context.seen.insert(node, ChangeNumber::MAX);
        self.context.compact();
        let removed = self.entries.extract_if(|key, _| key.node == node).collect();
        MergeResult { added: Vec::new(), removed }
    }

    /// The whole replica as a delta.
    pub(crate) fn whole(&self) -> ReplicaDelta {
        ReplicaDelta { entries: self.entries.clone(), context: self.context.clone() }
    }

    /// Merges a delta of another replica.
    pub(crate) fn merge(&mut self, delta: &ReplicaDelta) -> MergeResult {
        let mut merged = MergeResult::default();
        // The other replica has removed the entries that it has seen and does not have.
        let is_removed = |key: &ReplicaKey, entry: &ReplicaEntry| {
            key.node != self.node
                && delta.context.contains(key.node, entry.counter)
                && delta.entries.get(key).is_none_or(|other| other.counter != entry.counter)
        };
        merged.removed.extend(self.entries.extract_if(|key, entry| is_removed(key, entry)));
        for (key, entry) in &delta.entries {
            if key.node == self.node || self.context.contains(key.node, entry.counter) {
                continue;
            }
            // An older entry may still be here, when the delta that replaced it was lost.
            match self.entries.get(key) {
                Some(newer) if newer.counter > entry.counter => continue,
                _ => {}
            }
            merged.removed.extend(self.entries.insert(*key, entry.clone()).map(|old| (*key, old)));
            merged.added.push(*key);
        }
        let own = self.context.seen.get(&self.node).copied();
        self.context.merge(&delta.context);
        match own {
            Some(counter) => self.context.seen.insert(self.node, counter),
            None => self.context.seen.remove(&self.node),
        };
        merged
    }
}
