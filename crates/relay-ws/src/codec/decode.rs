//! What clients send. Nothing here allocates unless a text has JSON escapes, and no input makes it panic.

use std::borrow::Cow;

use relay_core::{JsonText, Payload};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{MAX_FIELD_BYTES, PUSH};
use crate::text::excerpt;

/// A message from a client, borrowed from the WebSocket message that it came in.
#[derive(Debug, Clone)]
pub struct ClientMessage<'a> {
    /// The `ref` of the join that the message belongs to.
    pub join_ref: Option<Cow<'a, str>>,
    /// What the reply will name.
    pub reference: Option<Cow<'a, str>>,
    /// The topic.
    pub topic: Cow<'a, str>,
    /// The event.
    pub event: Cow<'a, str>,
    /// The content.
    pub payload: ClientPayload<'a>,
}

/// The content of a [`ClientMessage`].
#[derive(Debug, Clone, Copy)]
pub enum ClientPayload<'a> {
    /// JSON, as it came.
    Json(&'a RawValue),
    /// Opaque bytes.
    Binary(&'a [u8]),
}

impl ClientPayload<'_> {
    /// The content as an event's payload: a copy, so that it does not keep the whole message alive.
    pub fn to_payload(self) -> Payload {
        match self {
            Self::Json(raw) => Payload::Json(JsonText::from_raw(raw)),
            Self::Binary(bytes) => Payload::Binary(bytes::Bytes::copy_from_slice(bytes)),
        }
    }
}

/// Why bytes are not a client's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The text is not JSON of the right form; what the parser says of it, cut to its first characters.
    #[error("text must be `[join_ref, ref, topic, event, payload]`: {0}")]
    NotAMessage(String),
    /// The first byte of a binary message names no form that clients send.
    #[error("a binary message begins with 0 (push), this one with {0:?}")]
    UnknownForm(Option<u8>),
    /// A binary message ends within its header.
    #[error("a binary message of {bytes} bytes ends before its header of {header} bytes")]
    Truncated {
        /// Its size.
        bytes: usize,
        /// What its header needs.
        header: usize,
    },
    /// A field of a binary message is not UTF-8.
    #[error("the {field} of a binary message is not UTF-8")]
    NotUtf8 {
        /// The field.
        field: &'static str,
    },
    /// A reference is longer than a binary message could carry.
    #[error("the {field} has {bytes} bytes, at most {MAX_FIELD_BYTES} are allowed")]
    ReferenceTooLong {
        /// The field.
        field: &'static str,
        /// Its size.
        bytes: usize,
    },
}

/// Text that may have to be unescaped: borrowed where it can be.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Fields<'a>(
    #[serde(borrow)] Option<Text<'a>>,
    #[serde(borrow)] Option<Text<'a>>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] Text<'a>,
    #[serde(borrow)] &'a RawValue,
);

/// Reads a text message.
///
/// # Errors
/// [`DecodeError::NotAMessage`], [`DecodeError::ReferenceTooLong`].
pub fn decode_text(text: &str) -> Result<ClientMessage<'_>, DecodeError> {
    let Fields(join_ref, reference, topic, event, payload) = serde_json::from_str(text)
        .map_err(|error| DecodeError::NotAMessage(excerpt(&error.to_string(), 256)))?;
    Ok(ClientMessage {
        join_ref: check_reference("join_ref", join_ref)?,
        reference: check_reference("ref", reference)?,
        topic: topic.0,
        event: event.0,
        payload: ClientPayload::Json(payload),
    })
}

fn check_reference<'a>(
    field: &'static str,
    text: Option<Text<'a>>,
) -> Result<Option<Cow<'a, str>>, DecodeError> {
    match text {
        Some(Text(text)) if text.len() > MAX_FIELD_BYTES => {
            Err(DecodeError::ReferenceTooLong { field, bytes: text.len() })
        }
        text => Ok(text.map(|text| text.0)),
    }
}

/// Reads a binary message: a push, `0`, the lengths of join ref, ref, topic and event in one byte each, those four
/// texts, and the payload. An empty reference is none.
///
/// # Errors
/// [`DecodeError::UnknownForm`], [`DecodeError::Truncated`], [`DecodeError::NotUtf8`].
pub fn decode_binary(bytes: &[u8]) -> Result<ClientMessage<'_>, DecodeError> {
    let (lengths, mut rest) = match bytes {
        [PUSH, join_ref, reference, topic, event, rest @ ..] => {
            ([*join_ref, *reference, *topic, *event], rest)
        }
        [PUSH, ..] => return Err(DecodeError::Truncated { bytes: bytes.len(), header: 5 }),
        _ => return Err(DecodeError::UnknownForm(bytes.first().copied())),
    };
    let mut field = |field: &'static str, length: u8| {
        let Some((text, after)) = rest.split_at_checked(usize::from(length)) else {
            let header = 5 + lengths.iter().map(|length| usize::from(*length)).sum::<usize>();
            return Err(DecodeError::Truncated { bytes: bytes.len(), header });
        };
        rest = after;
        std::str::from_utf8(text).map_err(|_| DecodeError::NotUtf8 { field })
    };
    let join_ref = field("join_ref", lengths[0])?;
    let reference = field("ref", lengths[1])?;
    let topic = field("topic", lengths[2])?;
    let event = field("event", lengths[3])?;
    Ok(ClientMessage {
        join_ref: (!join_ref.is_empty()).then_some(Cow::Borrowed(join_ref)),
        reference: (!reference.is_empty()).then_some(Cow::Borrowed(reference)),
        topic: Cow::Borrowed(topic),
        event: Cow::Borrowed(event),
        payload: ClientPayload::Binary(rest),
    })
}
