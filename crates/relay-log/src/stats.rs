//! Counters of a log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use relay_core::LogStats;

/// The counted part of [`LogStats`]. The rest is determined when the statistics are asked for.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) appends: AtomicU64,
    pub(crate) appended_events: AtomicU64,
    pub(crate) appended_bytes: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) overloads: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) largest_group: AtomicU64,
    pub(crate) commit_micros: AtomicU64,
    pub(crate) longest_commit_micros: AtomicU64,
    pub(crate) dropped_events: AtomicU64,
    pub(crate) dropped_held_events: AtomicU64,
    pub(crate) dropped_logged_events: AtomicU64,
    logged_bytes: AtomicU64,
    pub(crate) retention_failures: AtomicU64,
    pub(crate) lost_events: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn set_logged_bytes(&self, bytes: u64) {
        self.logged_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn commit(&self, appends: u64, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self::add(&self.commits, 1);
        Self::add(&self.commit_micros, micros);
        self.longest_commit_micros.fetch_max(micros, Ordering::Relaxed);
        self.largest_group.fetch_max(appends, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> LogStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut stats = LogStats::default();
        stats.appends = get(&self.appends);
        stats.appended_events = get(&self.appended_events);
        stats.appended_bytes = get(&self.appended_bytes);
        stats.conflicts = get(&self.conflicts);
        stats.overloads = get(&self.overloads);
        stats.commits = get(&self.commits);
        stats.largest_group = get(&self.largest_group);
        stats.commit_time = Duration::from_micros(get(&self.commit_micros));
        stats.longest_commit = Duration::from_micros(get(&self.longest_commit_micros));
        stats.dropped_events = get(&self.dropped_events);
        stats.dropped_held_events = get(&self.dropped_held_events);
        stats.dropped_logged_events = get(&self.dropped_logged_events);
        stats.logged_bytes = get(&self.logged_bytes);
        stats.retention_failures = get(&self.retention_failures);
        stats.lost_events = get(&self.lost_events);
        stats
    }
}
