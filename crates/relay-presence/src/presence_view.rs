//! [`PresenceView`]: a document's presence with versions, so that each reader gets the difference from its version to the
//! present one.
//!
//! Each change gives its entry a new version. An entry that is removed leaves a tombstone for a while, with the versions
//! between which it was present. A reader that has seen the entry is told that it left; a reader that has not seen it is told
//! nothing of it. A reader that is older than the tombstones gets a snapshot. Readers at the same version share one value.
//!
//! A large snapshot is shared by readers of different versions, too: they get the difference to the present after it. So a
//! storm of joins makes few of them, however slowly the new members read.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use relay_core::{
    BudgetFull, ConnectionId, JsonObject, MemoryPurpose, MemoryShare, Monotonic, PresenceChange,
    PresenceDiff, PresenceEntry, PresenceId, PresenceSnapshot, Reservation, ShareKind, UserId,
};

use crate::crdt::{MergeResult, Replica, ReplicaDelta, ReplicaEntry, ReplicaKey};
use crate::tombstones::{Tombstone, Tombstones};
use crate::version::Version;

/// The most differences that are kept for other readers.
const CACHED_DIFFS: usize = 4;
/// The size of the entries from which a snapshot is shared by readers of different versions.
const SHARED_SNAPSHOT_BYTES: usize = 64 * 1024;
/// A snapshot is dropped after one to two times of this length without a reader.
const SNAPSHOT_KEPT: Duration = Duration::from_secs(30);

/// The memory of one document's presence.
#[derive(Debug)]
struct ViewMemory {
    /// All of it. The encoded forms are charged to it.
    whole: MemoryShare,
    entries: Reservation,
    tombstones: Reservation,
}

/// A snapshot that was made for a reader.
#[derive(Debug)]
struct CachedSnapshot {
    version: Version,
    snapshot: Arc<PresenceSnapshot>,
    /// The size of the difference from it to the present.
    changed_bytes: usize,
    /// True when a reader took it since the last sweep.
    is_used: bool,
    dropped_at: Option<Monotonic>,
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
    /// The size of the entries.
    entry_bytes: usize,
    tombstones: Tombstones,
    version: Version,
    snapshot: Option<CachedSnapshot>,
    diffs: VecDeque<CachedDiff>,
    memory: ViewMemory,
}

impl PresenceView {
    /// A view of `replica`, which is empty. A reader that is older than `version` gets a snapshot. `memory` limits all of it,
    /// and a quarter of that limit the entries.
    pub(crate) fn new(replica: Replica, version: Version, memory: MemoryShare) -> Self {
        let states = memory.child(ShareKind::Document, memory.limit() / 4);
        let memory = ViewMemory {
            entries: states.charge(MemoryPurpose::Presence, 0),
            tombstones: memory.charge(MemoryPurpose::Presence, 0),
            whole: memory,
        };
        Self {
            memory,
            replica,
            added_at: HashMap::new(),
            by_version: BTreeSet::new(),
            entry_bytes: 0,
            tombstones: Tombstones::new(version),
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

    /// A copy of the state of a participant of this server; an empty one when there is no such participant.
    pub(crate) fn own_state_or_empty(&self, connection: ConnectionId) -> JsonObject {
        self.own_state(connection).map_or_else(JsonObject::empty, JsonObject::clone)
    }

    /// All that this server knows of the document's presence.
    pub(crate) fn whole(&self) -> ReplicaDelta {
        self.replica.whole()
    }

    /// Reserves memory for a new state of this server, beside the one that it replaces.
    ///
    /// # Errors
    /// [`BudgetFull`] when a share is used up.
    pub(crate) fn reserve_state(&mut self, user: &UserId, state: &JsonObject) -> Result<(), BudgetFull> {
        self.memory.entries.try_resize(self.entry_bytes + ReplicaEntry::bytes_of(user, state))
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
        self.advance_to(version);
    }

    /// Removes the entry of a connection of this server.
    pub(crate) fn remove(&mut self, version: Version, connection: ConnectionId) {
        let key = self.replica.key(connection);
        if let Some((entry, _delta)) = self.replica.remove(connection) {
            self.bury(version, key, entry);
            self.advance_to(version);
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
        self.advance_to(version);
    }

    /// Moves to the version of a change, which may change several entries. A reader that has seen a later one would never be told of it.
    fn advance_to(&mut self, version: Version) {
        debug_assert!(version >= self.version, "version {version:?} comes after {:?}", self.version);
        self.version = version;
    }

    fn note_added(&mut self, version: Version, key: ReplicaKey) {
        let bytes = self.replica.get(key).map_or(0, ReplicaEntry::approx_bytes);
        self.entry_bytes += bytes;
        if let Some(cached) = &mut self.snapshot {
            cached.changed_bytes += bytes;
        }
        self.memory.entries.resize(self.entry_bytes);
        self.added_at.insert(key, version);
        self.by_version.insert((version, key));
    }

    /// Adds the tombstone of an entry.
    fn bury(&mut self, removed_at: Version, key: ReplicaKey, entry: ReplicaEntry) {
        let added_at = self.added_at.remove(&key).unwrap_or_default();
        self.by_version.remove(&(added_at, key));
        let bytes = entry.approx_bytes();
        self.entry_bytes -= bytes;
        if let Some(cached) = &mut self.snapshot {
            // An entry that came after the snapshot and is gone is no part of the difference.
            let is_known = added_at <= cached.version;
            let changed = cached.changed_bytes;
            cached.changed_bytes = if is_known { changed + bytes } else { changed.saturating_sub(bytes) };
        }
        self.tombstones.push(Tombstone { added_at, removed_at, key, entry }, self.entry_bytes);
        self.memory.entries.resize(self.entry_bytes);
        self.memory.tombstones.resize(self.tombstones.bytes());
    }

    /// Returns the next change for a reader at `position`, and its position afterwards. A reader without a position gets a
    /// snapshot. A value that was made for another reader is used when it reaches at least to `visible`: while many join at
    /// once, one value is made for each flush, and not for each member. Returns `None` when the reader has to wait for memory.
    pub(crate) fn read(
        &mut self,
        position: Option<Version>,
        visible: Version,
    ) -> Option<(PresenceChange, Version)> {
        Some(match position {
            Some(position) if position >= self.tombstones.oldest_diffable() => {
                let (version, diff) = self.diff(position, visible);
                (PresenceChange::Diff(diff), version)
            }
            _ => {
                let (version, snapshot) = self.visible_snapshot(visible)?;
                (PresenceChange::Snapshot(snapshot), version)
            }
        })
    }

    /// True while the document's presence takes more memory than it may, so that readers wait for a snapshot.
    pub(crate) fn is_over(&self) -> bool {
        self.memory.whole.is_over()
    }

    /// The present participants.
    pub(crate) fn snapshot(&self) -> Arc<PresenceSnapshot> {
        match &self.snapshot {
            Some(cached) if cached.version == self.version => Arc::clone(&cached.snapshot),
            _ => {
                let entries = self.replica.iter().map(presence_entry).collect();
                Arc::new(PresenceSnapshot::new(entries).charged_to(self.memory.whole.clone()))
            }
        }
    }

    /// Drops the values that were made for readers, and what is too old for a difference.
    pub(crate) fn sweep(&mut self, now: Monotonic) {
        if let Some(cached) = &mut self.snapshot {
            if std::mem::take(&mut cached.is_used) {
                cached.dropped_at = Some(now + SNAPSHOT_KEPT);
            } else if cached.dropped_at.is_none_or(|at| now >= at) {
                self.snapshot = None;
            }
        }
        self.diffs.clear();
        self.tombstones.expire(now, self.version);
        self.memory.tombstones.resize(self.tombstones.bytes());
    }

    fn visible_snapshot(&mut self, visible: Version) -> Option<(Version, Arc<PresenceSnapshot>)> {
        let is_over = self.is_over();
        let may_be_older = self.entry_bytes >= SHARED_SNAPSHOT_BYTES;
        if let Some(CachedSnapshot { version, changed_bytes, .. }) = self.snapshot
            && version >= self.tombstones.oldest_diffable()
            && (version >= visible || (may_be_older && (is_over || changed_bytes <= self.entry_bytes / 4)))
            && let Some(cached) = &mut self.snapshot
        {
            cached.is_used = true;
            return Some((version, Arc::clone(&cached.snapshot)));
        }
        if is_over {
            return None;
        }
        let (version, snapshot) = (self.version, self.snapshot());
        let cached = CachedSnapshot { version, snapshot, changed_bytes: 0, is_used: true, dropped_at: None };
        let cached = self.snapshot.insert(cached);
        Some((version, Arc::clone(&cached.snapshot)))
    }

    fn diff(&mut self, from: Version, visible: Version) -> (Version, Arc<PresenceDiff>) {
        if let Some(cached) = self.diffs.iter().find(|cached| cached.from == from && cached.to >= visible) {
            return (cached.to, Arc::clone(&cached.diff));
        }
        let to = self.version;
        let changed = self.by_version.range((from.saturating_add(1), ReplicaKey::LEAST)..);
        let joins = changed.filter_map(|(_, key)| Some((key, self.replica.get(*key)?)));
        let leaves = self
            .tombstones
            .after(from)
            .filter(|tombstone| tombstone.added_at <= from)
            .map(|tombstone| (&tombstone.key, &tombstone.entry));
        let diff =
            PresenceDiff::new(joins.map(presence_entry).collect(), leaves.map(presence_entry).collect());
        let diff = Arc::new(diff.charged_to(self.memory.whole.clone()));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;
    use relay_core::{FormatId, MemoryBudget, NodeId, Payload};

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Put(u128, usize),
        Remove(u128),
        Sweep(Duration),
        Read(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..8_u128, 0..100_000_usize).prop_map(|(connection, bytes)| Step::Put(connection, bytes)),
            1 => (0..8_u128).prop_map(Step::Remove),
            1 => (0..40_u64).prop_map(|seconds| Step::Sweep(Duration::from_secs(seconds))),
            2 => (0..3_usize).prop_map(Step::Read),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// The knowledge of a reader: its position, and the entries by their ids.
    #[derive(Default)]
    struct Reader(Option<Version>, BTreeMap<PresenceId, PresenceEntry>);

    impl Reader {
        fn read(&mut self, view: &mut PresenceView) {
            if self.0 == Some(view.version()) {
                return;
            }
            let (change, position) = view.read(self.0, view.version()).unwrap();
            match change {
                PresenceChange::Snapshot(snapshot) => {
                    self.1 = snapshot.entries.iter().map(|entry| (entry.id, entry.clone())).collect();
                }
                PresenceChange::Diff(diff) => {
                    for left in &diff.leaves {
                        assert_eq!(self.1.remove(&left.id).as_ref(), Some(left), "it was not there");
                    }
                    for joined in &diff.joins {
                        assert!(self.1.insert(joined.id, joined.clone()).is_none(), "it was there already");
                    }
                }
            }
            self.0 = Some(position);
        }
    }

    fn empty_view() -> PresenceView {
        let memory = MemoryBudget::default().total().child(ShareKind::Document, 64 * 1024 * 1024);
        PresenceView::new(Replica::new(NodeId::from_u64(1)), 0, memory)
    }

    fn put(view: &mut PresenceView, version: Version, connection: u128, bytes: usize) {
        let state = Payload::json(&serde_json::json!({"x": "x".repeat(bytes)})).unwrap();
        let Payload::Json(state) = state else { panic!("{state:?}") };
        let user = UserId::new(format!("user {connection}")).unwrap();
        view.put(version, ConnectionId::from_u128(connection), user, JsonObject::new(state).unwrap());
    }

    #[test]
    fn a_difference_that_is_smaller_than_the_snapshot_can_be_made() {
        let mut view = empty_view();
        (1..=10).for_each(|at| put(&mut view, at, u128::from(at), 100_000));
        (11..=19).for_each(|at| put(&mut view, at, u128::from(at - 10), 100_000));
        let (change, _) = view.read(Some(10), 19).unwrap();
        assert!(matches!(change, PresenceChange::Diff(diff) if diff.leaves.len() == 9));
    }

    struct TestFormat;

    /// The encoded form of what a reader without a position gets, as an edge keeps it for a slow socket.
    fn encoded(view: &mut PresenceView) -> Option<(Bytes, Version)> {
        let (change, position) = view.read(None, view.version())?;
        let PresenceChange::Snapshot(snapshot) = change else { panic!("{change:?} is no snapshot") };
        let encode = || snapshot.entries.iter().flat_map(|one| one.state.as_str().bytes()).collect();
        Some((snapshot.encodings.get_or_encode(FormatId::of::<TestFormat>(), encode), position))
    }

    #[test]
    fn a_storm_of_joins_makes_few_snapshots_of_a_large_document() {
        let budget = MemoryBudget::default();
        let memory = budget.total().child(ShareKind::Document, 64 * 1024 * 1024);
        let mut view = PresenceView::new(Replica::new(NodeId::from_u64(1)), 0, memory);
        (1..=400).for_each(|at| put(&mut view, at, u128::from(at), 4_000));
        let one = view.entry_bytes;
        let mut waiting = Vec::new();
        for at in 401..=600 {
            put(&mut view, at, u128::from(at), 4_000);
            let (bytes, position) = encoded(&mut view).unwrap();
            waiting.push(bytes);
            let known = view.replica.iter().map(presence_entry).filter(|entry| entry.id.counter <= position);
            let mut reader = Reader(Some(position), known.map(|entry| (entry.id, entry)).collect());
            reader.read(&mut view);
            assert_eq!(reader.1.len(), usize::try_from(at).unwrap());
        }
        let held = budget.held(MemoryPurpose::Presence) - view.entry_bytes;
        assert!(held <= 4 * one, "{held} bytes for 200 readers of {one}");
    }

    #[test]
    fn readers_wait_while_rosters_that_nobody_takes_use_up_the_memory() {
        let budget = MemoryBudget::default();
        let memory = budget.total().child(ShareKind::Document, 1024 * 1024);
        let mut view = PresenceView::new(Replica::new(NodeId::from_u64(1)), 0, memory);
        let (mut waiting, mut version) = (Vec::new(), 0);
        let starved = (0..100).find(|_| {
            // Everything changes, so that no earlier snapshot is of use.
            for connection in 0..40 {
                version += 1;
                put(&mut view, version, connection, 4_000);
            }
            view.sweep(Monotonic::from_elapsed(Duration::from_secs(version)));
            match encoded(&mut view) {
                Some((bytes, _)) => waiting.push(bytes),
                None => return true,
            }
            false
        });
        assert!(starved.is_some_and(|rounds| rounds >= 2), "{starved:?}");
        assert!(budget.held(MemoryPurpose::Presence) <= 1024 * 1024 + view.entry_bytes);
        waiting.clear();
        assert!(encoded(&mut view).is_some());
    }

    #[test]
    fn the_states_of_a_document_take_at_most_a_quarter_of_its_memory() {
        let budget = MemoryBudget::default();
        let memory = budget.total().child(ShareKind::Document, 256 * 1024);
        let mut view = PresenceView::new(Replica::new(NodeId::from_u64(1)), 0, memory);
        let state: JsonObject = serde_json::from_str(&format!(r#"{{"x":"{}"}}"#, "x".repeat(1000))).unwrap();
        let user = UserId::new("ada").unwrap();
        let taken = (1..=1_000).take_while(|at| {
            let is_reserved = view.reserve_state(&user, &state).is_ok();
            if is_reserved {
                view.put(*at, ConnectionId::from_u128(u128::from(*at)), user.clone(), state.clone());
            }
            is_reserved
        });
        assert_eq!(taken.count(), 64 * 1024 / ReplicaEntry::bytes_of(&user, &state));
        assert!(budget.held(MemoryPurpose::Presence) <= 64 * 1024);
        assert_eq!(budget.refusals(ShareKind::Document), 1);
        view.remove(2_000, ConnectionId::from_u128(1));
        assert!(view.reserve_state(&user, &state).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn readers_at_any_distance_know_the_present_and_tombstones_are_bounded(steps in steps()) {
            let mut view = empty_view();
            let mut readers: [Reader; 3] = Default::default();
            let (mut version, mut now) = (0, Monotonic::ZERO);
            for step in steps {
                version += 1;
                match step {
                    Step::Put(connection, bytes) => put(&mut view, version, connection, bytes),
                    Step::Remove(connection) => view.remove(version, ConnectionId::from_u128(connection)),
                    Step::Sweep(after) => {
                        now += after;
                        view.sweep(now);
                    }
                    Step::Read(reader) => readers[reader].read(&mut view),
                }
                let entries: usize = view.replica.iter().map(|(_, entry)| entry.approx_bytes()).sum();
                prop_assert_eq!(view.entry_bytes, entries);
                if let Some(cached) = &view.snapshot
                    && cached.version >= view.tombstones.oldest_diffable()
                {
                    let came = view.by_version.iter().filter(|(at, _)| *at > cached.version);
                    let came = came.filter_map(|(_, key)| view.replica.get(*key));
                    let left = view.tombstones.after(cached.version).filter(|one| one.added_at <= cached.version);
                    let changed: usize =
                        came.chain(left.map(|one| &one.entry)).map(ReplicaEntry::approx_bytes).sum();
                    prop_assert_eq!(cached.changed_bytes, changed);
                }
                let buried: usize = view.tombstones.after(0).map(|one| one.entry.approx_bytes()).sum();
                prop_assert!(buried <= entries.max(256 * 1024), "{} bytes", buried);
            }
            for reader in &mut readers {
                // A shared snapshot may be older than the present.
                (0..2).for_each(|_| reader.read(&mut view));
                let known: Vec<PresenceEntry> = reader.1.values().cloned().collect();
                let mut present = view.snapshot().entries.clone();
                present.sort_by_key(|entry| entry.id);
                prop_assert_eq!(known, present);
            }
            // In a document where nothing changes, no tombstone outlasts two generations.
            for _ in 0..3 {
                now += Duration::from_secs(30);
                view.sweep(now);
            }
            prop_assert_eq!(view.tombstones.after(0).count(), 0);
        }
    }
}
