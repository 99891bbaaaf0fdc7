//! The counters of presence.

use relay_core::PresenceChange;
use relay_metrics::{Counter, counters};

counters! {
    /// The live counters of presence.
    pub(crate) struct PresenceCounters;

    /// A snapshot of the counters of presence.
    pub struct PresenceStats {
        gauges: {
            /// Sessions now.
            sessions: usize,
            /// Users now, counted in each document that they are in.
            users: usize,
            /// Connections now, counted in each document. Lost connections that may come back are included.
            connections: usize,
            /// Events of sessions and users that wait to be published.
            waiting_events: usize,
        }
        counters: {
            /// Sessions that started.
            sessions_started: Counter,
            /// Sessions that ended.
            sessions_ended: Counter,
            /// Connections that joined a document.
            joins: Counter,
            /// Connections that were removed from their document: they left, were lost or silent for too long, or the server
            /// stopped.
            leaves: Counter,
            /// Connections that came back within the grace time.
            returns: Counter,
            /// Connections that were lost or silent for too long.
            expired: Counter,
            /// Changes of participants' states.
            updates: Counter,
            /// Snapshots that readers got.
            states: Counter,
            /// Differences that readers got.
            diffs: Counter,
            /// Events of sessions and users that were published.
            published: Counter,
            /// Attempts to publish that found the log overloaded and were repeated.
            retries: Counter,
            /// Events of sessions and users that could not be published.
            failed: Counter,
        }
    }
}

/// The counts of one document that are not in the counters yet.
#[derive(Debug, Default)]
pub(crate) struct CounterDelta {
    pub(crate) sessions_started: u64,
    pub(crate) sessions_ended: u64,
    pub(crate) leaves: u64,
}

impl PresenceCounters {
    /// Adds the counts of one document.
    pub(crate) fn apply(&self, delta: &CounterDelta) {
        let CounterDelta { sessions_started, sessions_ended, leaves } = delta;
        self.sessions_started.add(*sessions_started);
        self.sessions_ended.add(*sessions_ended);
        self.leaves.add(*leaves);
    }

    /// Counts a change that a reader gets.
    pub(crate) fn count_change(&self, change: &PresenceChange) {
        match change {
            PresenceChange::Snapshot(_) => self.states.increment(),
            PresenceChange::Diff(_) => self.diffs.increment(),
        }
    }
}
