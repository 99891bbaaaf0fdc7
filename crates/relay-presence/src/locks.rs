//! Exclusive editing: who may edit a document, or a region of it, while everybody else may not.
//!
//! [`Locks`] keeps the locks of all documents in memory. Three parties work with it:
//! - Those who want locks [acquire](Locks::acquire), [renew](Locks::renew) and [release](Locks::release) them.
//! - The document's order asks it, as its [`Sequencer`](relay_core::Sequencer), before an event gets its place.
//! - Its owner publishes the [changes](Locks::next_change), [sweeps](Locks::sweep), and says
//!   [who is gone](Locks::user_gone).
//!
//! What always holds:
//! - Two users never hold scopes that overlap; see `table.rs`.
//! - Between a lock's `document.locked` and its `document.unlocked` in the document's order there is no edit by anybody else
//!   to what it covers, save after the lease has expired. From the moment of granting on others are kept out, and the event
//!   comes after that; and a lock that ends keeps them out until its event has its place.
//! - After a lock's `document.unlocked` there is no edit under its token.
//! - Who asked is answered when everybody can know: when the event is durable.
//! - A lease that has expired counts as ended at that moment, whether a sweep has come by or not.
//!
//! Locks do not outlive the process. Their tokens do: what was edited under a lock of an earlier run is refused as stale.

mod changes;
mod commands;
mod config;
mod counters;
mod document_locks;
mod error;
mod sequencer;
mod table;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{Clock, DocumentId, FencingToken, Lease, LockScope, TokenSource, UserId};
use relay_events::UnlockReason;
use tokio::sync::{Notify, oneshot};

use self::counters::LockCounters;
use self::document_locks::{AdvanceContext, DocumentLocks};
use self::table::{LockRequest, Ticket};
use crate::sharded::{Shard, ShardedMap};

pub use self::changes::{LockChange, Publication};
pub use self::commands::{AcquireLock, ReleaseLock, RenewLock};
pub use self::config::{LockConfig, LockConfigError};
pub use self::counters::LockStats;
pub use self::error::LockError;

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcquireRequest {
    /// What is to be locked.
    pub scope: LockScope,
    /// For how long; [`LockConfig::default_ttl`] if not given.
    pub ttl: Option<Duration>,
    /// How long to wait where somebody else is first. Zero: not at all.
    pub wait: Duration,
}

/// The locks of all documents. Cheap to clone; all clones are the same locks.
#[derive(Debug, Clone)]
pub struct Locks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: LockConfig,
    clock: Arc<dyn Clock>,
    tokens: Arc<dyn TokenSource>,
    documents: ShardedMap<DocumentLocks>,
    /// The number of documents in the map.
    document_count: AtomicUsize,
    /// The documents that have a change to publish and none under way, each once.
    ready_queue: Mutex<VecDeque<DocumentId>>,
    queue_notify: Notify,
    /// Changes that are not reported yet.
    unreported: AtomicUsize,
    is_closed: AtomicBool,
    counters: LockCounters,
}

impl Locks {
    /// No locks yet. Check the `config` with [`LockConfig::validate`] first.
    pub fn new(config: LockConfig, clock: Arc<dyn Clock>, tokens: Arc<dyn TokenSource>) -> Self {
        Self(Arc::new(Inner {
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
        }))
    }

    /// Acquires a lock for `user`, waiting for it where the request says so, and for its event to be durable.
    ///
    /// A user who holds exactly this scope already gets that lease, prolonged, with the same token. Other locks of the
    /// same user never stand in the way. Whoever asked earlier for something that overlaps comes first, so a request
    /// can have to wait though nobody holds what it is for.
    ///
    /// Cancel-safe: dropped, the request is withdrawn; if it had just been granted, the lock is released again.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn acquire(
        &self,
        document: &DocumentId,
        user: &UserId,
        request: AcquireRequest,
    ) -> Result<Lease, LockError> {
        let AcquireRequest { scope, ttl, wait } = request;
        let ttl = self.ttl(ttl)?;
        let max = self.0.config.max_wait;
        if wait > max {
            return Err(LockError::InvalidWait { wait, max });
        }
        self.0.tokens.reserve().await?;
        let (answer, answered) = oneshot::channel();
        let ticket = self.enter(document, |entry, cx| {
            let wait_until = cx.now.monotonic + wait;
            let request = LockRequest { user: user.clone(), scope, ttl, wait_until };
            entry.acquire(request, wait, answer, cx)
        })?;
        let mut pending = WithdrawOnDrop { locks: self, document, ticket: Some(ticket) };
        let answer = answered.await;
        pending.ticket = None;
        answer.unwrap_or(Err(LockError::Closed))
    }

    /// Prolongs `user`'s lease, and waits for the event that says so to be durable. A lease is never shortened by this.
    ///
    /// Cancel-safe: dropped, the lease is prolonged all the same.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn renew(
        &self,
        document: &DocumentId,
        user: &UserId,
        token: FencingToken,
        ttl: Option<Duration>,
    ) -> Result<Lease, LockError> {
        let ttl = self.ttl(ttl)?;
        let (answer, answered) = oneshot::channel();
        self.enter(document, |entry, cx| entry.renew(user, token, ttl, answer, cx))?;
        answered.await.unwrap_or(Err(LockError::Closed))
    }

    /// Gives back `user`'s lock, and waits for the event that says so to be durable. Edits that were handed to the
    /// document's order before are still made under the lock.
    ///
    /// Cancel-safe: dropped, the lock ends all the same.
    ///
    /// # Errors
    /// [`LockError::Stale`], or [`LockError::Unpublished`]: the lock has ended then, too.
    pub async fn release(
        &self,
        document: &DocumentId,
        user: &UserId,
        token: FencingToken,
    ) -> Result<Lease, LockError> {
        let is_theirs = |lease: &Lease| lease.holder == *user;
        self.end_one(document, token, is_theirs, UnlockReason::Released).await
    }

    /// Takes a lock away from whoever holds it, otherwise like [`release`](Self::release).
    ///
    /// # Errors
    /// As for [`release`](Self::release).
    pub async fn force_release(
        &self,
        document: &DocumentId,
        token: FencingToken,
    ) -> Result<Lease, LockError> {
        self.end_one(document, token, |_| true, UnlockReason::Forced).await
    }

    async fn end_one(
        &self,
        document: &DocumentId,
        token: FencingToken,
        ends: impl Fn(&Lease) -> bool,
        reason: UnlockReason,
    ) -> Result<Lease, LockError> {
        let (answer, answered) = oneshot::channel();
        self.visit(document, |entry, cx| entry.end_one(token, ends, reason, answer, cx))
            .ok_or(LockError::Stale { token })?;
        answered.await.unwrap_or(Err(LockError::Closed))
    }

    /// The locks that are held in a document, in the order in which they were granted. Who reads the document's events
    /// from a position that was taken before gets every later change as an event.
    pub fn held(&self, document: &DocumentId) -> Vec<Lease> {
        let monotonic = self.0.clock.monotonic();
        let shard = self.0.documents.lock(document);
        shard.get(document).map(|entry| entry.table().live(monotonic).cloned().collect()).unwrap_or_default()
    }

    /// Ends the locks of a user whose last connection to the document has been gone for too long. What the user has asked
    /// for over other ways and still waits for is left alone.
    pub fn user_gone(&self, document: &DocumentId, user: &UserId) {
        self.visit(document, |entry, cx| {
            entry.end_all(|lease| lease.holder == *user, UnlockReason::HolderGone, cx);
        });
    }

    /// Ends the leases that have expired, gives those who wait their turn, and sends those away whose time to wait is over.
    /// To be called about every second: waiting ends this exactly.
    pub fn sweep(&self) {
        self.visit_all(DocumentLocks::advance);
    }

    /// Ends all locks, sends everyone away who waits, and gives out no more. Afterwards
    /// [`next_change`](Self::next_change) gives what is to be published still.
    pub fn shutdown(&self) {
        // Whoever enters a shard after this sees it; whoever was there before is seen by the visit.
        self.0.is_closed.store(true, Ordering::SeqCst);
        self.visit_all(DocumentLocks::shut_down);
        self.0.queue_notify.notify_one();
    }

    /// What has happened, in numbers.
    pub fn stats(&self) -> LockStats {
        let documents = self.0.document_count.load(Ordering::Relaxed);
        self.0.counters.snapshot(documents, self.0.unreported.load(Ordering::Relaxed))
    }

    /// The next change that is to be published, over all documents. `None` when locks were
    /// [shut down](Self::shutdown) and every change is reported.
    ///
    /// One task is to call this, from the start: acquiring, renewing and releasing wait for it. What waits here is
    /// bounded in each document by [`LockConfig::max_unpublished`], one end for each lock, and one grant for each who waits.
    ///
    /// Cancel-safe.
    pub async fn next_change(&self) -> Option<LockChange> {
        loop {
            if let Some(change) = self.take_change() {
                return Some(change);
            }
            if self.0.is_closed.load(Ordering::SeqCst) && self.0.unreported.load(Ordering::SeqCst) == 0 {
                return None;
            }
            self.0.queue_notify.notified().await;
        }
    }

    fn take_change(&self) -> Option<LockChange> {
        loop {
            let document = self.0.ready_queue.lock().pop_front()?;
            let draft = {
                let mut shard = self.0.documents.lock(&document);
                let Some(entry) = shard.get_mut(&document) else { continue };
                entry.is_in_ready_queue = false;
                let Some(change) = entry.begin_publishing() else { continue };
                changes::draft(&document, change)
            };
            match draft {
                Ok(draft) => {
                    let publication = Publication::new(self.clone(), document);
                    return Some(LockChange { draft, publication });
                }
                Err(error) => self.end_publishing(&document, Err(error.into())),
            }
        }
    }

    fn end_publishing(&self, document: &DocumentId, outcome: Result<(), LockError>) {
        if let Err(error) = &outcome {
            tracing::warn!(%document, %error, "a change of a lock was not published");
        }
        self.visit(document, |entry, cx| entry.end_publishing(outcome, cx));
        if self.0.is_closed.load(Ordering::SeqCst) {
            self.0.queue_notify.notify_one();
        }
    }

    fn ttl(&self, ttl: Option<Duration>) -> Result<Duration, LockError> {
        let max = self.0.config.max_ttl;
        let ttl = ttl.unwrap_or(self.0.config.default_ttl);
        if ttl < Duration::from_millis(1) || ttl > max {
            return Err(LockError::InvalidTtl { ttl, max });
        }
        Ok(ttl)
    }
}

/// Withdraws a request whose caller stops waiting.
struct WithdrawOnDrop<'a> {
    locks: &'a Locks,
    document: &'a DocumentId,
    ticket: Option<Ticket>,
}

impl Drop for WithdrawOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.locks.visit(self.document, |entry, cx| entry.withdraw(ticket, cx));
        }
    }
}

impl Locks {
    fn cx(&self) -> AdvanceContext<'_> {
        let Inner { config, clock, tokens, counters, .. } = &*self.0;
        let now = clock.now();
        AdvanceContext { now, tokens: &**tokens, config, counters }
    }

    /// Changes a document's locks, which begin if there are none.
    fn enter<T>(
        &self,
        document: &DocumentId,
        change: impl FnOnce(&mut DocumentLocks, &AdvanceContext<'_>) -> T,
    ) -> Result<T, LockError> {
        let config = &self.0.config;
        let mut shard = self.0.documents.lock(document);
        if self.0.is_closed.load(Ordering::SeqCst) {
            return Err(LockError::Closed);
        }
        match shard.get(document) {
            Some(entry) if entry.is_overloaded(config) => {
                return Err(LockError::Overloaded { max: config.max_unpublished });
            }
            Some(_) => {}
            None if self.0.document_count.load(Ordering::Relaxed) >= config.max_documents => {
                return Err(LockError::TooManyDocuments { max: config.max_documents });
            }
            None => {
                shard.insert(document.clone(), DocumentLocks::new(config));
                self.0.document_count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.change(&mut shard, document, change).ok_or(LockError::Closed)
    }

    /// Changes a document's locks, if there are any.
    fn visit<T>(
        &self,
        document: &DocumentId,
        change: impl FnOnce(&mut DocumentLocks, &AdvanceContext<'_>) -> T,
    ) -> Option<T> {
        self.change(&mut self.0.documents.lock(document), document, change)
    }

    fn visit_all(&self, mut change: impl FnMut(&mut DocumentLocks, &AdvanceContext<'_>)) {
        for document in self.0.documents.documents() {
            self.visit(&document, &mut change);
        }
    }

    fn change<T>(
        &self,
        shard: &mut Shard<DocumentLocks>,
        document: &DocumentId,
        change: impl FnOnce(&mut DocumentLocks, &AdvanceContext<'_>) -> T,
    ) -> Option<T> {
        let entry = shard.get_mut(document)?;
        let before = entry.unreported();
        let result = change(entry, &self.cx());
        let after = entry.unreported();
        // Two steps, since the number has no sign; it is never too small in between.
        self.0.unreported.fetch_add(after, Ordering::SeqCst);
        self.0.unreported.fetch_sub(before, Ordering::SeqCst);
        if entry.has_work() && !entry.is_in_ready_queue {
            entry.is_in_ready_queue = true;
            self.0.ready_queue.lock().push_back(document.clone());
            self.0.queue_notify.notify_one();
        }
        if entry.is_empty() {
            shard.remove(document);
            self.0.document_count.fetch_sub(1, Ordering::Relaxed);
        }
        Some(result)
    }
}
