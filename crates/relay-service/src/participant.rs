//! Somebody who takes part in a document from within this process.

use std::sync::Arc;

use relay_bus::{Bus, Subscription};
use relay_core::{
    Activity, Actor, Command, CommandError, CommandHandler, Draft, Event, Kind, LeaveReason, Membership,
    Payload, Presence, PublishAck, SessionId, StreamError, SubscribeAck,
};
use relay_presence::LocalPresence;

use crate::service::{PublishError, publish};

/// One user in one document: publishes as that user and receives the document's events, their own too.
///
/// [`Participant::leave`], or dropping it, ends it.
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

    /// The session that they are part of.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Carries out a command of this participant, for instance [`UpdateState`](relay_presence::UpdateState) or
    /// [`AcquireLock`](relay_presence::AcquireLock), as a WebSocket client does with the request of the same name.
    ///
    /// Cancel-safe: dropped, what waits is withdrawn.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn command<C: Command>(&self, command: C) -> Result<C::Reply, CommandError>
    where
        LocalPresence: CommandHandler<C>,
    {
        self.presence.handle(&self.membership, command).await
    }

    /// Where the document stood when the participant joined, and how the wanted start was met.
    pub fn ack(&self) -> &SubscribeAck {
        &self.ack
    }

    /// Publishes an event as this user. Answered when it is as durable as configured.
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
