//! A reader of who is in a document: a position, and nothing else.

use std::task::{Context, Poll};

use relay_core::{DocumentId, PresenceChange, PresenceStream};

use crate::presence::LocalPresence;
use crate::presence_view::Version;

pub(crate) struct LocalPresenceStream {
    presence: LocalPresence,
    document: DocumentId,
    /// Where it stands; `None` before it has read the state.
    position: Option<Version>,
    /// Under which number its waker is kept.
    reader: u64,
}

impl LocalPresenceStream {
    pub(crate) fn new(presence: LocalPresence, document: DocumentId) -> Self {
        Self { reader: presence.next_reader(), presence, document, position: None }
    }
}

impl PresenceStream for LocalPresenceStream {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<PresenceChange>> {
        let (position, reader) = (self.position, self.reader);
        let read = self.presence.read(&self.document, |entry| {
            if position.is_some_and(|position| position >= entry.visible) {
                entry.readers.insert(reader, cx.waker().clone());
                return None;
            }
            Some(entry.view.read(position, entry.visible))
        });
        // A document that nobody is in has nothing to tell; who reads it is about to leave.
        let Some(Some((change, position))) = read else { return Poll::Pending };
        self.position = Some(position);
        let counters = self.presence.counters();
        counters.count_change(&change);
        Poll::Ready(Some(change))
    }

    fn position(&self) -> u64 {
        self.position.unwrap_or_default()
    }

    fn fork(&self) -> Box<dyn PresenceStream> {
        Box::new(Self {
            presence: self.presence.clone(),
            document: self.document.clone(),
            position: self.position,
            reader: self.presence.next_reader(),
        })
    }
}

impl Drop for LocalPresenceStream {
    fn drop(&mut self) {
        self.presence.read(&self.document, |entry| entry.readers.remove(&self.reader));
    }
}
