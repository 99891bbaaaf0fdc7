//! The live counters: one number, or one for each key of a small set.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// A live value that is read into a snapshot.
pub trait Metric {
    /// The value in the snapshot.
    type Value;

    /// Reads the present value.
    fn read(&self) -> Self::Value;
}

/// A number that only grows. Relaxed: it orders nothing, and is read for information alone.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds one. Returns true when it is the first one.
    pub fn increment_first(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// The present number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metric for Counter {
    type Value = u64;

    fn read(&self) -> u64 {
        self.get()
    }
}

/// Counters by a key of a small fixed set, for instance the reasons of refusals. Behind a lock, so not for the hot path.
#[derive(Debug)]
pub struct CounterMap<K>(Mutex<BTreeMap<K, u64>>);

impl<K> Default for CounterMap<K> {
    fn default() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

impl<K: Ord> CounterMap<K> {
    /// Adds one to the counter of `key`. The set of keys must be bounded: nothing removes one.
    pub fn increment(&self, key: K) {
        *self.0.lock().entry(key).or_default() += 1;
    }
}

impl<K: Ord + Clone> Metric for CounterMap<K> {
    type Value = BTreeMap<K, u64>;

    fn read(&self) -> BTreeMap<K, u64> {
        self.0.lock().clone()
    }
}
