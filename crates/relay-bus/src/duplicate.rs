//! The comparison of a draft with the event that has its id.
//!
//! JSON is compared by its value, which takes time for large payloads. So a channel finds the [event](Earlier) under its lock,
//! and compares it afterwards.

use std::sync::Arc;

use relay_core::{Draft, Event, Payload, PublishAck, PublishError};

/// The payload with which a publisher sent the draft of an event.
#[derive(Debug, Clone)]
pub(crate) enum OriginalPayload {
    /// The event's own.
    Kept,
    /// One that a stage rewrote.
    Rewritten(Payload),
    /// Not known: the event comes from the log, and a stage may have rewritten it.
    Unknown,
}

impl OriginalPayload {
    /// The original payload of a draft that this channel passed through the stages.
    pub(crate) fn of(rewritten: Option<&Payload>) -> Self {
        rewritten.map_or(Self::Kept, |payload| Self::Rewritten(payload.clone()))
    }
}

/// The event in memory that has the id of a draft.
#[derive(Debug)]
pub(crate) struct Earlier {
    pub(crate) event: Arc<Event>,
    pub(crate) original: OriginalPayload,
}

impl Earlier {
    /// Returns the answer to a draft with the id of this event.
    ///
    /// # Errors
    /// [`PublishError::IdConflict`] when the contents differ.
    pub(crate) fn answer(&self, draft: &Draft) -> Result<PublishAck, PublishError> {
        check_same_content(draft, &self.event, &self.original).map(|()| PublishAck::of(&self.event, true))
    }
}

/// Checks that `draft` is the one that became `event`. The two have the same id, and `original` is of `event`.
///
/// # Errors
/// [`PublishError::IdConflict`] when the contents differ.
pub(crate) fn check_same_content(
    draft: &Draft,
    event: &Event,
    original: &OriginalPayload,
) -> Result<(), PublishError> {
    if same_content(draft, event, original) {
        Ok(())
    } else {
        Err(PublishError::IdConflict { id: event.id, seq: event.seq.unwrap_or_default() })
    }
}

fn same_content(draft: &Draft, event: &Event, original: &OriginalPayload) -> bool {
    let is_alike = draft.kind == event.kind && draft.actor == event.actor;
    is_alike
        && match original {
            OriginalPayload::Kept => draft.payload.means_same(&event.payload),
            OriginalPayload::Rewritten(payload) => draft.payload.means_same(payload),
            OriginalPayload::Unknown => true,
        }
}
