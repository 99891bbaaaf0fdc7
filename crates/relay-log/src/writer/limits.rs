//! The limits of a document's kept history.

use std::time::Duration;

use relay_core::{Retention, Timestamp};

use crate::store::DocumentState;

/// The most history that one document keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetentionLimits {
    events: u64,
    age: Option<Duration>,
    bytes: Option<u64>,
}

impl RetentionLimits {
    /// Returns the configured limits.
    pub(super) fn exact(retention: Retention) -> Self {
        Self { events: retention.max_events, age: retention.max_age, bytes: retention.max_bytes }
    }

    /// Returns limits that are an eighth higher, so that a document at its limit is not trimmed at every append.
    pub(super) fn with_slack(retention: Retention) -> Self {
        let more = |limit: u64| limit.saturating_add(limit / 8);
        Self {
            events: more(retention.max_events),
            age: retention.max_age.map(|age| age.saturating_add(age / 8)),
            bytes: retention.max_bytes.map(more),
        }
    }

    /// Returns true when the document's oldest event must go.
    pub(super) fn exceeded_by(&self, document: &DocumentState, now: Timestamp) -> bool {
        document.kept_events() > self.events
            || (document.kept_events() > 0 && self.age.is_some_and(|age| now.since(document.oldest) > age))
            || (document.kept_events() > 0 && self.bytes.is_some_and(|bytes| document.kept_bytes() > bytes))
    }
}
