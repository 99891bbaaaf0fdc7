//! [`DeferredMessage`]: a decoded message that waits. It waits for the join of its topic; a join waits for the replies before it.
//!
//! It is kept decoded, so that each look at it costs little, however large it is and however often the connection is woken.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::codec::{ClientMessage, ClientPayload};

/// A message that waits. The connection reads nothing until it is handled.
pub(super) struct DeferredMessage {
    join_ref: Option<Box<str>>,
    reference: Option<Box<str>>,
    topic: Box<str>,
    event: Box<str>,
    payload: OwnedPayload,
}

enum OwnedPayload {
    Json(Box<RawValue>),
    Binary(Box<[u8]>),
}

impl DeferredMessage {
    /// A copy of `message`.
    pub(super) fn new(message: &ClientMessage<'_>) -> Self {
        Self {
            join_ref: message.join_ref.as_deref().map(Box::from),
            reference: message.reference.as_deref().map(Box::from),
            topic: message.topic.as_ref().into(),
            event: message.event.as_ref().into(),
            payload: match message.payload {
                ClientPayload::Json(raw) => OwnedPayload::Json(raw.to_owned()),
                ClientPayload::Binary(bytes) => OwnedPayload::Binary(bytes.into()),
            },
        }
    }

    /// The message.
    pub(super) fn message(&self) -> ClientMessage<'_> {
        ClientMessage {
            join_ref: self.join_ref.as_deref().map(Cow::Borrowed),
            reference: self.reference.as_deref().map(Cow::Borrowed),
            topic: Cow::Borrowed(&self.topic),
            event: Cow::Borrowed(&self.event),
            payload: match &self.payload {
                OwnedPayload::Json(raw) => ClientPayload::Json(raw),
                OwnedPayload::Binary(bytes) => ClientPayload::Binary(bytes),
            },
        }
    }

    /// The bytes of the message.
    pub(super) fn bytes(&self) -> usize {
        let references = [&self.join_ref, &self.reference].into_iter().flatten();
        references.map(|text| text.len()).sum::<usize>()
            + self.topic.len()
            + self.event.len()
            + self.message().payload.len()
    }
}
