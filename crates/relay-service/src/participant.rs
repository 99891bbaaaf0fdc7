//! Somebody who takes part in a document from within this process.

use std::sync::Arc;

use relay_bus::{Bus, Subscription};
use relay_core::{Actor, DocumentId, Draft, Event, Kind, Opening, Payload, Receipt, StreamError, UserId};

use crate::service::{PublishError, publish};

/// One user in one document: publishes as that user and receives the document's events, their own too.
///
/// [`Participant::leave`], or dropping it, ends it.
#[derive(Debug)]
pub struct Participant {
    bus: Bus,
    document: DocumentId,
    user: UserId,
    opening: Opening,
    events: Subscription,
}

impl Participant {
    pub(crate) fn new(
        bus: Bus,
        document: DocumentId,
        user: UserId,
        opening: Opening,
        events: Subscription,
    ) -> Self {
        Self { bus, document, user, opening, events }
    }

    /// Where the document stood when the participant joined, and how the wanted start was met.
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Publishes an event as this user. Answered when it is as durable as configured.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish(&self, kind: Kind, payload: Payload) -> Result<Receipt, PublishError> {
        let draft = Draft::new(self.document.clone(), kind, payload).actor(Actor::User(self.user.clone()));
        publish(&self.bus, draft).await
    }

    /// The next event. `None` when the service is stopping. Cancel-safe.
    ///
    /// # Errors
    /// See [`StreamError`]; the participant must join again after one.
    pub async fn next(&mut self) -> Option<Result<Arc<Event>, StreamError>> {
        self.events.next().await
    }

    /// Leaves the document. Dropping the participant does the same.
    pub fn leave(self) {
        drop(self);
    }
}
