//! What the log counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a log has done since it was opened, and how it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LogStats {
    /// Appends that were kept.
    pub appends: u64,
    /// Events that were kept.
    pub appended_events: u64,
    /// Their size in bytes.
    pub appended_bytes: u64,
    /// Appends that did not follow their document's head.
    pub conflicts: u64,
    /// Appends that found no room in the queue in time.
    pub overloads: u64,
    /// Writes to the disk; `appends / commits` is the mean group.
    pub commits: u64,
    /// The most appends that one write carried.
    pub largest_group: u64,
    /// The time that the writes took together, the fsync included.
    pub commit_time: Duration,
    /// The longest write.
    pub longest_commit: Duration,
    /// Events dropped by retention or trimming.
    pub dropped_events: u64,
    /// Documents that retention could not cut back because a record is damaged.
    pub retention_failures: u64,
    /// Appends and trims that wait for the writer now.
    pub queued_requests: u64,
    /// Bytes of events that wait for the writer now.
    pub queued_bytes: u64,
    /// Bytes that the log takes on the disk; 0 once it is closed.
    pub disk_bytes: u64,
}

/// The writer's counters; the rest of [`LogStats`] is looked up when asked for.
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
    pub(crate) retention_failures: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
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
        LogStats {
            appends: get(&self.appends),
            appended_events: get(&self.appended_events),
            appended_bytes: get(&self.appended_bytes),
            conflicts: get(&self.conflicts),
            overloads: get(&self.overloads),
            commits: get(&self.commits),
            largest_group: get(&self.largest_group),
            commit_time: Duration::from_micros(get(&self.commit_micros)),
            longest_commit: Duration::from_micros(get(&self.longest_commit_micros)),
            dropped_events: get(&self.dropped_events),
            retention_failures: get(&self.retention_failures),
            ..LogStats::default()
        }
    }
}
