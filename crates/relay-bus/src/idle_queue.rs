//! [`IdleQueue`]: the order in which idle documents are evicted, without a look at all documents for each.
//!
//! One look at all documents finds those that are idle for longest, and the next evictions take them in turn. A document that is
//! used in between is passed by: from then on it is idle for a shorter time than all that were found. So each eviction takes the
//! document that is idle for longest, as if it had looked itself.

use std::collections::BinaryHeap;

use relay_core::{DocumentId, Monotonic};

/// The most documents that a look keeps.
const KEPT: usize = 1024;

/// The documents that a look found, and the time since when each is idle.
#[derive(Debug, Default)]
pub(crate) struct IdleQueue {
    /// The one that is idle for longest is the last.
    found: Vec<(Monotonic, DocumentId)>,
    /// The calls that are answered without a look, after one that found nothing.
    skipped: usize,
}

impl IdleQueue {
    /// Takes the document that is idle for longest. `idle` gives all that are idle now, and `idle_since` the time of one of
    /// them. After a look among `documents` that found none, as many calls return none at once as make up for it.
    pub(crate) fn take<'d, I: Iterator<Item = (Monotonic, &'d DocumentId)>>(
        &mut self,
        documents: usize,
        idle: impl FnOnce() -> I,
        idle_since: impl Fn(&DocumentId) -> Option<Monotonic>,
    ) -> Option<DocumentId> {
        while let Some((since, document)) = self.found.pop() {
            if idle_since(&document) == Some(since) {
                return Some(document);
            }
        }
        if self.skipped > 0 {
            self.skipped -= 1;
            return None;
        }
        self.found = longest_idle(idle());
        let taken = self.found.pop().map(|(_, document)| document);
        if taken.is_none() {
            self.skipped = documents / KEPT;
        }
        taken
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

    fn take(queue: &mut IdleQueue, documents: &Documents, looks: &Cell<usize>) -> Option<DocumentId> {
        let idle = || {
            looks.set(looks.get() + 1);
            documents.iter().filter_map(|(document, since)| Some(((*since)?, document)))
        };
        queue.take(documents.len(), idle, |document| *documents.get(document)?)
    }

    #[test]
    fn one_look_serves_many_evictions() {
        let mut documents: Documents = (0..10 * KEPT).map(|number| (document(number), Some(at(1)))).collect();
        let (mut queue, looks) = (IdleQueue::default(), Cell::new(0));
        while let Some(taken) = take(&mut queue, &documents, &looks) {
            documents.remove(&taken);
        }
        assert_eq!((documents.len(), looks.get()), (0, 11));
    }

    #[test]
    fn documents_that_are_all_used_are_not_looked_at_by_each_that_asks() {
        let mut documents: Documents = (0..10 * KEPT).map(|number| (document(number), None)).collect();
        let (mut queue, looks) = (IdleQueue::default(), Cell::new(0));
        for _ in 0..110 {
            assert_eq!(take(&mut queue, &documents, &looks), None);
        }
        assert_eq!(looks.get(), 10);
        documents.insert(document(7), Some(at(1)));
        let taken = (0..=10).find_map(|_| take(&mut queue, &documents, &looks));
        assert_eq!(taken, Some(document(7)));
        // A few are looked at each time.
        let few = Documents::from([(document(1), None)]);
        looks.set(0);
        assert_eq!([(); 3].map(|()| take(&mut queue, &few, &looks)), [None, None, None]);
        assert_eq!(looks.get(), 3);
    }

    proptest! {
        /// Compared with a look at all documents each time. The time goes on with each step.
        #[test]
        fn the_longest_idle_document_is_taken_whatever_is_used_in_between(
            steps in prop::collection::vec((0..6_usize, 0..3_u8), 1..60),
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
                        let taken = take(&mut queue, &documents, &looks);
                        prop_assert_eq!(&taken, &longest);
                        taken.map(|taken| documents.remove(&taken));
                    }
                }
            }
        }
    }
}
