//! When a document has more history than it may keep.

use std::time::Duration;

use relay_core::{Retention, Timestamp};

use crate::store::DocumentState;

/// Whether what was to be dropped is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrimProgress {
    Done,
    /// There is more to drop than one commit may.
    BudgetSpent,
    /// What is to be dropped next is in the batch that is being made.
    AwaitsCommit,
}

/// Limits of one document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetentionLimits {
    events: u64,
    age: Option<Duration>,
    bytes: Option<u64>,
}

impl RetentionLimits {
    /// What is kept.
    pub(crate) fn exact(retention: Retention) -> Self {
        Self { events: retention.max_events, age: retention.max_age, bytes: retention.max_bytes }
    }

    /// An eighth more, so that a document at its limit is not cut at every append.
    pub(crate) fn with_slack(retention: Retention) -> Self {
        let more = |limit: u64| limit.saturating_add(limit / 8);
        Self {
            events: more(retention.max_events),
            age: retention.max_age.map(|age| age.saturating_add(age / 8)),
            bytes: retention.max_bytes.map(more),
        }
    }

    /// True when `document` has something to drop.
    pub(crate) fn exceeded_by(&self, document: &DocumentState, now: Timestamp) -> bool {
        document.kept_events() > self.events
            || (document.kept_events() > 0 && self.age.is_some_and(|age| now.since(document.oldest) > age))
            || (document.kept_events() > 0 && self.bytes.is_some_and(|bytes| document.kept_bytes() > bytes))
    }
}
