//! The binary record: the form of events in the log.
//!
//! A record begins with a version byte, and the form of a version never changes: every later Relay reads every earlier
//! log. A change of the fields is a new version with a struct of its own; the old structs stay. The golden files in
//! `tests/golden` hold records of every version.
//!
//! The encoding is bincode 2, which is complete and frozen, and no other module uses it. This module sets no limit to a
//! record's size, so that every record that was written can be read. Damaged lengths allocate no memory: texts and bytes
//! are borrowed from the record while it is read, and are at most as long as the record.

use std::sync::Arc;
use std::time::Duration;

use bincode::config;
use bytes::Bytes;
use relay_core::{
    Actor, DocumentId, Draft, Epoch, Event, EventId, InvalidId, JsonText, Metadata, Payload, Seq,
    ServiceName, SessionId, Timestamp, TraceContext, UserId,
};
use serde::{Deserialize, Serialize};

use crate::vocabulary;
use crate::written::ensure_written;

const VERSION_1: u8 = 1;

/// The reason why bytes are not a record.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BinaryError {
    /// There are no bytes.
    #[error("the record is empty")]
    Empty,
    /// The record was written by a later version of Relay, which can read it.
    #[error(
        "the record has version {version}; this Relay reads versions up to {VERSION_1}, and a later Relay is needed"
    )]
    UnknownVersion {
        /// The record's version.
        version: u8,
    },
    /// The bytes are damaged, or are no record.
    #[error("the record is malformed: {detail}")]
    Malformed {
        /// The mistake.
        detail: String,
    },
}

impl BinaryError {
    fn malformed(detail: &impl ToString) -> Self {
        Self::Malformed { detail: detail.to_string() }
    }
}

impl From<InvalidId> for BinaryError {
    fn from(error: InvalidId) -> Self {
        Self::malformed(&error)
    }
}

/// The fields of a record of version 1, after the version byte. They must never change.
#[derive(Serialize, Deserialize)]
struct RecordV1<'a> {
    id: u128,
    document: &'a str,
    kind: &'a str,
    seq: Option<u64>,
    epoch: u64,
    time_micros: i64,
    actor: ActorV1<'a>,
    session: Option<u128>,
    key: Option<&'a str>,
    ttl_ms: Option<u64>,
    trace: Option<(&'a str, Option<&'a str>)>,
    #[serde(borrow)]
    metadata: Vec<(&'a str, &'a str)>,
    payload: PayloadV1<'a>,
}

#[derive(Serialize, Deserialize)]
enum ActorV1<'a> {
    User(&'a str),
    Service(&'a str),
    System,
}

#[derive(Serialize, Deserialize)]
enum PayloadV1<'a> {
    Json(&'a str),
    Binary(&'a [u8]),
}

/// Returns the event's record. The offset is not part of it, for the log knows the offset of each record. A payload that is
/// [absent](Payload::Absent) has no form of its own: a log keeps no such event.
pub fn encode(event: &Event) -> Vec<u8> {
    let record = RecordV1 {
        id: event.id.as_u128(),
        document: event.document.as_str(),
        kind: event.kind.as_str(),
        seq: event.seq.map(Seq::get),
        epoch: event.epoch.as_u64(),
        time_micros: event.time.as_micros(),
        actor: match &event.actor {
            Actor::User(id) => ActorV1::User(id.as_str()),
            Actor::Service(name) => ActorV1::Service(name.as_str()),
            Actor::System => ActorV1::System,
        },
        session: event.session.map(SessionId::as_u128),
        key: event.key.as_deref(),
        ttl_ms: event.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        trace: event.trace.as_ref().map(|trace| (trace.traceparent(), trace.tracestate())),
        metadata: event.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        payload: match &event.payload {
            Payload::Json(text) => PayloadV1::Json(text.as_str()),
            Payload::Binary(bytes) => PayloadV1::Binary(bytes),
            Payload::Absent(_) => PayloadV1::Binary(&[]),
        },
    };
    let mut bytes = Vec::with_capacity(192 + event.payload.len());
    bytes.push(VERSION_1);
    ensure_written(bincode::serde::encode_into_std_write(&record, &mut bytes, config::standard()));
    bytes
}

/// Checks that the record of `event` can be read. All that [`decode`] checks holds by the types of the fields, apart from these:
/// the name of the kind, and that there is a payload.
///
/// # Errors
/// [`BinaryError::Malformed`] with the reason for which it could not.
pub fn check_readable(event: &Event) -> Result<(), BinaryError> {
    vocabulary::kind_of_record(event.kind.as_str(), event.seq)?;
    match &event.payload {
        Payload::Json(_) | Payload::Binary(_) => Ok(()),
        Payload::Absent(absence) => {
            Err(BinaryError::malformed(&format!("the payload is absent: {}", absence.as_str())))
        }
    }
}

/// Reads a record. The event's `offset` is `None`; the caller that knows the record's offset sets it.
///
/// A kind that the vocabulary does not contain, or no longer contains, is kept by its name.
///
/// # Errors
/// [`BinaryError`], when the bytes are not exactly one record.
pub fn decode(bytes: &[u8]) -> Result<Event, BinaryError> {
    let (&version, body) = bytes.split_first().ok_or(BinaryError::Empty)?;
    if version != VERSION_1 {
        return Err(BinaryError::UnknownVersion { version });
    }
    let (record, read): (RecordV1<'_>, usize) =
        bincode::serde::borrow_decode_from_slice(body, config::standard())
            .map_err(|e| BinaryError::malformed(&e))?;
    if read != body.len() {
        return Err(BinaryError::malformed(&format!("{} bytes follow it", body.len() - read)));
    }
    record.into_event()
}

impl RecordV1<'_> {
    fn into_event(self) -> Result<Event, BinaryError> {
        let seq = self.seq.map(Seq::new);
        let kind = vocabulary::kind_of_record(self.kind, seq)?;
        let payload = match self.payload {
            PayloadV1::Json(text) => {
                let text = Bytes::copy_from_slice(text.as_bytes());
                Payload::Json(JsonText::parse(text).map_err(|e| BinaryError::malformed(&e))?)
            }
            PayloadV1::Binary(bytes) => Payload::Binary(Bytes::copy_from_slice(bytes)),
        };
        let mut metadata = Metadata::default();
        for (key, value) in self.metadata {
            metadata.insert(key, value)?;
        }
        let mut draft = Draft::new(DocumentId::new(self.document)?, kind, payload).metadata(metadata);
        draft.id = Some(EventId::from_u128(self.id));
        draft.actor = match self.actor {
            ActorV1::User(id) => Actor::User(UserId::new(id)?),
            ActorV1::Service(name) => Actor::Service(ServiceName::new(name)?),
            ActorV1::System => Actor::System,
        };
        draft.session = self.session.map(SessionId::from_u128);
        draft.key = self.key.map(Arc::from);
        draft.ttl = self.ttl_ms.map(Duration::from_millis);
        draft.trace = self.trace.map(|(parent, state)| TraceContext::new(parent, state)).transpose()?;
        let time = Timestamp::from_micros(self.time_micros);
        Ok(draft.into_event(Epoch::from_u64(self.epoch), seq, time))
    }
}
