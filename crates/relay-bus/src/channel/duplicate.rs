//! The comparison of a draft with the event that has its id.

use relay_core::{Draft, Event, PublishError};

/// Checks that `draft` is the one that became `event`. The two have the same id.
///
/// # Errors
/// [`PublishError::IdConflict`] when the contents differ.
pub(super) fn check_same_content(draft: &Draft, event: &Event) -> Result<(), PublishError> {
    if same_content(draft, event) {
        Ok(())
    } else {
        Err(PublishError::IdConflict { id: event.id, seq: event.seq.unwrap_or_default() })
    }
}

fn same_content(draft: &Draft, event: &Event) -> bool {
    draft.kind == event.kind && draft.actor == event.actor && draft.payload == event.payload
}
