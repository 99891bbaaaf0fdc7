//! Somebody who takes part in a document from within this process.

use std::sync::Arc;

use relay_bus::{Bus, Subscription};
use relay_core::{
    Actor, Attendance, Departure, Draft, Event, JsonText, Kind, Opening, Payload, Receipt, RequestError,
    Seat, SessionId, Sign, StreamError,
};
use relay_presence::Presence;

use crate::service::{PublishError, publish};

/// One user in one document: publishes as that user and receives the document's events, their own too.
///
/// [`Participant::leave`], or dropping it, ends it.
#[derive(Debug)]
pub struct Participant {
    bus: Bus,
    presence: Presence,
    seat: Seat,
    session: SessionId,
    opening: Opening,
    events: Subscription,
}

impl Participant {
    pub(crate) fn new(
        bus: Bus,
        presence: Presence,
        seat: Seat,
        session: SessionId,
        opening: Opening,
        events: Subscription,
    ) -> Self {
        Self { bus, presence, seat, session, opening, events }
    }

    /// The session that they are part of.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Does what a WebSocket client asks for by such a request, `presence:update` or `lock:acquire` for instance; the
    /// protocol's documentation lists them all. `None` when there is no such request.
    ///
    /// Cancel-safe: dropped, what waits is withdrawn.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn request(&self, name: &str, payload: &JsonText) -> Option<Result<JsonText, RequestError>> {
        self.presence.request(&self.seat, name, payload).await
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
        self.presence.sign(&self.seat, Sign::Active);
        let Seat { document, user, .. } = &self.seat;
        let draft = Draft::new(document.clone(), kind, payload).actor(Actor::User(user.clone()));
        publish(&self.bus, draft.session(self.session)).await
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

impl Drop for Participant {
    fn drop(&mut self) {
        self.presence.leave(&self.seat, Departure::Left);
    }
}
