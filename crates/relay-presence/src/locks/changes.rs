//! The changes of locks on their way to becoming events.

use relay_core::{CheckedDraft, DocumentId, PublishError};
use relay_events::{DocumentLocked, DocumentUnlocked, PayloadError, server_draft};

use super::Locks;
use super::document_locks::{ChangeKind, PendingChange};
use super::error::LockError;

/// A change of a lock, to be published as an event.
///
/// Publish the draft as it is (its id tells the stage in the order which lock the event is about, and makes sending it again safe),
/// then [report](Publication::report) the outcome:
///
/// ```ignore
/// while let Some(LockChange { draft, publication }) = locks.next_change().await {
///     publication.report(sink.publish(draft).await.map(drop));
/// }
/// ```
///
/// A document's next change is given out when this one was reported, so that a document's changes become events in the
/// order in which they came about, however many are published at the same time.
#[derive(Debug)]
pub struct LockChange {
    /// `document.locked` (granted or renewed) or `document.unlocked`, by the system.
    pub draft: CheckedDraft,
    /// Takes the outcome.
    pub publication: Publication,
}

/// Takes the outcome of publishing a [`LockChange`]; only then is the request that caused it answered. Dropped without a
/// report it counts as failed, with [`PublishError::Closed`].
///
/// A lock whose `document.locked` could not be published ends at once and without another event. A lock whose
/// `document.unlocked` could not be published has ended nevertheless.
#[derive(Debug)]
pub struct Publication {
    locks: Locks,
    document: DocumentId,
    is_reported: bool,
}

impl Publication {
    pub(super) fn new(locks: Locks, document: DocumentId) -> Self {
        Self { locks, document, is_reported: false }
    }

    /// Reports that the event is durable, or why there is none.
    pub fn report(mut self, outcome: Result<(), PublishError>) {
        self.is_reported = true;
        self.locks.end_publishing(&self.document, outcome.map_err(LockError::Unpublished));
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        if !self.is_reported {
            self.locks.end_publishing(&self.document, Err(LockError::Unpublished(PublishError::Closed)));
        }
    }
}

/// The event that tells of a change.
pub(super) fn draft(document: &DocumentId, change: &PendingChange) -> Result<CheckedDraft, PayloadError> {
    let lease = &change.lease;
    let region = lease.scope.region().map(|region| region.as_str().to_owned());
    let (holder, token) = (lease.holder.as_str().to_owned(), lease.token.get());
    let draft = match change.kind {
        ChangeKind::Granted | ChangeKind::Renewed => {
            let locked = DocumentLocked { region, holder, token, expires_at: lease.expires_at };
            server_draft(document.clone(), &locked)?
        }
        ChangeKind::Ended(reason) => {
            server_draft(document.clone(), &DocumentUnlocked { region, holder, token, reason })?
        }
    };
    Ok(draft.id(change.event))
}
