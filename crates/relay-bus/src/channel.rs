//! One document's channel: it gives the document's events their order and shows them to readers.
//!
//! One lock guards all state; its critical sections are short and synchronous. Without a log a publisher takes its seq
//! and shows its event in one critical section. With a log, drafts wait in a queue. One [writer] task takes all that
//! wait, gives them seqs, appends them as one batch, and shows them when the log has them. The writer exists only while
//! drafts wait. So a document has at most one batch under way, seqs follow the queue, and no reader sees an event that
//! could still be lost.

mod batch;
mod cursor;
mod lifecycle;
mod min_rate;
mod pace;
mod publish;
mod state;
mod turns;
mod writer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use relay_core::{
    CheckedDraft, DocumentId, EncodingCache, Epoch, Event, EventId, Head, LogError, MemoryPurpose,
    MemoryShare, Monotonic, Place, PublishAck, ReadLimit, Retention, Seq, ShareKind, SubscribeError,
    Timestamp,
};
use tokio::sync::Semaphore;

use self::batch::{AppendBatch, PendingDraft, PublishResult, cost_of};
use self::lifecycle::{ChannelEnd, Lifecycle};
use self::min_rate::MinRate;
use self::pace::Pace;
use self::state::{ChannelState, EarlierEvent, QueueLimits};
use crate::config::BusConfig;
use crate::context::ChannelContext;
use crate::duplicate::{Earlier, check_same_content};
use crate::ephemeral::Ephemerals;
use crate::event_cache::EventCache;
use crate::recent_ids::{MissingIds, RecentIds};
use crate::waker_set::wake_all;

pub(crate) use self::cursor::{Cursor, ReadResult};
pub(crate) use self::lifecycle::OpenDocument;
use self::publish::MAX_TAKEN;
pub(crate) use self::publish::answer;

/// The most events that the writer appends at once.
const MAX_BATCH_EVENTS: usize = 512;
/// The most payload bytes that the writer appends at once, unless the last event of the batch exceeds them.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// The ordered stream of one document's events.
#[derive(Debug)]
pub(crate) struct Channel {
    document: DocumentId,
    epoch: Epoch,
    context: Arc<ChannelContext>,
    state: Mutex<ChannelState>,
    /// The memory of the events, and of their encoded copies.
    events: MemoryShare,
    /// The memory of the ephemeral events, and of their encoded copies.
    ephemerals: MemoryShare,
    /// True when the document has a place in the map of channels.
    has_place: AtomicBool,
    /// The number of the last use of the cached events, among those of all channels.
    last_cache_use: AtomicU64,
    /// Set when the channel has ended and given the document up. Only `lifecycle.rs` uses it.
    needs_reopening: AtomicBool,
    /// The timer of all drafts that wait. One of them has it, and looks for all.
    timer: Semaphore,
}

impl Channel {
    /// Makes a channel that goes on from `head`. `recent` holds the document's latest events without a gap.
    pub(crate) fn new(
        document: DocumentId,
        open: OpenDocument,
        head: Head,
        recent: Vec<Event>,
        context: Arc<ChannelContext>,
    ) -> Self {
        let config = &context.config;
        let caches = context.memory.caches();
        let limits = cache_limits(config, context.log.is_some(), caches.limit());
        let limit = limits.max_bytes.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
        let events = caches.child(ShareKind::Document, limit);
        let ephemerals = caches.child(ShareKind::Document, config.max_ephemeral_bytes);
        let mut cache =
            EventCache::new(Seq::new(head.last.get() - recent.len() as u64), limits, events.clone());
        for mut event in recent {
            event.encodings = EncodingCache::charged_to(events.clone(), MemoryPurpose::Events);
            let bytes = event.approx_bytes();
            cache.push(Arc::new(event), bytes, None);
        }
        let queue = QueueLimits {
            cost: cost_of(config.max_pending_bytes).max(cost_of(config.max_payload_bytes)),
            // A quarter of memory for the queue, and the half in which readers may be behind.
            events: usize::try_from(limits.max_events / 4).unwrap_or(usize::MAX).max(1),
        };
        let max_pending = if context.log.is_some() { queue.events as u64 } else { 0 };
        let pace = Pace::new(head.last, limits, config.retention.max_events, max_pending);
        // A burst of drafts that readers do not set the pace of leaves most of their memory to them.
        let min_rate =
            MinRate::new(config.min_events_per_second, limits.max_events / 8, Arc::clone(&context.clock));
        Self {
            document,
            epoch: head.epoch,
            state: Mutex::new(ChannelState::new(
                cache,
                RecentIds::new(config.idempotency_events, &events),
                Ephemerals::new(config.max_ephemeral_keys, ephemerals.clone()),
                queue,
                pace,
                min_rate,
                Lifecycle::Open(open),
            )),
            events,
            ephemerals,
            has_place: AtomicBool::new(false),
            last_cache_use: AtomicU64::new(context.next_cache_use()),
            needs_reopening: AtomicBool::new(false),
            timer: Semaphore::new(1),
            context,
        }
    }

    pub(crate) fn document(&self) -> &DocumentId {
        &self.document
    }

    fn context(&self) -> &ChannelContext {
        &self.context
    }

    /// The document's head. Its `first` is the earliest event in memory.
    pub(crate) fn head(&self) -> Head {
        self.state.lock().head(self.epoch)
    }

    /// Returns the head of a document that this server owns, also while the bus stops.
    ///
    /// # Errors
    /// The reason for which the document must be opened again.
    pub(crate) fn owned_head(&self) -> Result<Head, SubscribeError> {
        match self.lock_open() {
            Ok(state) => Ok(state.head(self.epoch)),
            Err(ChannelEnd::Closed) => Ok(self.head()),
            Err(end) => Err(end.into()),
        }
    }

    /// The number of subscriptions.
    #[cfg(test)]
    pub(crate) fn subscribers(&self) -> usize {
        self.state.lock().subscribers()
    }

    /// True when the document has a place in the map of channels.
    pub(crate) fn has_place(&self) -> bool {
        self.has_place.load(Ordering::Relaxed)
    }

    /// Notes that the document has a place in the map of channels.
    pub(crate) fn note_place(&self) {
        self.has_place.store(true, Ordering::Relaxed);
    }

    // Publishing.

    /// Publishes an ephemeral draft: it gets no seq and replaces the one before it.
    fn publish_ephemeral(&self, draft: CheckedDraft) -> PublishResult {
        let now = self.context.clock.wall();
        let mut wakers = Vec::new();
        let event = {
            let mut state = self.lock_open()?;
            let mut event = draft.into_event(self.epoch, None, state.next_time(now));
            event.encodings = EncodingCache::charged_to(self.ephemerals.clone(), MemoryPurpose::Ephemerals);
            let event = Arc::new(event);
            self.context.counters.ephemeral_dropped.add(state.put_ephemeral(Arc::clone(&event)));
            state.drain_wakers(&mut wakers);
            event
        };
        let ack = PublishAck::of(&event, false);
        self.context.counters.ephemeral_published.increment();
        self.context.counters.by_kind.increment(&event.kind);
        self.context.mailboxes.offer(&event, &mut wakers);
        wake_all(wakers);
        Ok(ack)
    }

    /// Publishes a logged draft where there is no log: only subscriptions to all documents get it.
    fn publish_unstored(&self, draft: CheckedDraft) -> PublishResult {
        let now = self.context.clock.wall();
        let mut wakers = Vec::new();
        let ack = {
            let mut state = self.lock_open()?;
            let event = self.cacheable(draft.into_event(self.epoch, None, state.next_time(now)));
            state.note_time(event.time);
            // Under the lock, so that the events of one document are offered in their order.
            self.context.mailboxes.offer(&event, &mut wakers);
            self.context.counters.by_kind.increment(&event.kind);
            PublishAck::of(&event, false)
        };
        self.context.counters.logged_published.increment();
        wake_all(wakers);
        Ok(ack)
    }

    /// Gives a sequenced draft a seq and shows its event, where there is no log. It pays `price` when it gets its place. Adds the
    /// readers to wake to `wakers`.
    fn sequence_in_memory(
        &self,
        state: &mut ChannelState,
        mut draft: CheckedDraft,
        price: Duration,
        wakers: &mut Vec<Waker>,
    ) -> Sequenced {
        let may_be_known = draft.id.is_some();
        draft.assign_id();
        if may_be_known && let EarlierEvent::Known(earlier) = state.find_earlier(&draft, false) {
            return Sequenced::Duplicate(Box::new((draft, earlier)));
        }
        let seq = state.last().next();
        if let Err(refusal) = state.lifecycle.sequence(&mut draft, Place::new(self.epoch, seq)) {
            return Sequenced::Answered(Err(refusal));
        }
        state.pay(price);
        let original = draft.original_payload().cloned();
        let time = state.next_time(self.context.clock.wall());
        let event = self.cacheable(draft.into_event(self.epoch, Some(seq), time));
        let ack = PublishAck::of(&event, false);
        self.context.counters.sequenced_published.increment();
        self.context.counters.by_kind.increment(&event.kind);
        state.drain_wakers(wakers);
        self.context.mailboxes.offer(&event, wakers);
        state.push_event(event, original);
        self.note_cache_use();
        Sequenced::Answered(Ok(ack))
    }

    /// Returns the answer to a draft that was taken where there is no log. Not to be called under the lock.
    fn answer(&self, sequenced: Sequenced) -> PublishResult {
        match sequenced {
            Sequenced::Answered(answer) => answer,
            Sequenced::Duplicate(duplicate) => self.answer_known(&duplicate.0, &duplicate.1),
        }
    }

    /// Returns the answer to a draft that has the id of an event in memory.
    fn answer_known(&self, draft: &CheckedDraft, earlier: &Earlier) -> PublishResult {
        let answer = earlier.answer(draft);
        self.count_duplicate(&answer);
        answer
    }

    /// The event as readers share it. Its encoded copies count to the document's share of memory.
    #[inline]
    fn cacheable(&self, mut event: Event) -> Arc<Event> {
        event.encodings = EncodingCache::charged_to(self.events.clone(), MemoryPurpose::Events);
        Arc::new(event)
    }

    // Writing. Only the writer calls these.

    /// Takes drafts from the queue, answers duplicates, passes the others through the stages, and gives them seqs. Logged drafts
    /// keep their place among the others, and get no seq. The batch ends before a draft whose id can only be judged with ids
    /// from the log.
    ///
    /// Returns `None` when the queue is empty or the channel has ended: then the writer is noted as ended, in the critical
    /// section that found the queue empty.
    fn next_batch(&self) -> Option<AppendBatch> {
        let Ok(mut state) = self.lock_open() else {
            // The drafts in the queue were answered when the channel ended.
            self.state.lock().end_writer();
            return None;
        };
        state.finish_writing();
        // The writer runs, so there is nothing left to do for drafts that go to its queue.
        let _ = self.take_waiting(&mut state);
        if state.end_writer_if_idle() {
            return None;
        }
        let time = state.next_time(self.context.clock.wall());
        let mut batch = AppendBatch::after(state.last(), state.last_offset());
        let mut known = Vec::new();
        let mut bytes = 0;
        while batch.events().len() < MAX_BATCH_EVENTS && bytes < MAX_BATCH_BYTES {
            let Some(pending) = state.next_pending() else { break };
            bytes += pending.draft.payload.len();
            if !pending.draft.kind.is_sequenced() {
                batch.push_logged(pending, self.epoch, time);
                continue;
            }
            match state.find_earlier(&pending.draft, true) {
                EarlierEvent::None => {}
                EarlierEvent::Known(earlier) => {
                    state.refund(pending.price);
                    known.push((pending, earlier));
                    continue;
                }
                EarlierEvent::InLog(seq) => {
                    state.refund(pending.price);
                    batch.push_earlier(pending, seq);
                    continue;
                }
                EarlierEvent::NotKnown(range) => {
                    state.put_back(pending);
                    batch.end_before(range);
                    break;
                }
            }
            let price = pending.price;
            let Some(mut pending) = batch.set_duplicate_aside(pending) else {
                state.refund(price);
                continue;
            };
            match state.lifecycle.sequence(&mut pending.draft, Place::new(self.epoch, batch.next_seq())) {
                Ok(()) => batch.push(pending, self.epoch, time),
                Err(refusal) => {
                    state.refund(pending.price);
                    pending.sender.send(Err(refusal));
                }
            }
        }
        drop(state);
        for (pending, earlier) in known {
            let answer = self.answer_known(&pending.draft, &earlier);
            pending.sender.send(answer);
        }
        batch.join_duplicates();
        Some(batch)
    }

    /// Adds the ids of `range`, which were read from the log.
    fn add_ids(&self, ids: Vec<(EventId, Seq)>, range: MissingIds) {
        self.state.lock().add_ids(ids, range);
    }

    /// Removes the ids of events that the log no longer keeps.
    fn forget_ids_before(&self, first: Seq) {
        self.state.lock().forget_ids_before(first);
    }

    /// Answers the first draft of the queue, which cannot be judged because its document's history cannot be read.
    fn refuse_first(&self, error: &LogError) {
        let mut state = self.state.lock();
        let first = state.next_pending();
        state.refund(first.as_ref().map_or(Duration::ZERO, |pending| pending.price));
        drop(state);
        if let Some(pending) = first {
            pending.sender.send(Err(error.clone().into()));
        }
    }

    /// Answers a draft that has the id of `event`, which comes from the log.
    fn answer_duplicate(&self, pending: PendingDraft, event: &Event) {
        let original = self.state.lock().original_of_logged();
        let answer =
            check_same_content(&pending.draft, event, &original).map(|()| PublishAck::of(event, true));
        self.count_duplicate(&answer);
        pending.sender.send(answer);
    }

    /// Shows the sequenced events of a batch that the log has taken, and answers its publishers.
    fn commit(&self, batch: AppendBatch) {
        let (events, mut senders) = batch.into_parts();
        let mut acks = Vec::with_capacity(events.len());
        for event in &events {
            self.context.counters.by_kind.increment(&event.kind);
        }
        let mut sequenced = 0;
        let mut wakers = Vec::new();
        {
            let mut state = self.state.lock();
            state.drain_wakers(&mut wakers);
            for (event, senders) in events.into_iter().zip(&mut senders) {
                acks.push(PublishAck::of(&event, false));
                let event = self.cacheable(event);
                self.context.mailboxes.offer(&event, &mut wakers);
                if event.seq.is_some() {
                    sequenced += 1;
                    state.push_event(event, senders.take_original());
                } else {
                    state.note_time(event.time);
                }
            }
        }
        self.note_cache_use();
        self.context.counters.sequenced_published.add(sequenced);
        self.context.counters.logged_published.add(acks.len() as u64 - sequenced);
        wake_all(wakers);
        for (senders, ack) in senders.into_iter().zip(acks) {
            self.context.counters.duplicates.add(senders.duplicates());
            senders.send(ack);
        }
    }

    fn count_duplicate(&self, answer: &PublishResult) {
        if answer.is_ok() {
            self.context.counters.duplicates.increment();
        }
    }

    // Sweeping.

    /// The sweep that first found the channel unused; `None` while it is in use. `now` is the time of the present sweep.
    pub(crate) fn idle_since(&self, now: Monotonic) -> Option<Monotonic> {
        self.state.lock().idle_since(now)
    }

    /// Drops events from memory that are older than the retention allows.
    pub(crate) fn expire(&self, now: Timestamp) {
        self.state.lock().expire(now);
    }

    /// Drops the events in memory. Returns false when there was none to drop.
    pub(crate) fn drop_cache(&self) -> bool {
        let (had_events, ephemerals) = self.state.lock().drop_cache();
        self.context.counters.ephemeral_dropped.add(ephemerals);
        had_events
    }

    /// The number of the last use of the cached events, among those of all channels.
    pub(crate) fn last_cache_use(&self) -> u64 {
        self.last_cache_use.load(Ordering::Relaxed)
    }

    fn note_cache_use(&self) {
        self.last_cache_use.store(self.context.next_cache_use(), Ordering::Relaxed);
    }

    // Reading.

    /// Returns the events after `after` from memory, at most `limit`; `None` when memory does not reach back so far.
    pub(crate) fn cached_page(&self, after: Seq, limit: ReadLimit) -> Option<Vec<Arc<Event>>> {
        self.state.lock().page(after, limit)
    }

    /// Returns a cursor that stands after `seq`, and counts it as a subscriber.
    pub(crate) fn new_cursor(&self, seq: Seq) -> Cursor {
        self.state.lock().new_cursor(seq)
    }

    /// Returns a second cursor at the position of `other`, and counts it as a subscriber.
    pub(crate) fn fork_cursor(&self, other: &Cursor) -> Cursor {
        self.state.lock().fork_cursor(other)
    }

    /// Sets the number of readers that a cursor stands for.
    pub(crate) fn stand_for(self: &Arc<Self>, cursor: &mut Cursor, readers: u64) {
        self.with_readers(|state| state.stand_for(cursor, readers));
    }

    /// Ends the reading through `cursor`.
    pub(crate) fn release_cursor(self: &Arc<Self>, cursor: &mut Cursor) {
        self.with_readers(|state| state.release_cursor(cursor));
    }

    /// Appends the events after `cursor` to `batch` and moves the cursor past them. Registers `waker` when there are none.
    pub(crate) fn read(
        self: &Arc<Self>,
        cursor: &mut Cursor,
        batch: &mut VecDeque<Arc<Event>>,
        waker: &Waker,
    ) -> ReadResult {
        let result = self.with_readers(|state| state.read(cursor, batch, waker));
        if matches!(result, ReadResult::Events) {
            // Each member of a large room reads, so this writes nothing that is shared between channels.
            self.last_cache_use.store(self.context.cache_uses(), Ordering::Relaxed);
        }
        result
    }

    /// Changes readers, and takes the drafts that waited for them.
    fn with_readers<R>(self: &Arc<Self>, change: impl FnOnce(&mut ChannelState) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        // As many as wait now. Those that come meanwhile look after themselves. Most often nobody waits.
        let mut left = state.waiting();
        while left > MAX_TAKEN {
            let taken = self.take_waiting(&mut state);
            MutexGuard::unlocked(&mut state, || self.finish(taken));
            left -= MAX_TAKEN;
        }
        let last = (left > 0).then(|| self.take_waiting(&mut state));
        drop(state);
        if let Some(taken) = last {
            self.finish(taken);
        }
        result
    }
}

/// The outcome of a draft that was taken where there is no log.
#[derive(Debug)]
enum Sequenced {
    Answered(PublishResult),
    /// Its id is that of an event in memory.
    Duplicate(Box<(CheckedDraft, Earlier)>),
}

/// The limits of a channel's memory. Beside a log it is a cache; without one it is the whole history, of which no document
/// takes more than a quarter of `max_cache_bytes`.
fn cache_limits(config: &BusConfig, has_log: bool, max_cache_bytes: usize) -> Retention {
    if !has_log {
        let most = max_cache_bytes as u64 / 4;
        let max_bytes = Some(config.retention.max_bytes.map_or(most, |max| max.min(most)));
        return Retention { max_bytes, ..config.retention };
    }
    let cache_bytes = config.cache_bytes as u64;
    Retention {
        max_events: config.retention.max_events.min(config.cache_events as u64),
        max_bytes: Some(config.retention.max_bytes.map_or(cache_bytes, |max| max.min(cache_bytes))),
        max_age: config.retention.max_age,
    }
}
