//! What has happened to locks, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::document_locks::ChangeKind;

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct LockCounters {
    granted: Counter,
    renewed: Counter,
    ended: Counter,
    /// Requests that were refused.
    pub(super) refused: Counter,
    /// Changes that could not be published.
    pub(super) unpublished: Counter,
}

/// Sums over all documents since the start, and what there is now. One consistent moment is not promised.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LockStats {
    /// Documents that have locks, or requests that wait, or changes to be published.
    pub documents: usize,
    /// Changes that wait to be published, over all documents, or are being published.
    pub pending_changes: usize,
    /// Locks granted.
    pub granted: u64,
    /// Leases prolonged.
    pub renewed: u64,
    /// Locks that ended, for whatever reason.
    pub ended: u64,
    /// Requests that were refused: busy, stale, over a limit, or too late.
    pub refused: u64,
    /// Changes that could not be published.
    pub failed_changes: u64,
}

impl LockCounters {
    pub(super) fn count(&self, kind: ChangeKind) {
        let counter = match kind {
            ChangeKind::Granted => &self.granted,
            ChangeKind::Renewed => &self.renewed,
            ChangeKind::Ended(_) => &self.ended,
        };
        counter.add(1);
    }

    pub(super) fn snapshot(&self, documents: usize, pending_changes: usize) -> LockStats {
        LockStats {
            documents,
            pending_changes,
            granted: self.granted.get(),
            renewed: self.renewed.get(),
            ended: self.ended.get(),
            refused: self.refused.get(),
            failed_changes: self.unpublished.get(),
        }
    }
}
