//! [`DocumentStream`]: the stream of a document's events and of the changes of its presence.

use std::sync::Arc;
use std::task::{Context, Poll};

use relay_core::{Event, EventStream, PresenceChange, PresenceStream, StreamError, StreamPosition};

/// A reader at one position of a document's events and presence. Dropping it ends both streams.
pub(crate) struct DocumentStream {
    events: Box<dyn EventStream>,
    /// `None` for members that take no part in presence.
    presence: Option<Box<dyn PresenceStream>>,
}

/// The next item of a [`DocumentStream`].
pub(crate) enum StreamItem {
    Event(Arc<Event>),
    Presence(PresenceChange),
    /// The end of the stream, with its cause. `None` when the source is stopping.
    Ended(Option<StreamError>),
}

impl DocumentStream {
    pub(crate) fn new(events: Box<dyn EventStream>, presence: Option<Box<dyn PresenceStream>>) -> Self {
        Self { events, presence }
    }

    /// Polls for the next item. The presence is polled first, for its snapshot comes before the events of the document.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<StreamItem> {
        match self.presence.as_mut().map(|presence| presence.poll_next(cx)) {
            Some(Poll::Ready(Some(change))) => return Poll::Ready(StreamItem::Presence(change)),
            Some(Poll::Ready(None)) => self.presence = None,
            Some(Poll::Pending) | None => {}
        }
        self.events.poll_next(cx).map(|next| match next {
            Some(Ok(event)) => StreamItem::Event(event),
            Some(Err(error)) => StreamItem::Ended(Some(error)),
            None => StreamItem::Ended(None),
        })
    }

    /// True when both streams have returned the same items.
    pub(crate) fn is_caught_up_with(&self, other: &Self) -> bool {
        self.position().is_some_and(|position| other.position() == Some(position))
    }

    fn position(&self) -> Option<(StreamPosition, Option<u64>)> {
        Some((self.events.position()?, self.presence.as_ref().map(|presence| presence.position())))
    }

    /// Sets the number of members that the stream stands for.
    pub(crate) fn stand_for(&mut self, members: usize) {
        self.events.stand_for(members as u64);
    }

    /// Returns a second stream at the same position. It stands for one member.
    pub(crate) fn fork(&self) -> Self {
        Self { events: self.events.fork(), presence: self.presence.as_ref().map(|presence| presence.fork()) }
    }
}
