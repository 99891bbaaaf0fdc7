//! Requests to the writer, and the replies that wait for its commit.

use relay_core::{DeliveryClass, DocumentId, Epoch, Event, Head, LogError, Offset, Seq, Timestamp};
use relay_events::binary;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The place that an event asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WantedPlace {
    /// A place in the document's history.
    Sequenced(Seq),
    /// A place among the logged events.
    Logged,
    /// None: the event is of another document, or its positions do not fit its class.
    None,
}

impl WantedPlace {
    fn of(event: &Event, document: &DocumentId) -> Self {
        match (event.kind.class(), event.seq) {
            _ if event.document != *document => Self::None,
            (DeliveryClass::Sequenced, Some(seq)) => Self::Sequenced(seq),
            (DeliveryClass::Logged, None) => Self::Logged,
            _ => Self::None,
        }
    }
}

/// An event in its stored form, ready for the batch.
pub(crate) struct EncodedEvent {
    pub(crate) epoch: Epoch,
    pub(crate) place: WantedPlace,
    pub(crate) time: Timestamp,
    pub(crate) body: Vec<u8>,
}

impl EncodedEvent {
    /// Encodes an event that is to be appended to `document`.
    ///
    /// # Errors
    /// [`LogError::TooLarge`], [`LogError::Unreadable`].
    pub(crate) fn new(event: &Event, document: &DocumentId, max_bytes: usize) -> Result<Self, LogError> {
        binary::check_readable(event).map_err(|error| LogError::Unreadable { detail: error.to_string() })?;
        let body = binary::encode(event);
        debug_assert!(binary::decode(&body).is_ok(), "what was checked can be read");
        if body.len() > max_bytes {
            return Err(LogError::TooLarge { bytes: body.len(), max: max_bytes });
        }
        let place = WantedPlace::of(event, document);
        Ok(Self { epoch: event.epoch, place, time: event.time, body })
    }
}

/// A request's share of the queue: one request and the bytes of its events. Dropping it gives both back.
pub(crate) struct QueuePermits {
    pub(crate) _request: OwnedSemaphorePermit,
    pub(crate) _bytes: OwnedSemaphorePermit,
}

/// The sender of a request's result.
pub(crate) type ReplySender<T> = oneshot::Sender<Result<T, LogError>>;

/// A request to the writer. Its permits return to the queue once it is done.
pub(crate) enum Request {
    Append {
        document: DocumentId,
        events: Vec<EncodedEvent>,
        /// Gets the offset of the first event. The others follow it without a gap.
        reply: ReplySender<Offset>,
        permits: QueuePermits,
    },
    Trim {
        document: DocumentId,
        through: Seq,
        reply: ReplySender<Head>,
        permits: QueuePermits,
    },
    Scan {
        reply: ReplySender<()>,
        permits: QueuePermits,
    },
}

/// A receiver, and the result that it gets after the commit.
type PendingReply<T> = (ReplySender<T>, Result<T, LogError>);

/// Results that are known and wait for the commit.
#[derive(Default)]
pub(super) struct PendingReplies {
    pub(super) appends: Vec<PendingReply<Offset>>,
    pub(super) trims: Vec<PendingReply<Head>>,
}

impl PendingReplies {
    /// Sends each result, or the commit's failure instead of it.
    pub(super) fn send(self, committed: &Result<(), LogError>) {
        // Receiver dropped: ignore the send error. The append stays durable.
        for (reply, result) in self.appends {
            let _ = reply.send(committed.clone().and(result));
        }
        for (reply, result) in self.trims {
            let _ = reply.send(committed.clone().and(result));
        }
    }
}
