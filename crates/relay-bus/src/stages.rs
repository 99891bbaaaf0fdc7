//! [`OpenStages`]: the stages of one document while its channel is open.

use std::sync::Arc;

use relay_core::{CheckedDraft, DocumentId, Head, LogError, Place, PublishError, Sequencer};

/// The stages that each sequenced draft of a document passes when it gets its place, in order. Dropped, they are told that
/// the channel is closed.
#[derive(Debug)]
pub(crate) struct OpenStages {
    document: DocumentId,
    stages: Arc<[Arc<dyn Sequencer>]>,
}

impl OpenStages {
    /// Makes all stages ready for the drafts of `document`, one after the other.
    ///
    /// Cancel-safe: dropped, or after a failure, all stages are told that the channel is closed.
    ///
    /// # Errors
    /// The failure of the first stage that fails.
    pub(crate) async fn open(
        document: DocumentId,
        stages: Arc<[Arc<dyn Sequencer>]>,
        head: Head,
    ) -> Result<Self, LogError> {
        let opened = Self { document, stages };
        for stage in opened.stages.iter() {
            stage.open(&opened.document, head).await?;
        }
        Ok(opened)
    }

    /// Passes `draft` through the stages, and on success lets each of them note that it has got `place`.
    ///
    /// # Errors
    /// The refusal of the first stage that refuses.
    pub(crate) fn sequence(&self, draft: &mut CheckedDraft, place: Place) -> Result<(), PublishError> {
        for stage in self.stages.iter() {
            stage.check(draft, place)?;
        }
        for stage in self.stages.iter() {
            stage.placed(draft, place);
        }
        Ok(())
    }

    /// Tells the stages to give up the places from `from` on.
    pub(crate) fn drop_places(&self, from: Place) {
        for stage in self.stages.iter() {
            stage.dropped(&self.document, from);
        }
    }

    /// True when a stage may rewrite a draft.
    pub(crate) fn may_rewrite(&self) -> bool {
        self.stages.iter().any(|stage| stage.rewrites())
    }
}

impl Drop for OpenStages {
    fn drop(&mut self) {
        for stage in self.stages.iter() {
            stage.closed(&self.document);
        }
    }
}
