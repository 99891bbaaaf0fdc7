//! A reader's position in a channel, and the outcome of reading from it.

use relay_core::{Seq, StreamError, StreamPosition};

use super::pace::PacePlace;
use crate::waker_set::WakerKey;

/// The position of one reader in a channel.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// The last sequenced event that the reader has.
    pub(super) seq: Seq,
    pub(super) ephemeral_version: u64,
    /// The key of the reader's waker while it waits.
    pub(super) waker_key: Option<WakerKey>,
    pub(super) pace: PacePlace,
}

impl Cursor {
    pub(super) fn new(seq: Seq, ephemeral_version: u64, pace: PacePlace) -> Self {
        Self { seq, ephemeral_version, waker_key: None, pace }
    }

    /// The last sequenced event that the reader has.
    pub(crate) fn seq(&self) -> Seq {
        self.seq
    }

    /// Moves the cursor to `seq`, up to which the reader was served from the log.
    pub(crate) fn advance_to(&mut self, seq: Seq) {
        self.seq = seq;
    }

    pub(crate) fn position(&self) -> StreamPosition {
        StreamPosition::new(self.seq, self.ephemeral_version)
    }
}

/// The outcome of reading from a channel.
pub(crate) enum ReadResult {
    /// At least one event was added to the reader's batch.
    Events,
    /// There is no new event; the reader's waker is registered.
    Pending,
    /// The next event is no longer in memory.
    Behind,
    /// The bus stops, and the reader has every event.
    Closed,
    /// The channel has ended by an error, and the reader has every event that was shown.
    Failed(StreamError),
}
