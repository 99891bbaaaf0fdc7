//! The changes of locks, for the owner to publish as events.

use std::sync::Arc;

use relay_core::{CheckedDraft, DocumentId, PublishError};

use super::error::LockError;
use super::store::LockStore;

/// A change of a lock, to be published as an event.
///
/// Publish the draft as it is, then [report](Publication::report) the outcome. The draft's id tells the locks, as a stage of
/// the document's order, which lock the event is about; it makes a repeated attempt safe, too.
///
/// ```ignore
/// while let Some(LockChange { draft, publication, .. }) = locks.next_change().await {
///     publication.report(sink.publish(draft).await.map(drop));
/// }
/// ```
///
/// A document's next change is given out when this one was reported. So the changes of a document become events in their
/// order, while those of different documents are published at the same time.
#[derive(Debug)]
#[non_exhaustive]
pub struct LockChange {
    /// The event `document.locked`, `lock.renewed` or `document.unlocked`, by the system.
    pub draft: CheckedDraft,
    /// Takes the outcome.
    pub publication: Publication,
}

/// Takes the outcome of publishing a [`LockChange`], and then answers the request that caused it. Dropped without a report
/// it counts as failed, with [`PublishError::Closed`].
///
/// A lock whose `document.locked` could not be published ends at once, without another event. A lock whose
/// `document.unlocked` could not be published has ended nevertheless.
#[derive(Debug)]
pub struct Publication {
    store: Arc<LockStore>,
    document: DocumentId,
    is_reported: bool,
}

impl Publication {
    pub(super) fn new(store: Arc<LockStore>, document: DocumentId) -> Self {
        Self { store, document, is_reported: false }
    }

    /// Reports that the event is published, or the reason for which it is not.
    pub fn report(mut self, outcome: Result<(), PublishError>) {
        self.is_reported = true;
        self.store.end_publishing(&self.document, outcome.map_err(LockError::Unpublished));
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        if !self.is_reported {
            self.store.end_publishing(&self.document, Err(LockError::Unpublished(PublishError::Closed)));
        }
    }
}
