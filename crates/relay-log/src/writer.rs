//! The writer: one thread that makes everything durable, in groups.
//!
//! Whatever waits when the writer is free becomes one batch of the engine and one fsync. Each append is checked against
//! its document's head first, so that two owners of a document cannot both append. Dropping old events rides in the
//! same batches, at most [`TRIMS_PER_COMMIT`] at a time, so that appends are hardly delayed by it.
//!
//! Once a commit failed nothing is known of what reached the disk, so the log fails for good: the heads in memory, which
//! are ahead of the disk by what was staged, are never used again.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use fjall::{OwnedWriteBatch, PersistMode};
use relay_core::{Clock, DocumentId, Epoch, Head, LogError, Monotonic, Offset, Seq, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::commit_marker::CommitMarker;
use crate::config::{LogConfig, LogDurability};
use crate::head_cache::HeadCache;
use crate::record::Record;
use crate::retention::{RetentionLimits, TrimProgress};
use crate::stats::Counters;
use crate::status::LogStatus;
use crate::store::{DocumentState, ReadError, Store, event_key, missing};

/// The most events that one commit drops.
const TRIMS_PER_COMMIT: usize = 1024;
/// The most documents that a sweep looks at between two commits.
const SCAN_SLICE: usize = 256;
/// A group is closed when it has this many bytes of events.
const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// An event on its way to the disk.
pub(crate) struct EncodedEvent {
    pub(crate) epoch: Epoch,
    pub(crate) seq: Seq,
    pub(crate) time: Timestamp,
    pub(crate) body: Vec<u8>,
}

/// What the writer is asked for. The permits hold the request's room in the queue and are given back with it.
pub(crate) enum Request {
    Append {
        document: DocumentId,
        events: Vec<EncodedEvent>,
        reply: oneshot::Sender<Result<Vec<Offset>, LogError>>,
        room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    },
    Trim {
        document: DocumentId,
        through: Seq,
        reply: oneshot::Sender<Result<Head, LogError>>,
        room: OwnedSemaphorePermit,
    },
    Sweep {
        reply: oneshot::Sender<Result<(), LogError>>,
        room: OwnedSemaphorePermit,
    },
}

/// A document from which events are to be dropped.
struct TrimTask {
    document: DocumentId,
    goal: TrimGoal,
}

enum TrimGoal {
    /// Retention's limits hold.
    WithinRetention,
    /// This seq is dropped.
    Through { through: u64, reply: oneshot::Sender<Result<Head, LogError>>, _room: OwnedSemaphorePermit },
}

/// A walk over all documents.
struct RetentionScan {
    after: Option<DocumentId>,
    finished: bool,
    replies: Vec<(oneshot::Sender<Result<(), LogError>>, OwnedSemaphorePermit)>,
}

/// Answers that wait for the commit.
#[derive(Default)]
struct PendingReplies {
    appends: Vec<PendingReply<Vec<Offset>>>,
    trims: Vec<PendingReply<Head>>,
}

/// Who waits, and what they will be told.
type PendingReply<T> = (oneshot::Sender<Result<T, LogError>>, Result<T, LogError>);

pub(crate) struct Writer {
    store: Arc<Store>,
    status: Arc<LogStatus>,
    clock: Arc<dyn Clock>,
    config: LogConfig,
    epoch: Epoch,
    last_offset: Offset,
    heads: HeadCache,
    trim_tasks: VecDeque<TrimTask>,
    scan: Option<RetentionScan>,
    next_scan: Monotonic,
    marker: CommitMarker,
}

impl Writer {
    pub(crate) fn new(
        store: Arc<Store>,
        status: Arc<LogStatus>,
        clock: Arc<dyn Clock>,
        config: LogConfig,
        epoch: Epoch,
        last_offset: Offset,
        marker: CommitMarker,
    ) -> Self {
        Self {
            heads: HeadCache::new(config.cached_heads),
            next_scan: clock.monotonic() + config.sweep_interval,
            store,
            status,
            clock,
            config,
            epoch,
            last_offset,
            trim_tasks: VecDeque::new(),
            scan: None,
            marker,
        }
    }

    /// Works until every sender is gone and the queue is empty, then closes the log in order.
    pub(crate) fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let first = match self.next(requests) {
                Ok(first) => first,
                Err(Disconnected) => break,
            };
            self.commit_group(first, requests);
        }
        self.close();
    }

    /// The next request; none when there is other work.
    fn next(&mut self, requests: &Receiver<Request>) -> Result<Option<Request>, Disconnected> {
        if self.scan.is_none() && self.clock.monotonic() >= self.next_scan {
            self.begin_scan();
        }
        if self.trim_tasks.is_empty() && self.scan.is_none() {
            // A clock that stands still in a test makes this wake up for nothing, no more.
            let wait = self.next_scan.since(self.clock.monotonic());
            match requests.recv_timeout(wait) {
                Ok(request) => Ok(Some(request)),
                Err(RecvTimeoutError::Timeout) => Ok(None),
                Err(RecvTimeoutError::Disconnected) => Err(Disconnected),
            }
        } else {
            match requests.try_recv() {
                Ok(request) => Ok(Some(request)),
                Err(TryRecvError::Empty) => Ok(None),
                // Trims that were asked for are still answered; the rest of retention's work can wait for the next run.
                Err(TryRecvError::Disconnected) if self.has_waiters() => Ok(None),
                Err(TryRecvError::Disconnected) => Err(Disconnected),
            }
        }
    }

    fn has_waiters(&self) -> bool {
        self.scan.as_ref().is_some_and(|sweep| !sweep.replies.is_empty())
            || self.trim_tasks.iter().any(|task| matches!(task.goal, TrimGoal::Through { .. }))
    }

    /// One group: stages what waits, commits, answers.
    fn commit_group(&mut self, first: Option<Request>, requests: &Receiver<Request>) {
        let mut batch = self.store.db.batch();
        let mut replies = PendingReplies::default();
        // Room in the queue is held until the group is on the disk: what is being written counts as waiting.
        let mut room = Vec::new();
        let mut bytes = 0;
        for request in first.into_iter().chain(requests.try_iter()) {
            match request {
                Request::Append { document, events, reply, room: held } => {
                    bytes += events.iter().map(|event| event.body.len()).sum::<usize>();
                    room.push(held);
                    let result = self.append(&mut batch, &document, &events);
                    replies.appends.push((reply, result));
                }
                Request::Trim { document, through, reply, room } => self.trim_tasks.push_back(TrimTask {
                    document,
                    goal: TrimGoal::Through { through: through.get(), reply, _room: room },
                }),
                Request::Sweep { reply, room } => {
                    // A sweep that is under way may have passed what this one is asked for.
                    self.begin_scan();
                    if let Some(sweep) = &mut self.scan {
                        sweep.replies.push((reply, room));
                    }
                }
            }
            if bytes >= GROUP_BYTES {
                break;
            }
        }
        self.scan_slice();
        self.run_trim_tasks(&mut batch, &mut replies);
        let committed = self.commit(batch, replies.appends.len() as u64);
        drop(room);
        replies.send(&committed);
        self.end_scan(&committed);
    }

    fn commit(&mut self, batch: OwnedWriteBatch, appends: u64) -> Result<(), LogError> {
        self.status.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        let mode = match self.config.durability {
            LogDurability::Logged => PersistMode::Buffer,
            // The journal's file and its name were synced when it was made; what an append adds is data and size.
            LogDurability::Synced => PersistMode::SyncData,
        };
        let began = self.clock.monotonic();
        batch.durability(Some(mode)).commit().map_err(|error| self.status.fail(error))?;
        self.marker.acknowledge(self.last_offset).map_err(|error| self.status.fail(error))?;
        self.status.counters.commit(appends, self.clock.monotonic().since(began));
        self.status.advance(self.last_offset);
        Ok(())
    }

    /// The document as it will be after what is staged; none when it never had an event.
    fn document(&mut self, id: &DocumentId) -> Result<Option<DocumentState>, LogError> {
        if let Some(document) = self.heads.get(id) {
            return Ok(Some(document));
        }
        let document = self.store.snapshot().document(id).map_err(|error| self.read_failed(error))?;
        Ok(document)
    }

    fn read_failed(&self, error: ReadError) -> LogError {
        error.into_log_error(|error| self.status.fail(error))
    }

    fn append(
        &mut self,
        batch: &mut OwnedWriteBatch,
        id: &DocumentId,
        events: &[EncodedEvent],
    ) -> Result<Vec<Offset>, LogError> {
        self.status.check()?;
        let known = self.document(id)?;
        let mut document = known.unwrap_or(DocumentState {
            number: self.last_offset.next().get(),
            trimmed: 0,
            last: 0,
            dropped_bytes: 0,
            total_bytes: 0,
            oldest: Timestamp::MAX,
        });
        for (expected, event) in (document.last + 1..).zip(events) {
            if event.epoch != self.epoch || event.seq.get() != expected {
                Counters::add(&self.status.counters.conflicts, 1);
                return Err(LogError::Conflict {
                    document: id.clone(),
                    head: document.head(self.epoch),
                    epoch: event.epoch,
                    seq: event.seq,
                });
            }
        }
        if events.is_empty() {
            return Ok(Vec::new());
        }
        if known.is_none() {
            self.store.put_document(batch, id, document.number, document.trimmed);
        }
        let before = document.total_bytes;
        if document.kept_events() == 0 {
            document.oldest = events.first().map_or(Timestamp::MAX, |event| event.time);
        }
        let mut offsets = Vec::with_capacity(events.len());
        for event in events {
            self.last_offset = self.last_offset.next();
            offsets.push(self.last_offset);
            document.last += 1;
            document.total_bytes += Record::size(event.body.len());
            let record = Record {
                offset: self.last_offset,
                total: document.total_bytes,
                time: event.time,
                body: &event.body,
            };
            self.store.put_event(batch, document.number, document.last, &record);
        }
        let counters = &self.status.counters;
        Counters::add(&counters.appends, 1);
        Counters::add(&counters.appended_events, events.len() as u64);
        Counters::add(&counters.appended_bytes, document.total_bytes - before);
        self.heads.put(id, document);
        // While a document is over its limits each append would queue it again; one entry is enough.
        if RetentionLimits::with_slack(self.config.retention).exceeded_by(&document, self.clock.wall())
            && !self.trim_tasks.iter().any(|task| task.document == *id)
        {
            self.trim_tasks.push_back(TrimTask { document: id.clone(), goal: TrimGoal::WithinRetention });
        }
        Ok(offsets)
    }

    /// Stages the dropping of some events that are due.
    fn run_trim_tasks(&mut self, batch: &mut OwnedWriteBatch, replies: &mut PendingReplies) {
        let mut budget = TRIMS_PER_COMMIT;
        // Each is looked at once: one that waits for events of this very batch comes back in the next.
        for _ in 0..self.trim_tasks.len() {
            if budget == 0 {
                break;
            }
            let Some(task) = self.trim_tasks.pop_front() else { break };
            match self.trim_events(batch, &task, replies.appends.len(), &mut budget) {
                Ok((_, TrimProgress::BudgetSpent)) => self.trim_tasks.push_front(task),
                Ok((_, TrimProgress::AwaitsCommit)) => self.trim_tasks.push_back(task),
                Ok((head, TrimProgress::Done)) => {
                    if let TrimGoal::Through { reply, .. } = task.goal {
                        replies.trims.push((reply, Ok(head)));
                    }
                }
                Err(error) => match task.goal {
                    TrimGoal::Through { reply, .. } => replies.trims.push((reply, Err(error))),
                    TrimGoal::WithinRetention => {
                        Counters::add(&self.status.counters.retention_failures, 1);
                        tracing::error!(document = %task.document, %error, "retention could not drop old events");
                    }
                },
            }
        }
    }

    fn trim_events(
        &mut self,
        batch: &mut OwnedWriteBatch,
        task: &TrimTask,
        appends: usize,
        budget: &mut usize,
    ) -> Result<(Head, TrimProgress), LogError> {
        let id = &task.document;
        let Some(mut document) = self.document(id)? else {
            return Ok((Head::empty(self.epoch), TrimProgress::Done));
        };
        let now = self.clock.wall();
        let exact = RetentionLimits::exact(self.config.retention);
        let through = match task.goal {
            TrimGoal::WithinRetention => None,
            TrimGoal::Through { through, .. } => Some(through.min(document.last)),
        };
        let wanted = |document: &DocumentState| match through {
            Some(through) => document.trimmed < through,
            None => exact.exceeded_by(document, now),
        };
        let before = document.trimmed;
        let mut progress = TrimProgress::Done;
        {
            let snapshot = self.store.snapshot();
            let mut oldest = snapshot.oldest(id, &document);
            while document.kept_events() > 0 {
                let Some(next) = oldest.next() else {
                    // The rest is staged in this batch and not to be seen yet.
                    if !wanted(&document) {
                        break;
                    }
                    if appends == 0 {
                        return Err(self.read_failed(missing(id, document.trimmed + 1)));
                    }
                    progress = TrimProgress::AwaitsCommit;
                    break;
                };
                let (seq, offset, time, total) = next
                    .and_then(|found| {
                        if found.0 == document.trimmed + 1 {
                            Ok(found)
                        } else {
                            Err(missing(id, document.trimmed + 1))
                        }
                    })
                    .map_err(|error| error.into_log_error(|error| self.status.fail(error)))?;
                document.oldest = time;
                if !wanted(&document) {
                    break;
                }
                if *budget == 0 {
                    progress = TrimProgress::BudgetSpent;
                    break;
                }
                *budget -= 1;
                batch.remove(&self.store.events, event_key(document.number, seq));
                batch.remove(&self.store.offsets, offset.get().to_be_bytes());
                document.trimmed = seq;
                document.dropped_bytes = total;
            }
        }
        if document.trimmed > before {
            // Dropping may take the last offset away, which must not be given out again.
            self.store.put_high_watermark(batch, self.last_offset);
            self.store.put_document(batch, id, document.number, document.trimmed);
            Counters::add(&self.status.counters.dropped_events, document.trimmed - before);
        }
        self.heads.put(id, document);
        Ok((document.head(self.epoch), progress))
    }

    /// Begins a walk over all documents, from the start if one is under way.
    fn begin_scan(&mut self) {
        self.next_scan = self.clock.monotonic() + self.config.sweep_interval;
        let replies = self.scan.take().map(|sweep| sweep.replies).unwrap_or_default();
        self.scan = Some(RetentionScan { after: None, finished: false, replies });
    }

    /// Looks at the next documents of a sweep, once those found before are done.
    fn scan_slice(&mut self) {
        let Some(sweep) = self.scan.as_mut().filter(|sweep| !sweep.finished && self.trim_tasks.is_empty())
        else {
            return;
        };
        let store = Arc::clone(&self.store);
        let snapshot = store.snapshot();
        let limits = RetentionLimits::exact(self.config.retention);
        let now = self.clock.wall();
        let slice = match snapshot.documents_after(sweep.after.as_ref(), SCAN_SLICE) {
            Ok(slice) => slice,
            Err(error) => {
                Counters::add(&self.status.counters.retention_failures, 1);
                tracing::error!(%error, "retention could not list the documents");
                sweep.finished = true;
                return;
            }
        };
        sweep.finished = slice.len() < SCAN_SLICE;
        sweep.after = slice.last().cloned();
        for id in slice {
            // Not `self.document`: a sweep must not push lively documents out of memory.
            match self.heads.get(&id).map_or_else(|| snapshot.document(&id), |document| Ok(Some(document))) {
                Ok(Some(document)) if limits.exceeded_by(&document, now) => {
                    self.trim_tasks.push_back(TrimTask { document: id, goal: TrimGoal::WithinRetention });
                }
                Ok(_) => {}
                Err(error) => {
                    Counters::add(&self.status.counters.retention_failures, 1);
                    tracing::error!(document = %id, %error, "retention could not look at a document");
                }
            }
        }
    }

    /// Answers those who asked for the sweep, once it is over or cannot be.
    fn end_scan(&mut self, committed: &Result<(), LogError>) {
        let over =
            |sweep: &mut RetentionScan| committed.is_err() || (sweep.finished && self.trim_tasks.is_empty());
        if let Some(sweep) = self.scan.take_if(over) {
            for (reply, _room) in sweep.replies {
                // Who no longer waits does not want to know.
                let _ = reply.send(committed.clone());
            }
        }
        if committed.is_err() {
            self.trim_tasks.clear();
        }
    }

    fn close(self) {
        if self.status.check().is_err() {
            return;
        }
        let closed = self.store.db.persist(PersistMode::SyncAll).map_err(std::io::Error::other);
        if let Err(error) = closed.and_then(|()| self.marker.close()) {
            self.status.fail(error);
        }
    }
}

/// Every sender is gone.
struct Disconnected;

impl PendingReplies {
    /// Sends what was found, or the failure of the commit to all.
    fn send(self, committed: &Result<(), LogError>) {
        // Who dropped its future no longer waits for the answer; the log keeps what it keeps.
        for (reply, result) in self.appends {
            let _ = reply.send(committed.clone().and(result));
        }
        for (reply, result) in self.trims {
            let _ = reply.send(committed.clone().and(result));
        }
    }
}
