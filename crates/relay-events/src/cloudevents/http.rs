//! CloudEvents in the binary mode of the HTTP binding: attributes as `ce-…` headers, the payload as the body.
//!
//! Headers are plain pairs of texts, so that any HTTP library can send them and this crate needs none. A payload is JSON
//! when its `content-type` is a JSON type or absent.

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use relay_core::{CheckedDraft, DocumentId, Event, JsonText, Payload};
use serde::Deserialize;
use serde::de::value::MapDeserializer;
use serde_json::Value;

use super::{CloudEvent, attributes_of, malformed};
use crate::json::JsonError;

/// The characters that the binding encodes in header values: all but visible ASCII, and the quote and percent signs.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');
const PREFIX: &str = "ce-";
const CONTENT_TYPE: &str = "content-type";

/// One event as headers and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The headers' names, in lower case, and values, in ASCII.
    pub headers: Vec<(String, String)>,
    /// The payload.
    pub body: Bytes,
}

/// Returns the event as headers and body.
///
/// ```
/// use relay_core::{DocumentId, Draft, Epoch, Payload, Seq, Timestamp};
/// use relay_events::cloudevents::http;
///
/// let kind = relay_events::kind("x-checked")?;
/// let draft = Draft::new(DocumentId::new("my notes")?, kind, Payload::json(&true)?);
/// let event = draft.into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
/// let message = http::encode(&event);
/// assert!(message.headers.contains(&("ce-type".to_owned(), "x-checked".to_owned())));
/// assert_eq!(message.body, "true");
///
/// let headers = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
/// assert_eq!(http::decode(headers, message.body.clone())?, event);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn encode(event: &Event) -> Message {
    let headers = attributes_of(event).into_iter().map(|(name, value)| match name {
        "datacontenttype" => (CONTENT_TYPE.to_owned(), value.into_owned()),
        _ => (format!("{PREFIX}{name}"), utf8_percent_encode(&value, ENCODED).to_string()),
    });
    let body = match &event.payload {
        Payload::Json(text) => text.as_bytes().clone(),
        Payload::Binary(bytes) => bytes.clone(),
        Payload::Absent(_) => Bytes::new(),
    };
    Message { headers: headers.collect(), body }
}

/// Reads an event that [`encode`] wrote. Headers that do not belong to CloudEvents are ignored.
///
/// # Errors
/// [`JsonError`], naming the attribute that is missing or wrong.
pub fn decode<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    body: Bytes,
) -> Result<Event, JsonError> {
    let event = attributes(headers)?;
    let payload =
        event.absence().map_or_else(|| payload(&event, body), |absence| Ok(Payload::Absent(absence)))?;
    event.into_event(payload)
}

/// Reads an event of any producer as a draft for `document`, as [`decode_draft`](super::decode_draft) does in the JSON
/// format.
///
/// # Errors
/// [`JsonError`], naming the attribute that is missing or wrong.
pub fn decode_draft<'a>(
    document: &DocumentId,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    body: Bytes,
) -> Result<CheckedDraft, JsonError> {
    let event = attributes(headers)?;
    let payload = payload(&event, body)?;
    event.into_draft(document, payload)
}

fn attributes<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<CloudEvent<'static>, JsonError> {
    let mut attributes = Vec::new();
    for (header, value) in headers {
        let header = header.to_ascii_lowercase();
        match header.strip_prefix(PREFIX) {
            // These are members of the JSON format. In this mode the body is the data, and `content-type` is its type.
            Some("data" | "data_base64" | "datacontenttype") => {}
            Some(name) => attributes.push((name.to_owned(), Value::String(text(&header, value)?))),
            None if header == CONTENT_TYPE => {
                attributes.push(("datacontenttype".to_owned(), Value::String(value.to_owned())));
            }
            None => {}
        }
    }
    CloudEvent::deserialize(MapDeserializer::new(attributes.into_iter())).map_err(JsonError::from)
}

/// Returns a header's value without quotes around it, and percent-decoded.
fn text(header: &str, value: &str) -> Result<String, JsonError> {
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let unquoted = match inner {
        Some(inner) => unescaped(inner),
        None => value.to_owned(),
    };
    let decoded =
        percent_decode_str(&unquoted).decode_utf8().map_err(|e| malformed(format!("`{header}`: {e}")))?;
    Ok(decoded.into_owned())
}

/// Returns a quoted text without the backslashes that escape its characters.
fn unescaped(quoted: &str) -> String {
    let mut chars = quoted.chars();
    std::iter::from_fn(|| match chars.next() {
        Some('\\') => chars.next(),
        other => other,
    })
    .collect()
}

fn payload(event: &CloudEvent<'_>, body: Bytes) -> Result<Payload, JsonError> {
    let is_json = event.datacontenttype.as_deref().is_none_or(|media_type| {
        let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence.ends_with("/json") || essence.ends_with("+json")
    });
    if !is_json {
        return Ok(Payload::Binary(body));
    }
    let text = JsonText::parse(body).map_err(|e| malformed(format!("the body: {e}")))?;
    Ok(Payload::Json(text))
}
