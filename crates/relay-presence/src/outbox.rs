//! [`Outbox`]: the events of one document that are to be published, in their order.
//!
//! One task at a time, the document's publisher, hands them to the sink. An event stays in the outbox until its outcome is
//! known. A join waits until its events are handed over, so that nothing that its participant publishes comes before them.
//!
//! The overloaded log refuses events for the moment. They stay at the front, and are handed over again one by one before any
//! other event, so that they keep their order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use relay_core::{CheckedDraft, Reservation, SessionId};
use tokio::sync::oneshot;

/// An event that is to be published.
#[derive(Debug)]
struct Outgoing {
    draft: CheckedDraft,
    /// The session whose start the event is.
    opens: Option<SessionId>,
    _memory: EventMemory,
}

/// The memory of an event: all of it, and the part of the client whose membership causes the event.
#[derive(Debug)]
pub(crate) struct EventMemory {
    _whole: Reservation,
    _of_client: Option<Arc<Reservation>>,
}

impl EventMemory {
    pub(crate) fn new(whole: Reservation, of_client: Option<Arc<Reservation>>) -> Self {
        Self { _whole: whole, _of_client: of_client }
    }
}

/// The events of one document that are to be published.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// First those that the overloaded log refused, then those in flight, then the others.
    waiting: VecDeque<Outgoing>,
    /// The number of events that the overloaded log refused. While there are some, no join waits.
    refused: usize,
    /// The number of events that are handed to the sink and have no outcome.
    in_flight: usize,
    /// True when the event in flight is the first of the refused ones.
    is_retrying: bool,
    has_publisher: bool,
    /// The publisher's waker while it waits for events.
    publisher: Option<Waker>,
    /// The number of times that an event was handed over, without those that were [taken back](Self::reclaim).
    handed_over: u64,
    /// The joins that wait, each with the count of `handed_over` that includes its own events. In the order of these.
    joins: VecDeque<(u64, oneshot::Sender<()>)>,
}

impl Outbox {
    /// Adds an event. `opens` names the session whose start the event is.
    pub(crate) fn push(&mut self, draft: CheckedDraft, opens: Option<SessionId>, memory: EventMemory) {
        self.waiting.push_back(Outgoing { draft, opens, _memory: memory });
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

    /// Ends the publisher's work when the outbox is empty. Returns true then: the document has no publisher any more, and an
    /// empty outbox keeps no memory.
    pub(crate) fn release_publisher(&mut self) -> bool {
        self.has_publisher = !self.waiting.is_empty();
        if !self.has_publisher {
            self.waiting.shrink_to_fit();
            self.joins.shrink_to_fit();
        }
        !self.has_publisher
    }

    /// The next event to hand over: the first refused one, once nothing is in flight, and otherwise the first that was not
    /// handed over. Without one, the publisher is woken by the next [push](Self::push).
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<CheckedDraft> {
        let may_hand_over = self.refused == 0 || self.in_flight == 0;
        if may_hand_over && let Some(next) = self.waiting.get(self.in_flight) {
            return Poll::Ready(next.draft.clone());
        }
        self.publisher = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes back the events in flight but the first `in_flight` ones. They are handed over again.
    pub(crate) fn reclaim(&mut self, in_flight: usize) {
        let taken_back = self.in_flight.saturating_sub(in_flight);
        self.in_flight -= taken_back;
        self.handed_over -= taken_back as u64;
        self.is_retrying &= self.in_flight > 0;
    }

    /// Notes that the next event is handed over, and tells the joins that wait for it.
    pub(crate) fn mark_handed_over(&mut self) {
        self.is_retrying = self.refused > 0;
        self.in_flight += 1;
        self.handed_over += 1;
        while self.joins.front().is_some_and(|(at, _)| *at <= self.handed_over)
            && let Some((_, join)) = self.joins.pop_front()
        {
            // Receiver dropped; ignore the send error.
            let _ = join.send(());
        }
    }

    /// Returns a receiver that ends when the present events are handed over; `None` when they are, or when the log is
    /// overloaded.
    pub(crate) fn when_handed_over(&mut self) -> Option<oneshot::Receiver<()>> {
        let left = self.waiting.len() - self.in_flight;
        (left > 0 && self.refused == 0).then(|| {
            let (sender, receiver) = oneshot::channel();
            self.joins.push_back((self.handed_over + left as u64, sender));
            receiver
        })
    }

    /// Notes that the overloaded log refused the first event in flight. No join waits any longer.
    pub(crate) fn refuse_first(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if !std::mem::take(&mut self.is_retrying) {
            self.refused += 1;
        }
        self.joins.clear();
    }

    /// Removes the first event in flight, which was published or given up. Returns the session whose start it was.
    pub(crate) fn end_first(&mut self) -> Option<SessionId> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let index = if std::mem::take(&mut self.is_retrying) {
            self.refused -= 1;
            0
        } else {
            self.refused
        };
        self.waiting.remove(index)?.opens
    }
}

#[cfg(test)]
mod tests {
    use relay_core::{DocumentId, EventId, MemoryBudget, MemoryPurpose};
    use relay_events::{SessionEnded, server_draft};

    use super::*;

    /// Adds as many events, and returns their ids.
    fn push<const N: usize>(outbox: &mut Outbox) -> [EventId; N] {
        std::array::from_fn(|_| {
            let ended = SessionEnded { reason: relay_events::EndReason::Left };
            let draft = server_draft(DocumentId::new("notes").unwrap(), &ended).unwrap();
            let id = EventId::new();
            let whole = MemoryBudget::default().total().charge(MemoryPurpose::PresenceEvents, 0);
            outbox.push(draft.fresh_id(id), None, EventMemory::new(whole, None));
            id
        })
    }

    /// Hands over the next event. `None` when there is none.
    fn hand_over(outbox: &mut Outbox) -> Option<EventId> {
        let Poll::Ready(draft) = outbox.poll_next(&mut Context::from_waker(Waker::noop())) else {
            return None;
        };
        outbox.mark_handed_over();
        draft.id
    }

    fn is_told(join: &mut oneshot::Receiver<()>) -> bool {
        join.try_recv() != Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn a_join_waits_for_its_own_events_although_earlier_ones_are_handed_over_again() {
        let mut outbox = Outbox::default();
        let [first, second] = push(&mut outbox);
        hand_over(&mut outbox);
        hand_over(&mut outbox);
        let [own] = push(&mut outbox);
        let mut join = outbox.when_handed_over().unwrap();
        // The publisher has lost the second one.
        outbox.reclaim(1);
        assert_eq!(hand_over(&mut outbox), Some(second));
        assert!(!is_told(&mut join), "its own event is not handed over");
        outbox.reclaim(0);
        assert_eq!([hand_over(&mut outbox), hand_over(&mut outbox)], [Some(first), Some(second)]);
        assert!(!is_told(&mut join), "its own event is not handed over");
        assert_eq!(hand_over(&mut outbox), Some(own));
        assert!(is_told(&mut join));
    }

    #[test]
    fn refused_events_are_handed_over_again_one_by_one_before_the_others() {
        let mut outbox = Outbox::default();
        let [first, _second, third, fourth] = push(&mut outbox);
        for _ in 0..3 {
            hand_over(&mut outbox);
        }
        let mut join = outbox.when_handed_over().unwrap();
        // The log takes the second one alone.
        outbox.refuse_first();
        assert!(is_told(&mut join) && outbox.when_handed_over().is_none(), "no join waits for the log");
        assert_eq!(hand_over(&mut outbox), None, "the others in flight end first");
        outbox.end_first();
        outbox.refuse_first();
        assert_eq!(hand_over(&mut outbox), Some(first));
        assert_eq!(hand_over(&mut outbox), None, "one by one");
        outbox.refuse_first();
        assert_eq!(hand_over(&mut outbox), Some(first));
        // A publisher that starts again, with this one in flight.
        outbox.reclaim(1);
        outbox.end_first();
        assert_eq!(hand_over(&mut outbox), Some(third));
        outbox.end_first();
        assert_eq!([hand_over(&mut outbox), hand_over(&mut outbox)], [Some(fourth), None]);
        assert!(outbox.when_handed_over().is_none());
        outbox.end_first();
        assert!(outbox.len() == 0 && outbox.release_publisher() && outbox.is_idle());
        assert_eq!((outbox.waiting.capacity(), outbox.joins.capacity()), (0, 0));
    }
}
