//! [`Leftovers`]: the sessions, users and locks that have begun by the events of the log, and not ended.
//!
//! A server that stops ends them all by events. One that is killed cannot, so the next one does it before it serves anybody.
//! It knows them from a small [checkpoint](checkpoint) beside the log, and from the events after it. The checkpoint is made
//! of the events whose publishing this server has [tracked](tracker).

mod checkpoint;
mod recovery;
mod tracker;

use std::collections::{BTreeMap, BTreeSet};

use relay_core::{Actor, CheckedDraft, DocumentId, EventId, Kind, Payload, SessionId, UserId};
use relay_events::{
    Body, DOCUMENT_LOCKED, DOCUMENT_UNLOCKED, DocumentUnlocked, EndReason, PayloadError, SESSION_ENDED,
    SESSION_STARTED, SessionEnded, TypedPayload, USER_JOINED, USER_LEFT, UnlockReason, UserLeft,
    server_draft,
};
use serde::{Deserialize, Serialize};

pub use self::recovery::LeftoversError;

pub(crate) use self::recovery::{Checkpoints, end_all};
pub(crate) use self::tracker::LeftoverTracker;

/// The sessions, users and locks that are open, by document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Leftovers(BTreeMap<DocumentId, DocumentLeftovers>);

/// The sessions, users and locks of one document that are open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DocumentLeftovers {
    /// The users of each session.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    sessions: BTreeMap<SessionId, BTreeSet<UserId>>,
    /// The locks, by their tokens.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    locks: BTreeMap<u64, OpenLock>,
}

/// A lock that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OpenLock {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    region: Option<String>,
    holder: String,
}

impl Leftovers {
    /// True for the kinds of events that begin or end something.
    pub(crate) fn concerns(kind: &Kind) -> bool {
        [SESSION_STARTED, SESSION_ENDED, USER_JOINED, USER_LEFT, DOCUMENT_LOCKED, DOCUMENT_UNLOCKED]
            .contains(kind)
    }

    /// Takes over an event. Taking over events again, in their order, leads to the same result.
    pub(crate) fn apply(
        &mut self,
        document: &DocumentId,
        kind: &Kind,
        session: Option<SessionId>,
        payload: &Payload,
    ) {
        if !Self::concerns(kind) {
            return;
        }
        let Ok(body) = Body::parse(kind, payload) else { return };
        let DocumentLeftovers { sessions, locks } = self.0.entry(document.clone()).or_default();
        match (body, session) {
            (Body::SessionStarted(_), Some(session)) => {
                sessions.entry(session).or_default();
            }
            (Body::SessionEnded(_), Some(session)) => {
                sessions.remove(&session);
            }
            (Body::UserJoined(joined), Some(session)) => {
                if let Ok(user) = UserId::new(joined.user) {
                    sessions.entry(session).or_default().insert(user);
                }
            }
            (Body::UserLeft(left), Some(session)) => {
                if let Some(users) = sessions.get_mut(&session) {
                    users.retain(|user| user.as_str() != left.user);
                }
            }
            (Body::DocumentLocked(lock), _) => {
                locks.insert(lock.token, OpenLock { region: lock.region, holder: lock.holder });
            }
            (Body::DocumentUnlocked(lock), _) => {
                locks.remove(&lock.token);
            }
            _ => {}
        }
        if sessions.is_empty() && locks.is_empty() {
            self.0.remove(document);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The events that end all of it, in the order of each document.
    ///
    /// # Errors
    /// [`PayloadError`] when a payload cannot be JSON.
    pub(crate) fn endings(&self) -> Result<Vec<Vec<CheckedDraft>>, PayloadError> {
        self.0.iter().map(|(document, leftovers)| leftovers.endings(document)).collect()
    }
}

impl DocumentLeftovers {
    fn endings(&self, document: &DocumentId) -> Result<Vec<CheckedDraft>, PayloadError> {
        let mut endings = Vec::new();
        for (&token, OpenLock { region, holder }) in &self.locks {
            let (region, holder) = (region.clone(), holder.clone());
            let unlocked = DocumentUnlocked { region, holder, token, reason: UnlockReason::Crashed };
            endings.push(ending(document, &unlocked)?);
        }
        for (&session, users) in &self.sessions {
            for user in users {
                let left = UserLeft { user: user.to_string(), reason: EndReason::Crashed };
                endings.push(ending(document, &left)?.actor(Actor::User(user.clone())).session(session));
            }
            let ended = SessionEnded { reason: EndReason::Crashed };
            endings.push(ending(document, &ended)?.session(session));
        }
        Ok(endings)
    }
}

/// Returns the draft of an ending. Each attempt to publish it has the same id.
fn ending<P: TypedPayload>(document: &DocumentId, payload: &P) -> Result<CheckedDraft, PayloadError> {
    Ok(server_draft(document.clone(), payload)?.id(EventId::new()))
}
