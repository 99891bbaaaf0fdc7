//! The counters of locks.

use relay_metrics::{Counter, counters};

counters! {
    /// The live counters of locks.
    pub(super) struct LockCounters;

    /// A snapshot of the counters of locks, over all documents. Its values are not from one and the same moment.
    pub struct LockStats {
        gauges: {
            /// Documents that have locks, requests that wait, or changes that are not published.
            documents: usize,
            /// Changes that wait to be published or are being published.
            pending_changes: usize,
        }
        counters: {
            /// Locks granted.
            granted: Counter,
            /// Leases prolonged.
            renewed: Counter,
            /// Locks that ended, for any reason.
            ended: Counter,
            /// Requests that were refused: locked by another user, stale, over a limit, or too late.
            refused: Counter,
            /// Repeated attempts to publish the end of a lock while the log was overloaded.
            retries: Counter,
            /// Changes that could not be published.
            failed_changes: Counter,
        }
    }
}
