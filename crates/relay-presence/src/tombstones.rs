//! [`Tombstones`]: the entries that were removed from a document's presence, as long as readers may still have to be told.
//!
//! They are bounded in bytes and in time. A reader that is older than the dropped ones gets a snapshot instead of a
//! difference. So there is no use in more tombstones than the snapshot has bytes.

use std::collections::VecDeque;
use std::time::Duration;

use relay_core::Monotonic;

use crate::crdt::{ReplicaEntry, ReplicaKey};
use crate::version::Version;

/// The limit in bytes where the entries are smaller.
const MIN_LIMIT_BYTES: usize = 256 * 1024;
/// A tombstone is dropped after one to two generations of this length.
const GENERATION: Duration = Duration::from_secs(30);

/// An entry that was removed or replaced.
#[derive(Debug)]
pub(crate) struct Tombstone {
    pub(crate) added_at: Version,
    pub(crate) removed_at: Version,
    pub(crate) key: ReplicaKey,
    pub(crate) entry: ReplicaEntry,
}

/// The tombstones of one document.
#[derive(Debug)]
pub(crate) struct Tombstones {
    /// In the order of removal.
    list: VecDeque<Tombstone>,
    bytes: usize,
    oldest_diffable: Version,
    /// The version up to which tombstones are dropped when the present generation ends.
    previous_generation: Version,
    generation_ends_at: Option<Monotonic>,
}

impl Tombstones {
    /// No tombstones. A reader that is older than `version` gets a snapshot.
    pub(crate) fn new(version: Version) -> Self {
        Self {
            list: VecDeque::new(),
            bytes: 0,
            oldest_diffable: version,
            previous_generation: version,
            generation_ends_at: None,
        }
    }

    /// The oldest version from which a difference can be made.
    pub(crate) fn oldest_diffable(&self) -> Version {
        self.oldest_diffable
    }

    /// The tombstones of entries that were removed after `version`, the latest first.
    pub(crate) fn after(&self, version: Version) -> impl Iterator<Item = &Tombstone> {
        self.list.iter().rev().take_while(move |tombstone| tombstone.removed_at > version)
    }

    /// The size of the entries.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a tombstone. `snapshot_bytes` is the size of the entries that are left.
    pub(crate) fn push(&mut self, tombstone: Tombstone, snapshot_bytes: usize) {
        self.bytes += tombstone.entry.approx_bytes();
        self.list.push_back(tombstone);
        while self.bytes > snapshot_bytes.max(MIN_LIMIT_BYTES) {
            self.drop_first();
        }
    }

    /// Drops the tombstones that are old at `now`. `version` is the last change.
    pub(crate) fn expire(&mut self, now: Monotonic, version: Version) {
        let ends_at = *self.generation_ends_at.get_or_insert(now + GENERATION);
        if now < ends_at {
            return;
        }
        self.generation_ends_at = Some(now + GENERATION);
        while self.list.front().is_some_and(|first| first.removed_at <= self.previous_generation) {
            self.drop_first();
        }
        self.previous_generation = version;
    }

    fn drop_first(&mut self) {
        if let Some(dropped) = self.list.pop_front() {
            self.bytes -= dropped.entry.approx_bytes();
            self.oldest_diffable = dropped.removed_at;
        }
    }
}
