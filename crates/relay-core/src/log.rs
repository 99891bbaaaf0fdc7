//! [`EventLog`]: where durable events are kept, over all documents, in the order of commits.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::event::Event;
use crate::id::DocumentId;
use crate::position::{Epoch, Offset, Seq};

/// Where a document's history stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The incarnation of the history.
    pub epoch: Epoch,
    /// The earliest event that is still kept; `last.next()` when none is.
    pub first: Seq,
    /// The latest event; [`Seq::ZERO`] when there never was one.
    pub last: Seq,
}

impl Head {
    /// The head of a document in which nothing has happened.
    pub const fn empty(epoch: Epoch) -> Self {
        Self { epoch, first: Seq::FIRST, last: Seq::ZERO }
    }
}

/// How much one read may return at most. At least one event is returned if there is one, however large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// Number of events.
    pub events: usize,
    /// Sum of the events' encoded sizes in bytes.
    pub bytes: usize,
}

impl Default for ReadLimit {
    /// 256 events, 1 MiB.
    fn default() -> Self {
        Self { events: 256, bytes: 1024 * 1024 }
    }
}

/// How much of each document's history is kept. What exceeds any of the three limits is dropped from the old end,
/// soon but not at once, and never the newest event's place: seqs go on where they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Number of events; at least 1.
    pub max_events: u64,
    /// Age of an event, by its time.
    pub max_age: Option<Duration>,
    /// Sum of the events' sizes in bytes.
    pub max_bytes: Option<u64>,
}

impl Default for Retention {
    /// 10,000 events, of any age and size.
    fn default() -> Self {
        Self { max_events: 10_000, max_age: None, max_bytes: None }
    }
}

/// The log of durable events.
///
/// # Contract
/// - **Order.** A document's events are appended with seqs that go on from its head without a gap; the log refuses
///   anything else with [`LogError::Conflict`] and keeps nothing of that batch. Offsets grow in the order of commits.
/// - **Durability.** `append` returns when the batch is as durable as the log was configured to make it. A batch is
///   kept whole or not at all. Readers never see an event whose `append` could still fail.
/// - **Cancellation.** Dropping the future of `append` does not undo it: the batch may or may not be kept. The other
///   futures can be dropped freely.
/// - **Pressure.** A log that cannot keep up delays `append`, then answers [`LogError::Overloaded`].
/// - **Failure.** After [`LogError::Failed`] nothing is accepted until the log is opened again, since it is not known
///   what of the failed write reached the disk.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Where `document` stands. A document that the log has never seen is empty, and has the epoch that its first
    /// append will have to carry; asking changes nothing.
    ///
    /// # Errors
    /// [`LogError::Corrupt`], [`LogError::Failed`], [`LogError::Closed`].
    async fn head(&self, document: &DocumentId) -> Result<Head, LogError>;

    /// Appends `events`, all of `document`, with the document's epoch and the next seqs in order. Returns the offset
    /// of the first; the others' follow without a gap. Their `offset` fields are not looked at.
    ///
    /// # Errors
    /// All variants of [`LogError`] but [`LogError::Trimmed`].
    async fn append(&self, document: &DocumentId, events: &[Event]) -> Result<Offset, LogError>;

    /// The document's events after `after`, in order, as many as `limit` allows. Empty when there is none.
    ///
    /// # Errors
    /// [`LogError::Trimmed`] when an event after `after` is no longer kept, so that no gap goes unnoticed;
    /// [`LogError::Corrupt`], [`LogError::Failed`], [`LogError::Closed`].
    async fn read_document(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<Event>, LogError>;

    /// The events of all documents after `after`, in the order of their offsets, as many as `limit` allows. Offsets
    /// of events that are no longer kept are passed over.
    ///
    /// # Errors
    /// [`LogError::Corrupt`], [`LogError::Failed`], [`LogError::Closed`].
    async fn read(&self, after: Offset, limit: ReadLimit) -> Result<Vec<Event>, LogError>;

    /// Drops the document's events up to and including `through`. Its epoch and next seq stay.
    ///
    /// # Errors
    /// [`LogError::Corrupt`], [`LogError::Failed`], [`LogError::Closed`].
    async fn trim(&self, document: &DocumentId, through: Seq) -> Result<Head, LogError>;
}

/// Why a log did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Events that were asked for are no longer kept. Start again from `first`, knowing that there is a gap.
    #[error("document `{document}` is kept from seq {first} on; earlier events were dropped by retention")]
    Trimmed {
        /// The document.
        document: DocumentId,
        /// Its earliest event that is still kept.
        first: Seq,
    },
    /// Somebody else appended in between, or the caller miscounted. Ask for the head again.
    #[error("document `{document}` is at epoch {}, seq {}; an append at epoch {epoch}, seq {seq} does not follow", head.epoch, head.last)]
    Conflict {
        /// The document.
        document: DocumentId,
        /// Where it stands.
        head: Head,
        /// The epoch of the refused event.
        epoch: Epoch,
        /// The seq of the refused event.
        seq: Seq,
    },
    /// One event is larger than the log takes.
    #[error("an event of {bytes} bytes is larger than the log's limit of {max} bytes")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The log's queue stayed full. Try again later.
    #[error("the log's queue stayed full for {} ms; try again later", waited.as_millis())]
    Overloaded {
        /// How long the append waited for room.
        waited: Duration,
    },
    /// What was read is not what was written.
    #[error("the log is corrupt: {detail}")]
    Corrupt {
        /// Where, and what was found.
        detail: String,
    },
    /// The disk refused. Nothing more is accepted until the log is opened again.
    #[error("the log failed and takes no more events until it is opened again: {source}")]
    Failed {
        /// What the disk said.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}
