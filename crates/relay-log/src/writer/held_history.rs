//! The history that a hold keeps beyond retention's limits, and its bound in bytes.
//!
//! A document that a hold keeps over its limits counts with all its bytes, and so do the logged events. The sum is bounded: a
//! reader that never moves on does not fill the disk. A document that is held is not looked at again before the hold has
//! passed its oldest event or the bound is reached.

use std::collections::HashMap;
use std::sync::Arc;

use relay_core::{DocumentId, Offset};

use crate::stats::Counters;
use crate::status::LogStatus;

/// A document that the hold keeps over its limits.
struct HeldDocument {
    bytes: u64,
    /// The offset of its oldest event; zero when it was not known yet.
    oldest: Offset,
}

/// The documents that the hold keeps over their limits.
pub(super) struct HeldHistory {
    status: Arc<LogStatus>,
    max_bytes: u64,
    /// The hold as of the last [`HeldHistory::refresh`].
    hold: Option<Offset>,
    documents: HashMap<DocumentId, HeldDocument>,
    /// The bytes of the logged events, while the hold keeps them over their limits.
    logged_bytes: u64,
    /// The bytes of all of them.
    bytes: u64,
    /// Held events that were dropped since the last report.
    unreported: u64,
}

impl HeldHistory {
    pub(super) fn new(status: Arc<LogStatus>, max_bytes: u64) -> Self {
        let hold = status.hold();
        Self { status, max_bytes, hold, documents: HashMap::new(), logged_bytes: 0, bytes: 0, unreported: 0 }
    }

    /// Takes over the present hold. Returns the documents whose oldest event it no longer covers.
    pub(super) fn refresh(&mut self) -> Vec<DocumentId> {
        let hold = self.status.hold();
        if std::mem::replace(&mut self.hold, hold) == hold {
            return Vec::new();
        }
        let is_free = |(_, held): &(_, &HeldDocument)| hold.is_none_or(|hold| held.oldest <= hold);
        self.documents.iter().filter(is_free).map(|(id, _)| id.clone()).collect()
    }

    /// Returns true if the hold covers an event. One without an offset is newer than all that have one.
    pub(super) fn covers(&self, offset: Option<Offset>) -> bool {
        self.hold.is_some_and(|hold| offset.is_none_or(|offset| offset > hold))
    }

    /// The most bytes that the document may have while it is held.
    pub(super) fn max_bytes_of(&self, document: &DocumentId) -> u64 {
        let own = self.documents.get(document).map_or(0, |held| held.bytes);
        self.max_bytes.saturating_sub(self.bytes - own)
    }

    /// The hold as of the last [refresh](Self::refresh).
    pub(super) fn hold(&self) -> Option<Offset> {
        self.hold
    }

    /// The most bytes that the logged events may have while they are held.
    pub(super) fn max_bytes_of_logged(&self) -> u64 {
        self.max_bytes.saturating_sub(self.bytes - self.logged_bytes)
    }

    /// True while the hold keeps logged events over their limits.
    pub(super) fn has_logged(&self) -> bool {
        self.logged_bytes > 0
    }

    /// Takes over the bytes of the logged events that are held; 0 if they are within their limits.
    pub(super) fn set_logged(&mut self, bytes: u64) {
        self.bytes = self.bytes - self.logged_bytes + bytes;
        self.logged_bytes = bytes;
    }

    /// Takes over the size of a document that an append has made larger. Returns true if the document is held, within the
    /// bound.
    pub(super) fn grow(&mut self, document: &DocumentId, bytes: u64) -> bool {
        let max = self.max_bytes_of(document);
        let Some(held) = self.documents.get_mut(document).filter(|_| bytes <= max) else { return false };
        self.bytes = self.bytes - held.bytes + bytes;
        held.bytes = bytes;
        true
    }

    /// Takes over that the document is held, with this size and oldest event; none if it is within its limits again.
    pub(super) fn set(&mut self, document: &DocumentId, held: Option<(u64, Option<Offset>)>) {
        if let Some(before) = self.documents.remove(document) {
            self.bytes -= before.bytes;
        }
        if let Some((bytes, oldest)) = held {
            let oldest = oldest.unwrap_or(Offset::ZERO);
            self.documents.insert(document.clone(), HeldDocument { bytes, oldest });
            self.bytes += bytes;
        }
    }

    /// Counts held events that were dropped.
    pub(super) fn count_dropped(&mut self, events: u64) {
        Counters::add(&self.status.counters.dropped_held_events, events);
        self.unreported += events;
    }

    /// Logs the drops since the last report.
    pub(super) fn report(&mut self) {
        let events = std::mem::take(&mut self.unreported);
        if events > 0 {
            tracing::error!(
                events,
                max_held_bytes = self.max_bytes,
                "retention dropped events that routing still needs, since those that it holds take too many bytes; \
                 raise `log.max_held_bytes`, or see why services are behind"
            );
        }
    }
}
