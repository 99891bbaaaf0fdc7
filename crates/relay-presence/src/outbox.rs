//! [`Outbox`]: the events of one document that are to be published, in their order.
//!
//! One task at a time, the document's publisher, hands them to the sink. An event stays in the outbox until its outcome is
//! known. A join waits until its events are handed over, so that nothing that its participant publishes comes before them.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use relay_core::{CheckedDraft, SessionId};
use tokio::sync::oneshot;

/// An event that is to be published.
#[derive(Debug)]
struct Outgoing {
    draft: CheckedDraft,
    /// The session whose start the event is.
    opens: Option<SessionId>,
}

/// The events of one document that are to be published.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Outgoing>,
    /// The number of events at the front that are handed to the sink.
    handed_over: usize,
    /// True while the publisher waits for an overloaded log. Events are not handed over meanwhile, and no join waits for them.
    is_delayed: bool,
    has_publisher: bool,
    /// The publisher's waker while it waits for events.
    publisher: Option<Waker>,
    /// The number of events that were ever handed over.
    ever_handed_over: u64,
    /// The joins that wait, each with the number of events that are handed over when its own are. In the order of these.
    joins: VecDeque<(u64, oneshot::Sender<()>)>,
}

impl Outbox {
    /// Adds an event. `opens` names the session whose start the event is.
    pub(crate) fn push(&mut self, draft: CheckedDraft, opens: Option<SessionId>) {
        self.waiting.push_back(Outgoing { draft, opens });
        if let Some(publisher) = self.publisher.take() {
            publisher.wake();
        }
    }

    /// The number of events whose outcome is not known.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True when the outbox is empty and no publisher is at work.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.has_publisher
    }

    /// Makes the caller the document's publisher, when there are events and no publisher. Returns true when it is.
    pub(crate) fn claim_publisher(&mut self) -> bool {
        let is_needed = !self.waiting.is_empty() && !self.has_publisher;
        self.has_publisher |= is_needed;
        is_needed
    }

    /// Ends the publisher's work when the outbox is empty. Returns true then: the document has no publisher any more.
    pub(crate) fn release_publisher(&mut self) -> bool {
        self.has_publisher = !self.waiting.is_empty();
        !self.has_publisher
    }

    /// The next event that is not handed over. Without one, the publisher is woken by the next [push](Self::push).
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<CheckedDraft> {
        if let Some(next) = self.waiting.get(self.handed_over) {
            return Poll::Ready(next.draft.clone());
        }
        self.publisher = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes back the events that were handed over and have no outcome. The next publisher hands them over again.
    pub(crate) fn reclaim(&mut self) {
        self.handed_over = 0;
        self.is_delayed = false;
    }

    /// Notes that the next event is handed over, and tells the joins that wait for it.
    pub(crate) fn mark_handed_over(&mut self) {
        self.handed_over += 1;
        self.ever_handed_over += 1;
        while self.joins.front().is_some_and(|(at, _)| *at <= self.ever_handed_over)
            && let Some((_, join)) = self.joins.pop_front()
        {
            // Receiver dropped; ignore the send error.
            let _ = join.send(());
        }
    }

    /// Notes if the publisher waits for an overloaded log. The joins wait no longer then.
    pub(crate) fn set_delayed(&mut self, is_delayed: bool) {
        self.is_delayed = is_delayed;
        if is_delayed {
            self.joins.clear();
        }
    }

    /// Returns a receiver that ends when the present events are handed over; `None` when they are, or when the log is
    /// overloaded.
    pub(crate) fn when_handed_over(&mut self) -> Option<oneshot::Receiver<()>> {
        let left = self.waiting.len() - self.handed_over;
        (left > 0 && !self.is_delayed).then(|| {
            let (sender, receiver) = oneshot::channel();
            self.joins.push_back((self.ever_handed_over + left as u64, sender));
            receiver
        })
    }

    /// Removes the first event, which was published or given up. Returns the session whose start it was.
    pub(crate) fn end_front(&mut self) -> Option<SessionId> {
        self.handed_over = self.handed_over.saturating_sub(1);
        self.waiting.pop_front()?.opens
    }
}
