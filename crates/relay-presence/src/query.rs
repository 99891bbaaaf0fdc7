//! What operators and clients may ask of sessions.

use relay_core::{DocumentId, SessionId, Timestamp, UserId};
use serde::Serialize;

use crate::document::Document;
use crate::session::{SessionCounters, SessionState};

/// Which sessions are wanted; what is not given matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionQuery {
    /// Of this document.
    pub document: Option<DocumentId>,
    /// In which this user is.
    pub user: Option<UserId>,
    /// That stand here.
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
pub struct Participant {
    /// The user.
    pub user: UserId,
    /// Their connections, lost ones that may come back included.
    pub connections: usize,
}

/// A session as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session.
    pub session: SessionId,
    /// Its document.
    pub document: DocumentId,
    /// Where it stands.
    pub state: SessionState,
    /// When it began.
    pub started_at: Timestamp,
    /// When a participant last did something.
    pub last_activity_at: Timestamp,
    /// Who is there, in the order of their ids.
    pub participants: Vec<Participant>,
    /// What has happened.
    pub counters: SessionCounters,
}

impl SessionInfo {
    pub(crate) fn of(document: &DocumentId, entry: &Document) -> Option<Self> {
        let session = entry.session()?;
        let mut participants: Vec<Participant> = entry
            .users()
            .map(|(user, connections)| Participant { user: user.clone(), connections })
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
