//! The writer's memory of documents, so that an append to a lively document reads nothing.
//!
//! Two generations: what is used moves to the young one; when that is full it becomes the old one, and what was in the
//! old one and not used since is forgotten. So the size is bounded, and a lively document stays.

use std::collections::HashMap;

use relay_core::DocumentId;

use crate::store::DocumentState;

/// Documents in memory, about those used last.
pub(crate) struct HeadCache {
    young: HashMap<DocumentId, DocumentState>,
    old: HashMap<DocumentId, DocumentState>,
    generation: usize,
}

impl HeadCache {
    /// A memory for at most `capacity` documents.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), generation: capacity.div_ceil(2) }
    }

    pub(crate) fn get(&self, id: &DocumentId) -> Option<DocumentState> {
        self.young.get(id).or_else(|| self.old.get(id)).copied()
    }

    pub(crate) fn put(&mut self, id: &DocumentId, document: DocumentState) {
        if self.young.len() >= self.generation && !self.young.contains_key(id) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(id);
        self.young.insert(id.clone(), document);
    }
}

#[cfg(test)]
mod tests {
    use relay_core::Timestamp;

    use super::*;

    #[test]
    fn a_document_in_use_is_never_forgotten_and_the_memory_stays_bounded() {
        let mut heads = HeadCache::new(8);
        let document = |last| DocumentState {
            number: 1,
            trimmed: 0,
            last,
            dropped_bytes: 0,
            total_bytes: 0,
            oldest: Timestamp::UNIX_EPOCH,
        };
        let lively = DocumentId::new("lively").unwrap();
        for n in 0..100 {
            heads.put(&lively, document(n));
            heads.put(&DocumentId::new(format!("idle {n}")).unwrap(), document(n));
            assert_eq!(heads.get(&lively).unwrap().last, n);
            assert!(heads.young.len() + heads.old.len() <= 8);
        }
        assert_eq!(heads.get(&DocumentId::new("idle 0").unwrap()), None);
    }
}
