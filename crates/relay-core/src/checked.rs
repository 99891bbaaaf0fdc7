//! [`CheckedDraft`]: a draft that a [`Vocabulary`] has found fit to be published. An event sink takes nothing else, so no
//! edge can forget the check.

use std::ops::Deref;
use std::sync::Arc;

use crate::actor::Actor;
use crate::event::{Draft, Event};
use crate::id::{EventId, InvalidId, SessionId, excerpt};
use crate::lock::LockClaim;
use crate::metadata::Metadata;
use crate::payload::Payload;
use crate::position::{Epoch, Seq};
use crate::time::Timestamp;

/// The rules about what may be published: which kinds there are, and what each carries. `relay-events` has Relay's.
pub trait Vocabulary {
    /// The reasons for which a draft is refused.
    type Error;

    /// Checks that `draft` may be published. Returns what it claims of locks, where its kind is one that locks guard.
    ///
    /// # Errors
    /// Whatever the vocabulary refuses.
    fn check(&self, draft: &Draft) -> Result<Option<LockClaim>, Self::Error>;
}

/// A draft that was checked. It reads as the [`Draft`] that it is; what the check was about cannot be changed any more.
#[derive(Debug, Clone)]
pub struct CheckedDraft {
    draft: Draft,
    claim: Option<LockClaim>,
    /// True when the id is a new one of this server.
    has_fresh_id: bool,
    /// True when the event closes what an earlier event opened.
    is_closing: bool,
    /// The payload before the first rewriting.
    original_payload: Option<Payload>,
}

impl CheckedDraft {
    /// Checks `draft` by `vocabulary`.
    ///
    /// # Errors
    /// Those of the vocabulary.
    pub fn new<V: Vocabulary>(draft: Draft, vocabulary: &V) -> Result<Self, V::Error> {
        let claim = vocabulary.check(&draft)?;
        Ok(Self { draft, claim, has_fresh_id: false, is_closing: false, original_payload: None })
    }

    /// The draft's claim about locks; `None` where locks do not guard its kind.
    pub fn claim(&self) -> Option<&LockClaim> {
        self.claim.as_ref()
    }

    /// Sets the actor of a draft that the server makes. A vocabulary may admit a draft for its actor, so an edge sets the actor
    /// before the check.
    pub fn actor(mut self, actor: Actor) -> Self {
        self.draft.actor = actor;
        self
    }

    /// Sets the session.
    pub fn session(mut self, session: SessionId) -> Self {
        self.draft.session = Some(session);
        self
    }

    /// Sets the conflation key.
    pub fn key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.draft.key = Some(key.into());
        self
    }

    /// Sets the id, which makes publishing idempotent.
    pub fn id(mut self, id: EventId) -> Self {
        self.draft.id = Some(id);
        self
    }

    /// Sets an id that the caller has just made, so that it can publish the draft again while the outcome is not known. An
    /// event with this id is looked for in memory alone.
    pub fn fresh_id(mut self, id: EventId) -> Self {
        self.has_fresh_id = true;
        self.id(id)
    }

    /// True when the id was set by [`fresh_id`](Self::fresh_id).
    pub fn has_fresh_id(&self) -> bool {
        self.has_fresh_id
    }

    /// Marks the draft of an event that closes what an earlier event of the document opened, such as the end of a lock. A sink
    /// takes it also where it opens no further documents.
    pub fn closing(mut self) -> Self {
        self.is_closing = true;
        self
    }

    /// True when the draft was marked by [`closing`](Self::closing).
    pub fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Returns the draft's id, and gives it one first if it has none.
    pub fn assign_id(&mut self) -> EventId {
        *self.draft.id.get_or_insert_with(EventId::new)
    }

    /// Replaces the payload, for a stage of the document's order that transforms it. The new draft is checked as a whole.
    ///
    /// # Errors
    /// Those of the vocabulary; the draft stays as it was.
    pub fn rewrite<V: Vocabulary>(&mut self, payload: Payload, vocabulary: &V) -> Result<(), V::Error> {
        let before = std::mem::replace(&mut self.draft.payload, payload);
        match vocabulary.check(&self.draft) {
            Ok(claim) => {
                self.claim = claim;
                self.original_payload.get_or_insert(before);
                Ok(())
            }
            Err(error) => {
                self.draft.payload = before;
                Err(error)
            }
        }
    }

    /// Replaces the value of a metadata key to which the server gives a meaning. The vocabulary knows nothing of such values,
    /// and locks do not depend on them.
    ///
    /// # Errors
    /// [`InvalidId`], when the key does not begin with [`Metadata::SERVER_PREFIX`] or a limit of [`Metadata`] is broken; the
    /// draft stays as it was.
    pub fn set_server_metadata(&mut self, key: &str, value: String) -> Result<(), InvalidId> {
        if !key.starts_with(Metadata::SERVER_PREFIX) {
            let reason = "only keys of the server may change after the check";
            return Err(InvalidId::Malformed { what: "metadata key", value: excerpt(key), reason });
        }
        self.draft.metadata.insert(key, value)
    }

    /// The payload as it was before it was [rewritten](Self::rewrite); `None` where it was not.
    pub fn original_payload(&self) -> Option<&Payload> {
        self.original_payload.as_ref()
    }

    /// The event that this draft becomes at the given place and time; see [`Draft::into_event`].
    pub fn into_event(self, epoch: Epoch, seq: Option<Seq>, time: Timestamp) -> Event {
        self.draft.into_event(epoch, seq, time)
    }
}

impl Deref for CheckedDraft {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        &self.draft
    }
}
