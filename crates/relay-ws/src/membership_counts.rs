//! [`MembershipCounts`]: the documents that connections have joined, with the number of their members on all shards.

use std::collections::HashMap;

use parking_lot::Mutex;
use relay_core::DocumentId;

use crate::stats::RoomStats;

/// The number of members of each document. A document without members has no entry.
#[derive(Debug, Default)]
pub(crate) struct MembershipCounts(Mutex<HashMap<DocumentId, usize>>);

impl MembershipCounts {
    /// Counts one more member of `document`.
    pub(crate) fn increment(&self, document: &DocumentId) {
        let mut counts = self.0.lock();
        match counts.get_mut(document) {
            Some(count) => *count += 1,
            None => {
                counts.insert(document.clone(), 1);
            }
        }
    }

    /// Counts one member of `document` less.
    pub(crate) fn decrement(&self, document: &DocumentId) {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get_mut(document) {
            *count -= 1;
            if *count == 0 {
                counts.remove(document);
            }
        }
    }

    /// The documents with their numbers of members, in no order.
    pub(crate) fn list(&self) -> Vec<RoomStats> {
        let counts = self.0.lock();
        counts
            .iter()
            .map(|(document, count)| RoomStats { document: document.clone(), connections: *count })
            .collect()
    }

    /// The number of documents.
    pub(crate) fn documents(&self) -> usize {
        self.0.lock().len()
    }
}
