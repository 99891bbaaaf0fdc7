//! [`IdleQueue`]: the order in which idle documents are evicted, without a look at all documents for each.
//!
//! One look at all documents finds those that are idle for longest, and the next evictions take them in turn. A document that is
//! used in between is passed by: from then on it is idle for a shorter time than all that were found. So each eviction takes the
//! document that is idle for longest, as if it had looked itself.

use std::collections::BinaryHeap;
use std::time::Duration;

use relay_core::{DocumentId, Monotonic};

/// The most documents that a look keeps.
const KEPT: usize = 1024;
/// The pause after a look that found nothing, for each [`KEPT`] documents. It is many times as long as the look takes.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest pause. A document that becomes idle meanwhile is found after it.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// The documents that a look found, and the time since when each is idle.
#[derive(Debug, Default)]
pub(crate) struct IdleQueue {
    /// The one that is idle for longest is the last.
    found: Vec<(Monotonic, DocumentId)>,
    /// The time before which there is no other look, since the last one found nothing.
    look_again_at: Monotonic,
}

impl IdleQueue {
    /// Returns the document that is idle for longest at `now`, which the caller evicts or leaves. `idle` gives all that are idle,
    /// and `idle_since` the time of one of them. A look among many `documents` that finds none is not repeated at once.
    pub(crate) fn first<'d, I: Iterator<Item = (Monotonic, &'d DocumentId)>>(
        &mut self,
        now: Monotonic,
        documents: usize,
        idle: impl FnOnce() -> I,
        idle_since: impl Fn(&DocumentId) -> Option<Monotonic>,
    ) -> Option<DocumentId> {
        while let Some((since, document)) = self.found.last() {
            if idle_since(document) == Some(*since) {
                return Some(document.clone());
            }
            self.found.pop();
        }
        if now < self.look_again_at {
            return None;
        }
        self.found = longest_idle(idle());
        if self.found.is_empty() {
            let pause = PAUSE.saturating_mul(u32::try_from(documents / KEPT).unwrap_or(u32::MAX));
            self.look_again_at = now + pause.min(MAX_PAUSE);
        }
        self.found.last().map(|(_, document)| document.clone())
    }
}

/// Returns the documents that are idle for longest, the very longest last.
fn longest_idle<'d>(idle: impl Iterator<Item = (Monotonic, &'d DocumentId)>) -> Vec<(Monotonic, DocumentId)> {
    // The one that is idle for the shortest time is on top.
    let mut found = BinaryHeap::with_capacity(KEPT);
    for entry in idle {
        if found.len() < KEPT {
            found.push(entry);
        } else if let Some(mut top) = found.peek_mut()
            && entry < *top
        {
            *top = entry;
        }
    }
    let found = found.into_sorted_vec().into_iter().rev();
    found.map(|(since, document)| (since, document.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Documents with the times since when they are idle; `None` for one that is used.
    type Documents = BTreeMap<DocumentId, Option<Monotonic>>;

    fn document(number: usize) -> DocumentId {
        DocumentId::new(number.to_string()).unwrap()
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic::default() + Duration::from_secs(seconds)
    }

    fn first(
        queue: &mut IdleQueue,
        now: Monotonic,
        documents: &Documents,
        looks: &Cell<usize>,
    ) -> Option<DocumentId> {
        let idle = || {
            looks.set(looks.get() + 1);
            documents.iter().filter_map(|(document, since)| Some(((*since)?, document)))
        };
        queue.first(now, documents.len(), idle, |document| *documents.get(document)?)
    }

    #[test]
    fn one_look_serves_many_evictions() {
        let mut documents: Documents = (0..10 * KEPT).map(|number| (document(number), Some(at(1)))).collect();
        let (mut queue, looks) = (IdleQueue::default(), Cell::new(0));
        while let Some(first) = first(&mut queue, at(2), &documents, &looks) {
            documents.remove(&first);
        }
        assert_eq!((documents.len(), looks.get()), (0, 11));
    }

    #[test]
    fn one_look_serves_many_that_ask_if_a_document_is_idle() {
        let documents: Documents = (0..10 * KEPT).map(|number| (document(number), Some(at(1)))).collect();
        let (mut queue, looks) = (IdleQueue::default(), Cell::new(0));
        for _ in 0..10 * KEPT {
            assert!(first(&mut queue, at(2), &documents, &looks).is_some());
        }
        assert_eq!(looks.get(), 1);
    }

    #[test]
    fn documents_that_are_all_used_are_not_looked_at_by_each_that_asks() {
        let mut documents: Documents = (0..10 * KEPT).map(|number| (document(number), None)).collect();
        let (mut queue, looks) = (IdleQueue::default(), Cell::new(0));
        let millis = |millis| at(2) + Duration::from_millis(millis);
        for now in 0..1000 {
            assert_eq!(first(&mut queue, millis(now), &documents, &looks), None);
        }
        assert_eq!(looks.get(), 10);
        documents.insert(document(7), Some(at(1)));
        assert_eq!(first(&mut queue, millis(999), &documents, &looks), None);
        assert_eq!(first(&mut queue, millis(1000), &documents, &looks), Some(document(7)));
        // A few are looked at each time.
        let few = Documents::from([(document(1), None)]);
        queue = IdleQueue::default();
        looks.set(0);
        assert_eq!([(); 3].map(|()| first(&mut queue, at(2), &few, &looks)), [None, None, None]);
        assert_eq!(looks.get(), 3);
    }

    proptest! {
        /// Compared with a look at all documents each time. The time goes on with each step.
        #[test]
        fn the_longest_idle_document_is_first_whatever_is_used_in_between(
            steps in prop::collection::vec((0..6_usize, 0..4_u8), 1..60),
        ) {
            let (mut documents, mut queue) = (Documents::new(), IdleQueue::default());
            let looks = Cell::new(0);
            for ((number, action), now) in steps.into_iter().zip(1..) {
                match action {
                    0 => { documents.insert(document(number), Some(at(now))); }
                    1 => { documents.insert(document(number), None); }
                    _ => {
                        let idle = documents.iter().filter_map(|(document, since)| Some(((*since)?, document)));
                        let longest = idle.min().map(|(_, document)| document.clone());
                        let first = first(&mut queue, at(now), &documents, &looks);
                        prop_assert_eq!(&first, &longest);
                        if action == 2 {
                            first.map(|first| documents.remove(&first));
                        }
                    }
                }
            }
        }
    }
}
