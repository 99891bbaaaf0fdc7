//! [`Outbox`]: the events of one document that wait to be published, in their order.

use std::collections::VecDeque;

use relay_core::{CheckedDraft, SessionId};

/// The most events that are published at once.
const MAX_AT_ONCE: usize = 256;

/// An event that waits to be published.
#[derive(Debug)]
struct Outgoing {
    draft: CheckedDraft,
    /// The session whose start the event is.
    opens: Option<SessionId>,
}

/// The events of one document that wait. One task at a time, the document's publisher, takes them in their order.
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

    /// The next events for the publisher. They stay in the outbox until their [end](Self::end_front). With none the
    /// publisher's work is done, and the document has none from then on.
    ///
    /// Events of one kind that follow each other are about different users. So they may be published at once, and get their
    /// places in any order.
    pub(crate) fn front(&mut self) -> Vec<CheckedDraft> {
        let Some(first) = self.waiting.front() else {
            self.has_publisher = false;
            return Vec::new();
        };
        let of_kind = self.waiting.iter().take_while(|outgoing| outgoing.draft.kind == first.draft.kind);
        of_kind.take(MAX_AT_ONCE).map(|outgoing| outgoing.draft.clone()).collect()
    }

    /// Removes the event that was published or given up. Returns the session whose start it was.
    pub(crate) fn end_front(&mut self) -> Option<SessionId> {
        self.waiting.pop_front()?.opens
    }
}
