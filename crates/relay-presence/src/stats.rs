//! What has happened to who is where, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use relay_core::PresenceChange;
use serde::Serialize;

/// A snapshot. All but the first four only grow while the server lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PresenceStats {
    /// Sessions now.
    pub sessions: usize,
    /// Users now, counted in each document that they are in.
    pub users: usize,
    /// Connections now, counted in each document, lost ones that may come back included.
    pub connections: usize,
    /// Events about who comes and goes that wait to be published.
    pub waiting_events: usize,
    /// Sessions that began.
    pub sessions_started: u64,
    /// Sessions that ended.
    pub sessions_ended: u64,
    /// Connections that joined a document.
    pub joins: u64,
    /// Connections that are in their document no more: those that left, those that were gone for too long or silent, and
    /// those that were there when the server stopped.
    pub leaves: u64,
    /// Connections that came back within the grace time.
    pub returns: u64,
    /// Connections that were gone for too long, or silent.
    pub expired: u64,
    /// Changes of participants' states.
    pub updates: u64,
    /// Whole states that readers were given.
    pub states: u64,
    /// Changes that readers were given.
    pub diffs: u64,
    /// Events about who comes and goes that were kept.
    pub published: u64,
    /// Attempts that found the log overloaded and were made again.
    pub retries: u64,
    /// Events that could not be kept.
    pub failed: u64,
}

#[derive(Debug, Default)]
pub(crate) struct PresenceCounters {
    sessions_started: AtomicU64,
    sessions_ended: AtomicU64,
    leaves: AtomicU64,
    pub(crate) joins: AtomicU64,
    pub(crate) returns: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) updates: AtomicU64,
    states: AtomicU64,
    diffs: AtomicU64,
    pub(crate) published: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// What has happened in a document and is not counted yet.
#[derive(Debug, Default)]
pub(crate) struct CounterDelta {
    pub(crate) sessions_started: u64,
    pub(crate) sessions_ended: u64,
    pub(crate) leaves: u64,
}

impl PresenceCounters {
    pub(crate) fn count(&self, counter_delta: &CounterDelta) {
        let CounterDelta { sessions_started, sessions_ended, leaves } = counter_delta;
        self.sessions_started.fetch_add(*sessions_started, Ordering::Relaxed);
        self.sessions_ended.fetch_add(*sessions_ended, Ordering::Relaxed);
        self.leaves.fetch_add(*leaves, Ordering::Relaxed);
    }

    pub(crate) fn count_change(&self, change: &PresenceChange) {
        let counter = match change {
            PresenceChange::Snapshot(_) => &self.states,
            PresenceChange::Diff(_) => &self.diffs,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(
        &self,
        sessions: usize,
        users: usize,
        connections: usize,
        waiting_events: usize,
    ) -> PresenceStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PresenceStats {
            sessions,
            users,
            connections,
            waiting_events,
            sessions_started: get(&self.sessions_started),
            sessions_ended: get(&self.sessions_ended),
            joins: get(&self.joins),
            leaves: get(&self.leaves),
            returns: get(&self.returns),
            expired: get(&self.expired),
            updates: get(&self.updates),
            states: get(&self.states),
            diffs: get(&self.diffs),
            published: get(&self.published),
            retries: get(&self.retries),
            failed: get(&self.failed),
        }
    }
}
