//! Locks as a stage of the document's order: an edit gets no place against a lock, and the end of a lock counts from its
//! place on.

use relay_core::{
    Actor, CheckedDraft, DocumentId, Lease, LockClaim, LockScope, Place, PublishError, Sequencer, UserId,
};
use relay_events::DOCUMENT_UNLOCKED;

use super::Locks;
use super::document_locks::DocumentLocks;

impl Sequencer for Locks {
    /// Refuses an edit that a lock forbids. A draft without a [claim](CheckedDraft::claim) passes.
    ///
    /// An edit touches the region that it claims, or else the whole document. Locks of others that overlap that keep it
    /// out. An edit that names a token is made under that lock, which must be the author's, cover the edit, and not have
    /// ended.
    fn check(&self, draft: &mut CheckedDraft, _place: Place) -> Result<(), PublishError> {
        let Some(claim) = draft.claim() else { return Ok(()) };
        let author = match &draft.actor {
            Actor::User(user) => Some(user),
            Actor::Service(_) | Actor::System => None,
        };
        let now = self.0.now();
        let check = |locks: &mut DocumentLocks| check_claim(claim, author, locks.table().live(now));
        let checked = self.0.with(&draft.document, check);
        checked.unwrap_or_else(|| check_claim(claim, author, std::iter::empty()))
    }

    /// Notes the place of a lock's end: nothing after it is under that lock.
    fn placed(&self, draft: &CheckedDraft, _place: Place) {
        if draft.kind != DOCUMENT_UNLOCKED {
            return;
        }
        if let Some(event) = draft.id {
            self.0.with(&draft.document, |locks| locks.mark_placed(event));
        }
    }

    /// A lock whose end the log did not take keeps others out, as before, until the outcome is reported.
    fn dropped(&self, document: &DocumentId) {
        self.0.with(document, DocumentLocks::mark_dropped);
    }
}

fn check_claim<'l>(
    claim: &LockClaim,
    author: Option<&UserId>,
    live: impl Iterator<Item = &'l Lease>,
) -> Result<(), PublishError> {
    let (mut is_covered, mut in_the_way) = (false, None);
    for lease in live.filter(|lease| lease.scope.overlaps(&claim.scope)) {
        if Some(&lease.holder) != author {
            in_the_way.get_or_insert(lease);
        } else if Some(lease.token) == claim.token {
            is_covered = lease.scope == LockScope::Document || lease.scope == claim.scope;
        }
    }
    match (claim.token, in_the_way) {
        (Some(token), _) if !is_covered => {
            Err(PublishError::StaleLock { token, holder: in_the_way.map(|lease| lease.holder.clone()) })
        }
        (_, Some(lease)) => {
            Err(PublishError::Locked { scope: lease.scope.clone(), holder: lease.holder.clone() })
        }
        _ => Ok(()),
    }
}
