//! The JSON envelope: the form of events for browsers, HTTP clients and people.
//!
//! ```json
//! {"id":"0199…","document":"notes","kind":"document.edited","seq":7,"epoch":"00c0ffee00c0ffee","offset":42,
//!  "time":"2026-01-02T03:04:05.000006Z","actor":"user:ada","payload":{"patches":[[0,0,"h"]]}}
//! ```
//!
//! Fields without a value are left out; a binary payload is `payload_base64`. After its time to live an event has
//! `"expired":true` instead of a payload; an event that the log cannot read any more has `"lost":true`. The payload's JSON is copied unchanged and not parsed.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use relay_core::{
    Absence, Actor, CheckedDraft, DocumentId, Draft, Epoch, ErrorCode, Event, EventId, FormatId, InvalidId,
    JsonText, Metadata, Offset, Payload, Seq, SessionId, Timestamp, TraceContext,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::read_json::{read_json, shortened};
use crate::vocabulary::{self, PayloadError};
use crate::written::write_json;

/// The reason why JSON is not an event or a draft.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The text is not JSON, or a field is missing or of the wrong type.
    #[error("{0}")]
    Malformed(String),
    /// A field has a value that is not allowed.
    #[error(transparent)]
    InvalidField(#[from] InvalidId),
    /// The kind is unknown, or the payload does not fit it.
    #[error(transparent)]
    Payload(#[from] PayloadError),
}

impl JsonError {
    /// The kind of the refusal, for programs to decide by.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Malformed(_) | Self::InvalidField(_) => ErrorCode::InvalidRequest,
            Self::Payload(error) => error.code(),
        }
    }
}

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(shortened(error.to_string()))
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    id: EventId,
    document: Cow<'a, DocumentId>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seq: Option<Seq>,
    epoch: Epoch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<Offset>,
    time: Timestamp,
    actor: Cow<'a, Actor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<SessionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracestate: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "metadata_is_empty")]
    metadata: Cow<'a, Metadata>,
    #[serde(borrow, default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    /// True for an event without a payload, after its time to live.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    expired: bool,
    /// True for an event without a payload, which the log cannot read any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lost: bool,
}

#[allow(clippy::ptr_arg, reason = "serde hands the field as it is")]
fn metadata_is_empty(metadata: &Cow<'_, Metadata>) -> bool {
    metadata.is_empty()
}

/// Writes the envelope's fields without the payload.
fn write_header(event: &Event, out: &mut Vec<u8>) {
    let envelope = Envelope {
        id: event.id,
        document: Cow::Borrowed(&event.document),
        kind: Cow::Borrowed(event.kind.as_str()),
        seq: event.seq,
        epoch: event.epoch,
        offset: event.offset,
        time: event.time,
        actor: Cow::Borrowed(&event.actor),
        session: event.session,
        key: event.key.as_deref().map(Cow::Borrowed),
        ttl_ms: event.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        traceparent: event.trace.as_ref().map(|t| Cow::Borrowed(t.traceparent())),
        tracestate: event.trace.as_ref().and_then(|t| t.tracestate()).map(Cow::Borrowed),
        metadata: Cow::Borrowed(&event.metadata),
        payload: None,
        payload_base64: None,
        expired: event.payload == Payload::Absent(Absence::Expired),
        lost: event.is_lost(),
    };
    write_json(&envelope, out);
}

/// The bytes that follow a payload: the ends of the envelope and of a message around it.
const MAX_CLOSING_BYTES: usize = 4;

/// Appends the event's JSON envelope to `out`. The payload's JSON is copied unchanged.
pub fn encode_to(event: &Event, out: &mut Vec<u8>) {
    write_header(event, out);
    let base64;
    let parts: [&[u8]; 3] = match &event.payload {
        Payload::Json(text) => [b",\"payload\":", text.as_bytes(), b"}"],
        Payload::Binary(bytes) => {
            base64 = STANDARD.encode(bytes);
            [b",\"payload_base64\":\"", base64.as_bytes(), b"\"}"]
        }
        Payload::Absent(_) => return,
    };
    // The bytes are kept while the event is cached. A buffer that doubles for its last byte would keep as much again, which no
    // memory budget sees.
    out.reserve_exact(parts.iter().map(|part| part.len()).sum::<usize>() + MAX_CLOSING_BYTES);
    out.pop(); // the closing brace
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The format under which an event keeps its JSON envelope.
struct JsonEnvelope;

/// Returns the event's JSON envelope, which is encoded once and shared.
pub fn encode(event: &Event) -> Bytes {
    event.encodings.get_or_encode(FormatId::of::<JsonEnvelope>(), || {
        let mut out = Vec::with_capacity(384 + event.payload.len());
        encode_to(event, &mut out);
        out.into()
    })
}

/// Returns the event's JSON envelope without its payload, for protocols that carry the payload's bytes beside it.
pub fn encode_header(event: &Event) -> Vec<u8> {
    let mut out = Vec::with_capacity(384);
    write_header(event, &mut out);
    out
}

/// Reads an event's JSON envelope. A kind that the vocabulary does not contain, or no longer contains, is kept by its
/// name.
///
/// # Errors
/// [`JsonError`], when the JSON is not an event's envelope.
pub fn decode(json: &[u8]) -> Result<Event, JsonError> {
    let envelope: Envelope<'_> = read_json(json).map_err(JsonError::Malformed)?;
    let kind = vocabulary::kind_of_event(&envelope.kind, envelope.seq, envelope.offset)?;
    let payload = if envelope.expired {
        Payload::Absent(Absence::Expired)
    } else if envelope.lost {
        Payload::Absent(Absence::Lost)
    } else {
        payload(("payload", envelope.payload), ("payload_base64", envelope.payload_base64.as_deref()))?
    };
    let mut draft = Draft::new(envelope.document.into_owned(), kind, payload);
    draft.id = Some(envelope.id);
    draft.actor = envelope.actor.into_owned();
    draft.session = envelope.session;
    draft.key = envelope.key.map(Arc::from);
    draft.ttl = envelope.ttl_ms.map(Duration::from_millis);
    draft.trace = trace(envelope.traceparent.as_deref(), envelope.tracestate.as_deref())?;
    draft.metadata = envelope.metadata.into_owned();
    let mut event = draft.into_event(envelope.epoch, envelope.seq, envelope.time);
    event.offset = envelope.offset;
    Ok(event)
}

/// The fields of a draft: the part of the envelope that a client chooses.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DraftFields<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
    #[serde(default)]
    payload_base64: Option<String>,
    #[serde(default)]
    id: Option<EventId>,
    #[serde(default)]
    actor: Option<Actor>,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    ttl_ms: Option<u64>,
    #[serde(default)]
    traceparent: Option<String>,
    #[serde(default)]
    tracestate: Option<String>,
    #[serde(default)]
    metadata: Metadata,
}

/// The most bytes of a conflation key.
const MAX_KEY_BYTES: usize = 256;

/// Reads a client's draft for `document`, and checks that the payload fits its kind:
///
/// ```
/// use relay_core::{Actor, DocumentId};
///
/// let json = br#"{"kind":"document.edited","payload":{"patches":[[0,0,"h"]]},"actor":"user:ada"}"#;
/// let draft = relay_events::json::decode_draft(&DocumentId::new("notes")?, json)?;
/// assert_eq!(draft.kind, relay_events::DOCUMENT_EDITED);
/// assert_eq!(draft.actor, "user:ada".parse::<Actor>()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Fields: `kind`, `payload` or `payload_base64`, and optionally `id`, `actor`, `key`, `ttl_ms`, `traceparent`,
/// `tracestate`, `metadata`. [`decode_draft_by`] is for clients that do not choose the actor.
///
/// # Errors
/// [`JsonError`], which names an unknown field.
pub fn decode_draft(document: &DocumentId, json: &[u8]) -> Result<CheckedDraft, JsonError> {
    Ok(vocabulary::check(read_draft(document, json)?)?)
}

/// Reads a client's draft as [`decode_draft`] does, with the actor that the caller knows the client to be. A given `actor` does
/// not count.
///
/// # Errors
/// [`JsonError`], which names an unknown field.
pub fn decode_draft_by(actor: Actor, document: &DocumentId, json: &[u8]) -> Result<CheckedDraft, JsonError> {
    Ok(vocabulary::check(read_draft(document, json)?.actor(actor))?)
}

fn read_draft(document: &DocumentId, json: &[u8]) -> Result<Draft, JsonError> {
    let fields: DraftFields<'_> = read_json(json).map_err(JsonError::Malformed)?;
    let kind = vocabulary::kind(&fields.kind)?;
    let payload = payload(("payload", fields.payload), ("payload_base64", fields.payload_base64.as_deref()))?;
    check_key(fields.key.as_deref())?;
    let mut draft = Draft::new(document.clone(), kind, payload);
    draft.id = fields.id;
    draft.actor = fields.actor.unwrap_or(Actor::System);
    draft.key = fields.key.map(Arc::from);
    draft.ttl = fields.ttl_ms.map(Duration::from_millis);
    draft.trace = trace(fields.traceparent.as_deref(), fields.tracestate.as_deref())?;
    draft.metadata = fields.metadata;
    Ok(draft)
}

/// Reads a field that is present, even when its value is `null`.
pub(crate) fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

pub(crate) fn check_key(key: Option<&str>) -> Result<(), JsonError> {
    match key {
        Some(key) if key.len() > MAX_KEY_BYTES => Err(JsonError::Malformed(format!(
            "the key has {} bytes, at most {MAX_KEY_BYTES} are allowed",
            key.len()
        ))),
        _ => Ok(()),
    }
}

/// Returns the payload from one of two fields, each given with its name.
pub(crate) fn payload(
    (json_name, json): (&str, Option<&RawValue>),
    (base64_name, base64): (&str, Option<&str>),
) -> Result<Payload, JsonError> {
    let malformed = |message: String| Err(JsonError::Malformed(message));
    match (json, base64) {
        (Some(raw), None) => Ok(Payload::Json(JsonText::from_raw(raw))),
        (None, Some(text)) => match STANDARD.decode(text) {
            Ok(bytes) => Ok(Payload::Binary(bytes.into())),
            Err(error) => malformed(format!("`{base64_name}` is not base64: {error}")),
        },
        (None, None) => malformed(format!("`{json_name}` is missing (or `{base64_name}`)")),
        (Some(_), Some(_)) => malformed(format!("`{json_name}` and `{base64_name}` exclude each other")),
    }
}

fn trace(parent: Option<&str>, state: Option<&str>) -> Result<Option<TraceContext>, InvalidId> {
    parent.map(|parent| TraceContext::new(parent, state)).transpose()
}
