//! The ids of a document's latest events, by which a draft that is sent again is recognised.
//!
//! The index is filled when a draft with an id comes, and only then: with the events since the last such draft. A document
//! whose publishers choose no ids pays nothing for it. Ids of events that have left memory by then are read from the log.

use std::collections::HashMap;

use relay_core::{EventId, MemoryPurpose, MemoryShare, Reservation, Seq};

use crate::event_cache::EventCache;

/// An index from ids to seqs that covers the events after one seq up to another one.
#[derive(Debug)]
pub(crate) struct RecentIds {
    seqs: HashMap<EventId, Seq>,
    after: Seq,
    through: Seq,
    /// The number of latest events whose ids are remembered. The index has up to a quarter more, so that it is seldom searched
    /// for those that go.
    window: u64,
    /// The bytes of the index.
    reserved: Reservation,
}

/// Events whose ids must be read from the log: those after `after` up to and including `through`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MissingIds {
    pub(crate) after: Seq,
    pub(crate) through: Seq,
}

impl RecentIds {
    /// Returns an empty index of the latest `window` events. Its memory counts in `share`.
    pub(crate) fn new(window: u64, share: &MemoryShare) -> Self {
        let reserved = share.charge(MemoryPurpose::Events, 0);
        Self { seqs: HashMap::new(), after: Seq::ZERO, through: Seq::ZERO, window, reserved }
    }

    /// Drops the index. The next draft with an id fills it again.
    pub(crate) fn clear(&mut self) {
        (self.seqs, self.after, self.through) = (HashMap::new(), Seq::ZERO, Seq::ZERO);
        self.reserved.resize(0);
    }

    fn count_bytes(&mut self) {
        // A hash table has one more byte for each slot.
        self.reserved.resize(self.seqs.capacity() * (size_of::<(EventId, Seq)>() + 1));
    }

    /// The event before the window, when `last` is the latest event.
    fn window_start(&self, last: Seq) -> Seq {
        Seq::new(last.get().saturating_sub(self.window))
    }

    /// The events of the window that are neither covered nor in `cache`; `None` when there is none. There may be others when
    /// these were added.
    pub(crate) fn missing(&self, cache: &EventCache) -> Option<MissingIds> {
        let (start, uncached) = (self.window_start(cache.last()), before(cache));
        let (after, through) =
            if self.through < uncached { (start.max(self.through), uncached) } else { (start, self.after) };
        (after < through).then_some(MissingIds { after, through })
    }

    /// Adds the ids of events that were missing. The index covers all of `range` then.
    pub(crate) fn add(&mut self, ids: impl IntoIterator<Item = (EventId, Seq)>, range: MissingIds) {
        self.seqs.extend(ids);
        if range.through == self.after {
            self.after = range.after;
        } else {
            if self.through < range.after {
                self.after = range.after;
            }
            self.through = range.through;
        }
        self.count_bytes();
    }

    /// Removes the ids of the events before `first`.
    pub(crate) fn forget_before(&mut self, first: Seq) {
        self.seqs.retain(|_, seq| *seq >= first);
    }

    /// The seq of the event with `id`, if the event is in `cache` or its id in the index.
    pub(crate) fn find(&mut self, id: EventId, cache: &EventCache) -> Option<Seq> {
        let (start, uncached) = (self.window_start(cache.last()), before(cache));
        if self.through < uncached {
            (self.after, self.through) = (uncached, uncached);
        }
        if self.through < cache.last() {
            let new = cache.after(self.through.max(start)).into_iter().flatten();
            self.seqs.extend(new.filter_map(|event| Some((event.id, event.seq?))));
            self.through = cache.last();
            if self.seqs.len() as u64 > self.window.saturating_add(self.window / 4) {
                self.seqs.retain(|_, seq| *seq > start);
            }
            self.count_bytes();
        }
        self.seqs.get(&id).copied().filter(|seq| *seq > start)
    }
}

/// The last event before those in `cache`.
fn before(cache: &EventCache) -> Seq {
    Seq::new(cache.first().get() - 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use relay_core::{DocumentId, Draft, Epoch, Event, MemoryBudget, Payload, Retention, Timestamp};

    use super::*;

    fn event(seq: u64) -> Arc<Event> {
        let kind = relay_events::kind("x-note").unwrap();
        let draft = Draft::new(DocumentId::new("doc").unwrap(), kind, Payload::json(&seq).unwrap());
        let draft = draft.id(EventId::from_u128(seq.into()));
        Arc::new(draft.into_event(Epoch::from_u64(1), Some(Seq::new(seq)), Timestamp::UNIX_EPOCH))
    }

    #[derive(Debug, Clone)]
    enum Step {
        Publish(u64),
        /// Looks for the id of an event, in memory alone or in the whole window.
        Find {
            seq: u64,
            in_memory: bool,
        },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..9_u64).prop_map(Step::Publish),
            (1..60_u64, any::<bool>()).prop_map(|(seq, in_memory)| Step::Find { seq, in_memory }),
        ];
        prop::collection::vec(step, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Every event of the window is found, whatever came before and whatever memory holds.
        #[test]
        fn every_event_of_the_window_is_found(steps in steps(), opened_at in 0..30_u64, cached in 1..9_u64, window in 1..20_u64) {
            let limits = Retention { max_events: cached, ..Retention::default() };
            let budget = MemoryBudget::default();
            let mut cache = EventCache::new(Seq::new(opened_at), limits, budget.caches().clone());
            let mut ids = RecentIds::new(window, budget.caches());
            for step in steps {
                match step {
                    Step::Publish(count) => for _ in 0..count {
                        let event = event(cache.last().get() + 1);
                        let bytes = event.approx_bytes();
                        cache.push(event, bytes, None);
                    },
                    Step::Find { seq, in_memory } => {
                        let mut loads = 0;
                        while let Some(range) = ids.missing(&cache).filter(|_| !in_memory) {
                            let missing = range.after.get() + 1..=range.through.get();
                            ids.add(missing.map(|seq| (EventId::from_u128(seq.into()), Seq::new(seq))), range);
                            loads += 1;
                            prop_assert!(loads <= 2, "{range:?} is still missing");
                        }
                        let last = cache.last().get();
                        let found = ids.find(EventId::from_u128(seq.into()), &cache);
                        let first = if in_memory { cache.first().get() } else { 1 };
                        if seq >= first && seq <= last && seq + window > last {
                            prop_assert_eq!(found, Some(Seq::new(seq)));
                        } else {
                            prop_assert!(found.is_none_or(|found| found.get() == seq && seq <= last));
                        }
                        prop_assert!(ids.seqs.len() as u64 <= window + window / 4 + window);
                    }
                }
            }
        }
    }
}
