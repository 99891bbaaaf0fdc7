//! The numbers of dead letters, kept in step with the database.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::ServiceName;

/// The number of dead letters of each target. Only the writer of the store changes it. Clones share it.
#[derive(Clone, Default)]
pub(super) struct LetterCounts(Arc<Mutex<HashMap<ServiceName, LetterCount>>>);

/// The dead letters of one target.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LetterCount {
    /// The letters that are kept.
    pub(super) kept: usize,
    /// The letters that gave way to newer ones since the store was opened.
    pub(super) dropped: u64,
}

/// The letters that a batch adds and removes, by target.
#[derive(Debug, Default)]
pub(super) struct LetterChanges(HashMap<ServiceName, LetterChange>);

#[derive(Debug, Default)]
struct LetterChange {
    added: usize,
    removed: usize,
    dropped: usize,
}

impl LetterCounts {
    pub(super) fn get(&self, target: &ServiceName) -> LetterCount {
        self.0.lock().get(target).copied().unwrap_or_default()
    }

    pub(super) fn apply(&self, changes: LetterChanges) {
        let mut counts = self.0.lock();
        for (target, LetterChange { added, removed, dropped }) in changes.0 {
            let count = counts.entry(target.clone()).or_default();
            count.kept = (count.kept + added).saturating_sub(removed + dropped);
            count.dropped += dropped as u64;
            if count.kept == 0 && count.dropped == 0 {
                counts.remove(&target);
            }
        }
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

    /// Notes that `count` letters give way to newer ones.
    pub(super) fn drop_oldest(&mut self, target: ServiceName, count: usize) {
        self.0.entry(target).or_default().dropped += count;
    }

    pub(super) fn remove(&mut self, target: ServiceName) {
        self.0.entry(target).or_default().removed += 1;
    }
}
