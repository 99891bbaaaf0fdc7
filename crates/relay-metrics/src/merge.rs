//! Adding up snapshots, for instance those of several shards.

use std::collections::BTreeMap;

/// A value of a snapshot that can take in another one of its kind.
pub trait Merge {
    /// Adds `other` to this value.
    fn merge(&mut self, other: Self);
}

impl Merge for u64 {
    fn merge(&mut self, other: Self) {
        *self += other;
    }
}

impl Merge for usize {
    fn merge(&mut self, other: Self) {
        *self += other;
    }
}

impl<K: Ord, V: Merge + Default> Merge for BTreeMap<K, V> {
    fn merge(&mut self, other: Self) {
        for (key, value) in other {
            self.entry(key).or_default().merge(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, CounterMap, counters};

    counters! {
        /// The counters of a shop.
        struct Counters;

        /// A snapshot of a shop's counters.
        struct ShopStats {
            gauges: {
                /// Customers inside.
                customers: usize,
            }
            counters: {
                /// Things sold.
                sold: Counter,
                /// Refusals by reason.
                refused: CounterMap<&'static str>,
            }
        }
    }

    #[test]
    fn two_shops_together_have_what_each_of_them_has() {
        let (one, other) = (Counters::default(), Counters::default());
        one.sold.add(2);
        one.refused.increment("sold out");
        other.sold.increment();
        other.refused.increment("sold out");
        other.refused.increment("closed");
        let mut both = one.snapshot(3);
        both.merge(other.snapshot(4));
        let refused = BTreeMap::from([("sold out", 2), ("closed", 1)]);
        assert_eq!(both, ShopStats { customers: 7, sold: 3, refused });
    }
}
