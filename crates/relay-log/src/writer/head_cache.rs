//! A bounded cache of documents' states, so that an append to a busy document reads nothing from the store.
//!
//! It has two generations. An entry that is written moves to the young one. When the young generation is full it becomes
//! the old one, and the entries of the previous old one are evicted. The size is bounded, and busy documents stay.

use std::collections::HashMap;

use relay_core::DocumentId;

use crate::store::DocumentState;

/// The states of the documents that were written last.
pub(super) struct HeadCache {
    young: HashMap<DocumentId, DocumentState>,
    old: HashMap<DocumentId, DocumentState>,
    generation: usize,
}

impl HeadCache {
    /// Creates a cache for at most `capacity` documents.
    pub(super) fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), generation: capacity.div_ceil(2) }
    }

    pub(super) fn get(&self, id: &DocumentId) -> Option<DocumentState> {
        self.young.get(id).or_else(|| self.old.get(id)).copied()
    }

    pub(super) fn put(&mut self, id: &DocumentId, document: DocumentState) {
        if self.young.len() >= self.generation && !self.young.contains_key(id) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(id);
        self.young.insert(id.clone(), document);
    }
}

#[cfg(test)]
mod tests {
    use relay_core::{Offset, Seq};

    use super::*;
    use crate::store::DocumentKey;

    #[test]
    fn a_document_in_use_is_never_forgotten_and_the_memory_stays_bounded() {
        let mut heads = HeadCache::new(8);
        let document = |last| DocumentState {
            last: Seq::new(last),
            ..DocumentState::without_events(DocumentKey::of_first_event(Offset::new(1)), Seq::ZERO)
        };
        let lively = DocumentId::new("lively").unwrap();
        for n in 0..100 {
            heads.put(&lively, document(n));
            heads.put(&DocumentId::new(format!("idle {n}")).unwrap(), document(n));
            assert_eq!(heads.get(&lively).unwrap().last, Seq::new(n));
            assert!(heads.young.len() + heads.old.len() <= 8);
        }
        assert_eq!(heads.get(&DocumentId::new("idle 0").unwrap()), None);
    }
}
