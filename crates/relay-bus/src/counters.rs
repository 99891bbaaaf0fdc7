//! The counters of a bus.

use relay_core::{ErrorCode, PublishError};
use relay_metrics::Counter;

use crate::kind_counters::KindCounters;

relay_metrics::counters! {
    /// The live counters of a bus.
    pub(crate) struct Counters;

    /// Sums over all documents since the bus began, and what is held now. The values are not of one moment.
    pub struct BusStats {
        gauges: {
            /// Documents that are in memory now.
            open_channels: usize,
            /// Those of them that have sequenced events, and with them a place among the `max_channels`.
            channel_places: usize,
        }
        counters: {
            /// Events published, of all classes, by kind: every kind of the vocabulary, the first 32 others
            /// that came, and the rest together as `x-other`.
            by_kind: KindCounters,
                /// Documents brought into memory.
                channels_opened: Counter,
                /// Idle documents dropped from memory.
                channels_evicted: Counter,
                /// Sequenced events published.
                sequenced_published: Counter,
                /// Logged events published.
                logged_published: Counter,
                /// Ephemeral events published.
                ephemeral_published: Counter,
                /// Drafts that were recognised as sent before.
                duplicates: Counter,
                /// Batches written to the log.
                log_batches: Counter,
                /// Drafts that waited: for the document's queue, or for its readers.
                drafts_waited: Counter,
                /// Drafts refused because their payload was too large.
                refused_too_large: Counter,
                /// Drafts refused because the document's or the log's queue stayed full, or the readers too far behind.
                refused_overloaded: Counter,
                /// Drafts refused because their id belongs to another event.
                refused_id_conflict: Counter,
                /// Drafts refused because too many documents were open.
                refused_too_many_documents: Counter,
                /// Drafts refused because the bus was stopping.
                refused_closed: Counter,
                /// Drafts refused because the log failed.
                refused_log_failed: Counter,
                /// Drafts refused because another server owns the document.
                refused_not_owner: Counter,
                /// Drafts refused by a stage of the order: another user's lock, or a lock that has ended.
                refused_by_guard: Counter,
                /// Ephemeral events dropped because a document or a mailbox had too many different ones, or too many bytes of
                /// them.
                ephemeral_dropped: Counter,
                /// Caches of documents that were dropped because all together took too much memory.
                caches_dropped: Counter,
                /// Logged events dropped because a mailbox was full.
                logged_dropped: Counter,
                /// Pages of history read from the log for readers that were behind.
                replay_pages: Counter,
                /// Subscriptions begun.
                subscribed: Counter,
                /// Readers told that they are too far behind.
                readers_lagged: Counter,
                /// Times a full mailbox began to leave a gap to be filled from history.
                mailbox_gaps: Counter,
                /// Calls of handlers that succeeded.
                handler_successes: Counter,
                /// Calls of handlers that returned an error.
                handler_errors: Counter,
                /// Calls of handlers that took too long and were given up.
                handler_timeouts: Counter,
                /// Calls of handlers that panicked.
                handler_panics: Counter,
        }
    }
}

impl Counters {
    pub(crate) fn count_refusal(&self, error: &PublishError) {
        match error.code() {
            ErrorCode::TooLarge => self.refused_too_large.increment(),
            ErrorCode::Overloaded => self.refused_overloaded.increment(),
            ErrorCode::IdConflict => self.refused_id_conflict.increment(),
            ErrorCode::TooManyDocuments => self.refused_too_many_documents.increment(),
            ErrorCode::Closed => self.refused_closed.increment(),
            ErrorCode::NotOwner => self.refused_not_owner.increment(),
            ErrorCode::LogFailed => self.refused_log_failed.increment(),
            _ => self.refused_by_guard.increment(),
        }
    }
}
