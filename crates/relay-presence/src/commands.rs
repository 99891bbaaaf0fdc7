//! The commands of presence: about the participant's own state, its cursor, the session, and locks.

use std::sync::Arc;

use async_trait::async_trait;
use relay_core::{
    Actor, Caller, Command, CommandError, CommandHandler, Commands, Draft, DuplicateCommand, JsonObject,
    JsonText, Lease, Payload, PublishAck,
};
use relay_events::CURSOR_MOVED;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use crate::document::not_joined;
use crate::locks::{AcquireLock, ReleaseLock, RenewLock};
use crate::presence::LocalPresence;
use crate::query::SessionInfo;

/// Changes the state that the participant shows. The argument is an object whose fields replace those of the state; null
/// removes a field.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct UpdateState(pub JsonObject);

impl Command for UpdateState {
    const NAME: &'static str = "presence:update";
    type Reply = Updated;
}

/// The reply to a command without a result: `{}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Updated {}

/// Moves the participant's cursor. The argument is the payload of a `cursor.moved` event; only the newest of a connection
/// counts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct MoveCursor(pub JsonText);

impl Command for MoveCursor {
    const NAME: &'static str = "cursor";
    type Reply = PublishAck;
}

/// Asks for the document's session. It has no arguments, and ignores any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GetSession;

impl<'de> Deserialize<'de> for GetSession {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl Command for GetSession {
    const NAME: &'static str = "session:info";
    type Reply = SessionInfo;
}

#[async_trait]
impl CommandHandler<UpdateState> for LocalPresence {
    async fn handle(&self, from: &Caller, UpdateState(change): UpdateState) -> Result<Updated, CommandError> {
        self.update(&from.membership, &change).map(|()| Updated {})
    }
}

#[async_trait]
impl CommandHandler<MoveCursor> for LocalPresence {
    async fn handle(&self, from: &Caller, MoveCursor(to): MoveCursor) -> Result<PublishAck, CommandError> {
        let draft = Draft::new(from.membership.document.clone(), CURSOR_MOVED, Payload::Json(to))
            .actor(Actor::User(from.membership.user.clone()))
            .key(Arc::from(from.membership.connection.to_string()));
        let draft =
            relay_events::check(draft).map_err(|error| CommandError::new(error.code(), error.to_string()))?;
        let published = self.sink().publish(draft).await;
        published.map_err(|error| CommandError::new(error.code(), error.to_string()))
    }
}

#[async_trait]
impl CommandHandler<GetSession> for LocalPresence {
    async fn handle(&self, from: &Caller, GetSession: GetSession) -> Result<SessionInfo, CommandError> {
        self.session(&from.membership.document).ok_or_else(|| not_joined(&from.membership.document))
    }
}

// Locks belong to users and not to connections, so these commands work for connections that have not joined.

#[async_trait]
impl CommandHandler<AcquireLock> for LocalPresence {
    async fn handle(&self, from: &Caller, command: AcquireLock) -> Result<Lease, CommandError> {
        let Caller { membership, memory, .. } = from;
        let request = command.into_request().memory(memory.clone());
        Ok(self.locks().acquire(&membership.document, &membership.user, request).await?)
    }
}

#[async_trait]
impl CommandHandler<RenewLock> for LocalPresence {
    async fn handle(&self, from: &Caller, command: RenewLock) -> Result<Lease, CommandError> {
        Ok(self
            .locks()
            .renew(&from.membership.document, &from.membership.user, command.token, command.ttl)
            .await?)
    }
}

#[async_trait]
impl CommandHandler<ReleaseLock> for LocalPresence {
    async fn handle(&self, from: &Caller, command: ReleaseLock) -> Result<Lease, CommandError> {
        Ok(self.locks().release(&from.membership.document, &from.membership.user, command.token).await?)
    }
}

impl LocalPresence {
    /// Registers the commands of presence and of its locks.
    ///
    /// # Errors
    /// [`DuplicateCommand`] when one of their names is taken.
    pub fn register_commands(&self, commands: &mut Commands) -> Result<(), DuplicateCommand> {
        commands.register::<UpdateState>(self.clone())?;
        commands.register::<MoveCursor>(self.clone())?;
        commands.register::<GetSession>(self.clone())?;
        commands.register::<AcquireLock>(self.clone())?;
        commands.register::<RenewLock>(self.clone())?;
        commands.register::<ReleaseLock>(self.clone())
    }
}
