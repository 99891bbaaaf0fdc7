//! The latest decisions about lost events, of which a bounded number is kept.

use std::sync::Arc;

use fjall::Keyspace;
use parking_lot::Mutex;

/// The number of the kept losses, in step with the database. Only the writer of the store changes it. Clones share it.
#[derive(Clone, Default)]
pub(super) struct LossRing(Arc<Mutex<Ring>>);

#[derive(Default)]
struct Ring {
    count: usize,
    /// The key from which on the kept losses are found. The engine keeps a mark of each removed one for a while, and a search
    /// from the first key would pass over all of them.
    first_key: Vec<u8>,
}

impl LossRing {
    /// The keys of the oldest stored losses that give way to `added` newer ones, so that `max` remain. A batch with more than
    /// `max` is kept until the next one.
    pub(super) fn excess(
        &self,
        losses: &Keyspace,
        added: usize,
        max: usize,
    ) -> Result<Vec<Vec<u8>>, fjall::Error> {
        let (excess, first_key) = {
            let Ring { count, first_key } = &*self.0.lock();
            ((count + added).saturating_sub(max).min(*count), first_key.clone())
        };
        if excess == 0 {
            return Ok(Vec::new());
        }
        losses.range(first_key..).take(excess).map(|item| Ok(item.key()?.to_vec())).collect()
    }

    /// Notes that the losses with the keys `added` were written and the oldest ones, `removed`, were removed.
    pub(super) fn apply(&self, added: &[impl AsRef<[u8]>], removed: &[Vec<u8>]) {
        let mut ring = self.0.lock();
        ring.count = ring.count + added.len() - removed.len();
        if let Some(last) = removed.last() {
            ring.first_key.clone_from(last);
        }
        // Decisions get their numbers before they are written, so one may come behind a later one.
        let lowest = added.iter().map(AsRef::as_ref).min();
        if let Some(key) = lowest.filter(|key| **key < *ring.first_key) {
            ring.first_key = key.to_vec();
        }
    }
}
