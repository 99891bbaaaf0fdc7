//! The payload types, one for each kind of the vocabulary.
//!
//! They ignore fields that they do not know, so that a newer client can talk to an older server. A field of the wrong type
//! is an error that names the field.

use relay_core::{Seq, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A document's live collaboration began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStarted {
    /// The start. The envelope's `session` identifies the session.
    pub started_at: Timestamp,
}

/// A document's live collaboration ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnded {
    /// The reason.
    pub reason: EndReason,
}

/// The reason why a session or a user's participation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EndReason {
    /// The last connection left.
    Left,
    /// The last connection was silent for too long.
    Stale,
    /// The server stopped.
    Shutdown,
    /// The server was killed, and the next one found the session or the user in its log.
    Crashed,
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

/// A user left on the last of their connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserLeft {
    /// The user's id.
    pub user: String,
    /// The reason.
    pub reason: EndReason,
}

/// A participant's free-form state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PresenceUpdated {
    /// The state, in a form that the clients agree on: name, colour, typing.
    pub state: serde_json::Map<String, Value>,
}

/// A cursor or selection moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CursorMoved {
    /// The cursor's position: a number, or the editor's own form of a position. Not null.
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

/// The document's content changed: text patches, or a change in the editor's own format. Binary formats such as Yjs
/// updates are binary payloads instead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "EditedFields")]
pub enum DocumentEdited {
    /// Patches to plain text, applied in order.
    Patches {
        /// The patches.
        patches: Vec<Patch>,
        /// The last event that the author had received.
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

/// The fields of both forms, read in one pass. Trying one form after the other would copy the payload first, and could not
/// tell the wrong field.
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
    /// The position of its beginning.
    pub position: u64,
    /// The number of code points that are removed there.
    pub deleted: u64,
    /// The text that replaces them.
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
    /// The last event that the saved content includes.
    pub through: Seq,
    /// The name of the saved content, for instance a version or a hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// The document or a region of it was locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentLocked {
    /// The region; the whole document when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The user that holds it.
    pub holder: String,
    /// The fencing token, which only grows.
    pub token: u64,
    /// The end of the lease, unless it is renewed.
    pub expires_at: Timestamp,
}

/// A lock ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentUnlocked {
    /// The region; the whole document when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The user that held it.
    pub holder: String,
    /// The fencing token, which is void now.
    pub token: u64,
    /// The reason.
    pub reason: UnlockReason,
}

/// The lease of a lock was prolonged.
///
/// The event is ephemeral, so it may reach a reader before the [`DocumentLocked`] of its lock. The later `expires_at` of a
/// token is the valid one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRenewed {
    /// The region; the whole document when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The user that holds the lock.
    pub holder: String,
    /// The fencing token, which stays the same.
    pub token: u64,
    /// The end of the lease, unless it is renewed again.
    pub expires_at: Timestamp,
}

/// The reason why a lock ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UnlockReason {
    /// The holder released it.
    Released,
    /// The lease was not renewed.
    Expired,
    /// The holder's last connection was gone for too long.
    HolderGone,
    /// An administrator revoked it.
    Forced,
    /// The server stopped.
    Shutdown,
    /// The server was killed, and the next one found the lock in its log.
    Crashed,
}

/// A comment, suggestion or mark was added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnnotationAdded {
    /// The annotation's id, chosen by the client.
    pub annotation: String,
    /// Its text.
    pub text: String,
    /// The annotated range: `[start, end)` in code points, or the editor's own form of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Value>,
    /// Its tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// An annotation was resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnotationResolved {
    /// The annotation's id.
    pub annotation: String,
    /// The resolution, for instance `accepted`.
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
    /// The reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The state of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ServiceState {
    /// Its state is not known yet.
    Unknown,
    /// It works.
    Healthy,
    /// It works, with errors.
    Degraded,
    /// It does not work.
    Unhealthy,
    /// It finishes its present events and gets no new ones.
    Draining,
    /// Its registration has ended.
    Gone,
}

/// A message from the system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemNotice {
    /// The severity.
    pub level: NoticeLevel,
    /// A short stable name that programs can act on.
    pub code: String,
    /// The text for people.
    pub message: String,
    /// With the code `reconnect`: the milliseconds after which the client should connect again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_after_ms: Option<u64>,
}

/// The severity of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NoticeLevel {
    /// Information that needs no action.
    Info,
    /// Something may need attention.
    Warning,
    /// Something is wrong.
    Error,
}
