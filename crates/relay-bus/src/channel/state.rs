//! The state of a channel, all of it behind the channel's lock. The methods are the parts of its critical sections.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use relay_core::{Draft, Epoch, Event, Head, Monotonic, Offset, PublishAck, ReadLimit, Seq, Timestamp};

use super::batch::{PendingDraft, PublishResult};
use super::cursor::{Cursor, ReadResult};
use super::lifecycle::Lifecycle;
use crate::duplicate::{OriginalPayload, check_same_content};
use crate::ephemeral::Ephemerals;
use crate::event_cache::EventCache;
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
    ephemerals: Ephemerals,
    wakers: WakerSet,
    /// The drafts that wait for the writer, in the order of their seqs to come.
    pending: VecDeque<PendingDraft>,
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

impl ChannelState {
    pub(super) fn new(cache: EventCache, ephemerals: Ephemerals, lifecycle: Lifecycle) -> Self {
        Self {
            last_time: cache.last_time(),
            cache,
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

    /// Returns the answer to a draft whose id an event in memory has.
    pub(super) fn find_duplicate(&self, draft: &Draft) -> Option<PublishResult> {
        let (event, original) = self.cache.by_id(draft.id?)?;
        Some(check_same_content(draft, event, original).map(|()| PublishAck::of(event, true)))
    }

    /// Shows the next durable event. With `original` its id is remembered for recognising duplicates.
    pub(super) fn push_event(&mut self, event: Arc<Event>, original: Option<OriginalPayload>) {
        self.used_since_sweep = true;
        self.last_time = self.last_time.max(event.time);
        self.cache.push(event, original);
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
        (self.cache.clear(), self.ephemerals.clear())
    }

    /// Takes the wakers of all readers that wait. The caller wakes them after it has released the lock.
    pub(super) fn drain_wakers(&mut self) -> Vec<Waker> {
        self.wakers.drain()
    }

    /// Adds a draft to the queue. Returns true when there is no writer; the caller must start one.
    pub(super) fn enqueue(&mut self, pending: PendingDraft) -> bool {
        self.used_since_sweep = true;
        self.pending.push_back(pending);
        !std::mem::replace(&mut self.writing, true)
    }

    pub(super) fn next_pending(&mut self) -> Option<PendingDraft> {
        self.pending.pop_front()
    }

    pub(super) fn take_pending(&mut self) -> VecDeque<PendingDraft> {
        std::mem::take(&mut self.pending)
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
        Cursor::new(seq, self.ephemerals.version())
    }

    pub(super) fn fork_cursor(&mut self, other: &Cursor) -> Cursor {
        self.subscribers += 1;
        Cursor::new(other.seq, other.ephemeral_version)
    }

    pub(super) fn release_cursor(&mut self, cursor: &mut Cursor) {
        self.subscribers -= 1;
        self.used_since_sweep = true;
        self.wakers.deregister(cursor.waker_key.take());
    }

    /// See [`Channel::read`](super::Channel::read). Ephemeral events come before durable ones.
    pub(super) fn read(
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
