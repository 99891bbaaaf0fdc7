//! [`HeldLocks`]: the granted locks of one document, by token and by scope.
//!
//! An edit names a scope, and asks which locks overlap it. The index by scope answers without a pass over all locks. It is
//! kept here, beside the locks, so that no other code can change one without the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use relay_core::{FencingToken, Lease, LockScope, Monotonic, Now, UserId};

/// The number of a request in its document's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestId(pub(super) u64);

/// The phase of a granted lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LockPhase {
    Held,
    /// The end is decided, and not published yet. The lock still keeps others out, and covers its holder's edits.
    Ending,
    /// The end has its place in the document's order. Nothing that comes after is under the lock.
    Ended,
}

/// A granted lock. Its token, scope and holder never change.
#[derive(Debug)]
pub(super) struct HeldLock {
    lease: Lease,
    /// The end of the lease by the monotonic clock.
    until: Monotonic,
    /// The request that the lock was granted to.
    request: RequestId,
    /// True when another request has renewed the lock, and counts on it too.
    is_renewed: bool,
    phase: LockPhase,
}

impl HeldLock {
    /// A lock that was granted to `request` now.
    pub(super) fn new(lease: Lease, request: RequestId, now: Now) -> Self {
        let until = now.monotonic + lease.ttl;
        Self { lease, until, request, is_renewed: false, phase: LockPhase::Held }
    }

    pub(super) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// True when the lock keeps other users out.
    pub(super) fn is_live(&self, now: Monotonic) -> bool {
        self.phase != LockPhase::Ended && now < self.until
    }

    /// True when the end of the lock is not decided.
    pub(super) fn is_held(&self) -> bool {
        self.phase == LockPhase::Held
    }

    /// True when only `request` counts on the lock.
    pub(super) fn belongs_to(&self, request: RequestId) -> bool {
        self.request == request && !self.is_renewed
    }

    /// Prolongs the lease. A renewal never shortens it: another request of the holder may count on the longer time.
    pub(super) fn renew(&mut self, ttl: Duration, now: Now) -> Lease {
        self.is_renewed = true;
        if now.monotonic + ttl > self.until {
            self.until = now.monotonic + ttl;
            self.lease.expires_at = now.wall.saturating_add(ttl);
            self.lease.ttl = ttl;
        }
        self.lease.clone()
    }

    /// Decides the end of the lock.
    pub(super) fn begin_ending(&mut self) {
        self.phase = LockPhase::Ending;
    }

    /// Notes that the end of the lock has its place in the document's order.
    pub(super) fn mark_ended(&mut self) {
        self.phase = LockPhase::Ended;
    }

    /// Takes back [`mark_ended`](Self::mark_ended): the end of the lock has no place in the document's order after all.
    pub(super) fn unmark_ended(&mut self) {
        if self.phase == LockPhase::Ended {
            self.phase = LockPhase::Ending;
        }
    }
}

/// The granted locks of one document, each until it is removed.
#[derive(Debug, Default)]
pub(super) struct HeldLocks {
    by_token: BTreeMap<FencingToken, HeldLock>,
    /// The tokens of the locks of each scope. No set is empty.
    by_scope: HashMap<LockScope, BTreeSet<FencingToken>>,
}

impl HeldLocks {
    pub(super) fn len(&self) -> usize {
        self.by_token.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        debug_assert_eq!(self.by_token.is_empty(), self.by_scope.is_empty(), "the index is in step");
        self.by_token.is_empty()
    }

    pub(super) fn get(&self, token: FencingToken) -> Option<&HeldLock> {
        self.by_token.get(&token)
    }

    pub(super) fn get_mut(&mut self, token: FencingToken) -> Option<&mut HeldLock> {
        self.by_token.get_mut(&token)
    }

    /// The locks, in the order of their tokens.
    pub(super) fn iter(&self) -> impl Iterator<Item = &HeldLock> {
        self.by_token.values()
    }

    /// The locks, in the order of their tokens.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut HeldLock> {
        self.by_token.values_mut()
    }

    /// Adds a lock.
    pub(super) fn insert(&mut self, lock: HeldLock) {
        let Lease { token, scope, .. } = &lock.lease;
        self.by_scope.entry(scope.clone()).or_default().insert(*token);
        self.by_token.insert(*token, lock);
    }

    /// Removes a lock.
    pub(super) fn remove(&mut self, token: FencingToken) -> Option<HeldLock> {
        let lock = self.by_token.remove(&token)?;
        if let Some(tokens) = self.by_scope.get_mut(&lock.lease.scope) {
            tokens.remove(&token);
            if tokens.is_empty() {
                self.by_scope.remove(&lock.lease.scope);
            }
        }
        Some(lock)
    }

    /// Removes the locks that have expired, and returns them in the order of their tokens.
    pub(super) fn remove_expired(&mut self, now: Monotonic) -> Vec<HeldLock> {
        let expired: Vec<FencingToken> =
            self.by_token.iter().filter(|(_, lock)| now >= lock.until).map(|(token, _)| *token).collect();
        expired.into_iter().filter_map(|token| self.remove(token)).collect()
    }

    /// The lock of exactly this scope that `user` holds.
    pub(super) fn own_mut(&mut self, user: &UserId, scope: &LockScope) -> Option<&mut HeldLock> {
        let tokens = self.by_scope.get(scope)?.iter().copied();
        let is_own = |token: &FencingToken| {
            self.get(*token).is_some_and(|lock| lock.is_held() && lock.lease.holder == *user)
        };
        let token = tokens.rev().find(is_own)?;
        self.get_mut(token)
    }

    /// The first lock of another user that overlaps the region `scope`, as long as it is not removed.
    pub(super) fn of_another(&self, user: &UserId, scope: &LockScope) -> Option<&HeldLock> {
        [&LockScope::Document, scope].into_iter().find_map(|scope| {
            let tokens = self.by_scope.get(scope)?;
            tokens.iter().filter_map(|token| self.get(*token)).find(|lock| lock.lease.holder != *user)
        })
    }

    /// The first live lock that keeps `user` from editing `scope`. Without a user, every live lock does.
    ///
    /// An edit of a region looks at the locks of the region and at those of the whole document. An edit of the whole document
    /// overlaps every lock, and looks at them until it finds one of another user.
    pub(super) fn conflict(
        &self,
        user: Option<&UserId>,
        scope: &LockScope,
        now: Monotonic,
    ) -> Option<&HeldLock> {
        let conflicts = |lock: &&HeldLock| lock.is_live(now) && Some(&lock.lease.holder) != user;
        match scope {
            LockScope::Document => self.iter().find(conflicts),
            LockScope::Region(_) => {
                let first = |scope| {
                    let tokens = self.by_scope.get(scope)?;
                    tokens.iter().filter_map(|token| self.get(*token)).find(conflicts)
                };
                let both = [first(&LockScope::Document), first(scope)];
                both.into_iter().flatten().min_by_key(|lock| lock.lease.token)
            }
        }
    }
}
