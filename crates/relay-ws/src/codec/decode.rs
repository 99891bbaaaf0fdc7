//! The messages of clients, decoded. Only a text with JSON escapes is copied, and no input causes a panic.

use std::borrow::Cow;

use relay_core::{JsonText, Payload};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{MAX_FIELD_BYTES, PUSH};
use crate::text::excerpt;

/// A message from a client, borrowed from its WebSocket message.
#[derive(Debug, Clone)]
pub struct ClientMessage<'a> {
    /// The `ref` of the join that the message belongs to.
    pub join_ref: Option<Cow<'a, str>>,
    /// The `ref` that the reply repeats. `None` for a message whose client awaits no reply.
    pub reference: Option<Cow<'a, str>>,
    /// The topic, for instance `document:notes`. It is not checked.
    pub topic: Cow<'a, str>,
    /// The event, for instance `phx_join` or a kind. It is not checked.
    pub event: Cow<'a, str>,
    /// The content.
    pub payload: ClientPayload<'a>,
}

/// The content of a [`ClientMessage`].
#[derive(Debug, Clone, Copy)]
pub enum ClientPayload<'a> {
    /// The client's JSON text. It is valid JSON, and unchanged.
    Json(&'a RawValue),
    /// Opaque bytes.
    Binary(&'a [u8]),
}

impl ClientPayload<'_> {
    /// The size of the content in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(raw) => raw.get().len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// True when the content has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the content into the payload of an event. The payload does not keep the whole message in memory.
    pub fn to_payload(self) -> Payload {
        match self {
            Self::Json(raw) => Payload::Json(JsonText::from_raw(raw)),
            Self::Binary(bytes) => Payload::Binary(bytes::Bytes::copy_from_slice(bytes)),
        }
    }
}

/// The head of a message from a client, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageHead {
    /// The `ref` of the join that the message belongs to.
    pub join_ref: Option<String>,
    /// The `ref` that the reply repeats.
    pub reference: Option<String>,
    /// The topic. It is not checked.
    pub topic: String,
    /// The event. It is not checked.
    pub event: String,
}

/// Decodes the head out of the first bytes of a message. Returns `None` when it is not among them.
pub fn decode_head(bytes: &[u8], is_text: bool) -> Option<MessageHead> {
    if !is_text {
        let ClientMessage { join_ref, reference, topic, event, .. } = decode_binary(bytes).ok()?;
        let [join_ref, reference] = [join_ref, reference].map(|text| text.map(Cow::into_owned));
        return Some(MessageHead {
            join_ref,
            reference,
            topic: topic.into_owned(),
            event: event.into_owned(),
        });
    }
    let mut rest = bytes.trim_ascii_start().strip_prefix(b"[")?;
    let mut field = || {
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<Option<String>>();
        let text = values.next()?.ok()?;
        rest = rest[values.byte_offset()..].trim_ascii_start().strip_prefix(b",")?;
        Some(text.filter(|text| text.len() <= MAX_FIELD_BYTES))
    };
    Some(MessageHead { join_ref: field()?, reference: field()?, topic: field()??, event: field()?? })
}

/// The reason for which bytes are not a message of a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The text is not JSON of the right form. Holds the first 256 characters of the parser's message.
    #[error("text must be `[join_ref, ref, topic, event, payload]`: {0}")]
    NotAMessage(String),
    /// The first byte of a binary message names no form that clients send. Holds that byte; `None` for an empty message.
    #[error("a binary message must begin with 0 (push), and this one begins with {0:?}")]
    UnknownForm(Option<u8>),
    /// A binary message ends within its header.
    #[error("a binary message of {bytes} bytes ends before its header of {header} bytes")]
    Truncated {
        /// The size of the message in bytes.
        bytes: usize,
        /// The size of its header in bytes.
        header: usize,
    },
    /// A field of a binary message is not UTF-8.
    #[error("the {field} of a binary message is not UTF-8")]
    NotUtf8 {
        /// The name of the field.
        field: &'static str,
    },
    /// A reference has more than 255 bytes, the most that a binary message carries.
    #[error("the {field} has {bytes} bytes; at most {MAX_FIELD_BYTES} are allowed")]
    ReferenceTooLong {
        /// The name of the field.
        field: &'static str,
        /// The size of the reference in bytes.
        bytes: usize,
    },
}

/// A JSON string. It is borrowed unless it has escapes.
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

/// Decodes a text message, which is `[join_ref, ref, topic, event, payload]` as JSON.
///
/// # Errors
/// [`DecodeError::NotAMessage`] when the text is anything else, and [`DecodeError::ReferenceTooLong`].
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

/// Decodes a binary message, which is a push.
///
/// It begins with the byte `0` and four bytes with the lengths of join ref, ref, topic and event. Those four texts follow,
/// and then the payload. An empty reference is decoded as `None`.
///
/// # Errors
/// [`DecodeError::UnknownForm`], [`DecodeError::Truncated`] and [`DecodeError::NotUtf8`].
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
