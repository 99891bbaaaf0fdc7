//! What the server sends. Broadcasts, the only messages that many receive, are made once per event.

use bytes::{BufMut, Bytes};
use relay_core::{DocumentId, Event, FormatId, Payload};
use relay_events::json;
use serde::Serialize;

use super::topic::topic;
use super::{BROADCAST, MAX_FIELD_BYTES, PUSH, REPLY};

/// A WebSocket message that is ready to be sent. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message; the bytes are UTF-8.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
}

impl Frame {
    /// The message's bytes.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was done.
    Ok,
    /// It was not.
    Error,
}

impl Status {
    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

/// A field is too long for a binary message. Send it as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {field} has {bytes} bytes, a binary message takes at most {MAX_FIELD_BYTES}; send it as text")]
pub struct FieldTooLong {
    /// The field.
    pub field: &'static str,
    /// Its size.
    pub bytes: usize,
}

/// A response or a payload that was to be sent cannot be JSON.
#[derive(Debug, thiserror::Error)]
#[error("the message cannot be JSON: {0}")]
pub struct EncodeError(#[from] serde_json::Error);

fn text(message: &impl Serialize) -> Result<Frame, EncodeError> {
    Ok(Frame::Text(serde_json::to_vec(message)?.into()))
}

/// The JSON of `parts`: texts and nulls, which always serialise.
fn json_of(parts: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(parts).unwrap_or_else(|error| unreachable!("texts are JSON: {error}"))
}

/// A message to every member of `document`, whose payload `write_payload` adds as JSON.
pub(super) fn broadcast_of(
    document: &DocumentId,
    name: &str,
    write_payload: impl FnOnce(&mut Vec<u8>),
) -> Bytes {
    // Put together rather than serialised: JSON that is there already is not read again.
    let mut message = json_of(&((), (), topic(document), name));
    message.pop(); // the closing bracket
    message.push(b',');
    write_payload(&mut message);
    message.push(b']');
    message.into()
}

/// A reply to the message that had `reference`.
///
/// # Errors
/// [`EncodeError`] when the response cannot be JSON.
pub fn encode_reply(
    join_ref: Option<&str>,
    reference: Option<&str>,
    topic: &str,
    status: Status,
    response: &impl Serialize,
) -> Result<Frame, EncodeError> {
    #[derive(Serialize)]
    struct Reply<'a, R> {
        status: Status,
        response: &'a R,
    }
    text(&(join_ref, reference, topic, "phx_reply", Reply { status, response }))
}

/// A message from the server to one joined channel.
///
/// # Errors
/// [`EncodeError`] when the payload cannot be JSON.
pub fn encode_push(
    join_ref: Option<&str>,
    topic: &str,
    event: &str,
    payload: &impl Serialize,
) -> Result<Frame, EncodeError> {
    text(&(join_ref, (), topic, event, payload))
}

/// The end of a channel that was wanted: the client left it or joined anew.
pub fn encode_close(join_ref: Option<&str>, topic: &str) -> Frame {
    #[derive(Serialize)]
    struct Nothing {}
    Frame::Text(json_of(&(join_ref, join_ref, topic, "phx_close", Nothing {})).into())
}

/// The end of a channel by a failure. Clients join again by themselves.
pub fn encode_error(join_ref: Option<&str>, topic: &str, reason: &str) -> Frame {
    #[derive(Serialize)]
    struct Failure<'a> {
        reason: &'a str,
    }
    Frame::Text(json_of(&(join_ref, join_ref, topic, "phx_error", Failure { reason })).into())
}

/// The format of an event as a whole message, text or binary.
struct Broadcast;

/// An event as every member of its document gets it, made once and shared.
///
/// An event with JSON goes as text with its envelope. One with bytes goes as binary: the length of the envelope's
/// header as a big-endian `u32`, that header, and the bytes; or as text with `payload_base64` where the topic is
/// too long for a binary message.
pub fn encode_broadcast(event: &Event) -> Frame {
    let bytes = event.encodings.get_or_encode(FormatId::of::<Broadcast>(), || match &event.payload {
        Payload::Binary(payload) => binary_broadcast(event, payload).unwrap_or_else(|| text_broadcast(event)),
        Payload::Json(_) => text_broadcast(event),
    });
    // The form follows from the first byte: text is a JSON array.
    if bytes.first() == Some(&BROADCAST) { Frame::Binary(bytes) } else { Frame::Text(bytes) }
}

fn text_broadcast(event: &Event) -> Bytes {
    broadcast_of(&event.document, event.kind.as_str(), |out| json::encode_to(event, out))
}

fn binary_broadcast(event: &Event, payload: &[u8]) -> Option<Bytes> {
    let topic = topic(&event.document);
    let header = json::encode_header(event);
    let header_length = u32::try_from(header.len()).ok()?;
    let mut message = binary(
        BROADCAST,
        &[("topic", &topic), ("event", event.kind.as_str())],
        4 + header.len() + payload.len(),
    )
    .ok()?;
    message.put_u32(header_length);
    message.extend_from_slice(&header);
    message.extend_from_slice(payload);
    Some(message.into())
}

/// A message with bytes from the server to one joined channel.
///
/// # Errors
/// [`FieldTooLong`].
pub fn encode_binary_push(
    join_ref: &str,
    topic: &str,
    event: &str,
    payload: &[u8],
) -> Result<Frame, FieldTooLong> {
    let fields = [("join_ref", join_ref), ("topic", topic), ("event", event)];
    let mut message = binary(PUSH, &fields, payload.len())?;
    message.extend_from_slice(payload);
    Ok(Frame::Binary(message.into()))
}

/// A reply whose response is bytes.
///
/// # Errors
/// [`FieldTooLong`].
pub fn encode_binary_reply(
    join_ref: &str,
    reference: &str,
    topic: &str,
    status: Status,
    response: &[u8],
) -> Result<Frame, FieldTooLong> {
    let fields = [("join_ref", join_ref), ("ref", reference), ("topic", topic), ("status", status.as_str())];
    let mut message = binary(REPLY, &fields, response.len())?;
    message.extend_from_slice(response);
    Ok(Frame::Binary(message.into()))
}

/// The beginning of a binary message: its form, the fields' lengths, the fields.
fn binary(form: u8, fields: &[(&'static str, &str)], payload_bytes: usize) -> Result<Vec<u8>, FieldTooLong> {
    let field_bytes: usize = fields.iter().map(|(_, text)| text.len()).sum();
    let mut message = Vec::with_capacity(1 + fields.len() + field_bytes + payload_bytes);
    message.push(form);
    for (field, text) in fields {
        let length = u8::try_from(text.len()).map_err(|_| FieldTooLong { field, bytes: text.len() })?;
        message.push(length);
    }
    for (_, text) in fields {
        message.extend_from_slice(text.as_bytes());
    }
    Ok(message)
}
