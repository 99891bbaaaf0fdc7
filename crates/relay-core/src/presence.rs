//! Who is in a document: [`Presence`] is told by the edges (sockets, HTTP) who comes and goes, shows everyone who else is
//! there, and takes what participants ask for besides publishing.
//!
//! It is how connections reach presence, sessions and locks without knowing who keeps them.

use std::fmt;
use std::task::{Context, Poll};

use async_trait::async_trait;

use crate::error::CommandError;
use crate::id::{ConnectionId, DocumentId, SessionId, UserId};
use crate::payload::JsonText;

/// One connection of one user in one document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Membership {
    /// The document.
    pub document: DocumentId,
    /// The user.
    pub user: UserId,
    /// The connection.
    pub connection: ConnectionId,
}

/// What somebody brings who joins.
#[derive(Debug, Clone, Default)]
pub struct JoinOptions {
    /// The connection with which the same user was here before: the new one takes its place, state included. Without
    /// it, the place of a connection of this user that was lost is taken, if there is one.
    pub resume: Option<ConnectionId>,
    /// The state to begin with, a JSON object.
    pub state: Option<JsonText>,
    /// Whether the membership is held until it is given up, without signs of life: for participants within this process.
    pub exempt_from_timeout: bool,
}

/// How somebody goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaveReason {
    /// On purpose: the others are told at once.
    Left,
    /// The connection broke: the others are told when it has not come back within a grace time.
    Lost,
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It is there: a heartbeat.
    Alive,
    /// It does something: a push.
    Active,
}

/// What somebody gets who joins.
pub struct Joined {
    /// The session that they are part of now.
    pub session: SessionId,
    /// The locks that are held in the document, as the JSON array of the wire protocols.
    pub locks: JsonText,
    /// Who is there: the whole state first, then changes.
    pub presence: Box<dyn PresenceStream>,
}

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Knows who is in which document.
///
/// # Contract
/// - A membership is held from [`join`](Presence::join) until [`leave`](Presence::leave). Leaving a membership that is not held,
///   or giving signs from it, does nothing.
/// - Everything but [`request`](Presence::request) is quick and never blocks.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Takes a membership. Joining with a membership that is held already replaces its state and gives a new stream.
    ///
    /// # Errors
    /// See [`CommandError`]: a malformed state, or no room.
    fn join(&self, membership: &Membership, options: JoinOptions) -> Result<Joined, CommandError>;

    /// Gives up a membership.
    fn leave(&self, membership: &Membership, reason: LeaveReason);

    /// Notes a sign of life.
    fn touch(&self, membership: &Membership, activity: Activity);

    /// Does what a participant asks for by the `name` of a request, such as `lock:acquire`, and gives the answer's body.
    /// `None` when there is no such request.
    ///
    /// Cancel-safe: dropped, what waits is withdrawn.
    ///
    /// # Errors
    /// See [`CommandError`].
    async fn request(
        &self,
        membership: &Membership,
        name: &str,
        payload: &JsonText,
    ) -> Option<Result<JsonText, CommandError>>;
}

/// What a participant is told of who is there. The texts are JSON objects as the `phoenix` client's `Presence` takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceChange {
    /// Everyone who is there (`presence_state`). Comes first, and again where a reader is too far behind for changes.
    State(JsonText),
    /// Who came, went or changed (`presence_diff`).
    Diff(JsonText),
}

/// Who is in a document, from one reader's point of view.
///
/// # Contract
/// - The state comes first, then changes that lead from it to the present one. A slow reader gets fewer, larger
///   changes, and takes no memory for those that it has not read.
/// - After `None` the stream is over. Dropping it ends it.
pub trait PresenceStream: Send {
    /// The next change. On `Pending` the task of `cx` is woken when there is one; only the last task that polled is.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<PresenceChange>>;

    /// What was read so far, as a number: two streams of one document that have read equally far give the same from
    /// there on.
    fn position(&self) -> u64;

    /// A second stream that goes on where this one stands.
    fn fork(&self) -> Box<dyn PresenceStream>;
}
