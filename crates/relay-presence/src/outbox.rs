//! [`Outbox`]: the events of one document that wait to be published, in their order.

use std::collections::VecDeque;

use relay_core::{CheckedDraft, SessionId};

/// An event that waits to be published.
#[derive(Debug)]
struct Outgoing {
    draft: CheckedDraft,
    /// The session whose start the event is.
    opens: Option<SessionId>,
}

/// The events of one document that wait. One task at a time, the document's publisher, takes them one after the other.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Outgoing>,
    has_publisher: bool,
}

impl Outbox {
    /// Adds an event. `opens` names the session whose start the event is.
    pub(crate) fn push(&mut self, draft: CheckedDraft, opens: Option<SessionId>) {
        self.waiting.push_back(Outgoing { draft, opens });
    }

    /// The number of events that wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True when nothing waits and no publisher is at work.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.has_publisher
    }

    /// Makes the caller the document's publisher, when events wait and there is none. Returns true when it is.
    pub(crate) fn claim_publisher(&mut self) -> bool {
        let is_needed = !self.waiting.is_empty() && !self.has_publisher;
        self.has_publisher |= is_needed;
        is_needed
    }

    /// The next event for the publisher. It stays in the outbox until its [end](Self::end_front). With `None` the publisher's
    /// work is done, and the document has none from then on.
    pub(crate) fn front(&mut self) -> Option<CheckedDraft> {
        let draft = self.waiting.front().map(|outgoing| outgoing.draft.clone());
        self.has_publisher = draft.is_some();
        draft
    }

    /// Removes the event that was published or given up. Returns the session whose start it was.
    pub(crate) fn end_front(&mut self) -> Option<SessionId> {
        self.waiting.pop_front()?.opens
    }
}
