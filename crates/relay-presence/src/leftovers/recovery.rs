//! The start after a crash: what the log shows as open is ended by events. Afterwards the checkpoint is kept up to date.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use relay_core::{EventLog, LogError, Offset, ReadLimit};
use relay_events::PayloadError;
use relay_tasks::call_blocking;
use tokio::sync::OwnedMutexGuard;

use super::checkpoint::{self, Checkpoint};
use super::{LeftoverTracker, Leftovers};

/// A page of the log while it is read for leftovers.
const PAGE: ReadLimit = ReadLimit { events: 4_096, bytes: 4 * 1024 * 1024 };
/// The most documents whose endings are published at the same time.
const MAX_DOCUMENTS: usize = 256;

/// The reason why leftovers of an earlier server were not ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LeftoversError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An ending cannot be written as JSON.
    #[error(transparent)]
    Payload(#[from] PayloadError),
}

/// The checkpoints of a log's leftovers, in one file.
pub(crate) struct Checkpoints {
    tracker: Arc<LeftoverTracker>,
    log: Arc<dyn EventLog>,
    path: PathBuf,
    /// The checkpoint in the file.
    saved: Option<Checkpoint>,
}

impl Checkpoints {
    pub(crate) fn new(tracker: Arc<LeftoverTracker>, log: Arc<dyn EventLog>, path: PathBuf) -> Self {
        Self { tracker, log, path, saved: None }
    }

    /// Finds the leftovers of the log, and starts the tracker with them. `was_stopped` tells that the last server stopped in
    /// order, so that a log without a checkpoint has none.
    pub(crate) async fn find(&mut self, was_stopped: bool) -> Result<Leftovers, LogError> {
        let end = self.log.last_offset().await?;
        let path = self.path.clone();
        let saved = call_blocking(move || checkpoint::load(&path)).await.unwrap_or_default();
        // A checkpoint beyond the end is that of another log, for instance of one that was restored since.
        self.saved = saved.filter(|saved| saved.offset <= end);
        let start = match &self.saved {
            Some(saved) => saved.clone(),
            None => Checkpoint {
                offset: if was_stopped { end } else { Offset::ZERO },
                leftovers: Leftovers::default(),
            },
        };
        let Checkpoint { offset: mut after, mut leftovers } = start;
        while after < end {
            let page = self.log.read(after, PAGE).await?;
            let Some(last) = page.last().and_then(|event| event.offset) else { break };
            for event in &page {
                leftovers.apply(&event.document, &event.kind, event.session, &event.payload);
            }
            after = last;
        }
        self.tracker.start(leftovers.clone(), end);
        Ok(leftovers)
    }

    /// Writes a checkpoint, unless the file has it. The write goes on when its caller stops waiting, and holds `checkpoints`
    /// until its end: two writes at the same time would spoil the file.
    pub(crate) async fn save(mut checkpoints: OwnedMutexGuard<Self>) -> std::io::Result<()> {
        let last = checkpoints.log.last_offset().await.map_err(std::io::Error::other)?;
        let Some(checkpoint) = checkpoints.tracker.checkpoint(last) else { return Ok(()) };
        if checkpoints.saved.as_ref() == Some(&checkpoint) {
            return Ok(());
        }
        let writing = call_blocking(move || {
            checkpoint::save(&checkpoints.path, &checkpoint)?;
            checkpoints.saved = Some(checkpoint);
            Ok(())
        });
        writing.await.map_err(std::io::Error::other)?
    }
}

/// Publishes the endings of `leftovers` with `publish`: the documents side by side, and the events of each in order.
pub(crate) async fn end_all<P, F>(leftovers: &Leftovers, publish: P) -> Result<(), PayloadError>
where
    P: Fn(relay_core::CheckedDraft) -> F,
    F: Future<Output = ()>,
{
    let endings = leftovers.endings()?;
    let ending = stream::iter(endings).for_each_concurrent(MAX_DOCUMENTS, async |drafts| {
        for draft in drafts {
            publish(draft).await;
        }
    });
    ending.await;
    Ok(())
}
