//! What participants ask for over the wire protocols: their state, their cursor, the session, locks.

use std::sync::Arc;

use relay_core::{Actor, CommandError, Draft, ErrorCode, JsonText, Membership, Payload};
use relay_events::CURSOR_MOVED;
use serde::Serialize;

use crate::hub::LocalPresence;
use crate::locks;

pub(crate) async fn request(
    presence: &LocalPresence,
    membership: &Membership,
    name: &str,
    payload: &JsonText,
) -> Option<Result<JsonText, CommandError>> {
    match name {
        "presence:update" => Some(presence.update(membership, payload).map(|()| empty())),
        "cursor" => Some(cursor(presence, membership, payload).await),
        "session:info" => Some(match presence.session(&membership.document) {
            Some(session) => json(&session),
            None => Err(crate::document::not_joined(&membership.document)),
        }),
        _ => locks::request(presence.locks(), membership, name, payload).await,
    }
}

/// Tells the others where the cursor is: an ephemeral event of this connection, of which only the newest counts.
async fn cursor(
    presence: &LocalPresence,
    membership: &Membership,
    payload: &JsonText,
) -> Result<JsonText, CommandError> {
    let payload = Payload::Json(payload.clone());
    relay_events::check(&CURSOR_MOVED, &payload).map_err(|error| refused(error.code(), &error))?;
    let draft = Draft::new(membership.document.clone(), CURSOR_MOVED, payload)
        .actor(Actor::User(membership.user.clone()))
        .key(Arc::from(membership.connection.to_string()));
    let ack = presence.sink().publish(draft).await.map_err(|error| refused(error.code(), &error))?;
    json(&ack)
}

fn refused(code: ErrorCode, error: &impl ToString) -> CommandError {
    CommandError::new(code, error.to_string())
}

pub(crate) fn json(value: &impl Serialize) -> Result<JsonText, CommandError> {
    JsonText::of(value).map_err(|error| refused(ErrorCode::Internal, &error))
}

/// `{}`.
pub(crate) fn empty() -> JsonText {
    JsonText::from_raw(empty_object())
}

fn empty_object() -> &'static serde_json::value::RawValue {
    serde_json::from_str("{}").unwrap_or(serde_json::value::RawValue::NULL)
}
