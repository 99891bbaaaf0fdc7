//! One document's channel: the place where its events get their order.
//!
//! All state is behind one lock whose critical sections are short and synchronous. Without a log a publisher takes
//! its seq and makes the event visible in one such section. With a log, drafts queue up, and one writer task (there
//! is one only while something waits) gives seqs to all that wait, appends them as one batch, and makes them visible
//! when the log has them. So at any moment there is at most one batch under way per document, seqs follow the queue,
//! and nobody sees an event that could still be lost.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use parking_lot::Mutex;
use relay_core::{
    CheckedDraft, DocumentId, Draft, Epoch, Event, EventLog, Head, LogError, Monotonic, NotOwner, Offset,
    OwnershipError, Place, PublishAck, PublishError, Retention, Seq, StreamError, StreamPosition, Tenure,
    Timestamp,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::context::ChannelContext;
use crate::counters::ChannelStats;
use crate::ephemeral::Ephemerals;
use crate::event_cache::EventCache;
use crate::waker_set::{WakerKey, WakerSet};

/// The most events and payload bytes that the writer appends at once.
const MAX_BATCH_EVENTS: usize = 512;
const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// What one permit of a channel's queue stands for.
const PERMIT_BYTES: usize = 1024;
/// How many events a reader takes under one lock.
const READ_EVENTS: usize = 32;

#[derive(Debug)]
pub(crate) struct Channel {
    document: DocumentId,
    epoch: Epoch,
    /// Dropped with the channel, which gives the document up.
    tenure: Box<dyn Tenure>,
    context: Arc<ChannelContext>,
    /// Room in `ChannelState::pending`. Fair: who waits first gets room first.
    queue_permits: Arc<Semaphore>,
    state: Mutex<ChannelState>,
    /// Set once `ChannelState::ended` says so, to be seen without the lock.
    reopen: AtomicBool,
}

#[derive(Debug)]
struct ChannelState {
    cache: EventCache,
    ephemerals: Ephemerals,
    wakers: WakerSet,
    pending: VecDeque<PendingDraft>,
    writing: bool,
    subscribers: usize,
    /// Used since the last sweep. (Publishing does not ask the clock for this.)
    used_since_sweep: bool,
    /// When a sweep first found it unused.
    idle_since: Monotonic,
    ended: Option<ChannelEnd>,
}

/// Why a channel takes and gives nothing any more.
#[derive(Debug, Clone)]
enum ChannelEnd {
    /// The bus stops.
    Closed,
    /// What the log holds is not known; the channel must be opened again.
    Failed(LogError),
    /// This server no longer owns the document; the channel must be opened again, if it can be.
    OwnershipLost(OwnershipError),
}

impl From<ChannelEnd> for PublishError {
    fn from(end: ChannelEnd) -> Self {
        match end {
            ChannelEnd::Closed => Self::Closed,
            ChannelEnd::Failed(error) => Self::Log(error),
            ChannelEnd::OwnershipLost(error) => Self::Ownership(error),
        }
    }
}

/// A draft that waits for the log.
#[derive(Debug)]
struct PendingDraft {
    draft: CheckedDraft,
    publisher: AckSender,
}

/// Who waits for a ack. The room that its draft took in the queue is free again when this is dropped.
#[derive(Debug)]
struct AckSender {
    ack: oneshot::Sender<Result<PublishAck, PublishError>>,
    _permit: OwnedSemaphorePermit,
}

impl AckSender {
    fn answer(self, answer: Result<PublishAck, PublishError>) {
        // Who no longer waits does not want to know.
        let _ = self.ack.send(answer);
    }
}

/// What a reader found.
pub(crate) enum ReadResult {
    /// Something was added to its batch.
    Events,
    /// Nothing new; its waker is entered.
    Pending,
    /// What comes next is no longer in memory.
    Behind,
    /// The bus stops and everything was read.
    Closed,
    /// The channel broke.
    Failed(StreamError),
}

/// A reader's position in a channel.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// The last durable event that it has.
    pub(crate) seq: Seq,
    ephemeral_version: u64,
    waker_key: Option<WakerKey>,
}

impl Cursor {
    /// What it has.
    pub(crate) fn position(&self) -> StreamPosition {
        StreamPosition { seq: self.seq, ephemeral_version: self.ephemeral_version }
    }
}

impl Channel {
    /// A channel that goes on from `head`, with `recent` (its latest events, without a gap) in memory.
    pub(crate) fn new(
        document: DocumentId,
        tenure: Box<dyn Tenure>,
        head: Head,
        recent: Vec<Event>,
        context: Arc<ChannelContext>,
    ) -> Self {
        let config = &context.config;
        let limits = if context.log.is_some() {
            let cache_bytes = config.cache_bytes as u64;
            Retention {
                max_events: config.retention.max_events.min(config.cache_events.max(1) as u64),
                max_bytes: Some(config.retention.max_bytes.map_or(cache_bytes, |max| max.min(cache_bytes))),
                max_age: config.retention.max_age,
            }
        } else {
            config.retention
        };
        let mut cache = EventCache::new(Seq::new(head.last.get() - recent.len() as u64), limits);
        for event in recent {
            cache.push(Arc::new(event), true);
        }
        let permits = permits(config.max_pending_bytes).max(permits(config.max_payload_bytes));
        let state = ChannelState {
            cache,
            ephemerals: Ephemerals::new(config.max_ephemeral_keys),
            wakers: WakerSet::default(),
            pending: VecDeque::new(),
            writing: false,
            subscribers: 0,
            used_since_sweep: true,
            idle_since: Monotonic::ZERO,
            ended: None,
        };
        let queue_permits = Arc::new(Semaphore::new(permits as usize));
        Self {
            document,
            epoch: head.epoch,
            tenure,
            context,
            queue_permits,
            state: Mutex::new(state),
            reopen: AtomicBool::new(false),
        }
    }

    pub(crate) fn document(&self) -> &DocumentId {
        &self.document
    }

    /// Where the document stands, as far as memory knows: `first` is the earliest event in memory.
    pub(crate) fn head(&self) -> Head {
        let state = self.state.lock();
        Head { epoch: self.epoch, first: state.cache.first(), last: state.cache.last() }
    }

    /// Publishes `draft`. Whoever polls this first gets the earlier seq, as long as there is room in the queue.
    pub(crate) async fn publish(self: &Arc<Self>, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        if !draft.kind.is_durable() {
            return self.publish_ephemeral(draft);
        }
        match &self.context.log {
            None => self.publish_in_memory(draft),
            Some(log) => self.publish_logged(draft, log).await,
        }
    }

    fn publish_ephemeral(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        self.check_owned();
        let event = Arc::new(draft.into_event(self.epoch, None, self.context.clock.wall()));
        let ack = PublishAck::of(&event, false);
        let mut wakers = {
            let mut state = self.state.lock();
            state.check_open()?;
            state.used_since_sweep = true;
            if state.ephemerals.put(Arc::clone(&event)) {
                self.context.counters.ephemeral_dropped.increment();
            }
            state.wakers.drain()
        };
        self.context.counters.ephemeral_published.increment();
        self.context.counters.by_kind.increment(&event.kind);
        self.context.mailboxes.offer(&event, &mut wakers);
        wake(wakers);
        Ok(ack)
    }

    fn publish_in_memory(&self, mut draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        let remember_id = draft.id.is_some();
        draft.assign_id();
        self.check_owned();
        let kind = draft.kind.clone();
        let (ack, wakers) = {
            let mut state = self.state.lock();
            state.check_open()?;
            if remember_id && let Some(known) = state.find_duplicate(&draft) {
                if known.is_ok() {
                    self.context.counters.duplicates.increment();
                }
                return known;
            }
            let seq = state.cache.last().next();
            self.context.sequence(&mut draft, Place::new(self.epoch, seq))?;
            state.used_since_sweep = true;
            let event = Arc::new(draft.into_event(self.epoch, Some(seq), self.context.clock.wall()));
            let ack = PublishAck::of(&event, false);
            let mut wakers = state.wakers.drain();
            self.context.mailboxes.offer(&event, &mut wakers);
            state.cache.push(event, remember_id);
            (ack, wakers)
        };
        self.context.counters.durable_published.increment();
        self.context.counters.by_kind.increment(&kind);
        wake(wakers);
        Ok(ack)
    }

    async fn publish_logged(
        self: &Arc<Self>,
        draft: CheckedDraft,
        log: &Arc<dyn EventLog>,
    ) -> Result<PublishAck, PublishError> {
        let permit = self.acquire_permit(permits(draft.payload.len())).await?;
        let (sender, ack) = oneshot::channel();
        {
            let mut state = self.state.lock();
            state.check_open()?;
            state.used_since_sweep = true;
            let publisher = AckSender { ack: sender, _permit: permit };
            state.pending.push_back(PendingDraft { draft, publisher });
            if !state.writing {
                state.writing = true;
                let writer = Arc::clone(self).write(Arc::clone(log));
                self.context.writers.spawn_on(writer, &self.context.runtime);
            }
        }
        // The writer answers everyone, unless the runtime is torn down under it.
        ack.await.unwrap_or(Err(PublishError::Closed))
    }

    async fn acquire_permit(&self, permits: u32) -> Result<OwnedSemaphorePermit, PublishError> {
        if let Ok(permit) = Arc::clone(&self.queue_permits).try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        let waited = self.context.config.publish_timeout;
        match tokio::time::timeout(waited, Arc::clone(&self.queue_permits).acquire_many_owned(permits)).await
        {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(PublishError::Closed),
            Err(_elapsed) => Err(PublishError::Overloaded { document: self.document.clone(), waited }),
        }
    }

    /// The writer: appends what waits, batch by batch, and ends when nothing does.
    async fn write(self: Arc<Self>, log: Arc<dyn EventLog>) {
        let guard = WriterGuard(&self);
        while let Some(batch) = self.next_batch() {
            if batch.events.is_empty() {
                continue;
            }
            self.context.counters.log_batches.increment();
            match log.append(&self.document, &batch.events).await {
                Ok(offsets) => self.commit(batch, offsets),
                Err(error) => self.fail(batch, &error),
            }
        }
        std::mem::forget(guard);
    }

    /// Takes what waits, answers what is known already, and gives the rest their seqs. `None` when nothing waits:
    /// the writer has ended then, in the same critical section.
    fn next_batch(&self) -> Option<AppendBatch> {
        self.check_owned();
        let mut state = self.state.lock();
        if state.pending.is_empty() {
            state.writing = false;
            return None;
        }
        let now = self.context.clock.wall();
        let mut batch = AppendBatch::after(state.cache.last());
        let mut bytes = 0;
        while batch.events.len() < MAX_BATCH_EVENTS && bytes < MAX_BATCH_BYTES {
            let Some(pending) = state.pending.pop_front() else { break };
            bytes += pending.draft.payload.len();
            if let Some(known) = pending.draft.id.and_then(|_| state.find_duplicate(&pending.draft)) {
                if known.is_ok() {
                    self.context.counters.duplicates.increment();
                }
                pending.publisher.answer(known);
                continue;
            }
            let Some(mut pending) = batch.join_duplicate(pending) else { continue };
            match self.context.sequence(&mut pending.draft, Place::new(self.epoch, batch.next)) {
                Ok(()) => batch.push(pending, self.epoch, now),
                Err(refused) => pending.publisher.answer(Err(refused)),
            }
        }
        Some(batch)
    }

    /// Makes a batch visible that the log has.
    fn commit(&self, batch: AppendBatch, offsets: Vec<Offset>) {
        let AppendBatch { events, waiting, .. } = batch;
        let mut acks = Vec::with_capacity(events.len());
        for event in &events {
            self.context.counters.by_kind.increment(&event.kind);
        }
        let wakers = {
            let mut state = self.state.lock();
            let mut wakers = state.wakers.drain();
            for (index, (mut event, offset)) in events.into_iter().zip(offsets).enumerate() {
                event.offset = Some(offset);
                acks.push(PublishAck::of(&event, false));
                let event = Arc::new(event);
                self.context.mailboxes.offer(&event, &mut wakers);
                state.cache.push(event, waiting[index].remember_id);
            }
            wakers
        };
        self.context.counters.durable_published.add(acks.len() as u64);
        wake(wakers);
        for (waiting, ack) in waiting.into_iter().zip(acks) {
            waiting.first.answer(Ok(ack));
            for again in waiting.duplicates {
                self.context.counters.duplicates.increment();
                again.answer(Ok(ack.as_duplicate()));
            }
        }
    }

    fn fail(&self, batch: AppendBatch, error: &LogError) {
        self.context.drop_places(&self.document);
        let nothing_was_kept = matches!(error, LogError::Overloaded { .. } | LogError::TooLarge { .. });
        if !nothing_was_kept {
            tracing::error!(document = %self.document, %error, "the log failed; the document is opened again when it is next used");
            self.end(&ChannelEnd::Failed(error.clone()));
        }
        for waiting in batch.waiting {
            for publisher in std::iter::once(waiting.first).chain(waiting.duplicates) {
                publisher.answer(Err(PublishError::Log(error.clone())));
            }
        }
    }

    /// Ends the channel: what waits is answered, readers are woken.
    fn end(&self, end: &ChannelEnd) {
        let (pending, wakers) = {
            let mut state = self.state.lock();
            let ended = state.ended.get_or_insert_with(|| end.clone());
            self.reopen.store(!matches!(ended, ChannelEnd::Closed), Ordering::Release);
            (std::mem::take(&mut state.pending), state.wakers.drain())
        };
        self.queue_permits.close();
        wake(wakers);
        for pending in pending {
            pending.publisher.answer(Err(end.clone().into()));
        }
    }

    /// Ends the channel if this server has lost the document.
    pub(crate) fn check_owned(&self) {
        if !self.tenure.is_held() {
            self.end(&ChannelEnd::OwnershipLost(NotOwner::new(self.document.clone(), None).into()));
        }
    }

    /// Ends the channel because the bus stops.
    pub(crate) fn close(&self) {
        self.end(&ChannelEnd::Closed);
    }

    /// True when the channel must be opened again.
    pub(crate) fn needs_reopening(&self) -> bool {
        self.reopen.load(Ordering::Acquire)
    }

    /// Since when nobody uses it, as seen by those who ask; `None` while somebody does.
    pub(crate) fn idle_since(&self, now: Monotonic) -> Option<Monotonic> {
        let mut state = self.state.lock();
        if state.subscribers > 0 || state.writing {
            return None;
        }
        if std::mem::take(&mut state.used_since_sweep) {
            state.idle_since = now;
        }
        Some(state.idle_since)
    }

    /// Drops events that are older than the retention allows.
    pub(crate) fn expire(&self, now: Timestamp) {
        self.state.lock().cache.expire(now);
    }

    /// The events after `after` from memory, at most `limit`; `None` when they are no longer all there.
    pub(crate) fn cached_page(&self, after: Seq, limit: relay_core::ReadLimit) -> Option<Vec<Arc<Event>>> {
        let state = self.state.lock();
        let mut page: Vec<Arc<Event>> = Vec::new();
        let mut bytes = 0;
        for event in state.cache.after(after)? {
            bytes += event.approx_bytes();
            if !page.is_empty() && (page.len() >= limit.events || bytes > limit.bytes) {
                break;
            }
            page.push(Arc::clone(event));
        }
        Some(page)
    }

    /// Begins to read after `seq`.
    pub(crate) fn new_cursor(&self, seq: Seq) -> Cursor {
        let mut state = self.state.lock();
        state.subscribers += 1;
        state.used_since_sweep = true;
        Cursor { seq, ephemeral_version: state.ephemerals.version(), waker_key: None }
    }

    /// Begins to read where `other` stands.
    pub(crate) fn fork_cursor(&self, other: &Cursor) -> Cursor {
        self.state.lock().subscribers += 1;
        Cursor { seq: other.seq, ephemeral_version: other.ephemeral_version, waker_key: None }
    }

    /// Ends reading.
    pub(crate) fn release_cursor(&self, cursor: &mut Cursor) {
        let mut state = self.state.lock();
        state.subscribers -= 1;
        state.used_since_sweep = true;
        state.wakers.deregister(cursor.waker_key.take());
    }

    /// Puts what is new for `reader` into `batch`.
    pub(crate) fn read(
        &self,
        cursor: &mut Cursor,
        batch: &mut VecDeque<Arc<Event>>,
        waker: &Waker,
    ) -> ReadResult {
        let mut state = self.state.lock();
        let state = &mut *state;
        let newer = state.ephemerals.version() > cursor.ephemeral_version;
        if newer {
            batch.extend(state.ephemerals.after(cursor.ephemeral_version).cloned());
            cursor.ephemeral_version = state.ephemerals.version();
        }
        if cursor.seq < state.cache.last() {
            let Some(events) = state.cache.after(cursor.seq) else {
                return if newer { ReadResult::Events } else { ReadResult::Behind };
            };
            for event in events.take(READ_EVENTS) {
                cursor.seq = cursor.seq.next();
                batch.push_back(Arc::clone(event));
            }
            return ReadResult::Events;
        }
        if newer {
            return ReadResult::Events;
        }
        match &state.ended {
            Some(ChannelEnd::Closed) => ReadResult::Closed,
            Some(ChannelEnd::Failed(error)) => ReadResult::Failed(error.clone().into()),
            Some(ChannelEnd::OwnershipLost(error)) => ReadResult::Failed(error.clone().into()),
            None => {
                state.wakers.register(&mut cursor.waker_key, waker);
                ReadResult::Pending
            }
        }
    }

    pub(crate) fn stats(&self) -> ChannelStats {
        let state = self.state.lock();
        ChannelStats {
            document: self.document.clone(),
            epoch: self.epoch,
            first_cached: state.cache.first(),
            last: state.cache.last(),
            cached_events: state.cache.len(),
            cached_bytes: state.cache.bytes(),
            subscribers: state.subscribers,
            pending: state.pending.len(),
        }
    }
}

impl ChannelState {
    fn check_open(&self) -> Result<(), PublishError> {
        self.ended.clone().map_or(Ok(()), |end| Err(end.into()))
    }

    /// The answer to a draft whose id was seen before.
    fn find_duplicate(&self, draft: &Draft) -> Option<Result<PublishAck, PublishError>> {
        let known = self.cache.by_id(draft.id?)?;
        Some(if same_content(draft, known) {
            Ok(PublishAck::of(known, true))
        } else {
            Err(PublishError::IdConflict { id: known.id, seq: known.seq.unwrap_or_default() })
        })
    }
}

/// Whether a draft says the same as the event that has its id.
fn same_content(draft: &Draft, event: &Event) -> bool {
    draft.kind == event.kind && draft.actor == event.actor && draft.payload == event.payload
}

/// Drafts on their way through the log, as the events that they will be.
#[derive(Debug)]
struct AppendBatch {
    events: Vec<Event>,
    /// Who waits for each event.
    waiting: Vec<AckSenders>,
    by_id: HashMap<relay_core::EventId, usize>,
    next: Seq,
}

#[derive(Debug)]
struct AckSenders {
    first: AckSender,
    /// Those who sent the same draft again while it was on its way.
    duplicates: Vec<AckSender>,
    remember_id: bool,
}

impl AppendBatch {
    fn after(last: Seq) -> Self {
        Self { events: Vec::new(), waiting: Vec::new(), by_id: HashMap::new(), next: last.next() }
    }

    /// Gives `pending` back, unless its id is that of an event in the batch: then its publisher waits for that one, or is
    /// refused when the two differ.
    fn join_duplicate(&mut self, pending: PendingDraft) -> Option<PendingDraft> {
        let Some(&index) = pending.draft.id.and_then(|id| self.by_id.get(&id)) else { return Some(pending) };
        let first = &self.events[index];
        if same_content(&pending.draft, first) {
            self.waiting[index].duplicates.push(pending.publisher);
        } else {
            let seq = first.seq.unwrap_or_default();
            pending.publisher.answer(Err(PublishError::IdConflict { id: first.id, seq }));
        }
        None
    }

    /// Adds an event at the next place.
    fn push(&mut self, pending: PendingDraft, epoch: Epoch, now: Timestamp) {
        let PendingDraft { draft, publisher } = pending;
        let id = draft.id;
        if let Some(id) = id {
            self.by_id.insert(id, self.events.len());
        }
        self.events.push(draft.into_event(epoch, Some(self.next), now));
        self.next = self.next.next();
        self.waiting.push(AckSenders { first: publisher, duplicates: Vec::new(), remember_id: id.is_some() });
    }
}

/// Ends the channel if its writer does not end by itself: a panic in the log, or a runtime that goes down.
struct WriterGuard<'a>(&'a Channel);

impl Drop for WriterGuard<'_> {
    fn drop(&mut self) {
        let source = Arc::new(std::io::Error::other("the document's writer was interrupted"));
        self.0.end(&ChannelEnd::Failed(LogError::Failed { source }));
        self.0.state.lock().writing = false;
    }
}

fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

/// How much room a draft of that many payload bytes takes.
fn permits(bytes: usize) -> u32 {
    u32::try_from(1 + bytes / PERMIT_BYTES).unwrap_or(u32::MAX)
}
