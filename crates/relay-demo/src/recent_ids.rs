//! The ids of recently handled events, by which a repeated delivery is found.

use std::collections::{HashSet, VecDeque};

use relay_core::EventId;

/// The ids of the latest events; older ones are dropped.
///
/// An event whose id was dropped is handled again when it is repeated. Its result has the same id as before, so it has no
/// second effect.
#[derive(Debug)]
pub(crate) struct RecentIds {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
    most: usize,
}

impl RecentIds {
    /// Creates a set that holds at most `most` ids.
    pub(crate) fn new(most: usize) -> Self {
        Self { ids: HashSet::new(), order: VecDeque::new(), most }
    }

    pub(crate) fn contains(&self, id: EventId) -> bool {
        self.ids.contains(&id)
    }

    pub(crate) fn insert(&mut self, id: EventId) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_events_are_known_and_older_ones_are_forgotten() {
        let [first, second, third] = ["1", "2", "3"].map(EventId::from_name);
        let mut seen = RecentIds::new(2);
        for id in [first, first, second] {
            seen.insert(id);
        }
        assert!(seen.contains(first) && seen.contains(second));
        seen.insert(third);
        assert!(!seen.contains(first) && seen.contains(second) && seen.contains(third));
        assert_eq!((seen.ids.len(), seen.order.len()), (2, 2));
    }
}
