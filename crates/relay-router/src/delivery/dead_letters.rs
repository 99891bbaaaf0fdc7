//! The dead letters of all targets, counted. They stay until an operator requeues or drops them. Each target has a
//! limit; beyond it the oldest ones make room for new ones.

use std::collections::HashMap;

use parking_lot::Mutex;
use relay_core::ServiceName;

use crate::records::{DeadLetter, DeadLetterId};
use crate::store::{Store, StoreError, WriteBatch};

/// The most dead letters in one page.
pub(crate) const MAX_PAGE: usize = 1_000;

/// The dead letters of all targets.
pub(crate) struct DeadLetters {
    store: Store,
    /// The most that are kept for each target.
    max_per_target: usize,
    counts: Mutex<HashMap<ServiceName, usize>>,
}

impl DeadLetters {
    pub(crate) fn new(
        store: Store,
        max_per_target: usize,
        counts: impl IntoIterator<Item = (ServiceName, usize)>,
    ) -> Self {
        Self { store, max_per_target, counts: Mutex::new(counts.into_iter().collect()) }
    }

    /// The number of dead letters of the target.
    pub(crate) fn count(&self, target: &ServiceName) -> usize {
        self.counts.lock().get(target).copied().unwrap_or(0)
    }

    /// Adds `letter` to `batch`. Returns the number of older ones that make room for it. [`DeadLetters::added`] must
    /// follow the commit.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn add(&self, batch: &mut WriteBatch, letter: &DeadLetter) -> Result<usize, StoreError> {
        let excess = (self.count(&letter.target) + 1).saturating_sub(self.max_per_target);
        let oldest = if excess == 0 {
            Vec::new()
        } else {
            self.store.dead_letters(letter.target.clone(), None, excess.min(MAX_PAGE)).await?
        };
        for oldest in &oldest {
            batch.remove_dead_letter(&letter.target, oldest.id);
        }
        batch.dead_letter(letter);
        Ok(oldest.len())
    }

    /// Counts a committed letter, and the `dropped` ones that made room for it.
    pub(crate) fn added(&self, target: &ServiceName, dropped: usize) {
        let mut counts = self.counts.lock();
        let count = counts.entry(target.clone()).or_default();
        *count = (*count + 1).saturating_sub(dropped);
    }

    /// Removes an existing letter with `batch`.
    pub(crate) fn remove(&self, batch: &mut WriteBatch, target: &ServiceName, id: DeadLetterId) {
        batch.remove_dead_letter(target, id);
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(target) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(target);
            }
        }
    }
}
