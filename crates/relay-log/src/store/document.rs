//! A document's state: its row in `documents`, and the totals that follow from its events.

use relay_core::{DocumentId, Epoch, Head, Seq, Timestamp};

use super::error::ReadError;
use super::key::{DocumentKey, u64_at};

const ROW_VERSION: u8 = 1;

/// The state of a document that has had events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DocumentState {
    /// Stands for the id in keys.
    pub(crate) key: DocumentKey,
    /// All events up to this one were trimmed.
    pub(crate) trimmed: Seq,
    /// The last event, kept or trimmed.
    pub(crate) last: Seq,
    /// Bytes of all events up to `trimmed`.
    pub(crate) trimmed_bytes: u64,
    /// Bytes of all events up to `last`.
    pub(crate) total_bytes: u64,
    /// No kept event is older; [`Timestamp::MAX`] when no event is kept.
    pub(crate) oldest: Timestamp,
}

impl DocumentState {
    /// Returns the state of a document that keeps no event, with all up to `trimmed` gone.
    pub(crate) fn without_events(key: DocumentKey, trimmed: Seq) -> Self {
        Self { key, trimmed, last: trimmed, trimmed_bytes: 0, total_bytes: 0, oldest: Timestamp::MAX }
    }

    pub(crate) fn head(&self, epoch: Epoch) -> Head {
        Head::new(epoch, self.trimmed.next(), self.last)
    }

    pub(crate) fn kept_events(&self) -> u64 {
        self.last.since(self.trimmed)
    }

    pub(crate) fn kept_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.trimmed_bytes)
    }
}

/// The totals of the logged events of all documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoggedTotals {
    /// Bytes of all events before the oldest one that is kept.
    pub(crate) trimmed_bytes: u64,
    /// Bytes of all events up to the last one.
    pub(crate) total_bytes: u64,
    /// The time of the oldest event that is kept; [`Timestamp::MAX`] when none is.
    pub(crate) oldest: Timestamp,
}

impl LoggedTotals {
    /// The totals where no event is kept.
    pub(crate) const EMPTY: Self = Self { trimmed_bytes: 0, total_bytes: 0, oldest: Timestamp::MAX };

    pub(crate) fn kept_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.trimmed_bytes)
    }
}

/// A document's row in `documents`.
#[derive(Debug, Clone, Copy)]
pub(super) struct DocumentRow {
    pub(super) key: DocumentKey,
    pub(super) trimmed: Seq,
}

impl DocumentRow {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut row = vec![ROW_VERSION];
        row.extend_from_slice(&self.key.get().to_be_bytes());
        row.extend_from_slice(&self.trimmed.get().to_be_bytes());
        row
    }

    pub(super) fn decode(id: &DocumentId, row: &[u8]) -> Result<Self, ReadError> {
        match row.first() {
            Some(&ROW_VERSION) => {
                Ok(Self { key: DocumentKey::read(row, 1)?, trimmed: Seq::new(u64_at(row, 9, "documents")?) })
            }
            version => Err(ReadError::Corrupt(format!(
                "the row of document `{id}` has version {version:?}; this version of Relay reads {ROW_VERSION}"
            ))),
        }
    }
}
