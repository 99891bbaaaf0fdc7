//! Queries about sessions, for operators and clients.

use relay_core::{DocumentId, SessionId, Timestamp, UserId};
use serde::Serialize;

use crate::document::Document;
use crate::session::{SessionCounters, SessionState};

/// A filter of sessions. A field that is not given matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionQuery {
    /// The session's document.
    pub document: Option<DocumentId>,
    /// A user in the session.
    pub user: Option<UserId>,
    /// The session's state.
    pub state: Option<SessionState>,
}

impl SessionQuery {
    pub(crate) fn matches(&self, id: &DocumentId, entry: &Document) -> bool {
        self.document.as_ref().is_none_or(|document| document == id)
            && self.user.as_ref().is_none_or(|user| entry.has_user(user))
            && self.state.is_none_or(|state| state == entry.session_state())
    }
}

/// A user in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ParticipantInfo {
    /// The user.
    pub user: UserId,
    /// The number of the user's connections. Lost connections that may come back are included.
    pub connections: usize,
}

/// The present state of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session's id.
    pub session: SessionId,
    /// The session's document.
    pub document: DocumentId,
    /// The session's state.
    pub state: SessionState,
    /// The time of the start.
    pub started_at: Timestamp,
    /// The time of a participant's last push or request.
    pub last_activity_at: Timestamp,
    /// The users, in the order of their ids.
    pub participants: Vec<ParticipantInfo>,
    /// The session's counters.
    pub counters: SessionCounters,
}

impl SessionInfo {
    pub(crate) fn of(document: &DocumentId, entry: &Document) -> Option<Self> {
        let session = entry.session()?;
        let mut participants: Vec<ParticipantInfo> = entry
            .users()
            .map(|(user, connections)| ParticipantInfo { user: user.clone(), connections })
            .collect();
        participants.sort_by(|one, other| one.user.cmp(&other.user));
        Some(Self {
            session: session.id,
            document: document.clone(),
            state: session.state,
            started_at: session.started_at,
            last_activity_at: session.last_activity_at,
            participants,
            counters: session.counters,
        })
    }
}
