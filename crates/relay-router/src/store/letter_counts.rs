//! The numbers of dead letters, kept in step with the database.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::ServiceName;

/// The number of dead letters of each target. Only the writer of the store changes it. Clones share it.
#[derive(Clone, Default)]
pub(super) struct LetterCounts(Arc<Mutex<HashMap<ServiceName, LetterCount>>>);

/// The dead letters of one target.
#[derive(Debug, Default)]
struct LetterCount {
    kept: usize,
    dropped: u64,
    /// The key from which on the kept letters are found; empty when none is known. The engine keeps a mark of each removed
    /// letter for a while, and a search from the first key would pass over all of them.
    first_key: Vec<u8>,
}

/// The letters that a batch adds and removes, by target.
#[derive(Debug, Default)]
pub(super) struct LetterChanges(HashMap<ServiceName, LetterChange>);

#[derive(Debug, Default)]
struct LetterChange {
    added: usize,
    removed: usize,
    dropped: usize,
    /// The key of the last stored letter that is dropped.
    last_dropped: Option<Vec<u8>>,
    /// The lowest key that is written.
    lowest_written: Option<Vec<u8>>,
}

impl LetterCounts {
    /// The letters of the target that are kept.
    pub(super) fn kept(&self, target: &ServiceName) -> usize {
        self.0.lock().get(target).map_or(0, |count| count.kept)
    }

    /// The letters of the target that gave way to newer ones since the store was made.
    pub(super) fn dropped(&self, target: &ServiceName) -> u64 {
        self.0.lock().get(target).map_or(0, |count| count.dropped)
    }

    /// Begins with the letters that gave way in earlier runs.
    pub(super) fn restore_dropped(&self, target: ServiceName, dropped: u64) {
        self.0.lock().entry(target).or_default().dropped = dropped;
    }

    pub(super) fn apply(&self, changes: LetterChanges) {
        let mut counts = self.0.lock();
        for (target, change) in changes.0 {
            let LetterChange { added, removed, dropped, last_dropped, lowest_written } = change;
            let count = counts.entry(target.clone()).or_default();
            count.kept = (count.kept + added).saturating_sub(removed + dropped);
            count.dropped += dropped as u64;
            if let Some(key) = last_dropped {
                count.first_key = key;
            }
            if let Some(key) = lowest_written.filter(|key| *key < count.first_key) {
                count.first_key = key;
            }
            if count.kept == 0 && count.dropped == 0 {
                counts.remove(&target);
            }
        }
    }

    /// A key that is not behind any letter of the target.
    pub(super) fn first_key(&self, target: &ServiceName) -> Option<Vec<u8>> {
        let counts = self.0.lock();
        counts.get(target).map(|count| count.first_key.clone()).filter(|key| !key.is_empty())
    }

    /// The targets that `changes` take beyond `max` letters, with the number of letters that must go.
    pub(super) fn excess(&self, changes: &LetterChanges, max: usize) -> Vec<(ServiceName, usize)> {
        let counts = self.0.lock();
        let excess = changes.0.iter().map(|(target, change)| {
            let kept = counts.get(target).map_or(0, |count| count.kept);
            (target.clone(), (kept + change.added).saturating_sub(change.removed).saturating_sub(max))
        });
        excess.filter(|(_, excess)| *excess > 0).collect()
    }
}

impl LetterChanges {
    pub(super) fn add(&mut self, target: ServiceName) {
        self.0.entry(target).or_default().added += 1;
    }

    /// Notes that a letter is written, whether it is new or not.
    pub(super) fn write(&mut self, target: ServiceName, key: &[u8]) {
        let change = self.0.entry(target).or_default();
        if change.lowest_written.as_deref().is_none_or(|lowest| key < lowest) {
            change.lowest_written = Some(key.to_vec());
        }
    }

    /// Notes that `count` letters give way to newer ones. The last of them that is stored has the key `last`.
    pub(super) fn drop_excess(&mut self, target: ServiceName, count: usize, last: Option<Vec<u8>>) {
        let change = self.0.entry(target).or_default();
        change.dropped += count;
        change.last_dropped = last;
    }

    pub(super) fn remove(&mut self, target: ServiceName) {
        self.0.entry(target).or_default().removed += 1;
    }
}
