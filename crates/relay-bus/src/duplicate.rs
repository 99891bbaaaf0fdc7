//! The comparison of a draft with the event that has its id.

use relay_core::{Draft, Event, Payload, PublishError};

/// The payload with which a publisher sent the draft of an event.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OriginalPayload<'a> {
    /// The event's own.
    Kept,
    /// One that a stage rewrote.
    Rewritten(&'a Payload),
    /// Not known: the event comes from the log, and a stage may have rewritten it.
    Unknown,
}

impl<'a> OriginalPayload<'a> {
    /// The original payload of a draft that this channel passed through the stages.
    pub(crate) fn of(rewritten: Option<&'a Payload>) -> Self {
        rewritten.map_or(Self::Kept, Self::Rewritten)
    }
}

/// Checks that `draft` is the one that became `event`. The two have the same id, and `original` is of `event`.
///
/// # Errors
/// [`PublishError::IdConflict`] when the contents differ.
pub(crate) fn check_same_content(
    draft: &Draft,
    event: &Event,
    original: OriginalPayload<'_>,
) -> Result<(), PublishError> {
    if same_content(draft, event, original) {
        Ok(())
    } else {
        Err(PublishError::IdConflict { id: event.id, seq: event.seq.unwrap_or_default() })
    }
}

fn same_content(draft: &Draft, event: &Event, original: OriginalPayload<'_>) -> bool {
    let same_payload = match original {
        OriginalPayload::Kept => draft.payload.means_same(&event.payload),
        OriginalPayload::Rewritten(payload) => draft.payload.means_same(payload),
        OriginalPayload::Unknown => true,
    };
    same_payload && draft.kind == event.kind && draft.actor == event.actor
}
