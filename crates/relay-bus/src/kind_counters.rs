//! Events counted by kind, in a bounded number of counters.
//!
//! Publishers choose the names of their own kinds. A counter for each name would be memory that any publisher can take,
//! here and in the program that collects the numbers. Each kind of the vocabulary has a counter. Of the others, the first
//! that come have one, and the rest share one.

use std::collections::{BTreeMap, HashMap};

use parking_lot::RwLock;
use relay_core::Kind;
use relay_events::KINDS;
use relay_metrics::{Counter, Metric};

/// The most kinds outside the vocabulary that are counted by name.
const MAX_OWN: usize = 32;
/// The name under which all others are counted.
const OTHER: &str = "x-other";

#[derive(Debug)]
pub(crate) struct KindCounters {
    /// The counters in the order of the vocabulary.
    vocabulary: [Counter; KINDS.len()],
    /// At most [`MAX_OWN`] counters.
    own: RwLock<HashMap<Kind, Counter>>,
    other: Counter,
}

impl Default for KindCounters {
    fn default() -> Self {
        Self {
            vocabulary: std::array::from_fn(|_| Counter::default()),
            own: RwLock::default(),
            other: Counter::default(),
        }
    }
}

impl KindCounters {
    pub(crate) fn increment(&self, kind: &Kind) {
        if let Some(index) = KINDS.iter().position(|known| known == kind) {
            return self.vocabulary[index].increment();
        }
        {
            let own = self.own.read();
            if let Some(counter) = own.get(kind) {
                return counter.increment();
            }
            if own.len() >= MAX_OWN {
                return self.other.increment();
            }
        }
        let mut own = self.own.write();
        // Others may have come in between.
        if own.len() < MAX_OWN || own.contains_key(kind) {
            own.entry(kind.clone()).or_default().increment();
        } else {
            self.other.increment();
        }
    }
}

impl Metric for KindCounters {
    type Value = BTreeMap<Box<str>, u64>;

    fn read(&self) -> BTreeMap<Box<str>, u64> {
        let vocabulary =
            KINDS.iter().zip(&self.vocabulary).map(|(kind, counter)| (kind.as_str().into(), counter.get()));
        let mut all: BTreeMap<Box<str>, u64> = vocabulary.collect();
        all.extend(self.own.read().iter().map(|(kind, counter)| (kind.as_str().into(), counter.get())));
        // A publisher may have a kind of this name.
        *all.entry(OTHER.into()).or_default() += self.other.get();
        all
    }
}

#[cfg(test)]
mod tests {
    use relay_core::DeliveryClass;

    use super::*;

    #[test]
    fn kinds_beyond_the_limit_are_counted_together_and_the_vocabulary_by_name_all_the_same() {
        let counters = KindCounters::default();
        for number in 0..MAX_OWN + 8 {
            let kind = Kind::new(&format!("x-{number}"), DeliveryClass::Sequenced).unwrap();
            counters.increment(&kind);
            counters.increment(&kind);
        }
        counters.increment(&relay_events::DOCUMENT_EDITED);
        let all = counters.read();
        assert_eq!(all.len(), KINDS.len() + MAX_OWN + 1);
        assert_eq!((all["x-0"], all["x-31"], all["x-other"], all["document.edited"]), (2, 2, 16, 1));
        assert_eq!(all["session.started"], 0);
    }
}
