//! When a document has more history than it may keep.

use std::time::Duration;

use relay_core::{Retention, Timestamp};

use crate::store::Document;

/// Whether what was to be dropped is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    Yes,
    /// There is more to drop than one commit may.
    NotYet,
    /// What is to be dropped next is in the batch that is being made.
    WaitsForCommit,
}

/// Limits of one document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    events: u64,
    age: Option<Duration>,
    bytes: Option<u64>,
}

impl Limits {
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
    pub(crate) fn reached(&self, document: &Document, now: Timestamp) -> bool {
        document.kept_events() > self.events
            || (document.kept_events() > 0 && self.age.is_some_and(|age| now.since(document.oldest) > age))
            || (document.kept_events() > 0 && self.bytes.is_some_and(|bytes| document.kept_bytes() > bytes))
    }
}
