//! What has happened on a bus, counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use relay_core::{DocumentId, Epoch, ErrorCode, PublishError, Seq};
use serde::Serialize;

use crate::kind_counters::KindCounters;

macro_rules! counters {
    ($( $(#[$doc:meta])* $name:ident, )*) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $( pub(crate) $name: Counter, )*
            pub(crate) kinds: KindCounters,
        }

        /// Sums over all documents since the bus began, and what is held now. One consistent moment is not promised.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
        #[non_exhaustive]
        pub struct BusStats {
            /// Documents that are in memory now.
            pub open_channels: usize,
            /// Events published, durable and ephemeral ones, by kind: every kind of the vocabulary, the first 32 others
            /// that came, and the rest together as `x-other`.
            pub by_kind: BTreeMap<Box<str>, u64>,
            $( $(#[$doc])* pub $name: u64, )*
        }

        impl Counters {
            pub(crate) fn snapshot(&self, open_channels: usize) -> BusStats {
                BusStats { open_channels, by_kind: self.kinds.snapshot(), $( $name: self.$name.get(), )* }
            }
        }
    };
}

counters! {
    /// Documents brought into memory.
    channels_opened,
    /// Idle documents dropped from memory.
    channels_evicted,
    /// Durable events published.
    durable_published,
    /// Ephemeral events published.
    ephemeral_published,
    /// Drafts that were recognised as sent before.
    duplicates,
    /// Batches written to the log.
    log_batches,
    /// Drafts refused because their payload was too large.
    refused_too_large,
    /// Drafts refused because the document's or the log's queue stayed full.
    refused_overloaded,
    /// Drafts refused because their id belongs to another event.
    refused_id_conflict,
    /// Drafts refused because too many documents were open.
    refused_too_many_documents,
    /// Drafts refused because the bus was stopping.
    refused_closed,
    /// Drafts refused because the log failed.
    refused_log_failed,
    /// Drafts refused because another server owns the document.
    refused_not_owner,
    /// Drafts refused by a stage of the order: another user's lock, or a lock that has ended.
    refused_by_guard,
    /// Ephemeral events dropped because a document or a mailbox had too many different ones.
    ephemeral_dropped,
    /// Pages of history read from the log for readers that were behind.
    replay_pages,
    /// Subscriptions begun.
    subscribed,
    /// Readers told that they are too far behind.
    readers_lagged,
    /// Times a full mailbox began to leave a gap to be filled from history.
    mailbox_gaps,
    /// Calls of handlers that succeeded.
    handler_successes,
    /// Calls of handlers that returned an error.
    handler_errors,
    /// Calls of handlers that took too long and were given up.
    handler_timeouts,
    /// Calls of handlers that panicked.
    handler_panics,
}

impl Counters {
    pub(crate) fn count_refusal(&self, error: &PublishError) {
        match error.code() {
            ErrorCode::TooLarge => self.refused_too_large.add(1),
            ErrorCode::Overloaded => self.refused_overloaded.add(1),
            ErrorCode::IdConflict => self.refused_id_conflict.add(1),
            ErrorCode::TooManyDocuments => self.refused_too_many_documents.add(1),
            ErrorCode::Closed => self.refused_closed.add(1),
            ErrorCode::NotOwner => self.refused_not_owner.add(1),
            ErrorCode::LogFailed => self.refused_log_failed.add(1),
            _ => self.refused_by_guard.add(1),
        }
    }
}

/// A number that only grows. Relaxed: it is read for information alone.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One document in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ChannelStats {
    /// The document.
    pub document: DocumentId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its earliest event in memory.
    pub first_cached: Seq,
    /// Its latest event.
    pub last: Seq,
    /// How many events are in memory.
    pub cached_events: usize,
    /// How many bytes they take, roughly.
    pub cached_bytes: usize,
    /// How many subscriptions it has.
    pub subscribers: usize,
    /// How many drafts wait for the log.
    pub pending: usize,
}
