//! The messages of the server, encoded. A broadcast is encoded once per event, however many clients receive it.

use bytes::{BufMut, Bytes};
use relay_core::{DocumentId, Event, FormatId, Payload};
use relay_events::json;
use serde::Serialize;

use super::topic::topic;
use super::{BROADCAST, MAX_FIELD_BYTES, PUSH, REPLY};

/// A WebSocket message that is ready to be sent. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message. Its bytes are UTF-8.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
}

impl Frame {
    /// The bytes of the message, without any framing.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes,
        }
    }
}

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The request succeeded.
    Ok,
    /// The request was refused or failed.
    Error,
}

impl Status {
    /// The name of the outcome on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

/// The error of a field that has more than 255 bytes, the most that a binary message carries. A text message has no such
/// limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {field} has {bytes} bytes, and a binary message takes at most {MAX_FIELD_BYTES}; send a text message"
)]
pub struct FieldTooLong {
    /// The name of the field.
    pub field: &'static str,
    /// The size of the field in bytes.
    pub bytes: usize,
}

/// The error of a response or payload that does not serialise to JSON.
#[derive(Debug, thiserror::Error)]
#[error("the message cannot be JSON: {0}")]
pub struct EncodeError(#[from] serde_json::Error);

fn text(message: &impl Serialize) -> Result<Frame, EncodeError> {
    Ok(Frame::Text(serde_json::to_vec(message)?.into()))
}

/// Serialises `parts`, which are texts and nulls.
fn json_of(parts: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(parts).unwrap_or_else(|error| unreachable!("texts are JSON: {error}"))
}

/// Encodes a broadcast to the members of `document`. `write_payload` appends the payload as JSON, and leaves space for the end
/// of the message.
pub(super) fn broadcast_of(
    document: &DocumentId,
    name: &str,
    write_payload: impl FnOnce(&mut Vec<u8>),
) -> Bytes {
    // The JSON of the payload is appended as it is, so that it is not parsed again.
    let mut message = json_of(&((), (), topic(document), name));
    message.pop(); // the closing bracket
    message.push(b',');
    write_payload(&mut message);
    message.push(b']');
    message.into()
}

/// Encodes a reply on `topic` to the message that had `reference`.
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

/// Encodes a push from the server to one joined topic.
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

/// Encodes the end of a join. The client left the topic or joined it again.
pub fn encode_close(join_ref: Option<&str>, topic: &str) -> Frame {
    #[derive(Serialize)]
    struct Nothing {}
    Frame::Text(json_of(&(join_ref, join_ref, topic, "phx_close", Nothing {})).into())
}

/// Encodes the end of a join by a failure. The `phoenix` client joins again by itself.
pub fn encode_error(join_ref: Option<&str>, topic: &str, reason: &str) -> Frame {
    #[derive(Serialize)]
    struct Failure<'a> {
        reason: &'a str,
    }
    Frame::Text(json_of(&(join_ref, join_ref, topic, "phx_error", Failure { reason })).into())
}

/// The format of an event as a whole message, text or binary.
struct Broadcast;

/// Encodes the broadcast of an event to the members of its document. The bytes are cached in the event and shared.
///
/// An event with a JSON payload becomes a text message with the event's envelope. An event with a binary payload becomes a
/// binary message. Its payload begins with the length of the envelope's header as a big-endian `u32`. The header and the
/// bytes follow.
/// A topic of more than 255 bytes does not fit into a binary message; such an event becomes a text message with
/// `payload_base64`.
pub fn encode_broadcast(event: &Event) -> Frame {
    let bytes = event.encodings.get_or_encode(FormatId::of::<Broadcast>(), || match &event.payload {
        Payload::Binary(payload) => binary_broadcast(event, payload).unwrap_or_else(|| text_broadcast(event)),
        Payload::Json(_) | Payload::Absent(_) => text_broadcast(event),
    });
    // The first byte tells the form, since a text message begins with a bracket.
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

/// Encodes a push with a binary payload from the server to one joined topic.
///
/// # Errors
/// [`FieldTooLong`] when a field has more than 255 bytes.
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

/// Encodes a reply with a binary response.
///
/// # Errors
/// [`FieldTooLong`] when a field has more than 255 bytes.
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

/// Encodes the beginning of a binary message: its form, the lengths of the fields, and the fields. It reserves
/// `payload_bytes` for the payload.
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
