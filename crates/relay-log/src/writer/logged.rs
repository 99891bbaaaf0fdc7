//! The logged events of all documents: one sequence, with limits of its own.
//!
//! They belong to no document's history. So neither class of events costs the other its place: a document that is opened
//! often keeps its content, and content keeps no logged event away.

use relay_core::{Offset, Timestamp};

use crate::config::LoggedRetention;
use crate::store::LoggedTotals;

/// The most logged events that are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoggedLimits(LoggedRetention);

impl LoggedLimits {
    /// Returns the configured limits.
    pub(super) fn exact(retention: LoggedRetention) -> Self {
        Self(retention)
    }

    /// Returns limits that are an eighth higher, so that a log at its limit is not trimmed at every append.
    pub(super) fn with_slack(retention: LoggedRetention) -> Self {
        let LoggedRetention { max_bytes, max_age } = retention;
        Self(LoggedRetention {
            max_bytes: max_bytes.saturating_add(max_bytes / 8),
            max_age: max_age.map(|age| age.saturating_add(age / 8)),
        })
    }

    fn exceeded_by(&self, totals: &LoggedTotals, now: Timestamp) -> bool {
        let is_too_old = |age| now.since(totals.oldest) > age;
        totals.kept_bytes() > self.0.max_bytes
            || (totals.kept_bytes() > 0 && self.0.max_age.is_some_and(is_too_old))
    }
}

/// The logged events as they will be after the batch that is being staged.
#[derive(Debug)]
pub(super) struct LoggedEvents {
    totals: LoggedTotals,
    /// No event before this offset is kept. Reading begins here, and not at the remains of removed events.
    first: Offset,
}

impl LoggedEvents {
    pub(super) fn new(totals: LoggedTotals) -> Self {
        Self { totals, first: Offset::ZERO }
    }

    pub(super) fn kept_bytes(&self) -> u64 {
        self.totals.kept_bytes()
    }

    pub(super) fn first(&self) -> Offset {
        self.first
    }

    /// Returns true when the oldest event must go.
    pub(super) fn exceeds(&self, limits: &LoggedLimits, now: Timestamp) -> bool {
        limits.exceeded_by(&self.totals, now)
    }

    /// Counts one more event. Returns the bytes of all events up to and including it.
    pub(super) fn add(&mut self, bytes: u64, time: Timestamp) -> u64 {
        if self.totals.kept_bytes() == 0 {
            self.totals.oldest = time;
        }
        self.totals.total_bytes += bytes;
        self.totals.total_bytes
    }

    /// Notes the time of the oldest event that is kept.
    pub(super) fn set_oldest(&mut self, time: Timestamp) {
        self.totals.oldest = time;
    }

    /// Notes that the event at `offset` is removed. `cumulative_bytes` are the bytes of all events up to and including it.
    pub(super) fn remove(&mut self, offset: Offset, cumulative_bytes: Option<u64>) {
        self.first = offset.next();
        if let Some(bytes) = cumulative_bytes {
            self.totals.trimmed_bytes = bytes;
        }
    }
}
