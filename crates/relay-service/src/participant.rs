//! [`Participant`]: a user in a document, from within this process.

use std::sync::Arc;

use relay_bus::{Bus, Subscription};
use relay_core::{
    Activity, Actor, Command, CommandError, CommandHandler, Draft, Event, Kind, LeaveReason, Membership,
    Payload, Presence, PublishAck, SessionId, StreamError, SubscribeAck,
};
use relay_presence::LocalPresence;

use crate::error::PublishError;
use crate::publish::publish;

/// One user in one document. It publishes as that user and receives the document's events, the user's own too.
///
/// It ends with [`Participant::leave`], or when it is dropped.
#[derive(Debug)]
pub struct Participant {
    bus: Bus,
    presence: LocalPresence,
    membership: Membership,
    session: SessionId,
    ack: SubscribeAck,
    events: Subscription,
}

impl Participant {
    pub(crate) fn new(
        bus: Bus,
        presence: LocalPresence,
        membership: Membership,
        session: SessionId,
        ack: SubscribeAck,
        events: Subscription,
    ) -> Self {
        Self { bus, presence, membership, session, ack, events }
    }

    /// The session that the participant is part of.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Carries out a command of this participant, for instance [`UpdateState`](relay_presence::UpdateState) or
    /// [`AcquireLock`](relay_presence::AcquireLock), as a WebSocket client does with the request of the same name.
    ///
    /// Cancel-safe: a dropped command that still waits is withdrawn.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn command<C: Command>(&self, command: C) -> Result<C::Reply, CommandError>
    where
        LocalPresence: CommandHandler<C>,
    {
        self.presence.handle(&self.membership.clone().into(), command).await
    }

    /// The document's position when the participant joined, and how the wanted start was met.
    pub fn ack(&self) -> &SubscribeAck {
        &self.ack
    }

    /// Publishes an event as this user. Returns when the event is as durable as configured.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish(&self, kind: Kind, payload: Payload) -> Result<PublishAck, PublishError> {
        self.presence.touch(&self.membership, Activity::Active);
        let Membership { document, user, .. } = &self.membership;
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
        self.presence.leave(&self.membership, LeaveReason::Left);
    }
}
