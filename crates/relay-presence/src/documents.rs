//! [`Documents`]: the presence of all documents, and the effects that follow each change.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use parking_lot::MutexGuard;
use relay_core::{CheckedDraft, Clock, DocumentId, MemoryShare, NodeId, ShareKind};

use crate::config::PresenceConfig;
use crate::crdt::Replica;
use crate::document::{Document, Effects};
use crate::flushing::{Flush, FlushQueue, ReaderId};
use crate::presence_view::PresenceView;
use crate::sharded::{MapShard, ShardedMap};
use crate::stats::{PresenceCounters, PresenceStats};
use crate::version::Version;

/// The presence of all documents of this server. A document exists while it has something to remember.
pub(crate) struct Documents {
    map: ShardedMap<Document>,
    node: NodeId,
    clock: Arc<dyn Clock>,
    flush_interval: Duration,
    memory: MemoryShare,
    max_document_bytes: usize,
    last_version: AtomicU64,
    last_reader: AtomicU64,
    flushes: FlushQueue,
    counters: PresenceCounters,
}

/// The result of a change.
#[must_use = "a publisher may have to be started"]
pub(crate) struct Changed<T> {
    pub(crate) value: T,
    /// True when the caller has to start the document's publisher.
    pub(crate) needs_publisher: bool,
}

impl Documents {
    /// No documents yet. `node` is this server's id in the presence that servers merge.
    pub(crate) fn new(
        node: NodeId,
        clock: Arc<dyn Clock>,
        config: &PresenceConfig,
        memory: MemoryShare,
    ) -> Self {
        Self {
            map: ShardedMap::default(),
            node,
            clock,
            flush_interval: config.flush_interval,
            memory,
            max_document_bytes: config.max_document_bytes,
            last_version: AtomicU64::new(1),
            last_reader: AtomicU64::new(0),
            flushes: FlushQueue::default(),
            counters: PresenceCounters::default(),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn counters(&self) -> &PresenceCounters {
        &self.counters
    }

    /// The number of a new reader.
    pub(crate) fn next_reader(&self) -> ReaderId {
        ReaderId(self.last_reader.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn next_version(&self) -> Version {
        self.last_version.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The documents that exist when their shard is reached. No lock is held while the caller handles one.
    pub(crate) fn ids(&self) -> impl Iterator<Item = DocumentId> {
        self.map.documents()
    }

    /// Lends every document to `visit`, and holds the lock of one shard at a time.
    pub(crate) fn for_each(&self, visit: impl FnMut(&DocumentId, &Document)) {
        self.map.for_each(visit);
    }

    /// Lends a document to `visit`, which must not change what readers see or what is published. Returns `None` when the
    /// document does not exist.
    pub(crate) fn with_document<T>(
        &self,
        id: &DocumentId,
        visit: impl FnOnce(&mut Document) -> T,
    ) -> Option<T> {
        self.map.with(id, visit)
    }

    /// Changes a document and applies the effects. Returns `None` when the document does not exist.
    pub(crate) fn update<T>(
        &self,
        id: &DocumentId,
        change: impl FnOnce(&mut Document, Version) -> T,
    ) -> Option<Changed<T>> {
        let mut shard = self.map.lock(id);
        // Under the lock, so that the versions of a document only grow.
        let value = change(shard.get_mut(id)?, self.next_version());
        Some(Changed { value, needs_publisher: self.commit_change(shard, id) })
    }

    /// Changes a document, which is created when it does not exist, and applies the effects.
    pub(crate) fn update_or_insert<T>(
        &self,
        id: &DocumentId,
        change: impl FnOnce(&mut Document, Version) -> T,
    ) -> Changed<T> {
        let mut shard = self.map.lock(id);
        let document = shard.entry(id.clone()).or_insert_with(|| {
            let view = PresenceView::new(
                Replica::new(self.node),
                self.next_version(),
                self.memory.child(ShareKind::Document, self.max_document_bytes),
            );
            Document::new(id.clone(), view, self.memory.clone())
        });
        let value = change(document, self.next_version());
        Changed { value, needs_publisher: self.commit_change(shard, id) }
    }

    /// Applies the effects of a change, removes the document when nothing is left of it, and releases the lock. Returns true
    /// when the document needs a publisher.
    fn commit_change(&self, mut shard: MutexGuard<'_, MapShard<Document>>, id: &DocumentId) -> bool {
        let Some(document) = shard.get_mut(id) else { return false };
        let (needs_publisher, wakers) = self.apply_effects(id, document);
        if document.is_over() {
            shard.remove(id);
        }
        // Readers take the lock when they are woken.
        drop(shard);
        wakers.into_iter().for_each(Waker::wake);
        needs_publisher
    }

    fn apply_effects(&self, id: &DocumentId, document: &mut Document) -> (bool, Vec<Waker>) {
        let Effects { counter_delta, needs_publisher, flush } =
            document.take_effects(self.clock.monotonic(), self.flush_interval);
        self.counters.apply(&counter_delta);
        let wakers = match flush {
            Flush::Nothing => Vec::new(),
            Flush::Done(wakers) => wakers,
            Flush::Scheduled(passes) => {
                self.flushes.push(id.clone(), passes);
                Vec::new()
            }
        };
        (needs_publisher, wakers)
    }

    /// Waits until a flush is scheduled. Cancel-safe.
    pub(crate) async fn flush_scheduled(&self) {
        self.flushes.wait().await;
    }

    /// Makes the changes visible whose flush is due. To be called every flush interval while flushes are scheduled.
    pub(crate) fn flush(&self) {
        let now = self.clock.monotonic();
        for id in self.flushes.pass() {
            let wakers = self.with_document(&id, |document| document.flush(now));
            wakers.unwrap_or_default().into_iter().for_each(Waker::wake);
        }
    }

    /// Wakes the readers of a document that waited for memory, if there is some.
    pub(crate) fn wake_starved(&self, id: &DocumentId) {
        let wakers = self.with_document(id, Document::take_starved);
        wakers.unwrap_or_default().into_iter().for_each(Waker::wake);
    }

    /// Waits for the next event for a document's publisher, which then [hands it over](Self::mark_handed_over). `None` when
    /// the document does not exist. Cancel-safe.
    pub(crate) async fn next_outgoing(&self, id: &DocumentId) -> Option<CheckedDraft> {
        poll_fn(|cx| match self.with_document(id, |document| document.outbox().poll_next(cx)) {
            Some(Poll::Ready(draft)) => Poll::Ready(Some(draft)),
            Some(Poll::Pending) => Poll::Pending,
            None => Poll::Ready(None),
        })
        .await
    }

    /// Takes back the events that are handed over and have no outcome, but the first `in_flight` ones.
    pub(crate) fn reclaim_outgoing(&self, id: &DocumentId, in_flight: usize) {
        self.with_document(id, |document| document.outbox().reclaim(in_flight));
    }

    /// Notes that a document's next event is handed to the sink. It stays in the outbox until its
    /// [end](Self::end_outgoing).
    pub(crate) fn mark_handed_over(&self, id: &DocumentId) {
        self.with_document(id, |document| document.outbox().mark_handed_over());
    }

    /// Notes that the overloaded log refused the first event in flight, which is handed over again.
    pub(crate) fn refuse_outgoing(&self, id: &DocumentId) {
        self.with_document(id, |document| document.outbox().refuse_first());
    }

    /// Ends the work of a document's publisher when there are no more events. Returns true then.
    pub(crate) fn release_publisher(&self, id: &DocumentId) -> bool {
        let mut shard = self.map.lock(id);
        let Some(document) = shard.get_mut(id) else { return true };
        let is_released = document.outbox().release_publisher();
        if document.is_over() {
            shard.remove(id);
        }
        is_released
    }

    /// Removes the first event in flight, which was published or given up, from the document's outbox.
    pub(crate) fn end_outgoing(&self, id: &DocumentId, is_kept: bool) {
        self.with_document(id, |document| document.end_outgoing(is_kept));
    }

    /// The present numbers and the counters.
    pub(crate) fn stats(&self) -> PresenceStats {
        let (mut sessions, mut users, mut connections, mut waiting) = (0, 0, 0, 0);
        self.for_each(|_, document| {
            sessions += usize::from(document.session().is_some());
            users += document.users().count();
            connections += document.connection_count();
            waiting += document.waiting_events();
        });
        self.counters.snapshot(sessions, users, connections, waiting)
    }
}
