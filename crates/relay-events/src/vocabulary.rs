//! The kinds of events and their payloads.
//!
//! One table holds a kind's name, its delivery class and the type of its payload, so that none can be added without the
//! others. [`payloads`] has the types, [`mod@check`] the check of drafts that come from outside.

use bytes::Bytes;
use relay_core::{
    Absence, DeliveryClass, ErrorCode, Event, InvalidClaim, InvalidId, JsonText, Kind, Offset, Payload, Seq,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::read_json::read_json;

mod check;
mod payloads;
mod shape;

pub use check::{RelayVocabulary, check, server_draft};
pub use payloads::*;

/// The metadata key of the rules that led to an event: their names, separated by commas, the earliest first. In a delivery the
/// router's signature follows. It is the only key of the server that services copy into what they publish.
pub const CAUSES_KEY: &str = "relay.causes";

/// A payload type of the vocabulary, with its kind.
pub trait TypedPayload: Serialize + DeserializeOwned {
    /// The kind of the events with this payload.
    const KIND: Kind;

    /// Returns this value as a payload.
    ///
    /// # Errors
    /// [`PayloadError::Invalid`], when a free-form part of it cannot be JSON.
    fn to_payload(&self) -> Result<Payload, PayloadError> {
        Payload::json(self).map_err(|e| PayloadError::Invalid { kind: Self::KIND, detail: e.to_string() })
    }
}

/// The reason why a kind or its payload is refused.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// There is no such kind.
    #[error("there is no event kind `{name}`; known are {}, and your own beginning with `x-`", names())]
    UnknownKind {
        /// The first characters of the given name.
        name: String,
    },
    /// The name begins with `x-` but is malformed.
    #[error(transparent)]
    InvalidKind(#[from] InvalidId),
    /// The payload does not have the type of its kind.
    #[error("the payload does not fit `{kind}`: {detail}")]
    Invalid {
        /// The kind.
        kind: Kind,
        /// The mistake, and its path.
        detail: String,
    },
    /// Only Relay itself publishes events of this kind.
    #[error(
        "`{kind}` events are published by the server alone; use the command that causes them, or a kind beginning with `x-`"
    )]
    Reserved {
        /// The kind.
        kind: Kind,
    },
    /// The metadata has a key to which the server gives a meaning. Services copy [`CAUSES_KEY`] from the events that they
    /// received, and nobody sets another one.
    #[error(
        "the metadata key `{key}` is the server's: take another key; only actors `service:…` copy `{CAUSES_KEY}`, from a delivery"
    )]
    ReservedMetadata {
        /// The key.
        key: String,
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
    /// The event has no payload any more.
    #[error("the payload of this `{kind}` event is gone: {}", absence.as_str())]
    Absent {
        /// The kind.
        kind: Kind,
        /// The reason.
        absence: Absence,
    },
}

impl PayloadError {
    /// The kind of the refusal, for decisions in programs.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownKind { .. } | Self::InvalidKind(_) => ErrorCode::UnknownEvent,
            Self::Reserved { .. } => ErrorCode::ReservedEvent,
            Self::InvalidClaim(_) | Self::ReservedMetadata { .. } => ErrorCode::InvalidRequest,
            Self::Invalid { .. } | Self::NotBinary { .. } | Self::Absent { .. } => ErrorCode::InvalidPayload,
        }
    }
}

fn names() -> String {
    KINDS.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ")
}

macro_rules! vocabulary {
    ($( $(#[$doc:meta])* $constant:ident = $name:literal, $class:ident, $payload:ident; )*) => {
        $( $(#[$doc])* pub const $constant: Kind = Kind::from_static($name, DeliveryClass::$class); )*

        /// Every kind of the vocabulary. Kinds of your own begin with `x-` and are not listed.
        pub const KINDS: &[Kind] = &[$($constant),*];

        $( impl TypedPayload for $payload { const KIND: Kind = $constant; } )*

        /// An event's payload as its type.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Body {
            $( #[doc = concat!("Of a `", $name, "` event.")] $payload($payload), )*
            /// Bytes instead of a typed payload, for instance a Yjs update in a `document.edited` event.
            Binary(Bytes),
            /// JSON of a kind beginning with `x-`.
            Custom(JsonText),
        }

        impl Body {
            /// Reads a payload as the type of its kind.
            ///
            /// # Errors
            /// [`PayloadError::Invalid`] and [`PayloadError::NotBinary`] when it has another type,
            /// [`PayloadError::Absent`] when it is gone, and [`PayloadError::UnknownKind`] for a kind outside the
            /// vocabulary.
            pub fn parse(kind: &Kind, payload: &Payload) -> Result<Self, PayloadError> {
                let text = match payload {
                    Payload::Json(text) => text,
                    Payload::Binary(bytes) if takes_binary(kind) => return Ok(Self::Binary(bytes.clone())),
                    Payload::Binary(_) => return Err(PayloadError::NotBinary { kind: kind.clone() }),
                    Payload::Absent(absence) => {
                        return Err(PayloadError::Absent { kind: kind.clone(), absence: *absence });
                    }
                };
                match kind.as_str() {
                    $( $name => read_json(text.as_bytes())
                        .map(Self::$payload)
                        .map_err(|detail| PayloadError::Invalid { kind: kind.clone(), detail }), )*
                    name if name.starts_with(CUSTOM_PREFIX) => Ok(Self::Custom(text.clone())),
                    name => Err(PayloadError::UnknownKind { name: name.to_owned() }),
                }
            }

            /// Reads the payload of `event`.
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
    SESSION_STARTED = "session.started", Logged, SessionStarted;
    /// A document's live collaboration ended.
    SESSION_ENDED = "session.ended", Logged, SessionEnded;
    /// A user began to take part, on the first of their connections.
    USER_JOINED = "user.joined", Logged, UserJoined;
    /// A user left on the last of their connections.
    USER_LEFT = "user.left", Logged, UserLeft;
    /// A participant's free-form state changed.
    PRESENCE_UPDATED = "presence.updated", Ephemeral, PresenceUpdated;
    /// A cursor or selection moved.
    CURSOR_MOVED = "cursor.moved", Ephemeral, CursorMoved;
    /// The document's content changed.
    DOCUMENT_EDITED = "document.edited", Sequenced, DocumentEdited;
    /// The document was saved by a service or client that stores it.
    DOCUMENT_SAVED = "document.saved", Sequenced, DocumentSaved;
    /// The document or a region of it was locked.
    DOCUMENT_LOCKED = "document.locked", Sequenced, DocumentLocked;
    /// A lock ended.
    DOCUMENT_UNLOCKED = "document.unlocked", Sequenced, DocumentUnlocked;
    /// The lease of a lock was prolonged.
    LOCK_RENEWED = "lock.renewed", Ephemeral, LockRenewed;
    /// A comment, suggestion or mark was added.
    ANNOTATION_ADDED = "annotation.added", Sequenced, AnnotationAdded;
    /// An annotation was resolved.
    ANNOTATION_RESOLVED = "annotation.resolved", Sequenced, AnnotationResolved;
    /// A backend service's state changed.
    SERVICE_CHANGED = "service.changed", Logged, ServiceChanged;
    /// A message from the system to the participants.
    SYSTEM_NOTICE = "system.notice", Ephemeral, SystemNotice;
}

/// The beginning of the names of your own kinds.
pub const CUSTOM_PREFIX: &str = "x-";
/// The beginning of the names of your own ephemeral kinds. All other kinds of your own are sequenced.
pub const CUSTOM_EPHEMERAL_PREFIX: &str = "x-ephemeral-";

/// Returns the kind of the given name: a kind of the vocabulary, or your own beginning with `x-`.
///
/// ```
/// let kind = relay_events::kind("document.edited")?;
/// assert!(kind.is_sequenced());
/// assert!(relay_events::kind("x-ephemeral-laser")?.is_ephemeral());
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
    let class = if ephemeral { DeliveryClass::Ephemeral } else { DeliveryClass::Sequenced };
    Ok(Kind::new(name, class)?)
}

/// Returns the kind of a published event. Unlike a draft's kind it need not be of this vocabulary, since events outlive the
/// vocabularies that they were written with. So the event's positions decide about its class: one with a seq is sequenced,
/// and one with an offset alone is logged. The vocabulary decides about one with neither, and takes it for ephemeral in doubt.
pub(crate) fn kind_of_event(name: &str, seq: Option<Seq>, offset: Option<Offset>) -> Result<Kind, InvalidId> {
    let known = kind(name);
    let class = match (seq, offset) {
        (Some(_), _) => DeliveryClass::Sequenced,
        (None, Some(_)) => DeliveryClass::Logged,
        (None, None) => known
            .as_ref()
            .map(Kind::class)
            .ok()
            .filter(|class| *class == DeliveryClass::Logged)
            .unwrap_or(DeliveryClass::Ephemeral),
    };
    of_class(name, class, known)
}

/// Returns the kind of an event in its binary form, which has a seq but no offset. Only stored events have that form, so one
/// without a seq is logged, unless the vocabulary takes its kind for ephemeral.
pub(crate) fn kind_of_record(name: &str, seq: Option<Seq>) -> Result<Kind, InvalidId> {
    let known = kind(name);
    let class = match seq {
        Some(_) => DeliveryClass::Sequenced,
        None if known.as_ref().is_ok_and(Kind::is_ephemeral) => DeliveryClass::Ephemeral,
        None => DeliveryClass::Logged,
    };
    of_class(name, class, known)
}

/// Returns `known` if it has this class, and otherwise a kind of the same name that has it.
fn of_class(name: &str, class: DeliveryClass, known: Result<Kind, PayloadError>) -> Result<Kind, InvalidId> {
    match known {
        Ok(kind) if kind.class() == class => Ok(kind),
        _ => Kind::new(name, class),
    }
}

fn takes_binary(kind: &Kind) -> bool {
    *kind == DOCUMENT_EDITED || kind.as_str().starts_with(CUSTOM_PREFIX)
}
