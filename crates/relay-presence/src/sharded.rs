//! [`ShardedMap`]: a value for each document, behind several locks, so that documents of different shards do not wait for
//! each other.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::{Mutex, MutexGuard};
use relay_core::DocumentId;

/// The number of locks.
const SHARDS: usize = 16;

/// The values of the documents of one shard.
pub(crate) type MapShard<V> = HashMap<DocumentId, V>;

/// A map from documents to values. Each shard has its own lock, which is held for short, synchronous steps only.
#[derive(Debug)]
pub(crate) struct ShardedMap<V> {
    shards: [Mutex<MapShard<V>>; SHARDS],
    hasher: RandomState,
}

impl<V> Default for ShardedMap<V> {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

impl<V> ShardedMap<V> {
    /// Locks the shard of `document`.
    pub(crate) fn lock(&self, document: &DocumentId) -> MutexGuard<'_, MapShard<V>> {
        let hash = self.hasher.hash_one(document);
        // The remainder is smaller than the number of shards.
        #[allow(clippy::cast_possible_truncation)]
        self.shards[(hash % SHARDS as u64) as usize].lock()
    }

    /// Lends the value of `document` to `visit`. Returns `None` when there is no value.
    pub(crate) fn with<T>(&self, document: &DocumentId, visit: impl FnOnce(&mut V) -> T) -> Option<T> {
        self.lock(document).get_mut(document).map(visit)
    }

    /// Lends every value to `visit`, and holds the lock of one shard at a time.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&DocumentId, &V)) {
        for shard in &self.shards {
            shard.lock().iter().for_each(|(document, value)| visit(document, value));
        }
    }

    /// The documents that have a value when their shard is reached. No lock is held while the caller handles one.
    pub(crate) fn documents(&self) -> impl Iterator<Item = DocumentId> {
        self.shards.iter().flat_map(|shard| shard.lock().keys().cloned().collect::<Vec<_>>())
    }
}
