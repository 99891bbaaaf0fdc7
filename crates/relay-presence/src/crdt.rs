//! Presence as data that merges: an observed-remove map in which an addition wins, with a causal context instead of
//! tombstones (Almeida, Shoker and Baquero, "Delta State Replicated Data Types", 2018: the optimised add-wins set; Phoenix's
//! tracker is built on the same).
//!
//! Each change by a node has a *dot*: the node and a number that only grows. An entry carries the dot of the change that
//! made it; the context says which dots were seen. An entry whose dot the other side has seen, and which it does not
//! have, was removed there. So merging is commutative, associative and idempotent, what was removed does not come back
//! with an old delta, and a delta that was lost is made good by any later exchange of whole states.
//!
//! An entry is changed by the node alone whose connection it belongs to: what others tell of a node's own people is passed
//! over there. A node that is gone is seen to its end, so that nothing of it, however late, is news to anybody who is
//! told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use relay_core::{ConnectionId, JsonText, NodeId, UserId};

#[cfg(test)]
mod tests;

/// The number of a change among those of its node: 1 for the first.
pub(crate) type Counter = u64;

/// Whose presence it is: a connection of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ReplicaKey {
    /// The node that the connection belongs to.
    pub(crate) node: NodeId,
    /// The connection with which the presence began.
    pub(crate) connection: ConnectionId,
}

/// One connection's presence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicaEntry {
    /// The change that made it.
    pub(crate) counter: Counter,
    /// The change that it replaced.
    pub(crate) previous: Option<Counter>,
    /// The user.
    pub(crate) user: UserId,
    /// The state, a JSON object.
    pub(crate) state: JsonText,
}

/// Which changes were seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct CausalContext {
    /// Of each node, everything up to this.
    seen: BTreeMap<NodeId, Counter>,
    /// And these, before which some are missing.
    beyond: BTreeSet<(NodeId, Counter)>,
}

impl CausalContext {
    /// Whether the change was seen.
    pub(crate) fn contains(&self, node: NodeId, counter: Counter) -> bool {
        self.seen.get(&node).is_some_and(|seen| counter <= *seen) || self.beyond.contains(&(node, counter))
    }

    fn add(&mut self, node: NodeId, counter: Counter) {
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

    /// Moves what follows on what was seen into it.
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

/// What one replica tells another: a few changes, or all that it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaDelta {
    entries: HashMap<ReplicaKey, ReplicaEntry>,
    context: CausalContext,
}

impl ReplicaDelta {
    fn of(dots: impl IntoIterator<Item = (NodeId, Counter)>) -> Self {
        let mut delta = Self::default();
        for (node, counter) in dots {
            delta.context.add(node, counter);
        }
        delta.context.compact();
        delta
    }
}

/// What a merge has done to the entries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MergeResult {
    /// Entries that are new, or in the place of one that was removed.
    pub(crate) added: Vec<ReplicaKey>,
    /// Entries that are gone or were replaced.
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
    /// Nobody is there, as far as `node` knows.
    pub(crate) fn new(node: NodeId) -> Self {
        Self { node, entries: HashMap::new(), context: CausalContext::default() }
    }

    /// The key of a connection of this node.
    pub(crate) fn key(&self, connection: ConnectionId) -> ReplicaKey {
        ReplicaKey { node: self.node, connection }
    }

    /// The presence of `key`.
    pub(crate) fn get(&self, key: ReplicaKey) -> Option<&ReplicaEntry> {
        self.entries.get(&key)
    }

    /// Everyone who is there, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ReplicaKey, &ReplicaEntry)> {
        self.entries.iter()
    }

    /// Whether nobody is.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts in the presence of a connection of this node, in the place of what was there. Returns what was, and the delta for
    /// the others.
    pub(crate) fn put(
        &mut self,
        connection: ConnectionId,
        user: UserId,
        state: JsonText,
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

    /// Takes out the presence of a connection of this node. Returns it, and the delta for the others.
    pub(crate) fn remove(&mut self, connection: ConnectionId) -> Option<(ReplicaEntry, ReplicaDelta)> {
        let entry = self.entries.remove(&self.key(connection))?;
        let delta = ReplicaDelta::of([(self.node, entry.counter)]);
        Some((entry, delta))
    }

    /// Takes out everybody of a node that is gone, for good: what it has sent and is still under way counts for nothing,
    /// and those who are told all that this replica knows take them out, too. A node that comes back has another id. The
    /// replica's own node is never taken out.
    pub(crate) fn remove_node(&mut self, node: NodeId) -> MergeResult {
        if node == self.node {
            return MergeResult::default();
        }
        self.context.seen.insert(node, Counter::MAX);
        self.context.compact();
        let removed = self.entries.extract_if(|key, _| key.node == node).collect();
        MergeResult { added: Vec::new(), removed }
    }

    /// All that this replica knows.
    pub(crate) fn whole(&self) -> ReplicaDelta {
        ReplicaDelta { entries: self.entries.clone(), context: self.context.clone() }
    }

    /// Takes in what another replica tells.
    pub(crate) fn merge(&mut self, delta: &ReplicaDelta) -> MergeResult {
        let mut merged = MergeResult::default();
        // What the other has seen and no longer has was removed.
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
            // An entry that is older and still here was replaced by one whose delta did not come.
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
