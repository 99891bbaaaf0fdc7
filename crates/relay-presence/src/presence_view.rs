//! Who is in a document, as readers see it: versions, so that each reader is told what leads from what it knows to what is.
//!
//! Every change gives its entry a new version. What was there and is not is remembered for a while, with the versions
//! between which it was: a reader that has seen it is told that it left, and one that has not is told nothing of it. A reader
//! that stands before all that is remembered is given the whole state. Texts that several readers want are made once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use relay_core::{
    ConnectionId, JsonText, PresenceChange, PresenceDiff, PresenceEntry, PresenceId, PresenceSnapshot, UserId,
};

use crate::crdt::{MergeResult, Replica, ReplicaEntry, ReplicaKey};

/// A point in the changes of all documents: it only grows.
pub(crate) type Version = u64;

/// The most departures that are remembered. A reader that has not read for so many gets the whole state.
const MAX_TOMBSTONES: usize = 4_096;
/// Diffs that are kept for others who want the same.
const CACHED_DIFFS: usize = 4;

/// An entry that is no more.
#[derive(Debug)]
struct Tombstone {
    added_at: Version,
    removed_at: Version,
    key: ReplicaKey,
    entry: ReplicaEntry,
}

#[derive(Debug)]
pub(crate) struct PresenceView {
    replica: Replica,
    /// When each entry came.
    added_at: HashMap<ReplicaKey, Version>,
    tombstones: VecDeque<Tombstone>,
    /// Readers before this cannot be told what has changed.
    oldest_diffable: Version,
    version: Version,
    snapshot: Option<(Version, Arc<PresenceSnapshot>)>,
    diffs: VecDeque<(Version, Version, Arc<PresenceDiff>)>,
}

impl PresenceView {
    /// An empty roster, at a version that no reader of an earlier one has reached.
    pub(crate) fn new(replica: Replica, version: Version) -> Self {
        Self {
            replica,
            added_at: HashMap::new(),
            tombstones: VecDeque::new(),
            oldest_diffable: version,
            version,
            snapshot: None,
            diffs: VecDeque::new(),
        }
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Puts in or changes the presence of a connection of this node.
    pub(crate) fn put(&mut self, version: Version, connection: ConnectionId, user: UserId, state: JsonText) {
        let key = self.replica.key(connection);
        let (replaced, _delta) = self.replica.put(connection, user, state);
        if let Some(entry) = replaced {
            self.bury(version, key, entry);
        }
        self.added_at.insert(key, version);
        self.version = version;
    }

    /// Takes out the presence of a connection of this node.
    pub(crate) fn remove(&mut self, version: Version, connection: ConnectionId) {
        let key = self.replica.key(connection);
        if let Some((entry, _delta)) = self.replica.remove(connection) {
            self.bury(version, key, entry);
            self.version = version;
        }
    }

    /// Takes in what another node tells.
    pub(crate) fn merge(&mut self, version: Version, merge: impl FnOnce(&mut Replica) -> MergeResult) {
        let MergeResult { added, removed } = merge(&mut self.replica);
        if added.is_empty() && removed.is_empty() {
            return;
        }
        for (key, entry) in removed {
            self.bury(version, key, entry);
        }
        self.added_at.extend(added.into_iter().map(|key| (key, version)));
        self.version = version;
    }

    fn bury(&mut self, removed_at: Version, key: ReplicaKey, entry: ReplicaEntry) {
        let added_at = self.added_at.remove(&key).unwrap_or_default();
        self.tombstones.push_back(Tombstone { added_at, removed_at, key, entry });
        if self.tombstones.len() > MAX_TOMBSTONES
            && let Some(dropped) = self.tombstones.pop_front()
        {
            self.oldest_diffable = dropped.removed_at;
        }
    }

    /// Returns the next change for a reader that has read up to `position`, and its position then. A reader that has read
    /// nothing gets the snapshot. A value that was made for another reader is good enough if it leads to `visible` at least,
    /// so that while many join at once a value is made for each flush, and not for each member that joins.
    pub(crate) fn read(&mut self, position: Option<Version>, visible: Version) -> (PresenceChange, Version) {
        match position {
            Some(position) if position >= self.oldest_diffable => {
                let (version, diff) = self.diff(position, visible);
                (PresenceChange::Diff(diff), version)
            }
            _ => {
                let (version, snapshot) = self.visible_snapshot(visible);
                (PresenceChange::Snapshot(snapshot), version)
            }
        }
    }

    /// The participants just now.
    pub(crate) fn snapshot(&self) -> Arc<PresenceSnapshot> {
        match &self.snapshot {
            Some((version, snapshot)) if *version == self.version => Arc::clone(snapshot),
            _ => Arc::new(PresenceSnapshot::new(self.replica.iter().map(presence_entry).collect())),
        }
    }

    /// Drops the values that were made for readers.
    pub(crate) fn clear_cache(&mut self) {
        self.snapshot = None;
        self.diffs.clear();
    }

    fn visible_snapshot(&mut self, visible: Version) -> (Version, Arc<PresenceSnapshot>) {
        if let Some((version, snapshot)) = &self.snapshot
            && *version >= self.oldest_diffable.max(visible)
        {
            return (*version, Arc::clone(snapshot));
        }
        let snapshot = self.snapshot();
        self.snapshot = Some((self.version, Arc::clone(&snapshot)));
        (self.version, snapshot)
    }

    fn diff(&mut self, from: Version, visible: Version) -> (Version, Arc<PresenceDiff>) {
        let is_enough =
            |(of, until, _): &&(Version, Version, Arc<PresenceDiff>)| *of == from && *until >= visible;
        if let Some((_, until, diff)) = self.diffs.iter().find(is_enough) {
            return (*until, Arc::clone(diff));
        }
        let to = self.version;
        let joins = self
            .replica
            .iter()
            .filter(|(key, _)| self.added_at.get(key).is_some_and(|added_at| *added_at > from));
        let leaves = self.tombstones.iter().rev().take_while(|tombstones| tombstones.removed_at > from);
        let leaves = leaves
            .filter(|tombstones| tombstones.added_at <= from)
            .map(|tombstones| (&tombstones.key, &tombstones.entry));
        let diff = Arc::new(PresenceDiff::new(
            joins.map(presence_entry).collect(),
            leaves.map(presence_entry).collect(),
        ));
        self.diffs.push_back((from, to, Arc::clone(&diff)));
        if self.diffs.len() > CACHED_DIFFS {
            self.diffs.pop_front();
        }
        (to, diff)
    }
}

/// The entry as readers see it.
fn presence_entry((key, entry): (&ReplicaKey, &ReplicaEntry)) -> PresenceEntry {
    let id = |counter| PresenceId { node: key.node, counter };
    PresenceEntry::new(id(entry.counter), entry.previous.map(id), entry.user.clone(), entry.state.clone())
}
