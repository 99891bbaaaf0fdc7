//! The part of a document's history that is in memory: its latest events without a gap.
//!
//! Live readers do not have queues of their own: each has a position in this one, shared with all others. So a slow
//! reader costs nothing but the distance it has to make up.
//!
//! The events, their encoded copies and the ids are charged to the document's share of memory. When the share is over its
//! limit the oldest events go.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use relay_core::{
    Event, MemoryPurpose, MemoryShare, Offset, Payload, Reservation, Retention, Seq, Timestamp,
};

/// The latest events, in order.
#[derive(Debug)]
pub(crate) struct EventCache {
    events: VecDeque<Arc<Event>>,
    /// The payloads that the publishers of rewritten events sent.
    originals: HashMap<Seq, Payload>,
    last: Seq,
    last_offset: Offset,
    bytes: usize,
    limits: Retention,
    share: MemoryShare,
    /// The bytes of the events and the original payloads. The events charge their encoded copies themselves.
    reserved: Reservation,
}

impl EventCache {
    /// An empty history that goes on after `last`. Its memory is limited by `share`.
    pub(crate) fn new(last: Seq, limits: Retention, share: MemoryShare) -> Self {
        Self {
            events: VecDeque::new(),
            originals: HashMap::new(),
            last,
            last_offset: Offset::ZERO,
            bytes: 0,
            limits,
            reserved: share.charge(MemoryPurpose::Events, 0),
            share,
        }
    }

    /// The latest event's seq, in memory or not.
    pub(crate) fn last(&self) -> Seq {
        self.last
    }

    /// The latest event's offset; [`Offset::ZERO`] when it was never in memory or has none.
    pub(crate) fn last_offset(&self) -> Offset {
        self.last_offset
    }

    /// The latest event's time; [`Timestamp::UNIX_EPOCH`] when it is not in memory.
    pub(crate) fn last_time(&self) -> Timestamp {
        self.events.back().map_or(Timestamp::UNIX_EPOCH, |event| event.time)
    }

    /// The earliest event in memory; the next one to come when there is none.
    pub(crate) fn first(&self) -> Seq {
        Seq::new(self.last.get() + 1 - self.events.len() as u64)
    }

    /// Adds the next event, which takes `bytes`. `original` is the payload that its publisher sent, where a stage rewrote it.
    pub(crate) fn push(&mut self, event: Arc<Event>, bytes: usize, original: Option<Payload>) {
        debug_assert_eq!(event.seq, Some(self.last.next()), "history has no gaps");
        self.last = self.last.next();
        self.last_offset = event.offset.unwrap_or(Offset::ZERO);
        self.bytes += bytes;
        if let Some(original) = original {
            self.bytes += original_bytes(&original);
            self.originals.insert(self.last, original);
        }
        self.events.push_back(event);
        while self.events.len() as u64 > self.limits.max_events {
            self.drop_first();
        }
        self.reserved.resize(self.bytes);
        self.shrink();
    }

    /// Drops the oldest events while the document's share of memory is over its limit. The newest one stays.
    pub(crate) fn shrink(&mut self) {
        while self.share.is_over() && self.events.len() > 1 {
            self.drop_first();
            self.reserved.resize(self.bytes);
        }
    }

    /// Drops all events. Returns false when there was none.
    pub(crate) fn clear(&mut self) -> bool {
        let had_events = !self.events.is_empty();
        (self.events, self.originals, self.bytes) = (VecDeque::new(), HashMap::new(), 0);
        self.reserved.resize(0);
        had_events
    }

    /// Drops what is older than the retention's age.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        let Some(max_age) = self.limits.max_age else { return };
        while self.events.front().is_some_and(|event| now.since(event.time) > max_age) {
            self.drop_first();
        }
        self.reserved.resize(self.bytes);
    }

    fn drop_first(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= event.approx_bytes();
            // Most payloads are not rewritten. Looking for one in an empty map does not even hash the seq.
            if let Some(original) = event.seq.and_then(|seq| self.originals.remove(&seq)) {
                self.bytes -= original_bytes(&original);
            }
        }
    }

    /// The event of `seq`, if it is in memory.
    pub(crate) fn get(&self, seq: Seq) -> Option<&Arc<Event>> {
        self.events.get(self.index(seq)?)
    }

    /// The payload that the publisher of the event of `seq` sent, where a stage rewrote it.
    pub(crate) fn original(&self, seq: Seq) -> Option<&Payload> {
        self.originals.get(&seq)
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

/// The bytes that an original payload takes beside its event.
fn original_bytes(original: &Payload) -> usize {
    size_of::<Payload>() + original.len()
}

#[cfg(test)]
mod tests {
    use relay_core::{DeliveryClass, DocumentId, Draft, Epoch, Kind, MemoryBudget};

    use super::*;

    #[test]
    fn original_payloads_count_while_their_events_are_in_memory() {
        let mut cache = EventCache::new(
            Seq::ZERO,
            Retention { max_events: 2, ..Retention::default() },
            MemoryBudget::default().caches().clone(),
        );
        let mut bytes = Vec::new();
        for (seq, is_rewritten) in (1..).zip([false, true, false, true, true, false, false]) {
            let payload = Payload::json(&seq).unwrap();
            let original = is_rewritten.then(|| payload.clone());
            let kind = Kind::from_static("x-note", DeliveryClass::Sequenced);
            let draft = Draft::new(DocumentId::new("doc").unwrap(), kind, payload);
            let event = draft.into_event(Epoch::from_u64(1), Some(Seq::new(seq)), Timestamp::UNIX_EPOCH);
            let size = event.approx_bytes();
            cache.push(Arc::new(event), size, original);
            bytes.push(cache.bytes);
        }
        let (event, original) = (bytes[0], size_of::<Payload>() + 1);
        let expected = [0, 1, 1, 1, 2, 1, 0].map(|originals| 2 * event + originals * original);
        assert_eq!(bytes[1..], expected[1..]);
    }
}
