//! What one document gives to its members: its events, and who is there.

use std::sync::Arc;
use std::task::{Context, Poll};

use relay_core::{Event, EventStream, PresenceChange, PresenceStream, StreamError, StreamPosition};

/// A place in what a document gives. Dropped, it ends both streams.
pub(crate) struct DocumentStream {
    events: Box<dyn EventStream>,
    /// `None` for members that want no presence.
    presence: Option<Box<dyn PresenceStream>>,
}

/// What comes next.
pub(crate) enum StreamItem {
    Event(Arc<Event>),
    Presence(PresenceChange),
    /// It is over. Without a cause the source is stopping.
    Ended(Option<StreamError>),
}

impl DocumentStream {
    pub(crate) fn new(events: Box<dyn EventStream>, presence: Option<Box<dyn PresenceStream>>) -> Self {
        Self { events, presence }
    }

    /// The next item; who is there goes first, since the state must come before anything that changes it.
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

    /// Whether both have delivered the same.
    pub(crate) fn is_caught_up_with(&self, other: &Self) -> bool {
        self.position().is_some_and(|position| other.position() == Some(position))
    }

    fn position(&self) -> Option<(StreamPosition, Option<u64>)> {
        Some((self.events.position()?, self.presence.as_ref().map(|presence| presence.position())))
    }

    /// A second place where this one stands.
    pub(crate) fn fork(&self) -> Self {
        Self { events: self.events.fork(), presence: self.presence.as_ref().map(|presence| presence.fork()) }
    }
}
