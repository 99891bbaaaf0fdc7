//! The two ends of the ordered stream: [`EventSink`] takes drafts, [`EventSource`] gives a document's events back.
//!
//! Through them the edges (sockets, HTTP, services) reach the channels without knowing their keeper: this process today,
//! another server later.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use crate::checked::CheckedDraft;
use crate::error::ErrorCode;
use crate::event::Event;
use crate::id::{DocumentId, EventId, UserId};
use crate::lock::{FencingToken, LockScope};
use crate::log::{Head, LogError, ReadLimit};
use crate::memory::BudgetFull;
use crate::ownership::OwnershipError;
use crate::position::{Epoch, Offset, Seq};
use crate::subscribe_ack::{StartPosition, SubscribeAck};
use crate::time::Timestamp;

/// Takes the drafts of publishers.
///
/// # Contract
/// - Drafts of one document that one caller publishes one after the other, each awaited, get growing seqs.
/// - Nor need they be awaited one by one: while the document has a subscriber, the sequenced and logged drafts of one actor
///   take their places in the order in which their futures are first polled.
/// - A draft waits while most readers of the document are behind, or the queue to the log is full. Actors have turns then, so
///   that one with many drafts under way delays no other by more than one. The wait is limited.
/// - A sequenced draft is answered when its event is as durable as configured; it has been, or is about to be, delivered
///   to every subscriber. A logged one is answered when it is as durable, and reaches no subscriber of its document. An
///   ephemeral one is answered at once.
/// - A sequenced draft with the id of an event becomes no second event, as far back as the sink is configured to recognise
///   ids, restarts included. The publisher may have chosen the id, or got it with the ack. If the payload
///   [means the same](crate::Payload::means_same) and the kind and the actor are equal, the answer is the first one's ack with
///   `duplicate` set, else [`PublishError::IdConflict`].
/// - The future is cancel-safe in this sense: dropped, the event may or may not happen, and the channel stays whole.
#[async_trait]
pub trait EventSink: Send + Sync + 'static {
    /// Publishes `draft`.
    ///
    /// # Errors
    /// See [`PublishError`].
    async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError>;
}

/// The acknowledgement of a publish: the event's place. Serialised, it is the receipt of the wire protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PublishAck {
    /// The event's id.
    pub id: EventId,
    /// The document's epoch.
    pub epoch: Epoch,
    /// The event's seq; only sequenced events have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
    /// The event's offset; none for ephemeral events and where there is no log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<Offset>,
    /// The time at which the event got its place.
    pub time: Timestamp,
    /// True when the event had happened before, under the same id.
    pub duplicate: bool,
}

impl PublishAck {
    /// The ack of `event`.
    pub fn of(event: &Event, duplicate: bool) -> Self {
        Self {
            id: event.id,
            epoch: event.epoch,
            seq: event.seq,
            offset: event.offset,
            time: event.time,
            duplicate,
        }
    }

    /// The same ack for a draft that was sent again.
    #[must_use]
    pub fn as_duplicate(self) -> Self {
        Self { duplicate: true, ..self }
    }
}

/// A refusal of a draft.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The payload is larger than is taken.
    #[error("the payload has {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Publishers outrun the log, or most readers of the document. Slow down and try again.
    #[error("document `{document}` takes no more events for now: the log or most of its readers did not follow for {} ms; try again later", waited.as_millis())]
    Overloaded {
        /// The document.
        document: DocumentId,
        /// The time that the draft waited for its turn.
        waited: Duration,
    },
    /// The memory for waiting drafts is used up.
    #[error(transparent)]
    Memory(#[from] BudgetFull),
    /// The metadata has a value that only the server makes, and the server did not make it for this draft.
    #[error("the metadata `{key}` is `{value}`, and {detail}")]
    InvalidMetadata {
        /// The key.
        key: &'static str,
        /// The first characters of the value.
        value: String,
        /// The mistake, and the way to mend it, as the end of a sentence about the value.
        detail: String,
    },
    /// The id belongs to another event of this document. Use a new id for a new event.
    #[error("event id {id} belongs to another event, seq {seq}; use a new id for a new event")]
    IdConflict {
        /// The id.
        id: EventId,
        /// The event that has it.
        seq: Seq,
    },
    /// More documents are in use than the server holds at once.
    #[error("{open} documents are open, the most that are allowed; try again later")]
    TooManyDocuments {
        /// The number of open documents.
        open: usize,
    },
    /// Another user holds a lock on the part that the draft edits.
    #[error("{scope} is locked by `{holder}`; wait until it is released")]
    Locked {
        /// The locked part of the document.
        scope: LockScope,
        /// The user who holds the lock.
        holder: UserId,
    },
    /// The draft names a lock that has ended since, or does not cover what it edits. Acquire the lock again, and look at
    /// what happened meanwhile.
    #[error(
        "token {token} is of no lock of yours that covers this edit: it has ended, or is for another region; acquire one before editing"
    )]
    StaleLock {
        /// The draft's token.
        token: FencingToken,
        /// The user who holds the lock now, if there is one.
        holder: Option<UserId>,
    },
    /// Another server owns the document.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// The server is stopping. Publish elsewhere, or later.
    #[error("the server is stopping and takes no more events")]
    Closed,
    /// The log did not take it. Whether the event is kept is known from the variant: only after
    /// [`LogError::Failed`] it may turn out to be when the log is opened again.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl PublishError {
    /// The kind of the refusal, for programs to decide by.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } | Self::Log(LogError::TooLarge { .. }) => ErrorCode::TooLarge,
            Self::Overloaded { .. } | Self::Memory(_) | Self::Log(LogError::Overloaded { .. }) => {
                ErrorCode::Overloaded
            }
            Self::InvalidMetadata { .. } => ErrorCode::InvalidRequest,
            Self::IdConflict { .. } => ErrorCode::IdConflict,
            Self::TooManyDocuments { .. } => ErrorCode::TooManyDocuments,
            Self::Locked { .. } => ErrorCode::Locked,
            Self::StaleLock { .. } => ErrorCode::StaleLock,
            Self::Ownership(error) => error.code(),
            Self::Closed | Self::Log(LogError::Closed) => ErrorCode::Closed,
            Self::Log(LogError::Unreadable { .. }) => ErrorCode::Internal,
            Self::Log(_) => ErrorCode::LogFailed,
        }
    }

    /// The user who holds the lock that stands in the way, where one does.
    pub const fn holder(&self) -> Option<&UserId> {
        match self {
            Self::Locked { holder, .. } => Some(holder),
            Self::StaleLock { holder, .. } => holder.as_ref(),
            _ => None,
        }
    }
}

/// Gives a document's events.
#[async_trait]
pub trait EventSource: Send + Sync + 'static {
    /// Subscribes to `document`: the events after the start, then live ones, with no gap and no duplicate between.
    ///
    /// Cancel-safe: dropped, nothing is left behind.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    async fn subscribe(
        &self,
        document: &DocumentId,
        start: StartPosition,
    ) -> Result<(SubscribeAck, Box<dyn EventStream>), SubscribeError>;

    /// One page of a document's history: where it stands, and the events after `after`, as [`Event::at`] gives them.
    ///
    /// # Errors
    /// [`SubscribeError::Log`] with [`LogError::Trimmed`] when events after `after` are no longer kept, and as
    /// [`EventSource::subscribe`] otherwise.
    async fn history(
        &self,
        document: &DocumentId,
        after: Seq,
        limit: ReadLimit,
    ) -> Result<(Head, Vec<Arc<Event>>), SubscribeError>;
}

/// A subscriber's stream of events.
///
/// # Contract
/// - Sequenced events come in seq order, each once, none left out. Ephemeral ones come when they are new; of those that
///   replace each other a slow reader sees only the newest. Logged ones never come.
/// - After its time to live an event comes as [`Event::at`] gives it: in its place, without its content; an ephemeral one does not
///   come at all. That is decided when the event is handed out.
/// - A slow minority of readers slows nobody and takes no memory beyond its configured share. A reader that falls behind
///   what is kept gets [`StreamError::Lagged`] and must subscribe again. Publishers wait while most readers are behind.
/// - After an error or `None` the stream is over.
/// - Dropping it ends the subscription.
pub trait EventStream: Send {
    /// The next event. On `Pending` the task of `cx` is woken when there is one; only the last task that polled is.
    /// `None` when the source is stopping.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Arc<Event>, StreamError>>>;

    /// The position up to which events were delivered. Two streams of one document at the same position deliver the same
    /// from there on.
    /// `None` while the stream holds events that it has still to deliver; poll on until it is `Pending`.
    fn position(&self) -> Option<StreamPosition>;

    /// A second stream that goes on where this one stands. Quick: nothing is read. It stands for one reader
    /// from its first poll on.
    fn fork(&self) -> Box<dyn EventStream>;

    /// Sets the number of readers that the stream stands for, which is 1 from its first poll on, and 0 after its end. Publishers
    /// wait when most readers of a document are behind. With 0 they never wait for this stream. A source whose publishers wait for no reader ignores it.
    fn stand_for(&mut self, readers: u64) {
        let _ = readers;
    }
}

/// The position up to which a stream has delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamPosition {
    /// The last sequenced event that was delivered.
    pub seq: Seq,
    /// The version up to which ephemeral events were delivered: a number that grows with each of them, for comparing alone.
    pub ephemeral_version: u64,
}

impl StreamPosition {
    /// A position with all its parts.
    pub const fn new(seq: Seq, ephemeral_version: u64) -> Self {
        Self { seq, ephemeral_version }
    }
}

/// A refusal of a subscription.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// More documents are in use than the server holds at once.
    #[error("{open} documents are open, the most that are allowed; try again later")]
    TooManyDocuments {
        /// The number of open documents.
        open: usize,
    },
    /// Another server owns the document.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// The memory for open documents is used up.
    #[error(transparent)]
    Memory(#[from] BudgetFull),
    /// The server is stopping.
    #[error("the server is stopping")]
    Closed,
    /// The history cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl SubscribeError {
    /// The kind of the refusal, for programs to decide by.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::TooManyDocuments { .. } => ErrorCode::TooManyDocuments,
            Self::Memory(_) => ErrorCode::Overloaded,
            Self::Ownership(error) => error.code(),
            Self::Closed | Self::Log(LogError::Closed) => ErrorCode::Closed,
            Self::Log(LogError::Trimmed { .. }) => ErrorCode::Trimmed,
            Self::Log(_) => ErrorCode::LogFailed,
        }
    }
}

/// An early end of a stream.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The reader fell so far behind that it cannot be served without a gap. Subscribe again after `position`.
    #[error("the reader is {behind} events behind, at seq {position}; subscribe again from there")]
    Lagged {
        /// The last sequenced event that was delivered.
        position: Seq,
        /// The number of sequenced events by which the reader is behind.
        behind: u64,
    },
    /// This server no longer owns the document. Subscribe again.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// The history cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl StreamError {
    /// The kind of the refusal, for programs to decide by.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Lagged { .. } => ErrorCode::Lagged,
            Self::Ownership(error) => error.code(),
            Self::Log(_) => ErrorCode::LogFailed,
        }
    }
}
