//! [`LockTable`]: one document's locks and the requests that wait for them, as a state machine. The caller hands it the time
//! and the tokens, and gets back the changes. It does no I/O and never waits.
//!
//! Invariants:
//! - Two users never hold scopes that overlap. A lock that is ending counts as held until [`LockTable::remove`].
//! - A request waits behind locks that overlap, and behind all earlier requests that overlap. So later requests for regions
//!   do not starve a request for the whole document, and the queue is fair within each region.
//! - Tokens are taken in the order in which locks are granted.
//!
//! A user's own locks and requests never stand in its way. A request for exactly the scope that the user holds renews that
//! lease under its token; a second browser tab makes such requests.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use relay_core::{FencingToken, Lease, LockScope, Monotonic, Now, UserId};

use super::held_locks::{HeldLock, HeldLocks, RequestId};

/// A request for a lock.
#[derive(Debug, Clone)]
pub(super) struct LockRequest {
    pub(super) user: UserId,
    pub(super) scope: LockScope,
    pub(super) ttl: Duration,
    /// The end of the wait by the monotonic clock; now or earlier for a request that does not wait.
    pub(super) wait_until: Monotonic,
}

/// The limits of one document.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableLimits {
    pub(super) max_locks: usize,
    pub(super) max_waiters: usize,
}

/// The kind of a [`Conflict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConflictKind {
    /// The other user holds a lock.
    Held,
    /// The other user has asked earlier, and waits.
    Queued,
}

/// Another user's lock or earlier request that stands in the way of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) user: UserId,
    pub(super) scope: LockScope,
    pub(super) kind: ConflictKind,
}

/// The reason for which a request does not become a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GrantError {
    /// Another user stands in the way, and the time to wait is over.
    Conflict(Conflict),
    TooManyLocks,
    TooManyWaiters,
}

/// A change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TableChange {
    /// A request became a lock.
    Granted(RequestId, Lease),
    /// A request renewed a lease that its user holds.
    Renewed(RequestId, Lease),
    /// A request was refused.
    Refused(RequestId, GrantError),
    /// A lock was not renewed in time, and is gone.
    Expired(Lease),
}

#[derive(Debug)]
struct QueuedRequest {
    id: RequestId,
    request: LockRequest,
}

/// The locks of one document.
#[derive(Debug)]
pub(super) struct LockTable {
    limits: TableLimits,
    held: HeldLocks,
    queue: VecDeque<QueuedRequest>,
    last_id: u64,
}

impl LockTable {
    pub(super) fn new(limits: TableLimits) -> Self {
        Self { limits, held: HeldLocks::default(), queue: VecDeque::new(), last_id: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.queue.is_empty()
    }

    /// Takes a request. Its answer comes as a [`TableChange`] with its id, now or later.
    pub(super) fn acquire(
        &mut self,
        request: LockRequest,
        now: Now,
        issue: &mut dyn FnMut() -> FencingToken,
        changes: &mut Vec<TableChange>,
    ) -> RequestId {
        self.last_id += 1;
        let id = RequestId(self.last_id);
        self.queue.push_back(QueuedRequest { id, request });
        self.advance(now, issue, changes);
        if self.queue.len() > self.limits.max_waiters {
            self.queue.pop_back();
            changes.push(TableChange::Refused(id, GrantError::TooManyWaiters));
        }
        id
    }

    /// Prolongs a lease. Returns `None` unless `user` holds a lock with this token.
    pub(super) fn renew(
        &mut self,
        user: &UserId,
        token: FencingToken,
        ttl: Duration,
        now: Now,
    ) -> Option<Lease> {
        let lock = self.held.get_mut(token)?;
        let is_own = lock.is_held() && lock.is_live(now.monotonic) && lock.lease().holder == *user;
        is_own.then(|| lock.renew(ttl, now))
    }

    /// Begins the end of every lock for which `ends` is true, and returns their leases in the order of the tokens. Each lock
    /// keeps others out until it is [removed](Self::remove).
    pub(super) fn end(&mut self, ends: impl Fn(&Lease) -> bool) -> Vec<Lease> {
        let mut ended = Vec::new();
        for lock in self.held.iter_mut().filter(|lock| lock.is_held()) {
            if ends(lock.lease()) {
                lock.begin_ending();
                ended.push(lock.lease().clone());
            }
        }
        ended
    }

    /// Withdraws a request. If it has become a lock, the lock begins to end and its lease is returned, unless another request
    /// of the same user counts on the lock.
    pub(super) fn withdraw(&mut self, id: RequestId) -> Option<Lease> {
        if let Some(index) = self.queue.iter().position(|queued| queued.id == id) {
            self.queue.remove(index);
            return None;
        }
        let token = self.held.iter().find(|lock| lock.belongs_to(id))?.lease().token;
        self.end(|lease| lease.token == token).pop()
    }

    /// Drops the requests of `user` that wait, and returns their ids.
    pub(super) fn withdraw_all(&mut self, user: &UserId) -> Vec<RequestId> {
        let (withdrawn, others): (VecDeque<_>, _) =
            std::mem::take(&mut self.queue).into_iter().partition(|queued| queued.request.user == *user);
        self.queue = others;
        withdrawn.into_iter().map(|queued| queued.id).collect()
    }

    /// Drops all requests that wait.
    pub(super) fn clear_waiters(&mut self) {
        self.queue.clear();
    }

    /// Notes that the end of a lock has its place in the document's order.
    pub(super) fn mark_ended(&mut self, token: FencingToken) {
        if let Some(lock) = self.held.get_mut(token) {
            lock.mark_ended();
        }
    }

    /// Takes back [`mark_ended`](Self::mark_ended): the end of the lock has no place in the document's order after all.
    pub(super) fn unmark_ended(&mut self, token: FencingToken) {
        if let Some(lock) = self.held.get_mut(token) {
            lock.unmark_ended();
        }
    }

    /// Removes a lock whose end is published. Its scope is free after the next [`advance`](Self::advance).
    pub(super) fn remove(&mut self, token: FencingToken) {
        self.held.remove(token);
    }

    /// The locks that keep others out now, in the order of their tokens.
    pub(super) fn live(&self, now: Monotonic) -> impl Iterator<Item = &Lease> {
        self.held.iter().filter(move |lock| lock.is_live(now)).map(HeldLock::lease)
    }

    /// The first live lock of another user that overlaps `scope`. Without a user, each lock is another's.
    pub(super) fn conflict(
        &self,
        user: Option<&UserId>,
        scope: &LockScope,
        now: Monotonic,
    ) -> Option<&Lease> {
        self.held.conflict(user, scope, now).map(HeldLock::lease)
    }

    /// True when `user` has a live lock with this token, and it covers all of `scope`.
    pub(super) fn covers(
        &self,
        user: &UserId,
        token: FencingToken,
        scope: &LockScope,
        now: Monotonic,
    ) -> bool {
        self.held.get(token).filter(|lock| lock.is_live(now)).is_some_and(|lock| {
            let Lease { scope: locked, holder, .. } = lock.lease();
            holder == user && (*locked == LockScope::Document || locked == scope)
        })
    }

    /// Advances the table to `now`: removes the locks that have expired, grants the requests that can be granted, and refuses
    /// those whose time to wait is over. A request that can be granted is granted even when its time is over: its caller
    /// still waits.
    ///
    /// One pass over the requests, and one over the locks for those that have expired.
    pub(super) fn advance(
        &mut self,
        now: Now,
        issue: &mut dyn FnMut() -> FencingToken,
        changes: &mut Vec<TableChange>,
    ) {
        let expired = self.held.remove_expired(now.monotonic);
        let expired = expired.into_iter().filter(HeldLock::is_held);
        changes.extend(expired.map(|lock| TableChange::Expired(lock.lease().clone())));
        if self.queue.is_empty() {
            return;
        }
        let mut conflicts = Conflicts::default();
        for QueuedRequest { id, request } in std::mem::take(&mut self.queue) {
            if let Some(lock) = self.held.own_mut(&request.user, &request.scope) {
                changes.push(TableChange::Renewed(id, lock.renew(request.ttl, now)));
                continue;
            }
            match conflicts.find(&self.held, &request.user, &request.scope) {
                None if self.held.len() >= self.limits.max_locks => {
                    changes.push(TableChange::Refused(id, GrantError::TooManyLocks));
                }
                None => {
                    let lease = self.grant(id, request, now, issue());
                    conflicts.note_grant(&lease);
                    changes.push(TableChange::Granted(id, lease));
                }
                Some(conflict) if now.monotonic >= request.wait_until => {
                    changes.push(TableChange::Refused(id, GrantError::Conflict(conflict)));
                }
                Some(_) => {
                    conflicts.queue(&request.user, &request.scope);
                    self.queue.push_back(QueuedRequest { id, request });
                }
            }
        }
    }

    fn grant(&mut self, id: RequestId, request: LockRequest, now: Now, token: FencingToken) -> Lease {
        let expires_at = now.wall.saturating_add(request.ttl);
        let lease = Lease::new(token, request.scope, request.user, expires_at, request.ttl);
        self.held.insert(HeldLock::new(lease.clone(), id, now));
        lease
    }
}

/// The requests up to a place in the queue, and what was found of the locks. It finds a conflict for the next request without a
/// pass over all of them.
#[derive(Debug, Default)]
struct Conflicts {
    /// The first locks of two users, once a request for the whole document has asked.
    held: Option<FirstConflicts>,
    queued: FirstConflicts,
    queued_by_scope: HashMap<LockScope, FirstConflicts>,
}

/// The first locks or requests of two different users. For any user, one of them is another's.
#[derive(Debug, Default)]
struct FirstConflicts([Option<Conflict>; 2]);

impl Conflict {
    fn held(lease: &Lease) -> Self {
        Self { user: lease.holder.clone(), scope: lease.scope.clone(), kind: ConflictKind::Held }
    }
}

impl Conflicts {
    /// Adds a request that waits.
    fn queue(&mut self, user: &UserId, scope: &LockScope) {
        let conflict = Conflict { user: user.clone(), scope: scope.clone(), kind: ConflictKind::Queued };
        self.queued_by_scope.entry(scope.clone()).or_default().add(&conflict);
        self.queued.add(&conflict);
    }

    /// Notes that a request has become a lock.
    fn note_grant(&mut self, lease: &Lease) {
        if let Some(held) = &mut self.held {
            held.add(&Conflict::held(lease));
        }
    }

    /// Another user's lock or earlier request that overlaps `scope`. `held` are the locks.
    fn find(&mut self, held: &HeldLocks, user: &UserId, scope: &LockScope) -> Option<Conflict> {
        match scope {
            LockScope::Document => {
                let first = self.held.get_or_insert_with(|| FirstConflicts::of(held));
                first.of_another(user).or_else(|| self.queued.of_another(user)).cloned()
            }
            LockScope::Region(_) => {
                let lock = held.of_another(user, scope).map(|lock| Conflict::held(lock.lease()));
                lock.or_else(|| {
                    let mut both = [&LockScope::Document, scope].into_iter();
                    both.find_map(|scope| self.queued_by_scope.get(scope)?.of_another(user)).cloned()
                })
            }
        }
    }
}

impl FirstConflicts {
    fn of(held: &HeldLocks) -> Self {
        let mut first = Self::default();
        for lock in held.iter() {
            if first.is_complete() {
                break;
            }
            first.add(&Conflict::held(lock.lease()));
        }
        first
    }

    fn is_complete(&self) -> bool {
        self.0.iter().all(Option::is_some)
    }

    fn add(&mut self, conflict: &Conflict) {
        for slot in &mut self.0 {
            match slot {
                Some(first) if first.user == conflict.user => return,
                Some(_) => {}
                None => {
                    *slot = Some(conflict.clone());
                    return;
                }
            }
        }
    }

    fn of_another(&self, user: &UserId) -> Option<&Conflict> {
        self.0.iter().flatten().find(|conflict| conflict.user != *user)
    }
}
