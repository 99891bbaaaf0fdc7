//! The dead letters of all targets. They stay until an operator requeues or drops them. Each target has a limit;
//! beyond it the oldest ones give way to new ones.

use relay_core::ServiceName;

use crate::records::DeadLetter;
use crate::store::{Store, StoreError, WriteBatch};

/// The most dead letters in one page.
pub(crate) const MAX_PAGE: usize = 1_000;

/// The dead letters of all targets.
pub(crate) struct DeadLetters {
    store: Store,
    /// The most that are kept for each target.
    max_per_target: usize,
}

impl DeadLetters {
    pub(crate) fn new(store: Store, max_per_target: usize) -> Self {
        Self { store, max_per_target }
    }

    /// The number of dead letters of the target.
    pub(crate) fn count(&self, target: &ServiceName) -> usize {
        self.store.dead_letter_count(target)
    }

    /// Adds `letters` of `target` to `batch`, which also removes the oldest ones beyond the limit. Returns the number of
    /// those.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn add(
        &self,
        batch: &mut WriteBatch,
        target: &ServiceName,
        letters: &[DeadLetter],
    ) -> Result<usize, StoreError> {
        let excess = (self.count(target) + letters.len()).saturating_sub(self.max_per_target);
        let oldest = if excess == 0 {
            Vec::new()
        } else {
            self.store.dead_letters(target.clone(), None, excess.min(MAX_PAGE)).await?
        };
        for oldest in &oldest {
            batch.remove_dead_letter(target, oldest.id);
        }
        for letter in letters {
            batch.dead_letter(letter);
        }
        Ok(oldest.len())
    }
}
