//! The life of a channel: it is open while this server owns the document, and then has ended for one reason.
//!
//! A channel that ends answers the drafts that wait, wakes its readers, and gives the document up. If the bus goes on, the
//! next use of the document opens a new channel. The order of these steps is decided here alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use relay_core::{
    CheckedDraft, LogError, NotOwner, OwnershipError, Place, PublishError, StreamError, SubscribeError,
    Tenure,
};

use super::Channel;
use super::batch::AppendBatch;
use super::cursor::ReadResult;
use super::state::ChannelState;
use crate::stages::OpenStages;
use crate::waker_set::wake_all;

/// The stages and the tenure of a document whose channel is open. Dropped, they give the document up.
#[derive(Debug)]
pub(crate) struct OpenDocument {
    // Declared before the tenure, so that the stages are told before another server can own the document.
    pub(crate) stages: OpenStages,
    pub(crate) tenure: Box<dyn Tenure>,
}

/// The reason for which a channel takes and gives no more events.
#[derive(Debug, Clone)]
pub(super) enum ChannelEnd {
    /// The bus stops.
    Closed,
    /// The content of the log is not known. The document must be opened again.
    Failed(LogError),
    /// This server no longer owns the document. The document must be opened again, where that is possible.
    OwnershipLost(OwnershipError),
}

impl ChannelEnd {
    /// True when the bus goes on, so that the document must be opened again.
    fn needs_reopening(&self) -> bool {
        !matches!(self, Self::Closed)
    }
}

impl From<ChannelEnd> for PublishError {
    fn from(end: ChannelEnd) -> Self {
        match end {
            ChannelEnd::Closed => Self::Closed,
            ChannelEnd::Failed(error) => Self::Log(error),
            ChannelEnd::OwnershipLost(error) => Self::Ownership(error),
        }
    }
}

impl From<ChannelEnd> for SubscribeError {
    fn from(end: ChannelEnd) -> Self {
        match end {
            ChannelEnd::Closed => Self::Closed,
            ChannelEnd::Failed(error) => Self::Log(error),
            ChannelEnd::OwnershipLost(error) => Self::Ownership(error),
        }
    }
}

impl From<ChannelEnd> for ReadResult {
    fn from(end: ChannelEnd) -> Self {
        match end {
            ChannelEnd::Closed => Self::Closed,
            ChannelEnd::Failed(error) => Self::Failed(StreamError::Log(error)),
            ChannelEnd::OwnershipLost(error) => Self::Failed(StreamError::Ownership(error)),
        }
    }
}

/// The present phase of a channel's life.
#[derive(Debug)]
pub(super) enum Lifecycle {
    /// The channel takes and gives events while the tenure is held.
    Open(OpenDocument),
    /// The channel has ended, and has given the document up.
    Ended(ChannelEnd),
}

/// The answer to the question if a channel takes drafts.
enum Standing<'s> {
    Open,
    /// This server has lost the document, and the channel has not ended yet.
    OwnershipLost,
    Ended(&'s ChannelEnd),
}

impl Lifecycle {
    /// Checks that the channel is open and that this server still owns the document.
    fn standing(&self) -> Standing<'_> {
        match self {
            Self::Open(open) if open.tenure.is_held() => Standing::Open,
            Self::Open(_) => Standing::OwnershipLost,
            Self::Ended(end) => Standing::Ended(end),
        }
    }

    /// The reason for which the channel has ended, if it has.
    pub(super) fn ended(&self) -> Option<&ChannelEnd> {
        match self {
            Self::Open(_) => None,
            Self::Ended(end) => Some(end),
        }
    }

    /// Passes `draft` through the stages, which note on success that it has got `place`.
    ///
    /// # Errors
    /// The refusal of a stage, or the reason for which the channel has ended.
    pub(super) fn sequence(&self, draft: &mut CheckedDraft, place: Place) -> Result<(), PublishError> {
        match self {
            Self::Open(open) => open.stages.sequence(draft, place),
            Self::Ended(end) => Err(end.clone().into()),
        }
    }

    /// Tells the stages of an open channel to give up the places from `from` on.
    fn drop_places(&self, from: Place) {
        if let Self::Open(open) = self {
            open.stages.drop_places(from);
        }
    }

    /// Ends the channel, unless it has ended already. Returns the parts that give the document up when they are dropped.
    fn end(&mut self, end: &ChannelEnd) -> Option<OpenDocument> {
        match std::mem::replace(self, Self::Ended(end.clone())) {
            Self::Open(open) => Some(open),
            Self::Ended(first) => {
                *self = Self::Ended(first);
                None
            }
        }
    }
}

impl Channel {
    /// Locks the state of a channel that takes drafts. If this server has lost the document, the channel ends here.
    ///
    /// # Errors
    /// The reason for which the channel has ended.
    pub(super) fn lock_open(&self) -> Result<MutexGuard<'_, ChannelState>, ChannelEnd> {
        let state = self.state.lock();
        match state.lifecycle.standing() {
            Standing::Open => Ok(state),
            Standing::Ended(end) => Err(end.clone()),
            Standing::OwnershipLost => {
                drop(state);
                Err(self.lose_ownership())
            }
        }
    }

    /// The place of the first event that is not durable yet.
    fn first_uncommitted(&self, state: &ChannelState) -> Place {
        Place::new(self.epoch, state.last().next())
    }

    /// Answers the publishers of a batch that the log has not taken. The channel ends, unless the error says that the log
    /// kept nothing of the batch and the document's head is where the channel believes it to be.
    pub(super) fn fail(&self, batch: AppendBatch, error: &LogError) {
        let refusal = match error {
            LogError::Overloaded { .. } | LogError::TooLarge { .. } | LogError::Unreadable { .. } => {
                let state = self.state.lock();
                state.lifecycle.drop_places(self.first_uncommitted(&state));
                PublishError::Log(error.clone())
            }
            // The log's check of the head is the fence between two owners: another server has appended.
            LogError::Conflict { .. } => {
                tracing::warn!(document = %self.document, %error, "another server appends to a document of this server; the document is opened again at its next use");
                self.lose_ownership().into()
            }
            _ => {
                tracing::error!(document = %self.document, %error, "the log failed; the document is opened again at its next use");
                let end = ChannelEnd::Failed(error.clone());
                self.end(&end);
                end.into()
            }
        };
        batch.refuse(&refusal);
    }

    /// Ends the channel because its writer was dropped at work: the log panicked, or the runtime shuts down. `batch` was under
    /// way.
    pub(super) fn interrupt_writer(&self, batch: Option<AppendBatch>) {
        let source = Arc::new(std::io::Error::other("the document's writer was interrupted"));
        let end = ChannelEnd::Failed(LogError::Failed { source });
        self.end(&end);
        self.state.lock().end_writer();
        if let Some(batch) = batch {
            batch.refuse(&end.into());
        }
    }

    /// Ends the channel: answers the drafts that wait, wakes the readers, and gives the document up. If the document must be
    /// opened again, the stages first give up the places that may not be durable.
    fn end(&self, end: &ChannelEnd) {
        let mut wakers = Vec::new();
        let (open, pending) = {
            let mut state = self.state.lock();
            if end.needs_reopening() {
                state.lifecycle.drop_places(self.first_uncommitted(&state));
            }
            state.drain_wakers(&mut wakers);
            (state.lifecycle.end(end), state.take_pending())
        };
        if let Some(open) = open {
            // The document is given up before another task can open it again.
            drop(open);
            self.needs_reopening.store(end.needs_reopening(), Ordering::Release);
        }
        wake_all(wakers);
        for pending in pending {
            pending.sender.send(Err(end.clone().into()));
        }
    }

    /// Ends the channel if this server no longer owns the document.
    pub(crate) fn check_owned(&self) {
        let is_lost = matches!(self.state.lock().lifecycle.standing(), Standing::OwnershipLost);
        if is_lost {
            self.lose_ownership();
        }
    }

    fn lose_ownership(&self) -> ChannelEnd {
        let end = ChannelEnd::OwnershipLost(NotOwner::new(self.document.clone(), None).into());
        self.end(&end);
        end
    }

    /// Ends the channel because the bus stops.
    pub(crate) fn close(&self) {
        self.end(&ChannelEnd::Closed);
    }

    /// True when the channel has ended while the bus goes on, so that the document must be opened again.
    pub(crate) fn needs_reopening(&self) -> bool {
        self.needs_reopening.load(Ordering::Acquire)
    }
}
