//! The part of a document's history that is in memory: its latest events without a gap, and an index of their ids.
//!
//! Live readers do not have queues of their own: each has a position in this one, shared with all others. So a slow
//! reader costs nothing but the distance it has to make up.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use relay_core::{Event, EventId, Offset, Retention, Seq, Timestamp};

/// The latest events, in order.
#[derive(Debug)]
pub(crate) struct EventCache {
    events: VecDeque<Arc<Event>>,
    /// Ids that a publisher may send again, with the seq of their event.
    ids: HashMap<EventId, Seq>,
    last: Seq,
    bytes: usize,
    limits: Retention,
}

impl EventCache {
    /// An empty history that goes on after `last`.
    pub(crate) fn new(last: Seq, limits: Retention) -> Self {
        Self { events: VecDeque::new(), ids: HashMap::new(), last, bytes: 0, limits }
    }

    /// The latest event's seq, in memory or not.
    pub(crate) fn last(&self) -> Seq {
        self.last
    }

    /// The latest event's offset; [`Offset::ZERO`] when it is not in memory or has none.
    pub(crate) fn last_offset(&self) -> Offset {
        self.events.back().and_then(|event| event.offset).unwrap_or(Offset::ZERO)
    }

    /// The earliest event in memory; the next one to come when there is none.
    pub(crate) fn first(&self) -> Seq {
        Seq::new(self.last.get() + 1 - self.events.len() as u64)
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the next event. Its id is remembered for recognising duplicates if `remember_id`.
    pub(crate) fn push(&mut self, event: Arc<Event>, remember_id: bool) {
        debug_assert_eq!(event.seq, Some(self.last.next()), "history has no gaps");
        self.last = self.last.next();
        self.bytes += event.approx_bytes();
        if remember_id {
            self.ids.insert(event.id, self.last);
        }
        self.events.push_back(event);
        while self.events.len() as u64 > self.limits.max_events
            || self.limits.max_bytes.is_some_and(|max| self.bytes as u64 > max && self.events.len() > 1)
        {
            self.drop_first();
        }
    }

    /// Drops what is older than the retention's age.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        let Some(max_age) = self.limits.max_age else { return };
        while self.events.front().is_some_and(|event| now.since(event.time) > max_age) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= event.approx_bytes();
            if self.ids.get(&event.id) == event.seq.as_ref() {
                self.ids.remove(&event.id);
            }
        }
    }

    /// The event of `seq`, if it is in memory.
    pub(crate) fn get(&self, seq: Seq) -> Option<&Arc<Event>> {
        self.events.get(self.index(seq)?)
    }

    /// The event with `id`, if it was remembered.
    pub(crate) fn by_id(&self, id: EventId) -> Option<&Arc<Event>> {
        self.get(*self.ids.get(&id)?)
    }

    /// The events after `after`, or `None` when some of them are no longer in memory.
    pub(crate) fn after(&self, after: Seq) -> Option<impl Iterator<Item = &Arc<Event>>> {
        let start = self.index(after.next())?;
        Some(self.events.range(start.min(self.events.len())..))
    }

    fn index(&self, seq: Seq) -> Option<usize> {
        usize::try_from(seq.get().checked_sub(self.first().get())?).ok()
    }
}
