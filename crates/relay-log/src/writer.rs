//! The writer: one thread that makes everything durable, in groups.
//!
//! Whatever waits when the writer is free becomes one batch of the engine and one fsync. Each append is checked against
//! its document's head first, so that two owners of a document cannot both append. Dropping old events rides in the
//! same batches, at most [`DROPS_PER_COMMIT`] at a time, so that appends are hardly delayed by it.
//!
//! Once a commit failed nothing is known of what reached the disk, so the log fails for good: the heads in memory, which
//! are ahead of the disk by what was staged, are never used again.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use fjall::{OwnedWriteBatch, PersistMode};
use relay_core::{Clock, DocumentId, Epoch, Head, LogError, Monotonic, Offset, Seq, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::config::{LogConfig, LogDurability};
use crate::heads::Heads;
use crate::record::Record;
use crate::retention::{Limits, Reached};
use crate::shared::Shared;
use crate::stats::Counters;
use crate::store::{Document, ReadError, Store, event_key, missing};
use crate::witness::Witness;

/// The most events that one commit drops.
const DROPS_PER_COMMIT: usize = 1024;
/// The most documents that a sweep looks at between two commits.
const SWEEP_SLICE: usize = 256;
/// A group is closed when it has this many bytes of events.
const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// An event on its way to the disk.
pub(crate) struct Staged {
    pub(crate) epoch: Epoch,
    pub(crate) seq: Seq,
    pub(crate) time: Timestamp,
    pub(crate) body: Vec<u8>,
}

/// What the writer is asked for. The permits hold the request's room in the queue and are given back with it.
pub(crate) enum Request {
    Append {
        document: DocumentId,
        events: Vec<Staged>,
        reply: oneshot::Sender<Result<Offset, LogError>>,
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
struct Drop {
    document: DocumentId,
    until: Until,
}

enum Until {
    /// Retention's limits hold.
    WithinRetention,
    /// This seq is dropped.
    Trimmed { through: u64, reply: oneshot::Sender<Result<Head, LogError>>, _room: OwnedSemaphorePermit },
}

/// A walk over all documents.
struct Sweep {
    after: Option<DocumentId>,
    finished: bool,
    replies: Vec<(oneshot::Sender<Result<(), LogError>>, OwnedSemaphorePermit)>,
}

/// Answers that wait for the commit.
#[derive(Default)]
struct Answers {
    appends: Vec<Answer<Offset>>,
    trims: Vec<Answer<Head>>,
}

/// Who waits, and what they will be told.
type Answer<T> = (oneshot::Sender<Result<T, LogError>>, Result<T, LogError>);

pub(crate) struct Writer {
    store: Arc<Store>,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    config: LogConfig,
    epoch: Epoch,
    last_offset: Offset,
    heads: Heads,
    drops: VecDeque<Drop>,
    sweep: Option<Sweep>,
    next_sweep: Monotonic,
    witness: Witness,
}

impl Writer {
    pub(crate) fn new(
        store: Arc<Store>,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        config: LogConfig,
        epoch: Epoch,
        last_offset: Offset,
        witness: Witness,
    ) -> Self {
        Self {
            heads: Heads::new(config.cached_heads),
            next_sweep: clock.monotonic() + config.sweep_interval,
            store,
            shared,
            clock,
            config,
            epoch,
            last_offset,
            drops: VecDeque::new(),
            sweep: None,
            witness,
        }
    }

    /// Works until every sender is gone and the queue is empty, then closes the log in order.
    pub(crate) fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let first = match self.next(requests) {
                Ok(first) => first,
                Err(Hangup) => break,
            };
            self.step(first, requests);
        }
        self.close();
    }

    /// The next request; none when there is other work.
    fn next(&mut self, requests: &Receiver<Request>) -> Result<Option<Request>, Hangup> {
        if self.sweep.is_none() && self.clock.monotonic() >= self.next_sweep {
            self.begin_sweep();
        }
        if self.drops.is_empty() && self.sweep.is_none() {
            // A clock that stands still in a test makes this wake up for nothing, no more.
            let wait = self.next_sweep.since(self.clock.monotonic());
            match requests.recv_timeout(wait) {
                Ok(request) => Ok(Some(request)),
                Err(RecvTimeoutError::Timeout) => Ok(None),
                Err(RecvTimeoutError::Disconnected) => Err(Hangup),
            }
        } else {
            match requests.try_recv() {
                Ok(request) => Ok(Some(request)),
                Err(TryRecvError::Empty) => Ok(None),
                // Trims that were asked for are still answered; the rest of retention's work can wait for the next run.
                Err(TryRecvError::Disconnected) if self.has_waiters() => Ok(None),
                Err(TryRecvError::Disconnected) => Err(Hangup),
            }
        }
    }

    fn has_waiters(&self) -> bool {
        self.sweep.as_ref().is_some_and(|sweep| !sweep.replies.is_empty())
            || self.drops.iter().any(|drop| matches!(drop.until, Until::Trimmed { .. }))
    }

    /// One group: stages what waits, commits, answers.
    fn step(&mut self, first: Option<Request>, requests: &Receiver<Request>) {
        let mut batch = self.store.db.batch();
        let mut answers = Answers::default();
        // Room in the queue is held until the group is on the disk: what is being written counts as waiting.
        let mut room = Vec::new();
        let mut bytes = 0;
        for request in first.into_iter().chain(requests.try_iter()) {
            match request {
                Request::Append { document, events, reply, room: held } => {
                    bytes += events.iter().map(|event| event.body.len()).sum::<usize>();
                    room.push(held);
                    let result = self.append(&mut batch, &document, &events);
                    answers.appends.push((reply, result));
                }
                Request::Trim { document, through, reply, room } => self.drops.push_back(Drop {
                    document,
                    until: Until::Trimmed { through: through.get(), reply, _room: room },
                }),
                Request::Sweep { reply, room } => {
                    // A sweep that is under way may have passed what this one is asked for.
                    self.begin_sweep();
                    if let Some(sweep) = &mut self.sweep {
                        sweep.replies.push((reply, room));
                    }
                }
            }
            if bytes >= GROUP_BYTES {
                break;
            }
        }
        self.sweep_slice();
        self.drop_slice(&mut batch, &mut answers);
        let committed = self.commit(batch, answers.appends.len() as u64);
        drop(room);
        answers.send(&committed);
        self.end_sweep(&committed);
    }

    fn commit(&mut self, batch: OwnedWriteBatch, appends: u64) -> Result<(), LogError> {
        self.shared.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        let mode = match self.config.durability {
            LogDurability::Logged => PersistMode::Buffer,
            // The journal's file and its name were synced when it was made; what an append adds is data and size.
            LogDurability::Synced => PersistMode::SyncData,
        };
        let began = self.clock.monotonic();
        batch.durability(Some(mode)).commit().map_err(|error| self.shared.fail(error))?;
        self.witness.acknowledge(self.last_offset).map_err(|error| self.shared.fail(error))?;
        self.shared.counters.commit(appends, self.clock.monotonic().since(began));
        Ok(())
    }

    /// The document as it will be after what is staged; none when it never had an event.
    fn document(&mut self, id: &DocumentId) -> Result<Option<Document>, LogError> {
        if let Some(document) = self.heads.get(id) {
            return Ok(Some(document));
        }
        let document = self.store.view().document(id).map_err(|error| self.read_failed(error))?;
        Ok(document)
    }

    fn read_failed(&self, error: ReadError) -> LogError {
        error.into_log_error(|error| self.shared.fail(error))
    }

    fn append(
        &mut self,
        batch: &mut OwnedWriteBatch,
        id: &DocumentId,
        events: &[Staged],
    ) -> Result<Offset, LogError> {
        self.shared.check()?;
        let known = self.document(id)?;
        let first = self.last_offset.next();
        let mut document = known.unwrap_or(Document {
            number: first.get(),
            trimmed: 0,
            last: 0,
            dropped_bytes: 0,
            total_bytes: 0,
            oldest: Timestamp::MAX,
        });
        for (expected, event) in (document.last + 1..).zip(events) {
            if event.epoch != self.epoch || event.seq.get() != expected {
                Counters::add(&self.shared.counters.conflicts, 1);
                return Err(LogError::Conflict {
                    document: id.clone(),
                    head: document.head(self.epoch),
                    epoch: event.epoch,
                    seq: event.seq,
                });
            }
        }
        if events.is_empty() {
            return Ok(first);
        }
        if known.is_none() {
            self.store.put_document(batch, id, document.number, document.trimmed);
        }
        let before = document.total_bytes;
        if document.kept_events() == 0 {
            document.oldest = events.first().map_or(Timestamp::MAX, |event| event.time);
        }
        for event in events {
            self.last_offset = self.last_offset.next();
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
        let counters = &self.shared.counters;
        Counters::add(&counters.appends, 1);
        Counters::add(&counters.appended_events, events.len() as u64);
        Counters::add(&counters.appended_bytes, document.total_bytes - before);
        self.heads.put(id, document);
        // While a document is over its limits each append would queue it again; one entry is enough.
        if Limits::with_slack(self.config.retention).reached(&document, self.clock.wall())
            && !self.drops.iter().any(|drop| drop.document == *id)
        {
            self.drops.push_back(Drop { document: id.clone(), until: Until::WithinRetention });
        }
        Ok(first)
    }

    /// Stages the dropping of some events that are due.
    fn drop_slice(&mut self, batch: &mut OwnedWriteBatch, answers: &mut Answers) {
        let mut budget = DROPS_PER_COMMIT;
        // Each is looked at once: one that waits for events of this very batch comes back in the next.
        for _ in 0..self.drops.len() {
            if budget == 0 {
                break;
            }
            let Some(drop) = self.drops.pop_front() else { break };
            match self.drop_events(batch, &drop, answers.appends.len(), &mut budget) {
                Ok((_, Reached::NotYet)) => self.drops.push_front(drop),
                Ok((_, Reached::WaitsForCommit)) => self.drops.push_back(drop),
                Ok((head, Reached::Yes)) => {
                    if let Until::Trimmed { reply, .. } = drop.until {
                        answers.trims.push((reply, Ok(head)));
                    }
                }
                Err(error) => match drop.until {
                    Until::Trimmed { reply, .. } => answers.trims.push((reply, Err(error))),
                    Until::WithinRetention => {
                        Counters::add(&self.shared.counters.retention_failures, 1);
                        tracing::error!(document = %drop.document, %error, "retention could not drop old events");
                    }
                },
            }
        }
    }

    fn drop_events(
        &mut self,
        batch: &mut OwnedWriteBatch,
        drop: &Drop,
        appends: usize,
        budget: &mut usize,
    ) -> Result<(Head, Reached), LogError> {
        let id = &drop.document;
        let Some(mut document) = self.document(id)? else {
            return Ok((Head::empty(self.epoch), Reached::Yes));
        };
        let now = self.clock.wall();
        let exact = Limits::exact(self.config.retention);
        let through = match drop.until {
            Until::WithinRetention => None,
            Until::Trimmed { through, .. } => Some(through.min(document.last)),
        };
        let wanted = |document: &Document| match through {
            Some(through) => document.trimmed < through,
            None => exact.reached(document, now),
        };
        let before = document.trimmed;
        let mut reached = Reached::Yes;
        {
            let view = self.store.view();
            let mut oldest = view.oldest(id, &document);
            while document.kept_events() > 0 {
                let Some(next) = oldest.next() else {
                    // The rest is staged in this batch and not to be seen yet.
                    if !wanted(&document) {
                        break;
                    }
                    if appends == 0 {
                        return Err(self.read_failed(missing(id, document.trimmed + 1)));
                    }
                    reached = Reached::WaitsForCommit;
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
                    .map_err(|error| error.into_log_error(|error| self.shared.fail(error)))?;
                document.oldest = time;
                if !wanted(&document) {
                    break;
                }
                if *budget == 0 {
                    reached = Reached::NotYet;
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
            self.store.put_floor(batch, self.last_offset);
            self.store.put_document(batch, id, document.number, document.trimmed);
            Counters::add(&self.shared.counters.dropped_events, document.trimmed - before);
        }
        self.heads.put(id, document);
        Ok((document.head(self.epoch), reached))
    }

    /// Begins a walk over all documents, from the start if one is under way.
    fn begin_sweep(&mut self) {
        self.next_sweep = self.clock.monotonic() + self.config.sweep_interval;
        let replies = self.sweep.take().map(|sweep| sweep.replies).unwrap_or_default();
        self.sweep = Some(Sweep { after: None, finished: false, replies });
    }

    /// Looks at the next documents of a sweep, once those found before are done.
    fn sweep_slice(&mut self) {
        let Some(sweep) = self.sweep.as_mut().filter(|sweep| !sweep.finished && self.drops.is_empty()) else {
            return;
        };
        let store = Arc::clone(&self.store);
        let view = store.view();
        let limits = Limits::exact(self.config.retention);
        let now = self.clock.wall();
        let slice = match view.documents_after(sweep.after.as_ref(), SWEEP_SLICE) {
            Ok(slice) => slice,
            Err(error) => {
                Counters::add(&self.shared.counters.retention_failures, 1);
                tracing::error!(%error, "retention could not list the documents");
                sweep.finished = true;
                return;
            }
        };
        sweep.finished = slice.len() < SWEEP_SLICE;
        sweep.after = slice.last().cloned();
        for id in slice {
            // Not `self.document`: a sweep must not push lively documents out of memory.
            match self.heads.get(&id).map_or_else(|| view.document(&id), |document| Ok(Some(document))) {
                Ok(Some(document)) if limits.reached(&document, now) => {
                    self.drops.push_back(Drop { document: id, until: Until::WithinRetention });
                }
                Ok(_) => {}
                Err(error) => {
                    Counters::add(&self.shared.counters.retention_failures, 1);
                    tracing::error!(document = %id, %error, "retention could not look at a document");
                }
            }
        }
    }

    /// Answers those who asked for the sweep, once it is over or cannot be.
    fn end_sweep(&mut self, committed: &Result<(), LogError>) {
        let over = |sweep: &mut Sweep| committed.is_err() || (sweep.finished && self.drops.is_empty());
        if let Some(sweep) = self.sweep.take_if(over) {
            for (reply, _room) in sweep.replies {
                // Who no longer waits does not want to know.
                let _ = reply.send(committed.clone());
            }
        }
        if committed.is_err() {
            self.drops.clear();
        }
    }

    fn close(self) {
        if self.shared.check().is_err() {
            return;
        }
        let closed = self.store.db.persist(PersistMode::SyncAll).map_err(std::io::Error::other);
        if let Err(error) = closed.and_then(|()| self.witness.close()) {
            self.shared.fail(error);
        }
    }
}

/// Every sender is gone.
struct Hangup;

impl Answers {
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
