//! [`LockStore`]: the locks of all documents, and the queue of documents that have a change to publish.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use relay_core::{
    CheckedDraft, Clock, DocumentId, DocumentLimiter, MemoryShare, Monotonic, TokenError, TokenSource,
};
use tokio::sync::Notify;

use super::config::LockConfig;
use super::document_locks::{AdvanceContext, DocumentLocks};
use super::error::LockError;
use super::memory::LockMemory;
use super::stats::{LockCounters, LockStats};
use crate::sharded::{MapShard, ShardedMap};

/// The locks of all documents of this server.
#[derive(Debug)]
pub(super) struct LockStore {
    config: LockConfig,
    clock: Arc<dyn Clock>,
    tokens: Arc<dyn TokenSource>,
    /// The share of memory of locks that count to no client.
    memory: MemoryShare,
    documents: ShardedMap<DocumentLocks>,
    /// The documents in which the clients of each address have locks.
    places: DocumentLimiter,
    /// The number of documents in the map.
    document_count: AtomicUsize,
    /// The documents that have a change to publish and none that is being published, each once.
    ready_queue: Mutex<VecDeque<DocumentId>>,
    queue_notify: Notify,
    /// The number of changes that are not reported yet.
    unreported: AtomicUsize,
    is_closed: AtomicBool,
    counters: LockCounters,
}

impl LockStore {
    pub(super) fn new(
        config: LockConfig,
        clock: Arc<dyn Clock>,
        tokens: Arc<dyn TokenSource>,
        memory: MemoryShare,
    ) -> Self {
        Self {
            memory,
            places: DocumentLimiter::new(Some(config.documents_per_address())),
            config,
            clock,
            tokens,
            documents: ShardedMap::default(),
            document_count: AtomicUsize::new(0),
            ready_queue: Mutex::default(),
            queue_notify: Notify::new(),
            unreported: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            counters: LockCounters::default(),
        }
    }

    pub(super) fn config(&self) -> &LockConfig {
        &self.config
    }

    pub(super) fn now(&self) -> Monotonic {
        self.clock.monotonic()
    }

    /// Reserves the token of a lock that may be granted later.
    pub(super) async fn reserve_token(&self) -> Result<(), TokenError> {
        self.tokens.reserve().await
    }

    /// Reserves the memory of a lock whose texts have `text_bytes`, and its place among the documents and the locks of the
    /// client's address.
    /// `client` is the client's share of memory.
    pub(super) fn reserve_memory(
        &self,
        document: &DocumentId,
        client: Option<MemoryShare>,
        text_bytes: usize,
    ) -> Result<LockMemory, LockError> {
        let share = client.unwrap_or_else(|| self.memory.clone());
        let reserve = || {
            let place = self.places.acquire(share.address(), document)?;
            let max = self.config.locks_per_address();
            match share.address() {
                Some(address) if place.count() > max => {
                    Err(LockError::TooManyLocksOfAddress { max, address })
                }
                _ => Ok(LockMemory::reserve(share.clone(), text_bytes, place)?),
            }
        };
        reserve().inspect_err(|_| self.counters.refused.increment())
    }

    /// Lends a document's locks to `visit`, which must not cause a change to publish. Returns `None` when there are no locks.
    pub(super) fn with<T>(
        &self,
        document: &DocumentId,
        visit: impl FnOnce(&mut DocumentLocks) -> T,
    ) -> Option<T> {
        self.documents.with(document, visit)
    }

    /// Changes a document's locks, which are created when there are none.
    pub(super) fn enter<T>(
        &self,
        document: &DocumentId,
        change: impl FnOnce(&mut DocumentLocks, &AdvanceContext<'_>) -> T,
    ) -> Result<T, LockError> {
        self.try_enter(document, change).inspect_err(|_| self.counters.refused.increment())
    }

    fn try_enter<T>(
        &self,
        document: &DocumentId,
        change: impl FnOnce(&mut DocumentLocks, &AdvanceContext<'_>) -> T,
    ) -> Result<T, LockError> {
        let config = &self.config;
        let mut shard = self.documents.lock(document);
        if self.is_closed() {
            return Err(LockError::Closed);
        }
        match shard.get(document) {
            Some(locks) if locks.is_overloaded(config) => {
                return Err(LockError::Overloaded { max: config.max_unpublished });
            }
            Some(_) => {}
            None if self.document_count.load(Ordering::Relaxed) >= config.max_documents => {
                return Err(LockError::TooManyDocuments { max: config.max_documents });
            }
            None => {
                shard.insert(document.clone(), DocumentLocks::new(config));
                self.document_count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.apply(&mut shard, document, change).ok_or(LockError::Closed)
    }

    /// Changes a document's locks. Returns `None` when there are none.
    pub(super) fn update<T>(
        &self,
        document: &DocumentId,
        change: impl FnOnce(&mut DocumentLocks, &AdvanceContext<'_>) -> T,
    ) -> Option<T> {
        self.apply(&mut self.documents.lock(document), document, change)
    }

    /// Changes the locks of every document.
    pub(super) fn update_all(&self, mut change: impl FnMut(&mut DocumentLocks, &AdvanceContext<'_>)) {
        for document in self.documents.documents() {
            self.update(&document, &mut change);
        }
    }

    /// Changes a document's locks, queues the document when it has a change to publish, and removes it when it has no locks.
    fn apply<T>(
        &self,
        shard: &mut MapShard<DocumentLocks>,
        document: &DocumentId,
        change: impl FnOnce(&mut DocumentLocks, &AdvanceContext<'_>) -> T,
    ) -> Option<T> {
        let locks = shard.get_mut(document)?;
        let before = locks.unreported();
        let cx = AdvanceContext {
            now: self.clock.now(),
            tokens: &*self.tokens,
            config: &self.config,
            counters: &self.counters,
        };
        let result = change(locks, &cx);
        let after = locks.unreported();
        // Two steps, since the difference may be negative. In between, the number is too large and never too small.
        self.unreported.fetch_add(after, Ordering::SeqCst);
        self.unreported.fetch_sub(before, Ordering::SeqCst);
        if locks.claim_place_in_ready_queue() {
            self.ready_queue.lock().push_back(document.clone());
            self.queue_notify.notify_one();
        }
        if locks.is_empty() {
            shard.remove(document);
            self.document_count.fetch_sub(1, Ordering::Relaxed);
        }
        Some(result)
    }

    /// Refuses all further requests, ends all locks, and refuses the requests that wait.
    pub(super) fn shut_down(&self) {
        // A call that enters a shard after this sees it. A call that was in a shard before is seen by the update.
        self.is_closed.store(true, Ordering::SeqCst);
        self.update_all(DocumentLocks::shut_down);
        self.queue_notify.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// The next change that is to be published, as an event of its document. `None` when the store is shut down and every
    /// change is reported. Cancel-safe.
    pub(super) async fn next_change(&self) -> Option<(DocumentId, CheckedDraft)> {
        loop {
            if let Some(change) = self.take_change() {
                return Some(change);
            }
            if self.is_closed() && self.unreported.load(Ordering::SeqCst) == 0 {
                return None;
            }
            self.queue_notify.notified().await;
        }
    }

    fn take_change(&self) -> Option<(DocumentId, CheckedDraft)> {
        loop {
            let document = self.ready_queue.lock().pop_front()?;
            match self.with(&document, |locks| locks.begin_publishing(&document)).flatten() {
                Some(Ok(draft)) => return Some((document, draft)),
                Some(Err(error)) => self.end_publishing(&document, Err(error.into())),
                None => {}
            }
        }
    }

    /// Takes the outcome of publishing a document's change.
    pub(super) fn end_publishing(&self, document: &DocumentId, outcome: Result<(), LockError>) {
        if let Err(error) = &outcome {
            // A client can cause one for each of its requests. They are counted, and the first is a warning.
            if self.counters.failed_changes.increment_first() {
                tracing::warn!(%document, %error, "a change of a lock was not published, the first one");
            } else {
                tracing::debug!(%document, %error, "a change of a lock was not published");
            }
        }
        self.update(document, |locks, cx| locks.end_publishing(outcome, cx));
        if self.is_closed() {
            self.queue_notify.notify_one();
        }
    }

    pub(super) fn counters(&self) -> &LockCounters {
        &self.counters
    }

    /// The present numbers and the counters.
    pub(super) fn stats(&self) -> LockStats {
        let documents = self.document_count.load(Ordering::Relaxed);
        self.counters.snapshot(documents, self.unreported.load(Ordering::Relaxed))
    }
}
