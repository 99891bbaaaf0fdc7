//! Locks as a stage of a document's order: an edit gets no place against a lock, and a lock ends with the place of its
//! `document.unlocked`.

use async_trait::async_trait;
use relay_core::{
    Actor, CheckedDraft, DocumentId, Head, LockClaim, LogError, Monotonic, Place, PublishError, Sequencer,
    UserId,
};
use relay_events::DOCUMENT_UNLOCKED;

use super::Locks;
use super::document_locks::DocumentLocks;
use super::table::LockTable;

#[async_trait]
impl Sequencer for Locks {
    /// Does nothing, since the locks do not depend on the document's history.
    async fn open(&self, _document: &DocumentId, _head: Head) -> Result<(), LogError> {
        Ok(())
    }

    /// Refuses an edit that a lock forbids. A draft without a [claim](CheckedDraft::claim) passes.
    ///
    /// An edit touches the region that it claims, or the whole document. Other users' locks that overlap this keep the edit
    /// out. An edit that names a token is made under that lock. The lock must be the author's, cover the edit, and not have
    /// ended.
    fn check(&self, draft: &mut CheckedDraft, _place: Place) -> Result<(), PublishError> {
        let Some(claim) = draft.claim() else { return Ok(()) };
        let author = match &draft.actor {
            Actor::User(user) => Some(user),
            Actor::Service(_) | Actor::System => None,
        };
        let now = self.0.now();
        let check = |locks: &mut DocumentLocks| check_claim(claim, author, Some(locks.table()), now);
        let checked = self.0.with(&draft.document, check);
        checked.unwrap_or_else(|| check_claim(claim, author, None, now))
    }

    fn rewrites(&self) -> bool {
        false
    }

    /// Notes the place of a lock's end. No edit after it is under that lock.
    fn placed(&self, draft: &CheckedDraft, place: Place) {
        if draft.kind != DOCUMENT_UNLOCKED {
            return;
        }
        if let Some(event) = draft.id {
            self.0.with(&draft.document, |locks| locks.mark_placed(event, place));
        }
    }

    /// Takes back the place of a lock's end that the log did not take. The lock keeps others out again until the outcome of
    /// publishing its end is reported.
    fn dropped(&self, document: &DocumentId, from: Place) {
        self.0.with(document, |locks| locks.mark_dropped(from));
    }

    /// Does nothing: a lock ends by its time or with its holder, and not with the document's channel.
    fn closed(&self, _document: &DocumentId) {}
}

/// Checks an edit against the locks of its document.
fn check_claim(
    claim: &LockClaim,
    author: Option<&UserId>,
    table: Option<&LockTable>,
    now: Monotonic,
) -> Result<(), PublishError> {
    let conflict = table.and_then(|table| table.conflict(author, &claim.scope, now));
    if let Some(token) = claim.token {
        let covers = |(table, author): (&LockTable, &UserId)| table.covers(author, token, &claim.scope, now);
        if !table.zip(author).is_some_and(covers) {
            return Err(PublishError::StaleLock {
                token,
                holder: conflict.map(|lease| lease.holder.clone()),
            });
        }
    }
    match conflict {
        Some(lease) => Err(PublishError::Locked { scope: lease.scope.clone(), holder: lease.holder.clone() }),
        None => Ok(()),
    }
}
