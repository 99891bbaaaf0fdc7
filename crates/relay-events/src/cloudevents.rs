//! CloudEvents 1.0 (<https://github.com/cloudevents/spec>): the form of events for services, in both directions. This
//! module has the JSON format, single and batched; [`http`] has the binary mode of the HTTP binding.
//!
//! | attribute | holds |
//! | --- | --- |
//! | `id`, `time`, `type` | the event's id, time and kind |
//! | `source` | `/documents/<percent-encoded document id>` |
//! | `sequence` | the seq as 20 digits, so that it sorts as text |
//! | `data` or `data_base64`, `datacontenttype` | the payload; absent when the event's time to live is over, or the log cannot read it any more |
//! | `traceparent`, `tracestate` | the trace context |
//! | `relayepoch`, `relayoffset`, `relayactor`, `relaysession`, `relaykey`, `relayttlms`, `relayabsent`, `relaymetadata` | the rest of the envelope; metadata as JSON text |
//!
//! The payload's JSON is copied unchanged, which an SDK that parses it into values could not do.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use relay_core::{
    Absence, Actor, CheckedDraft, DocumentId, Draft, Epoch, Event, EventId, InvalidId, Kind, Offset, Payload,
    Seq, SessionId, Timestamp, TraceContext,
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::json::{self, JsonError};
use crate::read_json::read_json;
use crate::vocabulary;
use crate::written::{ensure_written, write_json};

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
/// The complement of the characters that RFC 3986 leaves unreserved.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The metadata entry that keeps a foreign event's `source`.
const SOURCE_METADATA: &str = "cloudevents.source";

/// The attributes of an event in the order in which they are written. Each is a text.
fn attributes_of<'a>(event: &'a Event) -> Vec<(&'static str, Cow<'a, str>)> {
    let media_type = match &event.payload {
        Payload::Json(_) => Some(JSON_DATA),
        Payload::Binary(_) => Some(BINARY_DATA),
        Payload::Absent(_) => None,
    };
    let source = utf8_percent_encode(event.document.as_str(), UNRESERVED);
    let mut attributes = vec![
        ("specversion", Cow::Borrowed("1.0")),
        ("id", event.id.to_string().into()),
        ("source", format!("{SOURCE_PREFIX}{source}").into()),
        ("type", event.kind.as_str().into()),
        ("time", event.time.to_string().into()),
    ];
    let mut add = |name, value: Option<Cow<'a, str>>| attributes.extend(value.map(|value| (name, value)));
    add("datacontenttype", media_type.map(Cow::Borrowed));
    add("sequence", event.seq.map(|seq| format!("{:020}", seq.get()).into()));
    add("relayepoch", Some(event.epoch.to_string().into()));
    add("relayoffset", event.offset.map(|offset| format!("{:020}", offset.get()).into()));
    add("relayactor", Some(event.actor.to_string().into()));
    add("relaysession", event.session.map(|session| session.to_string().into()));
    add("relaykey", event.key.as_deref().map(Cow::Borrowed));
    add("relayttlms", event.ttl.map(|ttl| ttl.as_millis().to_string().into()));
    if let Payload::Absent(absence) = &event.payload {
        add("relayabsent", Some(absence.as_str().into()));
    }
    let metadata = || ensure_written(serde_json::to_string(&event.metadata)).into();
    add("relaymetadata", (!event.metadata.is_empty()).then(metadata));
    add("traceparent", event.trace.as_ref().map(|trace| trace.traceparent().into()));
    add("tracestate", event.trace.as_ref().and_then(|trace| trace.tracestate()).map(Cow::Borrowed));
    attributes
}

/// A received event: its attributes, and the data as the JSON format has it. The attributes that only events of Relay
/// have are parsed when an event is wanted, since drafts of foreign producers may hold other values there.
#[derive(Deserialize)]
struct CloudEvent<'a> {
    #[serde(borrow)]
    specversion: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default)]
    time: Option<Value>,
    #[serde(default)]
    datacontenttype: Option<Cow<'a, str>>,
    #[serde(default)]
    sequence: Option<Value>,
    #[serde(default)]
    relayepoch: Option<Epoch>,
    #[serde(default)]
    relayoffset: Option<String>,
    #[serde(default)]
    relayactor: Option<Actor>,
    #[serde(default)]
    relaysession: Option<SessionId>,
    #[serde(default)]
    relaykey: Option<String>,
    #[serde(default)]
    relayttlms: Option<String>,
    #[serde(default)]
    relayabsent: Option<String>,
    #[serde(default)]
    relaymetadata: Option<String>,
    #[serde(default)]
    traceparent: Option<String>,
    #[serde(default)]
    tracestate: Option<String>,
    #[serde(borrow, default, deserialize_with = "json::present")]
    data: Option<&'a RawValue>,
    #[serde(default)]
    data_base64: Option<String>,
}

impl CloudEvent<'_> {
    fn check_version(&self) -> Result<(), JsonError> {
        if self.specversion == "1.0" {
            return Ok(());
        }
        Err(malformed(format!("`specversion` is `{}`; only `1.0` is understood", excerpt(&self.specversion))))
    }

    /// The reason why an event of Relay has no payload.
    fn absence(&self) -> Option<Absence> {
        let name = self.relayabsent.as_deref()?;
        [Absence::Expired, Absence::Lost].into_iter().find(|absence| absence.as_str() == name)
    }

    /// Returns the payload in the JSON format.
    fn payload(&self) -> Result<Payload, JsonError> {
        json::payload(("data", self.data), ("data_base64", self.data_base64.as_deref()))
    }

    /// Reads the attributes that events and drafts share.
    fn to_draft(&self, document: DocumentId, kind: Kind, payload: Payload) -> Result<Draft, JsonError> {
        let mut draft = Draft::new(document, kind, payload);
        draft.actor = self.relayactor.clone().unwrap_or(Actor::System);
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
        let offset = number("relayoffset", self.relayoffset.as_deref())?.map(Offset::new);
        let kind = vocabulary::kind_of_event(&self.kind, seq, offset)?;
        let mut draft = self.to_draft(DocumentId::new(document)?, kind, payload)?;
        draft.id = Some(self.id.parse()?);
        draft.session = self.relaysession;
        let epoch = self.relayepoch.ok_or_else(|| malformed("`relayepoch` is missing".to_owned()))?;
        let time = text("time", self.time.as_ref())?
            .ok_or_else(|| malformed("`time` is missing".to_owned()))?
            .parse::<Timestamp>()?;
        let mut event = draft.into_event(epoch, seq, time);
        event.offset = offset;
        Ok(event)
    }

    fn into_draft(self, document: &DocumentId, payload: Payload) -> Result<CheckedDraft, JsonError> {
        self.check_version()?;
        let kind = vocabulary::kind(&self.kind)?;
        let mut draft = self.to_draft(document.clone(), kind, payload)?;
        if self.id.is_empty() || self.source.is_empty() {
            return Err(malformed("`id` and `source` must not be empty".to_owned()));
        }
        // Producers name their events by source and id together; a UUID is unique by itself. The length of the source
        // tells two pairs apart that would join to the same text.
        let unique = self.id.parse().unwrap_or_else(|_: InvalidId| {
            EventId::from_name(&format!("{} {} {}", self.source.len(), self.source, self.id))
        });
        draft.id = Some(unique);
        draft.metadata.insert(SOURCE_METADATA, self.source)?;
        Ok(vocabulary::check(draft)?)
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

/// Appends the event in the JSON format to `out`. The payload's JSON is copied unchanged.
fn write(event: &Event, out: &mut Vec<u8>) {
    let mut attributes = attributes_of(event);
    if let Payload::Binary(bytes) = &event.payload {
        attributes.push(("data_base64", STANDARD.encode(bytes).into()));
    }
    write_json(&AttributeMap(&attributes), out);
    if let Payload::Json(text) = &event.payload {
        out.pop(); // the closing brace
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(text.as_bytes());
        out.push(b'}');
    }
}

/// Attributes as the members of a JSON object, in their order.
struct AttributeMap<'a>(&'a [(&'static str, Cow<'a, str>)]);

impl Serialize for AttributeMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Returns the event as a CloudEvent of media type [`MEDIA_TYPE`].
pub fn encode(event: &Event) -> Bytes {
    let mut out = Vec::with_capacity(512 + event.payload.len());
    write(event, &mut out);
    out.into()
}

/// Returns the events as one batch of media type [`BATCH_MEDIA_TYPE`].
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
    let event: CloudEvent<'_> = read_json(json).map_err(malformed)?;
    let payload = event.absence().map_or_else(|| event.payload(), |absence| Ok(Payload::Absent(absence)))?;
    event.into_event(payload)
}

/// Reads a batch that [`encode_batch`] wrote.
///
/// # Errors
/// The errors of [`decode`].
pub fn decode_batch(json: &[u8]) -> Result<Vec<Event>, JsonError> {
    let batch: Vec<&RawValue> = read_json(json).map_err(malformed)?;
    batch.into_iter().map(|one| decode(one.get().as_bytes())).collect()
}

/// Reads a CloudEvent of any producer as a draft for `document`: its `type` is the kind, its `data` the payload, and
/// its `id` (with its `source`, unless it is a UUID) the idempotency key. Attributes that Relay does not know are
/// ignored, and so are those that the server sets, such as `relaysession`.
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
pub fn decode_draft(document: &DocumentId, json: &[u8]) -> Result<CheckedDraft, JsonError> {
    let event: CloudEvent<'_> = read_json(json).map_err(malformed)?;
    let payload = event.payload()?;
    event.into_draft(document, payload)
}
