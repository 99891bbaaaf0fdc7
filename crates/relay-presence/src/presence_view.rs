//! [`PresenceView`]: a document's presence with versions, so that each reader gets the difference from its version to the
//! present one.
//!
//! Each change gives its entry a new version. An entry that is removed leaves a tombstone for a while, with the versions
//! between which it was present. A reader that has seen the entry is told that it left; a reader that has not seen it is told
//! nothing of it. A reader that is older than the tombstones gets a snapshot. Readers at the same version share one value.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use relay_core::{
    ConnectionId, JsonObject, PresenceChange, PresenceDiff, PresenceEntry, PresenceId, PresenceSnapshot,
    UserId,
};

use crate::crdt::{MergeResult, Replica, ReplicaDelta, ReplicaEntry, ReplicaKey};

/// The number of a change, among those of all documents. Later changes have larger numbers.
pub(crate) type Version = u64;

/// The most tombstones. A reader that is further behind gets a snapshot.
const MAX_TOMBSTONES: usize = 4_096;
/// The most differences that are kept for other readers.
const CACHED_DIFFS: usize = 4;

/// An entry that was removed or replaced.
#[derive(Debug)]
struct Tombstone {
    added_at: Version,
    removed_at: Version,
    key: ReplicaKey,
    entry: ReplicaEntry,
}

/// A difference that was made for a reader.
#[derive(Debug)]
struct CachedDiff {
    from: Version,
    to: Version,
    diff: Arc<PresenceDiff>,
}

/// One document's presence, as readers see it.
#[derive(Debug)]
pub(crate) struct PresenceView {
    replica: Replica,
    /// The version of each entry.
    added_at: HashMap<ReplicaKey, Version>,
    /// The entries in the order of their versions, so that a difference looks at the changed ones alone.
    by_version: BTreeSet<(Version, ReplicaKey)>,
    /// The tombstones, in the order of removal.
    tombstones: VecDeque<Tombstone>,
    /// The oldest version from which a difference can be made.
    oldest_diffable: Version,
    version: Version,
    snapshot: Option<(Version, Arc<PresenceSnapshot>)>,
    diffs: VecDeque<CachedDiff>,
}

impl PresenceView {
    /// A view of `replica`, which is empty. A reader that is older than `version` gets a snapshot.
    pub(crate) fn new(replica: Replica, version: Version) -> Self {
        Self {
            replica,
            added_at: HashMap::new(),
            by_version: BTreeSet::new(),
            tombstones: VecDeque::new(),
            oldest_diffable: version,
            version,
            snapshot: None,
            diffs: VecDeque::new(),
        }
    }

    /// The version of the last change.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// True when there are no entries, of any server.
    pub(crate) fn is_empty(&self) -> bool {
        self.replica.is_empty()
    }

    /// The state of a connection of this server.
    pub(crate) fn own_state(&self, connection: ConnectionId) -> Option<&JsonObject> {
        self.replica.get(self.replica.key(connection)).map(|entry| &entry.state)
    }

    /// All that this server knows of the document's presence.
    pub(crate) fn whole(&self) -> ReplicaDelta {
        self.replica.whole()
    }

    /// Adds or replaces the entry of a connection of this server.
    pub(crate) fn put(
        &mut self,
        version: Version,
        connection: ConnectionId,
        user: UserId,
        state: JsonObject,
    ) {
        let key = self.replica.key(connection);
        let (replaced, _delta) = self.replica.put(connection, user, state);
        if let Some(entry) = replaced {
            self.bury(version, key, entry);
        }
        self.note_added(version, key);
        self.version = version;
    }

    /// Removes the entry of a connection of this server.
    pub(crate) fn remove(&mut self, version: Version, connection: ConnectionId) {
        let key = self.replica.key(connection);
        if let Some((entry, _delta)) = self.replica.remove(connection) {
            self.bury(version, key, entry);
            self.version = version;
        }
    }

    /// Applies a change that concerns other servers' entries.
    pub(crate) fn merge(&mut self, version: Version, merge: impl FnOnce(&mut Replica) -> MergeResult) {
        let MergeResult { added, removed } = merge(&mut self.replica);
        if added.is_empty() && removed.is_empty() {
            return;
        }
        for (key, entry) in removed {
            self.bury(version, key, entry);
        }
        for key in added {
            self.note_added(version, key);
        }
        self.version = version;
    }

    fn note_added(&mut self, version: Version, key: ReplicaKey) {
        self.added_at.insert(key, version);
        self.by_version.insert((version, key));
    }

    /// Adds the tombstone of an entry.
    fn bury(&mut self, removed_at: Version, key: ReplicaKey, entry: ReplicaEntry) {
        let added_at = self.added_at.remove(&key).unwrap_or_default();
        self.by_version.remove(&(added_at, key));
        self.tombstones.push_back(Tombstone { added_at, removed_at, key, entry });
        if self.tombstones.len() > MAX_TOMBSTONES
            && let Some(dropped) = self.tombstones.pop_front()
        {
            self.oldest_diffable = dropped.removed_at;
        }
    }

    /// Returns the next change for a reader at `position`, and its position afterwards. A reader without a position gets a
    /// snapshot. A value that was made for another reader is used when it reaches at least to `visible`: while many join at
    /// once, one value is made for each flush, and not for each member.
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

    /// The present participants.
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
        if let Some(cached) = self.diffs.iter().find(|cached| cached.from == from && cached.to >= visible) {
            return (cached.to, Arc::clone(&cached.diff));
        }
        let to = self.version;
        let changed = self.by_version.range((from.saturating_add(1), ReplicaKey::LEAST)..);
        let joins = changed.filter_map(|(_, key)| Some((key, self.replica.get(*key)?)));
        let removed = self.tombstones.iter().rev().take_while(|tombstone| tombstone.removed_at > from);
        let leaves = removed
            .filter(|tombstone| tombstone.added_at <= from)
            .map(|tombstone| (&tombstone.key, &tombstone.entry));
        let diff = Arc::new(PresenceDiff::new(
            joins.map(presence_entry).collect(),
            leaves.map(presence_entry).collect(),
        ));
        self.diffs.push_back(CachedDiff { from, to, diff: Arc::clone(&diff) });
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
