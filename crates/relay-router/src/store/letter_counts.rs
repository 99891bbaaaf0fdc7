//! The numbers of dead letters, kept in step with the database.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::ServiceName;

/// The number of dead letters of each target. Only the writer of the store changes it. Clones share it.
#[derive(Clone, Default)]
pub(super) struct LetterCounts(Arc<Mutex<HashMap<ServiceName, usize>>>);

/// The letters that a batch adds and removes, by target.
#[derive(Debug, Default)]
pub(super) struct LetterChanges(HashMap<ServiceName, LetterChange>);

#[derive(Debug, Default)]
struct LetterChange {
    added: usize,
    removed: usize,
}

impl LetterCounts {
    pub(super) fn get(&self, target: &ServiceName) -> usize {
        self.0.lock().get(target).copied().unwrap_or(0)
    }

    pub(super) fn apply(&self, changes: LetterChanges) {
        let mut counts = self.0.lock();
        for (target, LetterChange { added, removed }) in changes.0 {
            let count = counts.entry(target.clone()).or_default();
            *count = (*count + added).saturating_sub(removed);
            if *count == 0 {
                counts.remove(&target);
            }
        }
    }
}

impl LetterChanges {
    pub(super) fn add(&mut self, target: ServiceName) {
        self.0.entry(target).or_default().added += 1;
    }

    pub(super) fn remove(&mut self, target: ServiceName) {
        self.0.entry(target).or_default().removed += 1;
    }
}
