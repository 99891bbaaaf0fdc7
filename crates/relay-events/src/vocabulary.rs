//! Which kinds of events there are, and what each carries.
//!
//! One table: a kind's name, whether it is kept, and the type of its payload stand together, so that none can be
//! added without the others. Payloads ignore fields that they do not know, so that a newer client can talk to an
//! older server; a field of the wrong type is an error that names it.

use bytes::Bytes;
use relay_core::{
    CheckedDraft, DocumentId, Draft, Durability, ErrorCode, Event, InvalidClaim, InvalidId, JsonText, Kind,
    LockClaim, Payload, Seq, Timestamp, Vocabulary,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json;

/// A payload type of the vocabulary and the kind it belongs to.
pub trait TypedPayload: Serialize + DeserializeOwned {
    /// The kind whose events carry it.
    const KIND: Kind;

    /// This value as a payload.
    ///
    /// # Errors
    /// When a free-form part of it cannot be JSON.
    fn to_payload(&self) -> Result<Payload, PayloadError> {
        Payload::json(self).map_err(|e| PayloadError::Invalid { kind: Self::KIND, detail: e.to_string() })
    }
}

/// Why a kind or its payload is refused.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// There is no such kind.
    #[error("there is no event kind `{name}`; known are {}, and your own beginning with `x-`", names())]
    UnknownKind {
        /// The name that was given, cut to its first characters.
        name: String,
    },
    /// The name begins with `x-` but is malformed.
    #[error(transparent)]
    InvalidKind(#[from] InvalidId),
    /// The payload is not what its kind carries.
    #[error("the payload does not fit `{kind}`: {detail}")]
    Invalid {
        /// The kind.
        kind: Kind,
        /// What is wrong with it, and where.
        detail: String,
    },
    /// The kind is one that only Relay itself publishes.
    #[error(
        "`{kind}` events are made by the server alone; ask for what leads to them, or use a kind beginning with `x-`"
    )]
    Reserved {
        /// The kind.
        kind: Kind,
    },
    /// The edit's metadata names its region or its lock in a malformed way.
    #[error(transparent)]
    InvalidClaim(#[from] InvalidClaim),
    /// The kind's payload is JSON, and bytes were given.
    #[error("`{kind}` carries JSON, not binary data; binary data fits `document.edited` and `x-…` kinds")]
    NotBinary {
        /// The kind.
        kind: Kind,
    },
}

impl PayloadError {
    /// The kind of the refusal, for programs to decide by.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownKind { .. } | Self::InvalidKind(_) => ErrorCode::UnknownEvent,
            Self::Reserved { .. } => ErrorCode::ReservedEvent,
            Self::InvalidClaim(_) => ErrorCode::InvalidRequest,
            Self::Invalid { .. } | Self::NotBinary { .. } => ErrorCode::InvalidPayload,
        }
    }
}

fn names() -> String {
    KINDS.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ")
}

macro_rules! vocabulary {
    ($( $(#[$doc:meta])* $constant:ident = $name:literal, $durability:ident, $payload:ident; )*) => {
        $( $(#[$doc])* pub const $constant: Kind = Kind::from_static($name, Durability::$durability); )*

        /// Every kind of the vocabulary. Kinds of your own begin with `x-` and are not listed.
        pub const KINDS: &[Kind] = &[$($constant),*];

        $( impl TypedPayload for $payload { const KIND: Kind = $constant; } )*

        /// What an event carries, as its type.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Body {
            $( #[doc = concat!("Of a `", $name, "` event.")] $payload($payload), )*
            /// Bytes in the place of a typed payload, for instance a Yjs update in a `document.edited` event.
            Binary(Bytes),
            /// JSON of a kind beginning with `x-`.
            Custom(JsonText),
        }

        impl Body {
            /// Reads a payload as what its kind carries.
            ///
            /// # Errors
            /// [`PayloadError::Invalid`] and [`PayloadError::NotBinary`] when it is something else, and
            /// [`PayloadError::UnknownKind`] for a kind outside the vocabulary.
            pub fn parse(kind: &Kind, payload: &Payload) -> Result<Self, PayloadError> {
                let text = match payload {
                    Payload::Json(text) => text,
                    Payload::Binary(bytes) if takes_binary(kind) => return Ok(Self::Binary(bytes.clone())),
                    Payload::Binary(_) => return Err(PayloadError::NotBinary { kind: kind.clone() }),
                };
                match kind.as_str() {
                    $( $name => json::read(text.as_bytes())
                        .map(Self::$payload)
                        .map_err(|detail| PayloadError::Invalid { kind: kind.clone(), detail }), )*
                    name if name.starts_with(CUSTOM_PREFIX) => Ok(Self::Custom(text.clone())),
                    name => Err(PayloadError::UnknownKind { name: name.to_owned() }),
                }
            }

            /// Reads what `event` carries.
            ///
            /// # Errors
            /// The errors of [`Body::parse`].
            pub fn of(event: &Event) -> Result<Self, PayloadError> {
                Self::parse(&event.kind, &event.payload)
            }
        }
    };
}

vocabulary! {
    /// A document's live collaboration began.
    SESSION_STARTED = "session.started", Durable, SessionStarted;
    /// A document's live collaboration ended.
    SESSION_ENDED = "session.ended", Durable, SessionEnded;
    /// A user began to take part, on the first of their connections.
    USER_JOINED = "user.joined", Durable, UserJoined;
    /// A user left on the last of their connections.
    USER_LEFT = "user.left", Durable, UserLeft;
    /// A participant's free-form state changed.
    PRESENCE_UPDATED = "presence.updated", Ephemeral, PresenceUpdated;
    /// A cursor or selection moved.
    CURSOR_MOVED = "cursor.moved", Ephemeral, CursorMoved;
    /// The document's content changed.
    DOCUMENT_EDITED = "document.edited", Durable, DocumentEdited;
    /// The document was saved by whoever keeps it.
    DOCUMENT_SAVED = "document.saved", Durable, DocumentSaved;
    /// The document or a region of it was locked.
    DOCUMENT_LOCKED = "document.locked", Durable, DocumentLocked;
    /// A lock ended.
    DOCUMENT_UNLOCKED = "document.unlocked", Durable, DocumentUnlocked;
    /// A comment, suggestion or mark was added.
    ANNOTATION_ADDED = "annotation.added", Durable, AnnotationAdded;
    /// An annotation was dealt with.
    ANNOTATION_RESOLVED = "annotation.resolved", Durable, AnnotationResolved;
    /// A backend service's state changed.
    SERVICE_CHANGED = "service.changed", Durable, ServiceChanged;
    /// A message from the system to those who are there.
    SYSTEM_NOTICE = "system.notice", Ephemeral, SystemNotice;
}

/// How the names of your own kinds begin.
pub const CUSTOM_PREFIX: &str = "x-";
/// How the names of your own ephemeral kinds begin. All other kinds of your own are durable.
pub const CUSTOM_EPHEMERAL_PREFIX: &str = "x-ephemeral-";

/// The kind of the given name: one of the vocabulary, or your own beginning with `x-`.
///
/// ```
/// let kind = relay_events::kind("document.edited")?;
/// assert!(kind.is_durable());
/// assert!(!relay_events::kind("x-ephemeral-laser")?.is_durable());
/// assert!(relay_events::kind("document.exploded").is_err());
/// # Ok::<(), relay_events::PayloadError>(())
/// ```
///
/// # Errors
/// [`PayloadError::UnknownKind`] and [`PayloadError::InvalidKind`].
pub fn kind(name: &str) -> Result<Kind, PayloadError> {
    if let Some(kind) = KINDS.iter().find(|kind| kind.as_str() == name) {
        return Ok(kind.clone());
    }
    if !name.starts_with(CUSTOM_PREFIX) {
        return Err(PayloadError::UnknownKind { name: name.chars().take(Kind::MAX_BYTES).collect() });
    }
    let ephemeral = name.starts_with(CUSTOM_EPHEMERAL_PREFIX);
    let durability = if ephemeral { Durability::Ephemeral } else { Durability::Durable };
    Ok(Kind::new(name, durability)?)
}

/// The kind of an event that has happened. Unlike a draft's it need not be of this vocabulary: events outlive the
/// vocabularies that they were written with. That it has a seq, or none, says whether it is kept.
pub(crate) fn kind_of_event(name: &str, seq: Option<Seq>) -> Result<Kind, InvalidId> {
    let durability = if seq.is_some() { Durability::Durable } else { Durability::Ephemeral };
    match kind(name) {
        Ok(kind) if kind.durability() == durability => Ok(kind),
        _ => Kind::new(name, durability),
    }
}

/// How many arrays and objects may lie in one another in a payload. Many JSON readers give up at 100 or 128 levels,
/// envelope and frame included; none of them should be stopped by what another client sent.
const MAX_DEPTH: usize = 64;

/// Kinds whose events tell what the server has decided. Who could publish them could lie about sessions and locks.
const RESERVED: &[Kind] = &[
    SESSION_STARTED,
    SESSION_ENDED,
    USER_JOINED,
    USER_LEFT,
    DOCUMENT_LOCKED,
    DOCUMENT_UNLOCKED,
    SERVICE_CHANGED,
];

/// The vocabulary's rules for drafts from outside: the kind is not reserved for the server, the payload is what its events
/// carry and is nested in no more than 64 levels, and an edit's claim about locks is well-formed.
#[derive(Debug, Clone, Copy, Default)]
pub struct RelayVocabulary;

impl Vocabulary for RelayVocabulary {
    type Error = PayloadError;

    fn check(&self, draft: &Draft) -> Result<Option<LockClaim>, PayloadError> {
        let Draft { kind, payload, .. } = draft;
        if RESERVED.contains(kind) {
            return Err(PayloadError::Reserved { kind: kind.clone() });
        }
        if let Payload::Json(text) = payload
            && is_deeper_than(MAX_DEPTH, text.as_bytes())
        {
            let detail = format!("it is nested deeper than {MAX_DEPTH} levels");
            return Err(PayloadError::Invalid { kind: kind.clone(), detail });
        }
        Body::parse(kind, payload)?;
        Ok(if *kind == DOCUMENT_EDITED { Some(LockClaim::of(&draft.metadata)?) } else { None })
    }
}

/// Checks `draft` by the [`RelayVocabulary`]. Every edge does this with what it is given to publish.
///
/// ```
/// use relay_core::{DocumentId, Draft, Payload};
///
/// let notes = DocumentId::new("notes")?;
/// let saved = |payload| Draft::new(notes.clone(), relay_events::DOCUMENT_SAVED, payload);
/// assert!(relay_events::check(saved(Payload::json(&serde_json::json!({"through": 7}))?)).is_ok());
/// assert!(relay_events::check(saved(Payload::json(&"everything")?)).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`PayloadError::Reserved`], [`PayloadError::InvalidClaim`], and as [`Body::parse`].
pub fn check(draft: Draft) -> Result<CheckedDraft, PayloadError> {
    CheckedDraft::new(draft, &RelayVocabulary)
}

/// A draft that the server itself publishes in `document`. Its payload has its kind's type, so there is nothing to check;
/// kinds that are reserved for the server are allowed. No edge uses this for what comes from outside.
///
/// # Errors
/// [`PayloadError::Invalid`] when a free-form part of the payload cannot be JSON.
pub fn server_draft<P: TypedPayload>(
    document: DocumentId,
    payload: &P,
) -> Result<CheckedDraft, PayloadError> {
    /// Lets a typed payload pass.
    struct ByType;

    impl Vocabulary for ByType {
        type Error = PayloadError;

        fn check(&self, _typed: &Draft) -> Result<Option<LockClaim>, PayloadError> {
            Ok(None)
        }
    }
    CheckedDraft::new(Draft::new(document, P::KIND, payload.to_payload()?), &ByType)
}

/// Whether more than `levels` arrays and objects lie in one another in `json`, which is valid.
fn is_deeper_than(levels: usize, json: &[u8]) -> bool {
    // Most payloads have so few of them that nothing needs to be tracked. Counts of one byte let many be compared at once.
    let opening = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(matches!(byte, b'[' | b'{'))).sum::<u8>();
    if json.chunks(usize::from(u8::MAX)).map(|chunk| usize::from(opening(chunk))).sum::<usize>() <= levels {
        return false;
    }
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > levels {
            return true;
        }
    }
    false
}

fn takes_binary(kind: &Kind) -> bool {
    *kind == DOCUMENT_EDITED || kind.as_str().starts_with(CUSTOM_PREFIX)
}

/// A document's live collaboration began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStarted {
    /// When; the envelope's `session` says which.
    pub started_at: Timestamp,
}

/// A document's live collaboration ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnded {
    /// Why.
    pub reason: EndReason,
}

/// Why something that was held by being there ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EndReason {
    /// The last one left.
    Left,
    /// Nothing was heard for too long.
    Stale,
    /// The server stopped.
    Shutdown,
}

/// A user began to take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserJoined {
    /// The user's id.
    pub user: String,
    /// The name to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A user no longer takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserLeft {
    /// The user's id.
    pub user: String,
    /// Why.
    pub reason: EndReason,
}

/// A participant's free-form state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PresenceUpdated {
    /// Name, colour, typing or whatever the clients agree on.
    pub state: serde_json::Map<String, Value>,
}

/// A cursor or selection moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CursorMoved {
    /// Where the cursor is: a number, or whatever position the editor has. Not null.
    #[serde(deserialize_with = "not_null")]
    pub position: Value,
    /// The other end of the selection, when something is selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Value>,
}

fn not_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let value = Value::deserialize(deserializer)?;
    if value.is_null() { Err(serde::de::Error::custom("`position` must not be null")) } else { Ok(value) }
}

/// The document's content changed: text patches, or a change in the editor's own format. (Binary formats such as
/// Yjs updates are sent as binary payloads instead.)
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "EditedFields")]
pub enum DocumentEdited {
    /// Patches to plain text, applied one after the other.
    Patches {
        /// The patches.
        patches: Vec<Patch>,
        /// The last event that the author had seen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<Seq>,
    },
    /// A change in a format that only the clients know.
    Other {
        /// The format's name, for instance `quill-delta`.
        format: String,
        /// The change.
        change: Value,
    },
}

/// The fields of both forms, read in one pass: trying one form after the other would first copy everything, and could
/// not say which field was wrong.
#[derive(Deserialize)]
struct EditedFields {
    patches: Option<Vec<Patch>>,
    base: Option<Seq>,
    format: Option<String>,
    #[serde(default, deserialize_with = "even_null")]
    change: Option<Value>,
}

fn even_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl TryFrom<EditedFields> for DocumentEdited {
    type Error = &'static str;

    fn try_from(fields: EditedFields) -> Result<Self, Self::Error> {
        match fields {
            EditedFields { patches: Some(patches), base, .. } => Ok(Self::Patches { patches, base }),
            EditedFields { format: Some(format), change: Some(change), .. } => {
                Ok(Self::Other { format, change })
            }
            _ => Err(
                "expected `patches`: [[position, deleted, inserted], …], or `format` (text) with `change`",
            ),
        }
    }
}

/// One patch to plain text, as `[position, deleted, inserted]`. Positions and lengths count Unicode code points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, String)", into = "(u64, u64, String)")]
pub struct Patch {
    /// Where it begins.
    pub position: u64,
    /// How many code points are removed there.
    pub deleted: u64,
    /// What is put in their place.
    pub inserted: String,
}

impl From<(u64, u64, String)> for Patch {
    fn from((position, deleted, inserted): (u64, u64, String)) -> Self {
        Self { position, deleted, inserted }
    }
}

impl From<Patch> for (u64, u64, String) {
    fn from(patch: Patch) -> Self {
        (patch.position, patch.deleted, patch.inserted)
    }
}

/// The document was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentSaved {
    /// The last event that what was saved contains.
    pub through: Seq,
    /// The name of what was saved, for instance a version or a hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// The document or a region of it was locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentLocked {
    /// The region; the whole document when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The user who holds it.
    pub holder: String,
    /// The fencing token, which only grows.
    pub token: u64,
    /// When the lease ends unless it is renewed.
    pub expires_at: Timestamp,
}

/// A lock ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentUnlocked {
    /// The region; the whole document when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The user who held it.
    pub holder: String,
    /// The fencing token that is void now.
    pub token: u64,
    /// Why.
    pub reason: UnlockReason,
}

/// Why a lock ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UnlockReason {
    /// The holder gave it back.
    Released,
    /// The lease was not renewed.
    Expired,
    /// The holder's last connection was gone for too long.
    HolderGone,
    /// An administrator took it away.
    Forced,
    /// The server stopped.
    Shutdown,
}

/// A comment, suggestion or mark was added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnnotationAdded {
    /// The annotation's id, chosen by the client.
    pub annotation: String,
    /// What it says.
    pub text: String,
    /// What it is about: `[start, end)` in code points, or whatever range the editor has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Value>,
    /// Its tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// An annotation was dealt with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnotationResolved {
    /// The annotation's id.
    pub annotation: String,
    /// How, for instance `accepted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<String>,
}

/// A backend service's state changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChanged {
    /// The service's name.
    pub service: String,
    /// Its state now.
    pub state: ServiceState,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ServiceState {
    /// Nothing is known yet.
    Unknown,
    /// It works.
    Healthy,
    /// It works with errors.
    Degraded,
    /// It does not work.
    Unhealthy,
    /// It finishes what it has and takes nothing new.
    Draining,
    /// It is no longer registered.
    Gone,
}

/// A message from the system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemNotice {
    /// How much it matters.
    pub level: NoticeLevel,
    /// A short stable name that programs can act on.
    pub code: String,
    /// The text that people read.
    pub message: String,
    /// With the code `reconnect`: after how many milliseconds the client should connect again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_after_ms: Option<u64>,
}

/// How much a notice matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NoticeLevel {
    /// Good to know.
    Info,
    /// Something may need attention.
    Warning,
    /// Something is wrong.
    Error,
}
