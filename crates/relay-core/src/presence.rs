//! [`Presence`]: the participants of documents. Edges (sockets, HTTP) tell it which connections join, leave and act, and
//! read from it who else is there.
//!
//! It is how connections reach presence and sessions without knowing their keeper: this process today, another server
//! later. What participants ask for besides is a [command](crate::Command).

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;

use crate::encoding::EncodingCache;
use crate::error::{CommandError, ErrorCode};
use crate::id::{ConnectionId, DocumentId, NodeId, SessionId, UserId};
use crate::lock::Lease;
use crate::memory::{MemoryPurpose, MemoryShare};
use crate::ownership::OwnershipError;
use crate::payload::JsonObject;

/// One connection of one user as a member of one document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Membership {
    /// The document.
    pub document: DocumentId,
    /// The user.
    pub user: UserId,
    /// The connection.
    pub connection: ConnectionId,
}

/// Options for joining.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct JoinOptions {
    /// The connection with which the same user was here before: the new one replaces it and takes over its state. Without
    /// it, the new one replaces a lost connection of this user, if there is one.
    pub resume: Option<ConnectionId>,
    /// The state to begin with.
    pub state: Option<JsonObject>,
    /// True when the edge notices the end of the connection itself: the membership lasts until the edge leaves. Without it
    /// the membership also ends when [`touch`](Presence::touch) reports no sign of life for too long.
    pub exempt_from_timeout: bool,
    /// The share of memory of the client, to which its state counts beside the document's; `None` where it counts to no client.
    pub memory: Option<MemoryShare>,
}

impl JoinOptions {
    /// Sets the connection to resume.
    pub fn resume(mut self, connection: ConnectionId) -> Self {
        self.resume = Some(connection);
        self
    }

    /// Sets the state to begin with.
    pub fn state(mut self, state: JsonObject) -> Self {
        self.state = Some(state);
        self
    }
}

/// The reason for which a connection leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaveReason {
    /// It left on purpose: the others are told at once.
    Left,
    /// It broke: the others are told when it has not come back within a grace time.
    Lost,
    /// The server closed it, because it stops. The others are told as for `Lost`, with this reason.
    Shutdown,
}

/// A sign that a connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// It is there: a heartbeat.
    Alive,
    /// It does something: a push.
    Active,
}

/// The outcome of a join that succeeded.
#[non_exhaustive]
pub struct Joined {
    /// The session that the participant is part of now.
    pub session: SessionId,
    /// The leases of the locks that are held in the document, in the order of their tokens.
    pub locks: Vec<Lease>,
    /// The participants: the whole first, then changes.
    pub presence: Box<dyn PresenceStream>,
}

impl Joined {
    /// The outcome with all its parts.
    pub fn new(session: SessionId, locks: Vec<Lease>, presence: Box<dyn PresenceStream>) -> Self {
        Self { session, locks, presence }
    }
}

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Keeps the participants of documents.
///
/// # Contract
/// - A membership is held from [`join`](Self::join) until [`leave`](Self::leave). To leave or touch one that is not held
///   does nothing.
/// - `leave` and `touch` are quick and never block.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Takes a membership. To join with one that is held already replaces its state and gives a new stream.
    ///
    /// Cancel-safe: dropped before it returns, nothing is held.
    ///
    /// # Errors
    /// See [`JoinError`].
    async fn join(&self, membership: &Membership, options: JoinOptions) -> Result<Joined, JoinError>;

    /// Gives up a membership.
    fn leave(&self, membership: &Membership, reason: LeaveReason);

    /// Notes that a connection lives.
    fn touch(&self, membership: &Membership, activity: Activity);
}

/// A refusal to make a connection a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The options are malformed, or a limit is reached.
    #[error(transparent)]
    Refused(#[from] CommandError),
    /// Another server owns the document.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
}

impl JoinError {
    /// The kind of the refusal, for programs to decide by.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(error) => error.code,
            Self::Ownership(error) => error.code(),
        }
    }
}

/// The identity of one entry in a document's presence. A changed state makes a new entry of the same connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PresenceId {
    /// The server that the connection belongs to.
    pub node: NodeId,
    /// The number of the change that made the entry, among the changes of its server.
    pub counter: u64,
}

/// One connection as the readers of a document's presence see it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PresenceEntry {
    /// The entry's identity.
    pub id: PresenceId,
    /// The entry that this one replaced.
    pub previous: Option<PresenceId>,
    /// The user.
    pub user: UserId,
    /// The state that the participant shows.
    pub state: JsonObject,
}

impl PresenceEntry {
    /// An entry with all its parts.
    pub const fn new(id: PresenceId, previous: Option<PresenceId>, user: UserId, state: JsonObject) -> Self {
        Self { id, previous, user, state }
    }
}

/// All participants of a document at one moment.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct PresenceSnapshot {
    /// The entries, ordered by user, and of one user by their ids.
    pub entries: Vec<PresenceEntry>,
    /// The encoded forms, each made when it is first asked for.
    pub encodings: EncodingCache,
}

impl PresenceSnapshot {
    /// The snapshot of `entries`, in any order.
    pub fn new(mut entries: Vec<PresenceEntry>) -> Self {
        sort(&mut entries);
        Self { entries, encodings: EncodingCache::default() }
    }

    /// Charges the encoded forms to `share`.
    #[must_use]
    pub fn charged_to(self, share: MemoryShare) -> Self {
        Self { encodings: EncodingCache::charged_to(share, MemoryPurpose::Presence), ..self }
    }
}

/// The difference between two moments of a document's presence.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct PresenceDiff {
    /// The entries that are new, ordered as in a [`PresenceSnapshot`].
    pub joins: Vec<PresenceEntry>,
    /// The entries that are gone, in the same order.
    pub leaves: Vec<PresenceEntry>,
    /// The encoded forms, each made when it is first asked for.
    pub encodings: EncodingCache,
}

impl PresenceDiff {
    /// The difference of `joins` and `leaves`, each in any order.
    pub fn new(mut joins: Vec<PresenceEntry>, mut leaves: Vec<PresenceEntry>) -> Self {
        sort(&mut joins);
        sort(&mut leaves);
        Self { joins, leaves, encodings: EncodingCache::default() }
    }

    /// Charges the encoded forms to `share`.
    #[must_use]
    pub fn charged_to(self, share: MemoryShare) -> Self {
        Self { encodings: EncodingCache::charged_to(share, MemoryPurpose::Presence), ..self }
    }
}

fn sort(entries: &mut [PresenceEntry]) {
    entries.sort_by(|one, other| (&one.user, one.id).cmp(&(&other.user, other.id)));
}

/// One step of a reader's knowledge of a document's presence. Readers at the same position share one value.
///
/// The enum is exhaustive: a reader that passed over a step would show participants who are not there.
#[derive(Debug, Clone)]
pub enum PresenceChange {
    /// All participants. Comes first, and again where a reader is too far behind for a difference.
    Snapshot(Arc<PresenceSnapshot>),
    /// The participants who came, went or changed.
    Diff(Arc<PresenceDiff>),
}

/// A document's presence, from one reader's point of view.
///
/// # Contract
/// - The snapshot comes first, then differences that lead from it to the present. A slow reader gets fewer, larger
///   differences, and takes no memory for those that it has not read.
/// - After `None` the stream is over. Dropping it ends it.
pub trait PresenceStream: Send {
    /// The next change. On `Pending` the task of `cx` is woken when there is one; only the last task that polled is.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<PresenceChange>>;

    /// The reader's position, as a number: two streams of one document at the same position give the same from there on.
    fn position(&self) -> u64;

    /// A second stream that goes on from this one's position.
    fn fork(&self) -> Box<dyn PresenceStream>;
}
