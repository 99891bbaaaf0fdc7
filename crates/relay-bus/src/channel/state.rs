//! The state of a channel, all of it behind the channel's lock. The methods are the parts of its critical sections.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use relay_core::{
    CheckedDraft, Epoch, Event, EventId, Head, Monotonic, Offset, Payload, ReadLimit, Seq, Timestamp,
};

use super::batch::PendingDraft;
use super::cursor::{Cursor, ReadResult};
use super::lifecycle::Lifecycle;
use super::min_rate::MinRate;
use super::pace::Pace;
use super::turns::{TurnKey, Turns};
use crate::duplicate::{Earlier, OriginalPayload};
use crate::ephemeral::Ephemerals;
use crate::event_cache::EventCache;
use crate::recent_ids::{MissingIds, RecentIds};
use crate::waker_set::WakerSet;

/// The most events that a reader takes under one lock.
const READ_EVENTS: usize = 32;
/// The bytes of events at which a reader takes no further ones. It holds them until it is done with them.
const READ_BYTES: usize = 128 * 1024;

/// The size of what a reader has taken under one lock.
#[derive(Default)]
struct ReadSize {
    events: usize,
    bytes: usize,
}

impl ReadSize {
    /// Adds `event`. Returns true when the reader takes no further one.
    fn is_reached_with(&mut self, event: &Event) -> bool {
        self.events += 1;
        self.bytes += event.approx_bytes();
        self.events >= READ_EVENTS || self.bytes >= READ_BYTES
    }
}

#[derive(Debug)]
pub(super) struct ChannelState {
    cache: EventCache,
    ids: RecentIds,
    /// True when a stage may rewrite payloads.
    may_rewrite: bool,
    /// The last event when the document was opened.
    opened_after: Seq,
    ephemerals: Ephemerals,
    wakers: WakerSet,
    /// The drafts that wait for the writer, in the order of their seqs to come.
    pending: VecDeque<PendingDraft>,
    /// The drafts that the writer has, until it asks for more.
    writing_events: usize,
    /// The space that the drafts of the queue and of the writer take.
    queued_cost: u32,
    writing_cost: u32,
    limits: QueueLimits,
    /// The drafts that wait to be taken into the queue, or to get their places where there is no log.
    turns: Turns,
    pace: Pace,
    min_rate: MinRate,
    /// True while a writer runs, or is about to.
    writing: bool,
    subscribers: usize,
    /// The time of the latest event, of those that memory has had.
    last_time: Timestamp,
    /// True when the channel was used since the last sweep. Publishing sets it instead of asking the clock.
    used_since_sweep: bool,
    /// The time of the sweep that first found the channel unused.
    idle_since: Monotonic,
    pub(super) lifecycle: Lifecycle,
}

/// The limits of a channel's queue for the writer.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    /// The most space that drafts take.
    pub(super) cost: u32,
    /// The most drafts while the document has readers.
    pub(super) events: usize,
}

/// The event that has the id of a draft.
pub(super) enum EarlierEvent {
    /// There is none, as far back as ids are remembered.
    None,
    /// It is in memory.
    Known(Earlier),
    /// It is in the log alone.
    InLog(Seq),
    /// It is not known before these ids are read from the log.
    NotKnown(MissingIds),
}

impl ChannelState {
    pub(super) fn new(
        cache: EventCache,
        ids: RecentIds,
        ephemerals: Ephemerals,
        limits: QueueLimits,
        pace: Pace,
        min_rate: MinRate,
        lifecycle: Lifecycle,
    ) -> Self {
        Self {
            writing_events: 0,
            queued_cost: 0,
            writing_cost: 0,
            limits,
            turns: Turns::default(),
            pace,
            min_rate,
            last_time: cache.last_time(),
            may_rewrite: matches!(&lifecycle, Lifecycle::Open(open) if open.stages.may_rewrite()),
            opened_after: cache.last(),
            cache,
            ids,
            ephemerals,
            wakers: WakerSet::default(),
            pending: VecDeque::new(),
            writing: false,
            subscribers: 0,
            used_since_sweep: true,
            idle_since: Monotonic::ZERO,
            lifecycle,
        }
    }

    /// The seq of the latest event.
    pub(super) fn last(&self) -> Seq {
        self.cache.last()
    }

    /// The offset of the latest event; [`Offset::ZERO`] when it is not in memory.
    pub(super) fn last_offset(&self) -> Offset {
        self.cache.last_offset()
    }

    pub(super) fn head(&self, epoch: Epoch) -> Head {
        Head::new(epoch, self.cache.first(), self.cache.last())
    }

    /// The time of the next event: `now`, unless the wall clock was set back. Times never run backwards within a document.
    pub(super) fn next_time(&self, now: Timestamp) -> Timestamp {
        now.max(self.last_time)
    }

    /// Looks for the event that has the id of `draft`: in memory, and unless the id is a new one of this server in the whole
    /// window of remembered ids, of which a part may be in the log.
    pub(super) fn find_earlier(&mut self, draft: &CheckedDraft, has_log: bool) -> EarlierEvent {
        let Some(id) = draft.id else { return EarlierEvent::None };
        let searches_log = has_log && !draft.has_fresh_id();
        if searches_log && let Some(missing) = self.ids.missing(&self.cache) {
            return EarlierEvent::NotKnown(missing);
        }
        let Some(seq) = self.ids.find(id, &self.cache) else { return EarlierEvent::None };
        match self.cache.get(seq) {
            Some(event) => EarlierEvent::Known(Earlier {
                event: Arc::clone(event),
                original: self.original_payload(seq),
            }),
            None if searches_log => EarlierEvent::InLog(seq),
            None => EarlierEvent::None,
        }
    }

    /// The payload with which the draft of a cached event was sent.
    fn original_payload(&self, seq: Seq) -> OriginalPayload {
        match self.cache.original(seq) {
            None if seq <= self.opened_after => self.original_of_logged(),
            original => OriginalPayload::of(original),
        }
    }

    /// The payload with which the draft of an event from the log was sent.
    pub(super) fn original_of_logged(&self) -> OriginalPayload {
        if self.may_rewrite { OriginalPayload::Unknown } else { OriginalPayload::Kept }
    }

    /// Adds the ids of `range`, which were read from the log.
    pub(super) fn add_ids(&mut self, ids: Vec<(EventId, Seq)>, range: MissingIds) {
        self.ids.add(ids, range);
    }

    /// Removes the ids of events that the log no longer keeps.
    pub(super) fn forget_ids_before(&mut self, first: Seq) {
        self.ids.forget_before(first);
    }

    /// Notes the time of an event that no reader sees, after which the next one comes.
    pub(super) fn note_time(&mut self, time: Timestamp) {
        self.used_since_sweep = true;
        self.last_time = self.last_time.max(time);
    }

    /// Shows the next sequenced event. `original` is the payload that its publisher sent, where a stage rewrote it.
    pub(super) fn push_event(&mut self, event: Arc<Event>, original: Option<Payload>) {
        self.used_since_sweep = true;
        self.last_time = self.last_time.max(event.time);
        let bytes = event.approx_bytes();
        self.cache.push(event, bytes, original);
        self.pace.advance(self.cache.last(), bytes);
    }

    /// Shows an ephemeral event. Returns the number of other keys' events that were dropped for it.
    pub(super) fn put_ephemeral(&mut self, event: Arc<Event>) -> u64 {
        self.used_since_sweep = true;
        self.last_time = self.last_time.max(event.time);
        self.ephemerals.put(event)
    }

    /// Drops the events in memory. Readers that lack some of them take them from the log, where there is one. Returns false
    /// when there was none to drop, and the number of ephemeral events that were dropped.
    pub(super) fn drop_cache(&mut self) -> (bool, u64) {
        self.ids.clear();
        (self.cache.clear(), self.ephemerals.clear())
    }

    /// Moves the wakers of all readers that wait to `wakers`. The caller wakes them after it has released the lock.
    pub(super) fn drain_wakers(&mut self, wakers: &mut Vec<Waker>) {
        self.wakers.drain_into(wakers);
    }

    /// The part of the least rate that a draft of this cost pays; `None` when it must wait for its turn. Nobody reads a logged
    /// draft, so it only stays behind those of its own actor.
    pub(super) fn price(&self, draft: &CheckedDraft, cost: u32) -> Option<Duration> {
        if draft.kind.is_sequenced() {
            if self.turns.is_empty() { self.price_of_space(cost) } else { None }
        } else {
            (!self.turns.has_draft_of(&draft.actor)).then_some(Duration::ZERO)
        }
    }

    /// The number of drafts that wait to be taken.
    pub(super) fn waiting(&self) -> usize {
        self.turns.len()
    }

    /// The part of the least rate that a draft pays whose turn it is: nothing unless most readers are behind. `None` when it is
    /// too early for one, or the queue has no space.
    fn price_of_space(&self, cost: u32) -> Option<Duration> {
        let events = self.pending.len() + self.writing_events;
        let has_space = (events < self.limits.events || !self.pace.has_readers())
            && (events == 0
                || self.queued_cost.saturating_add(self.writing_cost).saturating_add(cost)
                    <= self.limits.cost);
        if !has_space {
            None
        } else if self.pace.is_open() {
            Some(Duration::ZERO)
        } else {
            self.min_rate.price(cost)
        }
    }

    /// Pays for a draft that is taken.
    pub(super) fn pay(&mut self, price: Duration) {
        self.min_rate.pay(price);
    }

    /// Gives the price back of a draft that was taken and gets no place.
    pub(super) fn refund(&mut self, price: Duration) {
        self.min_rate.refund(price);
    }

    /// Lets a draft wait to be taken.
    pub(super) fn wait(&mut self, pending: PendingDraft) -> TurnKey {
        self.used_since_sweep = true;
        self.turns.push(pending)
    }

    /// Removes a draft that waits to be taken. Returns false when it waits no longer.
    pub(super) fn withdraw(&mut self, key: TurnKey) -> bool {
        self.turns.remove(key).is_some()
    }

    /// Returns the waiting draft whose turn it is, if it may be taken.
    pub(super) fn next_waiting(&mut self) -> Option<PendingDraft> {
        let price = self.price_of_space(self.turns.next_cost()?)?;
        self.turns.pop().map(|pending| PendingDraft { price, ..pending })
    }

    /// Adds a draft to the queue. Returns true when there is no writer; the caller must start one.
    pub(super) fn enqueue(&mut self, pending: PendingDraft) -> bool {
        self.used_since_sweep = true;
        self.min_rate.pay(pending.price);
        self.queued_cost += pending.cost;
        self.pending.push_back(pending);
        !std::mem::replace(&mut self.writing, true)
    }

    /// Notes that the writer has finished the drafts that it had.
    pub(super) fn finish_writing(&mut self) {
        (self.writing_events, self.writing_cost) = (0, 0);
    }

    /// Gives the writer the next draft.
    pub(super) fn next_pending(&mut self) -> Option<PendingDraft> {
        let pending = self.pending.pop_front()?;
        self.queued_cost -= pending.cost;
        self.writing_cost += pending.cost;
        self.writing_events += 1;
        Some(pending)
    }

    /// Puts a draft back to the front of the queue.
    pub(super) fn put_back(&mut self, pending: PendingDraft) {
        self.queued_cost += pending.cost;
        self.writing_cost -= pending.cost;
        self.writing_events -= 1;
        self.pending.push_front(pending);
    }

    /// Takes all drafts out of the queue, and those that wait to be taken.
    pub(super) fn take_pending(&mut self) -> Vec<PendingDraft> {
        self.queued_cost = 0;
        std::mem::take(&mut self.pending).into_iter().chain(self.turns.drain()).collect()
    }

    /// Notes the end of the writer when the queue is empty. Returns true then.
    pub(super) fn end_writer_if_idle(&mut self) -> bool {
        if self.pending.is_empty() {
            self.writing = false;
        }
        !self.writing
    }

    pub(super) fn end_writer(&mut self) {
        self.writing = false;
    }

    /// The time since when the channel is unused, as seen by sweeps; `None` while it is in use.
    pub(super) fn idle_since(&mut self, now: Monotonic) -> Option<Monotonic> {
        if self.subscribers > 0 || self.writing {
            return None;
        }
        if std::mem::take(&mut self.used_since_sweep) {
            self.idle_since = now;
        }
        Some(self.idle_since)
    }

    pub(super) fn expire(&mut self, now: Timestamp) {
        self.cache.expire(now);
    }

    /// Returns the events after `after`, at most `limit` but at least one; `None` when some are no longer in memory.
    pub(super) fn page(&self, after: Seq, limit: ReadLimit) -> Option<Vec<Arc<Event>>> {
        let mut page: Vec<Arc<Event>> = Vec::new();
        let mut bytes = 0;
        for event in self.cache.after(after)? {
            bytes += event.approx_bytes();
            if !page.is_empty() && (page.len() >= limit.events || bytes > limit.bytes) {
                break;
            }
            page.push(Arc::clone(event));
        }
        Some(page)
    }

    pub(super) fn new_cursor(&mut self, seq: Seq) -> Cursor {
        self.subscribers += 1;
        self.used_since_sweep = true;
        Cursor::new(seq, self.ephemerals.version(), self.pace.enter(seq, self.cache.last()))
    }

    pub(super) fn fork_cursor(&mut self, other: &Cursor) -> Cursor {
        self.subscribers += 1;
        Cursor::new(other.seq, other.ephemeral_version, Pace::fork(&other.pace))
    }

    /// Sets the number of readers that a cursor stands for.
    pub(super) fn stand_for(&mut self, cursor: &mut Cursor, readers: u64) {
        self.pace.stand_for(&mut cursor.pace, readers);
    }

    pub(super) fn release_cursor(&mut self, cursor: &mut Cursor) {
        self.subscribers -= 1;
        self.used_since_sweep = true;
        self.pace.stand_for(&mut cursor.pace, 0);
        self.wakers.deregister(cursor.waker_key.take());
    }

    /// See [`Channel::read`](super::Channel::read). Ephemeral events come before sequenced ones.
    pub(super) fn read(
        &mut self,
        cursor: &mut Cursor,
        batch: &mut VecDeque<Arc<Event>>,
        waker: &Waker,
    ) -> ReadResult {
        if !cursor.pace.is_counted() {
            self.stand_for(cursor, 1);
        }
        let result = self.read_next(cursor, batch, waker);
        self.pace.move_to(&mut cursor.pace, cursor.seq);
        result
    }

    fn read_next(
        &mut self,
        cursor: &mut Cursor,
        batch: &mut VecDeque<Arc<Event>>,
        waker: &Waker,
    ) -> ReadResult {
        let has_ephemerals = self.ephemerals.version() > cursor.ephemeral_version;
        if has_ephemerals {
            let mut limit = ReadSize::default();
            let mut events = self.ephemerals.after(cursor.ephemeral_version);
            cursor.ephemeral_version = loop {
                let Some((version, event)) = events.next() else { break self.ephemerals.version() };
                batch.push_back(Arc::clone(event));
                if limit.is_reached_with(event) {
                    break version;
                }
            };
        }
        if cursor.seq < self.cache.last() {
            // Encoded copies may have been made since the last event came.
            self.cache.shrink();
            let Some(events) = self.cache.after(cursor.seq) else {
                return if has_ephemerals { ReadResult::Events } else { ReadResult::Behind };
            };
            let mut limit = ReadSize::default();
            for event in events {
                cursor.seq = cursor.seq.next();
                batch.push_back(Arc::clone(event));
                if limit.is_reached_with(event) {
                    break;
                }
            }
            return ReadResult::Events;
        }
        if has_ephemerals {
            return ReadResult::Events;
        }
        if let Some(end) = self.lifecycle.ended() {
            return end.clone().into();
        }
        self.wakers.register(&mut cursor.waker_key, waker);
        ReadResult::Pending
    }

    #[cfg(test)]
    pub(super) fn subscribers(&self) -> usize {
        self.subscribers
    }
}
