//! Exclusive editing: locks on documents and on regions of them.
//!
//! [`Locks`] keeps the locks of all documents in memory. Three parties work with it:
//! - Users [acquire](Locks::acquire), [renew](Locks::renew) and [release](Locks::release) locks.
//! - The document's channel asks it, as a [`Sequencer`](relay_core::Sequencer), before an event gets its place.
//! - The owner publishes the [changes](Locks::next_change), [sweeps](Locks::sweep), and reports
//!   [users that are gone](Locks::user_gone).
//!
//! Invariants:
//! - Two users never hold scopes that overlap; see `table.rs`.
//! - Between a lock's `document.locked` and its `document.unlocked` in the document's order, no other user edits what it
//!   covers, unless the lease has expired. Others are kept out from the grant on, and the event comes after the grant. A lock
//!   that ends keeps others out until its event has its place.
//! - After a lock's `document.unlocked` no edit is made under its token.
//! - A request is answered when its event is durable. That of a renewal is ephemeral, and follows the `document.locked`.
//! - A lease ends when it expires, even before the next sweep.
//!
//! Locks do not outlive the process. Their tokens do: an edit under a lock of an earlier process is refused as stale.

mod changes;
mod commands;
mod config;
mod document_locks;
mod error;
mod held_locks;
mod memory;
mod sequencer;
mod stats;
mod store;
mod table;

use std::sync::Arc;
use std::time::Duration;

use relay_core::{
    Clock, ConfigError, DocumentId, FencingToken, Lease, MemoryBudget, Region, TokenSource, UserId,
};
use relay_events::UnlockReason;
use relay_metrics::Counter;
use tokio::sync::oneshot;

use self::document_locks::{DocumentLocks, Waiter};
use self::held_locks::RequestId;
use self::store::LockStore;
use self::table::LockRequest;

pub use self::changes::{LockChange, Publication};
pub use self::commands::{AcquireLock, AcquireRequest, ReleaseLock, RenewLock};
pub use self::config::LockConfig;
pub use self::error::LockError;
pub use self::stats::LockStats;

/// The locks of all documents. Clones are handles to the same locks.
#[derive(Debug, Clone)]
pub struct Locks(Arc<LockStore>);

impl Locks {
    /// No locks yet. `tokens` gives the fencing tokens. They have a budget of memory of their own.
    ///
    /// # Errors
    /// [`ConfigError`] when a field of `config` is out of bounds.
    pub fn new(
        config: LockConfig,
        clock: Arc<dyn Clock>,
        tokens: Arc<dyn TokenSource>,
    ) -> Result<Self, ConfigError> {
        Self::with_memory(config, clock, tokens, &MemoryBudget::default())
    }

    /// Locks like those of [`Locks::new`], whose memory counts to `memory`.
    ///
    /// # Errors
    /// As for [`Locks::new`].
    pub fn with_memory(
        config: LockConfig,
        clock: Arc<dyn Clock>,
        tokens: Arc<dyn TokenSource>,
        memory: &MemoryBudget,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self(Arc::new(LockStore::new(config, clock, tokens, memory.total().clone()))))
    }

    /// Acquires a lock for `user`. Waits for the lock as long as the request allows, and then for its event to be durable.
    ///
    /// A user who holds exactly this scope gets that lease, prolonged, with the same token. The user's other locks never
    /// stand in the way. Earlier requests for scopes that overlap come first, so a request may have to wait for a scope that
    /// is free.
    ///
    /// Cancel-safe: dropped, the request is withdrawn, and a lock that it was just granted is released.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn acquire(
        &self,
        document: &DocumentId,
        user: &UserId,
        request: AcquireRequest,
    ) -> Result<Lease, LockError> {
        let AcquireRequest { scope, ttl, wait, memory } = request;
        let config = self.0.config();
        let ttl = config.ttl(ttl)?;
        if wait > config.max_wait {
            return Err(LockError::InvalidWait { wait, max: config.max_wait });
        }
        let texts = [document.as_str(), user.as_str(), scope.region().map_or("", Region::as_str)];
        let memory = self.0.reserve_memory(document, memory, texts.map(str::len).iter().sum())?;
        self.0.reserve_token().await?;
        let (answer, answered) = oneshot::channel();
        let ticket = self.0.enter(document, |locks, cx| {
            let wait_until = cx.now.monotonic + wait;
            let waiter = Waiter { scope: scope.clone(), wait, answer, memory };
            let request = LockRequest { user: user.clone(), scope, ttl, wait_until };
            locks.acquire(request, waiter, cx)
        })?;
        let mut pending = WithdrawOnDrop { store: &self.0, document, ticket: Some(ticket) };
        let answer = answered.await;
        pending.ticket = None;
        answer.unwrap_or(Err(LockError::Closed))
    }

    /// Prolongs `user`'s lease, and waits for the ephemeral `lock.renewed` to be published. A renewal never shortens a lease.
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
        let ttl = self.0.config().ttl(ttl)?;
        let (answer, answered) = oneshot::channel();
        self.0.enter(document, |locks, cx| locks.renew(user, token, ttl, answer, cx))?;
        answered.await.unwrap_or(Err(LockError::Closed))
    }

    /// Releases `user`'s lock, and waits for its event to be durable. Edits that the document's channel has taken before are
    /// still made under the lock.
    ///
    /// Cancel-safe: dropped, the lock ends all the same.
    ///
    /// # Errors
    /// [`LockError::Stale`] when the user holds no such lock. [`LockError::Unpublished`] when the event was not published;
    /// the lock has ended then, too.
    pub async fn release(
        &self,
        document: &DocumentId,
        user: &UserId,
        token: FencingToken,
    ) -> Result<Lease, LockError> {
        let is_own = |lease: &Lease| lease.holder == *user;
        self.end_one(document, token, is_own, UnlockReason::Released).await
    }

    /// Releases a lock of any user, otherwise like [`release`](Self::release).
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
        self.0
            .update(document, |locks, cx| locks.end_one(token, ends, reason, answer, cx))
            .ok_or(LockError::Stale { token })?;
        answered.await.unwrap_or(Err(LockError::Closed))
    }

    /// The locks that are held in a document, in the order in which they were granted. A reader of the document's events
    /// from a position that was taken before this call gets every later change as an event.
    pub fn held(&self, document: &DocumentId) -> Vec<Lease> {
        let now = self.0.now();
        self.0.with(document, |locks| locks.table().live(now).cloned().collect()).unwrap_or_default()
    }

    /// Ends the locks of a user whose last connection to the document has been gone for too long, and refuses the user's
    /// requests that wait. A user who never joined is never gone.
    pub fn user_gone(&self, document: &DocumentId, user: &UserId) {
        self.0.update(document, |locks, cx| locks.end_user(user, cx));
    }

    /// Ends the leases that have expired, grants what can be granted, and refuses requests whose time to wait is over. To be
    /// called about every second: a request waits this much longer at most.
    pub fn sweep(&self) {
        self.0.update_all(DocumentLocks::advance);
    }

    /// Ends all locks, refuses the requests that wait, and grants no more. Afterwards [`next_change`](Self::next_change)
    /// gives the changes that are still to be published.
    pub fn shutdown(&self) {
        self.0.shut_down();
    }

    /// The counter of repeated attempts to publish the end of a lock.
    pub(crate) fn retries(&self) -> &Counter {
        &self.0.counters().retries
    }

    /// The present numbers and the counters.
    pub fn stats(&self) -> LockStats {
        self.0.stats()
    }

    /// The next change that is to be published, over all documents. Returns `None` when the locks were
    /// [shut down](Self::shutdown) and every change was reported.
    ///
    /// One task is to call this, from the start: acquiring, renewing and releasing wait for it. The changes that wait are
    /// bounded in each document by [`LockConfig::max_unpublished`], one end for each lock, and one grant for each request.
    ///
    /// Cancel-safe.
    pub async fn next_change(&self) -> Option<LockChange> {
        let (document, draft) = self.0.next_change().await?;
        Some(LockChange { draft, publication: Publication::new(Arc::clone(&self.0), document) })
    }
}

/// Withdraws a request when its caller stops waiting.
struct WithdrawOnDrop<'a> {
    store: &'a LockStore,
    document: &'a DocumentId,
    ticket: Option<RequestId>,
}

impl Drop for WithdrawOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.store.update(self.document, |locks, cx| locks.withdraw(ticket, cx));
        }
    }
}
