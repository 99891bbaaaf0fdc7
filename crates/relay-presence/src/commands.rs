//! What participants ask for over the wire protocols: their state, their cursor, the session, locks.

use std::sync::Arc;

use relay_core::{Actor, Draft, JsonText, Payload, RequestError, Seat};
use relay_events::CURSOR_MOVED;
use serde::Serialize;

use crate::hub::Presence;
use crate::locks;

pub(crate) async fn request(
    presence: &Presence,
    seat: &Seat,
    name: &str,
    payload: &JsonText,
) -> Option<Result<JsonText, RequestError>> {
    match name {
        "presence:update" => Some(presence.update(seat, payload).map(|()| empty())),
        "cursor" => Some(cursor(presence, seat, payload).await),
        "session:info" => Some(match presence.session(&seat.document) {
            Some(session) => json(&session),
            None => Err(crate::document::not_joined(&seat.document)),
        }),
        _ => locks::request(presence.locks(), seat, name, payload).await,
    }
}

/// Tells the others where the cursor is: an ephemeral event of this connection, of which only the newest counts.
async fn cursor(presence: &Presence, seat: &Seat, payload: &JsonText) -> Result<JsonText, RequestError> {
    let payload = Payload::Json(payload.clone());
    relay_events::check(&CURSOR_MOVED, &payload).map_err(|error| refused(error.code(), &error))?;
    let draft = Draft::new(seat.document.clone(), CURSOR_MOVED, payload)
        .actor(Actor::User(seat.user.clone()))
        .key(Arc::from(seat.connection.to_string()));
    let receipt = presence.sink().publish(draft).await.map_err(|error| refused(error.code(), &error))?;
    json(&receipt)
}

fn refused(code: &'static str, error: &impl ToString) -> RequestError {
    RequestError { code, message: error.to_string(), holder: None }
}

pub(crate) fn json(value: &impl Serialize) -> Result<JsonText, RequestError> {
    JsonText::of(value).map_err(|error| refused("internal", &error))
}

/// `{}`.
pub(crate) fn empty() -> JsonText {
    JsonText::from_raw(empty_object())
}

fn empty_object() -> &'static serde_json::value::RawValue {
    serde_json::from_str("{}").unwrap_or(serde_json::value::RawValue::NULL)
}
