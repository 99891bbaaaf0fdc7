//! The part of a document's history that is in memory: its latest events without a gap, and an index of their ids.
//!
//! Live readers do not have queues of their own: each has a position in this one, shared with all others. So a slow
//! reader costs nothing but the distance it has to make up.
//!
//! The events, their encoded copies and the ids are charged to the document's share of memory. When the share is over its
//! limit the oldest events go.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use relay_core::{
    Event, EventId, MemoryPurpose, MemoryShare, Offset, Reservation, Retention, Seq, Timestamp,
};

use crate::duplicate::OriginalPayload;

/// The latest events, in order.
#[derive(Debug)]
pub(crate) struct EventCache {
    events: VecDeque<Arc<Event>>,
    /// Ids that a publisher may send again, with the seq and the original payload of their event.
    ids: HashMap<EventId, (Seq, OriginalPayload)>,
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
            ids: HashMap::new(),
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

    /// Adds the next event. With `original` its id is remembered for recognising duplicates.
    pub(crate) fn push(&mut self, event: Arc<Event>, original: Option<OriginalPayload>) {
        debug_assert_eq!(event.seq, Some(self.last.next()), "history has no gaps");
        self.last = self.last.next();
        self.last_offset = event.offset.unwrap_or(Offset::ZERO);
        self.bytes += event.approx_bytes();
        if let Some(original) = original {
            self.bytes += original.bytes();
            if let Some((_, replaced)) = self.ids.insert(event.id, (self.last, original)) {
                self.bytes -= replaced.bytes();
            }
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
        (self.events, self.ids, self.bytes) = (VecDeque::new(), HashMap::new(), 0);
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
            // Most ids are not remembered. Looking for one in an empty map does not even hash it, as `entry` would.
            if self.ids.get(&event.id).is_some_and(|(seq, _)| event.seq == Some(*seq))
                && let Some((_, original)) = self.ids.remove(&event.id)
            {
                self.bytes -= original.bytes();
            }
        }
    }

    /// The event of `seq`, if it is in memory.
    pub(crate) fn get(&self, seq: Seq) -> Option<&Arc<Event>> {
        self.events.get(self.index(seq)?)
    }

    /// The event with `id` and its original payload, if the id was remembered.
    pub(crate) fn by_id(&self, id: EventId) -> Option<(&Arc<Event>, &OriginalPayload)> {
        let (seq, original) = self.ids.get(&id)?;
        Some((self.get(*seq)?, original))
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

#[cfg(test)]
mod tests {
    use relay_core::{DeliveryClass, DocumentId, Draft, Epoch, Kind, MemoryBudget, Payload};

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
            let rewritten = OriginalPayload::Rewritten(Box::new(payload.clone()));
            let original = if is_rewritten { rewritten } else { OriginalPayload::Kept };
            let kind = Kind::from_static("x-note", DeliveryClass::Sequenced);
            let draft = Draft::new(DocumentId::new("doc").unwrap(), kind, payload);
            let event = draft.into_event(Epoch::from_u64(1), Some(Seq::new(seq)), Timestamp::UNIX_EPOCH);
            cache.push(Arc::new(event), Some(original));
            bytes.push(cache.bytes);
        }
        let (event, original) = (bytes[0], size_of::<Payload>() + 1);
        let expected = [0, 1, 1, 1, 2, 1, 0].map(|originals| 2 * event + originals * original);
        assert_eq!(bytes[1..], expected[1..]);
    }
}
