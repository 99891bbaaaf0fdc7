//! The event: a publisher hands in a [`Draft`], which becomes an [`Event`] when it gets its place.
//!
//! An [`Event`] never changes after it was made, and everyone who gets it shares one copy. It also keeps its
//! encoded forms, so that each is made once, however many receive it.

use std::sync::Arc;
use std::time::Duration;

use crate::actor::Actor;
use crate::encoding::EncodingCache;
use crate::id::{DocumentId, EventId, SessionId};
use crate::kind::{DeliveryClass, Kind};
use crate::metadata::{Metadata, TraceContext};
use crate::payload::{Absence, Payload};
use crate::position::{Epoch, Offset, Seq};
use crate::time::Timestamp;

/// An event that a publisher wants to happen. [`Draft::new`] makes it, the other methods complete it.
///
/// ```
/// use relay_core::{Actor, DocumentId, Draft, DeliveryClass, Kind, Payload, UserId};
///
/// let kind = Kind::new("x-note", DeliveryClass::Sequenced)?;
/// let payload = Payload::json(&serde_json::json!({"text": "hello"}))?;
/// let draft = Draft::new(DocumentId::new("notes")?, kind, payload)
///     .actor(Actor::User(UserId::new("ada")?));
/// assert_eq!(draft.document.as_str(), "notes");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Draft {
    /// The document.
    pub document: DocumentId,
    /// The kind of the event.
    pub kind: Kind,
    /// The content.
    pub payload: Payload,
    /// The publisher's own id for the event, which makes publishing idempotent. The channel makes one if there is none.
    pub id: Option<EventId>,
    /// The actor; [`Actor::System`] unless set.
    pub actor: Actor,
    /// The session.
    pub session: Option<SessionId>,
    /// The conflation key: an ephemeral event replaces the ones of the same kind, actor and key. Ignored for other classes.
    pub key: Option<Arc<str>>,
    /// The time after which the event's content goes to nobody any more.
    pub ttl: Option<Duration>,
    /// The trace context.
    pub trace: Option<TraceContext>,
    /// Free properties.
    pub metadata: Metadata,
}

impl Draft {
    /// Makes a draft with the parts that every event must have.
    pub fn new(document: DocumentId, kind: Kind, payload: Payload) -> Self {
        Self {
            document,
            kind,
            payload,
            id: None,
            actor: Actor::System,
            session: None,
            key: None,
            ttl: None,
            trace: None,
            metadata: Metadata::default(),
        }
    }

    /// Sets the publisher's own id, the idempotency key.
    pub fn id(mut self, id: EventId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets the actor.
    pub fn actor(mut self, actor: Actor) -> Self {
        self.actor = actor;
        self
    }

    /// Sets the session.
    pub fn session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// Sets the conflation key of an ephemeral event, for instance the connection that a cursor belongs to.
    pub fn key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Estimates the bytes that the draft takes in memory.
    pub fn approx_bytes(&self) -> usize {
        size_of::<Self>() + self.payload.len() + heap_bytes(&self.metadata, self.key.as_deref())
    }

    /// Sets the time to live. Whole milliseconds are kept.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets the trace context.
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Sets the metadata.
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Returns the event that this draft becomes at the given place and time. Only sequenced kinds have a `seq`.
    pub fn into_event(self, epoch: Epoch, seq: Option<Seq>, time: Timestamp) -> Event {
        Event {
            id: self.id.unwrap_or_else(EventId::new),
            document: self.document,
            kind: self.kind,
            seq,
            epoch,
            offset: None,
            time,
            actor: self.actor,
            session: self.session,
            key: self.key,
            ttl: self.ttl,
            trace: self.trace,
            metadata: self.metadata,
            payload: self.payload,
            encodings: EncodingCache::default(),
        }
    }
}

/// An event of a document, at its place.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Event {
    /// The id, the same on every delivery.
    pub id: EventId,
    /// The document.
    pub document: DocumentId,
    /// The kind.
    pub kind: Kind,
    /// The place in the document; `None` for logged and ephemeral events.
    pub seq: Option<Seq>,
    /// The incarnation of the document's history that `seq` counts in.
    pub epoch: Epoch,
    /// The position in the whole log; `None` for ephemeral events and where there is no log.
    pub offset: Option<Offset>,
    /// The time at which the event got its place. It is never earlier than that of the sequenced event before it.
    pub time: Timestamp,
    /// The actor.
    pub actor: Actor,
    /// The session.
    pub session: Option<SessionId>,
    /// The conflation key of an ephemeral event.
    pub key: Option<Arc<str>>,
    /// The time to live, from `time` on.
    pub ttl: Option<Duration>,
    /// The trace context.
    pub trace: Option<TraceContext>,
    /// Free properties.
    pub metadata: Metadata,
    /// The content.
    pub payload: Payload,
    /// The encoded forms, each made when it is first asked for.
    pub encodings: EncodingCache,
}

impl Event {
    /// True when the time to live is over.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.ttl.is_some_and(|ttl| now.since(self.time) > ttl)
    }

    /// The kind of [lost](Self::lost) events. Nobody publishes it.
    pub const LOST: Kind = Kind::from_static("event.lost", DeliveryClass::Sequenced);

    /// Returns the event that stands for one that a log cannot read any more. It has its place, and an id of its own that is the
    /// same each time. `time` is that of the event before it.
    pub fn lost(
        document: DocumentId,
        epoch: Epoch,
        seq: Option<Seq>,
        offset: Option<Offset>,
        time: Timestamp,
    ) -> Self {
        let place = (seq.map_or(0, Seq::get), offset.filter(|_| seq.is_none()).map_or(0, Offset::get));
        let id = EventId::from_name(&format!("lost {epoch} {place:?} {document}"));
        let draft = Draft::new(document, Self::LOST, Payload::Absent(Absence::Lost)).id(id);
        Self { offset, ..draft.into_event(epoch, seq, time) }
    }

    /// True for an event that stands for one that the log cannot read any more.
    pub fn is_lost(&self) -> bool {
        self.payload == Payload::Absent(Absence::Lost)
    }

    /// Returns the event as readers get it at `now`. After its time to live it has no [content](Self::without_content) any
    /// more, and `None` is returned for an event that has no place in its document's order.
    pub fn at(self: Arc<Self>, now: Timestamp) -> Option<Arc<Self>> {
        if !self.is_expired(now) {
            Some(self)
        } else if self.seq.is_some() {
            Some(Arc::new(self.without_content(Absence::Expired)))
        } else {
            None
        }
    }

    /// The event with its place and its author, and without what its publisher wrote: payload, metadata, key and trace
    /// context.
    #[must_use]
    pub fn without_content(&self, absence: Absence) -> Self {
        let draft = Draft {
            document: self.document.clone(),
            kind: self.kind.clone(),
            payload: Payload::Absent(absence),
            id: Some(self.id),
            actor: self.actor.clone(),
            session: self.session,
            key: None,
            ttl: self.ttl,
            trace: None,
            metadata: Metadata::default(),
        };
        Self { offset: self.offset, ..draft.into_event(self.epoch, self.seq, self.time) }
    }

    /// Estimates the bytes that the event takes in memory, without its encoded forms.
    pub fn approx_bytes(&self) -> usize {
        size_of::<Self>() + self.payload.len() + heap_bytes(&self.metadata, self.key.as_deref())
    }
}

/// About the bytes that metadata and a key take on the heap.
fn heap_bytes(metadata: &Metadata, key: Option<&str>) -> usize {
    // Most events have no metadata, and an iterator of none is not free.
    let metadata: usize =
        if metadata.is_empty() { 0 } else { metadata.iter().map(|(k, v)| k.len() + v.len() + 48).sum() };
    metadata + key.map_or(0, str::len)
}

/// Two events are equal when their contents are; encoded forms are not compared.
impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.document == other.document
            && self.kind == other.kind
            && self.seq == other.seq
            && self.epoch == other.epoch
            && self.offset == other.offset
            && self.time == other.time
            && self.actor == other.actor
            && self.session == other.session
            && self.key == other.key
            && self.ttl == other.ttl
            && self.trace == other.trace
            && self.metadata == other.metadata
            && self.payload == other.payload
    }
}
