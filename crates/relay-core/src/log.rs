//! [`EventLog`]: the store of sequenced and logged events, over all documents, in the order of commits.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::event::Event;
use crate::id::DocumentId;
use crate::position::{Epoch, Offset, Seq};

/// The extent of a document's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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
        Self::new(epoch, Seq::FIRST, Seq::ZERO)
    }

    /// A head with all its parts.
    pub const fn new(epoch: Epoch, first: Seq, last: Seq) -> Self {
        Self { epoch, first, last }
    }
}

/// The limits of one read. At least one event is returned if there is one, however large it is.
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

/// The part of each document's history that is kept. Sequenced events beyond any of the three limits are dropped from the
/// old end, soon but not at once. Seqs go on where they were. Logged events are no part of a document's history, and a log
/// limits them apart from it.
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

/// The log of the events that are stored: the sequenced and the logged ones.
///
/// # Contract
/// - **Order.** A document's sequenced events are appended with seqs that go on from its head without a gap. The log refuses
///   anything else with [`LogError::Conflict`] and keeps nothing of that batch. Offsets grow in the order of commits.
/// - **Logged events.** They have no seq, stand anywhere in a batch, and leave the head where it is. They are read by offset
///   alone. A batch that has no other events is checked by its epoch and not by the head. Neither class is dropped on
///   account of the other's size or number.
/// - **Durability.** `append` returns when the batch is as durable as the log was configured to make it. A batch is
///   kept whole or not at all. Readers never see an event whose `append` could still fail.
/// - **Fidelity.** What is appended can be read. An event that could not be given back as it is, for instance one whose
///   [content is absent](crate::Payload::Absent), is refused with [`LogError::Unreadable`], and its batch with it.
/// - **Damage.** A kept event that cannot be read comes in its place as [`Event::lost`], with every read. It stops no other
///   event: heads, appends, reads and trims go on. Only where not even the places can be read, the answer is
///   [`LogError::Corrupt`].
/// - **Visibility.** Every handle reads an event as soon as its `append` has returned. An append that is refused leaves
///   nothing to read, and the head and the last offset as they were.
/// - **Cancellation.** Dropping the future of `append` does not undo it: the batch is kept whole, or not at all. A
///   dropped `trim` or `close` may go on as well. The other futures can be dropped freely, and leave nothing behind.
/// - **Pressure.** A log that cannot keep up delays `append`, then answers [`LogError::Overloaded`].
/// - **Holds.** Retention keeps the events that a [hold](EventLog::hold) covers, within a bound on what it keeps beyond its
///   limits. It counts those that it drops all the same.
/// - **Failure.** After [`LogError::Failed`] nothing is accepted until the log is opened again, since it is not known
///   what of the failed write reached the disk.
/// - **Closing.** Once `close` is called, every other method answers [`LogError::Closed`], reads included, and those that
///   wait for an event are told. A log that has failed answers [`LogError::Failed`] instead. The counters stay.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Returns the head of `document`. A document that the log has never seen is empty, and has the epoch that its first
    /// append must carry. Asking changes nothing.
    ///
    /// # Errors
    /// [`LogError::Corrupt`], [`LogError::Failed`], [`LogError::Closed`].
    async fn head(&self, document: &DocumentId) -> Result<Head, LogError>;

    /// Appends `events`, all of `document`, with the document's epoch. The sequenced ones have the next seqs in order, the
    /// logged ones have none, and ephemeral ones are refused. Returns exactly one offset for each event, in the order of the
    /// events. Each offset is larger than the one before it and than those of the document's earlier events. They need not
    /// be contiguous. The events' own `offset` fields are ignored. An empty batch has no offsets, and changes nothing.
    ///
    /// A channel treats any other answer as [`LogError::Failed`]: it shows none of the events, and ends.
    ///
    /// # Errors
    /// All variants of [`LogError`] but [`LogError::Trimmed`].
    async fn append(&self, document: &DocumentId, events: &[Event]) -> Result<Vec<Offset>, LogError>;

    /// The document's sequenced events after `after`, in order, as many as `limit` allows. Empty when there is none.
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

    /// The events of all documents after `after`, sequenced and logged ones, in the order of their offsets, as many as
    /// `limit` allows. Each has its offset. Offsets of events that are no longer kept are passed over.
    ///
    /// # Errors
    /// [`LogError::Corrupt`], [`LogError::Failed`], [`LogError::Closed`].
    async fn read(&self, after: Offset, limit: ReadLimit) -> Result<Vec<Event>, LogError>;

    /// The offset of the last event that readers could see; [`Offset::ZERO`] where there never was one. It stays when that
    /// event is dropped.
    ///
    /// # Errors
    /// [`LogError::Failed`], [`LogError::Closed`].
    async fn last_offset(&self) -> Result<Offset, LogError>;

    /// Waits until readers can see an event past `offset`, and returns the last offset then. Any number of callers may
    /// wait. A caller that always waits past what it was given last misses nothing, whatever waits it dropped between.
    ///
    /// # Errors
    /// [`LogError::Failed`] and [`LogError::Closed`] as soon as no further event can come.
    async fn wait_past(&self, offset: Offset) -> Result<Offset, LogError>;

    /// Drops the document's sequenced events up to and including `through`. Its epoch and next seq stay.
    ///
    /// # Errors
    /// [`LogError::Corrupt`], [`LogError::Failed`], [`LogError::Closed`].
    async fn trim(&self, document: &DocumentId, through: Seq) -> Result<Head, LogError>;

    /// Keeps retention from the events after `after`, which a reader of the whole log still needs; none ends the hold. A log
    /// has one hold, and a call replaces it. It binds retention soon, not at once, and [`EventLog::trim`] never. It is not
    /// stored.
    ///
    /// The log bounds the history that it keeps beyond its limits. Where the bound is reached, retention drops held events
    /// too, and counts them in [`LogStats::dropped_held_events`].
    fn hold(&self, after: Option<Offset>);

    /// Returns true if each offset is one more than the offset before it, over all documents. Then a reader knows from the
    /// offsets that it is not given how many events are no longer kept. By default a log does not tell.
    fn offsets_are_contiguous(&self) -> bool {
        false
    }

    /// Makes what was accepted durable, and ends the log for every handle. Closing again does nothing.
    ///
    /// Not cancel-safe: a dropped close goes on in the background, and its outcome is lost.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the log had failed, or the last write did.
    async fn close(&self) -> Result<(), LogError>;

    /// The log's counters and gauges. May ask the file system for sizes, so call it every few seconds at most.
    fn stats(&self) -> LogStats;
}

/// The counters of a log since it was opened, and its present gauges. A log leaves the numbers that do not apply to it at
/// zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LogStats {
    /// Appends that were kept.
    pub appends: u64,
    /// Events that were kept.
    pub appended_events: u64,
    /// Sizes of the kept events together, in bytes.
    pub appended_bytes: u64,
    /// Appends that did not follow their document's head.
    pub conflicts: u64,
    /// Appends that found no space in the queue in time.
    pub overloads: u64,
    /// Writes to the disk; `appends / commits` is the mean group.
    pub commits: u64,
    /// The largest number of appends that one write carried.
    pub largest_group: u64,
    /// The time that the writes took together, the fsync included.
    pub commit_time: Duration,
    /// The longest write.
    pub longest_commit: Duration,
    /// Sequenced events dropped by retention or trimming.
    pub dropped_events: u64,
    /// Those among the dropped events that a hold covered.
    pub dropped_held_events: u64,
    /// Logged events dropped by their own retention.
    pub dropped_logged_events: u64,
    /// Documents that retention could not cut back because a record is damaged.
    pub retention_failures: u64,
    /// Kept events that readers could not be given, since they cannot be read; each counts once.
    pub lost_events: u64,
    /// Bytes of the logged events that are kept now.
    pub logged_bytes: u64,
    /// Appends and trims that wait for the writer now.
    pub queued_requests: u64,
    /// Bytes of events that wait for the writer now.
    pub queued_bytes: u64,
    /// Bytes that the log takes on the disk; 0 once it is closed.
    pub disk_bytes: u64,
}

/// A failure of a log.
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
    /// Another writer appended in between, or the caller miscounted. Ask for the head again.
    #[error("document `{document}` is at epoch {}, seq {}; an append at epoch {epoch}, seq {seq} does not follow", head.epoch, head.last)]
    Conflict {
        /// The document.
        document: DocumentId,
        /// The head of the document.
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
    /// An event is none that the log could give back, for instance one without content.
    #[error("an event cannot be kept: {detail}")]
    Unreadable {
        /// The mistake in the event.
        detail: String,
    },
    /// The log's queue stayed full. Try again later.
    #[error("the log's queue stayed full for {} ms; try again later", waited.as_millis())]
    Overloaded {
        /// The time that the append waited for space.
        waited: Duration,
    },
    /// The bytes that were read are not the ones that were written.
    #[error("the log is corrupt: {detail}")]
    Corrupt {
        /// The location, and the bytes or values found there.
        detail: String,
    },
    /// The disk refused. Nothing more is accepted until the log is opened again.
    #[error("the log failed and takes no more events until it is opened again: {source}")]
    Failed {
        /// The error of the disk.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}
