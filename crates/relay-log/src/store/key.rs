//! The form of keys, and of numbers in keys and values.

use relay_core::{Offset, Seq};

use super::error::ReadError;

/// The number that stands for a document's id in the keys of its events: the offset at which its first append began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DocumentKey(u64);

impl DocumentKey {
    /// Returns the key of a document whose first append begins at the offset `first`.
    pub(crate) fn of_first_event(first: Offset) -> Self {
        Self(first.get())
    }

    /// Reads the key that begins at byte `at` of a row of `documents`.
    pub(super) fn read(row: &[u8], at: usize) -> Result<Self, ReadError> {
        u64_at(row, at, "documents").map(Self)
    }

    pub(super) fn get(self) -> u64 {
        self.0
    }
}

/// The position of the seq in a key of `events`.
pub(super) const SEQ_AT: usize = 8;

/// Returns the key of an event in `events`, which is the value of its entry in `offsets` too.
pub(super) fn event_key(document: DocumentKey, seq: Seq) -> [u8; 16] {
    let mut key = [0; 16];
    key[..SEQ_AT].copy_from_slice(&document.get().to_be_bytes());
    key[SEQ_AT..].copy_from_slice(&seq.get().to_be_bytes());
    key
}

/// Returns the key of a logged event in `events`. Offsets begin at 1, so no document has the key 0.
pub(super) fn logged_key(offset: Offset) -> [u8; 16] {
    let mut key = [0; 16];
    key[SEQ_AT..].copy_from_slice(&offset.get().to_be_bytes());
    key
}

/// Reads the offset out of the key of a logged event.
pub(super) fn logged_offset_of(key: &[u8]) -> Result<Offset, ReadError> {
    u64_at(key, SEQ_AT, "event").map(Offset::new)
}

/// Reads the seq out of a key of `events`.
pub(super) fn seq_of(key: &[u8]) -> Result<Seq, ReadError> {
    u64_at(key, SEQ_AT, "event").map(Seq::new)
}

/// Reads the number that begins at byte `at`. `what` names the key or value in the error.
pub(super) fn u64_at(bytes: &[u8], at: usize, what: &str) -> Result<u64, ReadError> {
    let number = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    number.map(|number| u64::from_be_bytes(*number)).ok_or_else(|| {
        ReadError::Corrupt(format!(
            "a key or value of `{what}` has {} bytes and needs at least {}",
            bytes.len(),
            at + 8
        ))
    })
}
