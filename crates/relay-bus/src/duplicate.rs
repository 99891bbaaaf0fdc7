//! The comparison of a draft with the event that has its id.

use relay_core::{CheckedDraft, Draft, Event, Payload, PublishError};

/// The payload with which a publisher sent the draft of an event.
#[derive(Debug)]
pub(crate) enum OriginalPayload {
    /// The event's own.
    Kept,
    /// One that a stage rewrote.
    Rewritten(Box<Payload>),
    /// Not known: the event comes from the log, and a stage may have rewritten it.
    Unknown,
}

impl OriginalPayload {
    /// The original payload of a draft that has passed the stages.
    pub(crate) fn of(draft: &CheckedDraft) -> Self {
        match draft.original_payload() {
            None => Self::Kept,
            Some(payload) => Self::Rewritten(Box::new(payload.clone())),
        }
    }

    /// The bytes that it takes beside its event.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Rewritten(payload) => size_of::<Payload>() + payload.len(),
            Self::Kept | Self::Unknown => 0,
        }
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
    let same_payload = match original {
        OriginalPayload::Kept => draft.payload == event.payload,
        OriginalPayload::Rewritten(payload) => draft.payload == **payload,
        OriginalPayload::Unknown => true,
    };
    same_payload && draft.kind == event.kind && draft.actor == event.actor
}
