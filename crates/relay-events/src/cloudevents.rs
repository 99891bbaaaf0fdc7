//! CloudEvents 1.0 (<https://github.com/cloudevents/spec>): how events go to services, and how services that already
//! speak it publish. Here is the JSON format, single and batched; [`http`] has the binary mode of its HTTP binding.
//!
//! | attribute | holds |
//! | --- | --- |
//! | `id`, `time`, `type` | the event's id, time and kind |
//! | `source` | `/documents/<percent-encoded document id>` |
//! | `sequence` | the seq as 20 digits, so that it sorts as text |
//! | `data` or `data_base64`, `datacontenttype` | the payload |
//! | `traceparent`, `tracestate` | the trace context |
//! | `relayepoch`, `relayoffset`, `relayactor`, `relaysession`, `relaykey`, `relayttlms`, `relaymetadata` | the rest of the envelope; metadata as JSON text |
//!
//! The payload's JSON is copied as it came, which an SDK that parses it into values could not do.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use relay_core::{
    Actor, DocumentId, Draft, Epoch, Event, EventId, InvalidId, Kind, Offset, Payload, Seq, SessionId,
    Timestamp, TraceContext,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::json::{self, JsonError};
use crate::vocabulary;

pub mod http;

/// The media type of one event.
pub const MEDIA_TYPE: &str = "application/cloudevents+json";
/// The media type of several events.
pub const BATCH_MEDIA_TYPE: &str = "application/cloudevents-batch+json";

/// The media type of a JSON payload.
const JSON_DATA: &str = "application/json";
/// The media type of a binary payload.
const BINARY_DATA: &str = "application/octet-stream";

const SOURCE_PREFIX: &str = "/documents/";
/// What RFC 3986 leaves unreserved.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The metadata entry that keeps a foreign event's `source`.
const SOURCE_METADATA: &str = "cloudevents.source";

/// The attributes, and the data as the JSON format has it. What only events have is read when an event is wanted:
/// drafts of foreign producers may hold there what they like.
#[derive(Serialize, Deserialize)]
struct CloudEvent<'a> {
    #[serde(borrow)]
    specversion: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    datacontenttype: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    relayepoch: Option<Epoch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    relayoffset: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    relayactor: Option<Actor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    relaysession: Option<SessionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    relaykey: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    relayttlms: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    relaymetadata: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracestate: Option<String>,
    #[serde(borrow, default, deserialize_with = "json::present", skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl<'a> CloudEvent<'a> {
    /// All but the data.
    fn attributes_of(event: &'a Event) -> Self {
        let media_type = match &event.payload {
            Payload::Json(_) => JSON_DATA,
            Payload::Binary(_) => BINARY_DATA,
        };
        let source = utf8_percent_encode(event.document.as_str(), UNRESERVED);
        Self {
            specversion: Cow::Borrowed("1.0"),
            id: Cow::Owned(event.id.to_string()),
            source: Cow::Owned(format!("{SOURCE_PREFIX}{source}")),
            kind: Cow::Borrowed(event.kind.as_str()),
            time: Some(Value::String(event.time.to_string())),
            datacontenttype: Some(Cow::Borrowed(media_type)),
            sequence: event.seq.map(|seq| Value::String(format!("{:020}", seq.get()))),
            relayepoch: Some(event.epoch),
            relayoffset: event.offset.map(|offset| format!("{:020}", offset.get())),
            relayactor: Some(event.actor.clone()),
            relaysession: event.session,
            relaykey: event.key.as_deref().map(str::to_owned),
            relayttlms: event.ttl.map(|ttl| ttl.as_millis().to_string()),
            relaymetadata: (!event.metadata.is_empty())
                .then(|| serde_json::to_string(&event.metadata).unwrap_or_default()),
            traceparent: event.trace.as_ref().map(|trace| trace.traceparent().to_owned()),
            tracestate: event.trace.as_ref().and_then(|trace| trace.tracestate()).map(str::to_owned),
            data: None,
            data_base64: None,
        }
    }

    fn check_version(&self) -> Result<(), JsonError> {
        if self.specversion == "1.0" {
            return Ok(());
        }
        Err(malformed(format!("`specversion` is `{}`; only `1.0` is understood", excerpt(&self.specversion))))
    }

    /// The payload in the JSON format.
    fn payload(&self) -> Result<Payload, JsonError> {
        json::payload(("data", self.data), ("data_base64", self.data_base64.as_deref()))
    }

    /// The part that events and drafts share.
    fn to_draft(&self, document: DocumentId, kind: Kind, payload: Payload) -> Result<Draft, JsonError> {
        let mut draft = Draft::new(document, kind, payload);
        draft.actor = self.relayactor.clone().unwrap_or(Actor::System);
        draft.session = self.relaysession;
        json::check_key(self.relaykey.as_deref())?;
        draft.key = self.relaykey.as_deref().map(Arc::from);
        draft.ttl = number("relayttlms", self.relayttlms.as_deref())?.map(Duration::from_millis);
        if let Some(parent) = &self.traceparent {
            draft.trace = Some(TraceContext::new(parent, self.tracestate.as_deref())?);
        }
        if let Some(metadata) = &self.relaymetadata {
            draft.metadata =
                serde_json::from_str(metadata).map_err(|e| malformed(format!("`relaymetadata`: {e}")))?;
        }
        Ok(draft)
    }

    fn into_event(self, payload: Payload) -> Result<Event, JsonError> {
        self.check_version()?;
        let encoded = self.source.strip_prefix(SOURCE_PREFIX).ok_or_else(|| {
            malformed(format!(
                "`source` is `{}`; an event of Relay has `{SOURCE_PREFIX}<id>`",
                excerpt(&self.source)
            ))
        })?;
        let document =
            percent_decode_str(encoded).decode_utf8().map_err(|e| malformed(format!("`source`: {e}")))?;
        let seq = number("sequence", text("sequence", self.sequence.as_ref())?)?.map(Seq::new);
        let kind = vocabulary::kind_of_event(&self.kind, seq)?;
        let mut draft = self.to_draft(DocumentId::new(document)?, kind, payload)?;
        draft.id = Some(self.id.parse()?);
        let epoch = self.relayepoch.ok_or_else(|| malformed("`relayepoch` is missing".to_owned()))?;
        let time = text("time", self.time.as_ref())?
            .ok_or_else(|| malformed("`time` is missing".to_owned()))?
            .parse::<Timestamp>()?;
        let mut event = draft.into_event(epoch, seq, time);
        event.offset = number("relayoffset", self.relayoffset.as_deref())?.map(Offset::new);
        Ok(event)
    }

    fn into_draft(self, document: &DocumentId, payload: Payload) -> Result<Draft, JsonError> {
        self.check_version()?;
        let kind = vocabulary::kind(&self.kind)?;
        vocabulary::check(&kind, &payload)?;
        let mut draft = self.to_draft(document.clone(), kind, payload)?;
        if self.id.is_empty() || self.source.is_empty() {
            return Err(malformed("`id` and `source` must not be empty".to_owned()));
        }
        // Producers name their events by source and id together; a UUID is unique by itself. The length keeps apart
        // what would read the same when the two are joined.
        let unique = self.id.parse().unwrap_or_else(|_: InvalidId| {
            EventId::from_name(&format!("{} {} {}", self.source.len(), self.source, self.id))
        });
        draft.id = Some(unique);
        draft.metadata.insert(SOURCE_METADATA, self.source)?;
        Ok(draft)
    }
}

fn malformed(message: String) -> JsonError {
    JsonError::Malformed(message)
}

fn excerpt(text: &str) -> String {
    text.chars().take(32).collect()
}

fn text<'a>(attribute: &str, value: Option<&'a Value>) -> Result<Option<&'a str>, JsonError> {
    let text =
        |value: &'a Value| value.as_str().ok_or_else(|| malformed(format!("`{attribute}` is not text")));
    value.map(text).transpose()
}

fn number(attribute: &str, text: Option<&str>) -> Result<Option<u64>, JsonError> {
    let parse = |text: &str| {
        text.parse().map_err(|_| malformed(format!("`{attribute}` is `{}`, not a number", excerpt(text))))
    };
    text.map(parse).transpose()
}

/// Appends the event in the JSON format to `out`. The payload's JSON is copied as it is.
fn write(event: &Event, out: &mut Vec<u8>) {
    let mut attributes = CloudEvent::attributes_of(event);
    if let Payload::Binary(bytes) = &event.payload {
        attributes.data_base64 = Some(STANDARD.encode(bytes));
    }
    let written = serde_json::to_writer(&mut *out, &attributes);
    debug_assert!(written.is_ok(), "texts always serialise, and a Vec takes every write");
    if let Payload::Json(text) = &event.payload {
        out.pop(); // the closing brace
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(text.as_bytes());
        out.push(b'}');
    }
}

/// The event as a CloudEvent, of media type [`MEDIA_TYPE`].
pub fn encode(event: &Event) -> Bytes {
    let mut out = Vec::with_capacity(512 + event.payload.len());
    write(event, &mut out);
    out.into()
}

/// The events as one batch, of media type [`BATCH_MEDIA_TYPE`].
pub fn encode_batch<'a>(events: impl IntoIterator<Item = &'a Event>) -> Bytes {
    let mut out = vec![b'['];
    for (index, event) in events.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(event, &mut out);
    }
    out.push(b']');
    out.into()
}

/// Reads an event that [`encode`] wrote.
///
/// # Errors
/// [`JsonError`], naming the attribute that is missing or wrong.
pub fn decode(json: &[u8]) -> Result<Event, JsonError> {
    let event: CloudEvent<'_> = json::read(json).map_err(malformed)?;
    let payload = event.payload()?;
    event.into_event(payload)
}

/// Reads a batch that [`encode_batch`] wrote.
///
/// # Errors
/// As [`decode`].
pub fn decode_batch(json: &[u8]) -> Result<Vec<Event>, JsonError> {
    let batch: Vec<&RawValue> = json::read(json).map_err(malformed)?;
    batch.into_iter().map(|one| decode(one.get().as_bytes())).collect()
}

/// Reads a CloudEvent of any producer as a draft for `document`: its `type` is the kind, its `data` the payload, and
/// its `id` (with its `source`, unless it is a UUID) the idempotency key. Attributes that Relay does not know are
/// passed over.
///
/// ```
/// use relay_core::DocumentId;
///
/// let json = br#"{"specversion": "1.0", "id": "7", "source": "/checker", "type": "x-checked", "data": {"ok": true}}"#;
/// let notes = DocumentId::new("notes")?;
/// let draft = relay_events::cloudevents::decode_draft(&notes, json)?;
/// assert_eq!(draft.kind.as_str(), "x-checked");
/// assert_eq!(draft.id, relay_events::cloudevents::decode_draft(&notes, json)?.id);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`JsonError`], naming the attribute that is missing or wrong.
pub fn decode_draft(document: &DocumentId, json: &[u8]) -> Result<Draft, JsonError> {
    let event: CloudEvent<'_> = json::read(json).map_err(malformed)?;
    let payload = event.payload()?;
    event.into_draft(document, payload)
}

/// Reads a batch of CloudEvents of any producer. Each is good or bad by itself.
///
/// # Errors
/// [`JsonError`], when it is no JSON array.
pub fn decode_draft_batch(
    document: &DocumentId,
    json: &[u8],
) -> Result<Vec<Result<Draft, JsonError>>, JsonError> {
    let batch: Vec<&RawValue> = json::read(json).map_err(malformed)?;
    Ok(batch.into_iter().map(|one| decode_draft(document, one.get().as_bytes())).collect())
}
