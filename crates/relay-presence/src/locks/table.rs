//! One document's locks and those who wait for them, as a state machine: it is handed the time and the tokens, and hands
//! back what changed. It does no I/O and waits for nothing.
//!
//! What always holds:
//! - Two users never hold scopes that overlap. A lock that is ending counts as held until [`LockTable::remove`].
//! - Whoever asks waits behind everyone who asked before for something that overlaps, not only behind holders. So a
//!   request for the whole document is not starved by requests for regions that come after it, and the queue is fair
//!   within every region.
//! - Tokens are taken in the order in which locks are granted.
//!
//! A user's own locks and requests never stand in their own way. Asking for exactly the scope that one holds already
//! renews that lease under its token, for instance from a second tab.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use relay_core::{FencingToken, Lease, LockScope, Monotonic, Now, UserId};

/// A request's number in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// Who wants what, for how long, and until when they would wait for it.
#[derive(Debug, Clone)]
pub(crate) struct LockRequest {
    pub(crate) user: UserId,
    pub(crate) scope: LockScope,
    pub(crate) ttl: Duration,
    /// By the monotonic clock; not later than now for those who do not wait.
    pub(crate) wait_until: Monotonic,
}

/// How many there may be in one document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableLimits {
    pub(crate) max_locks: usize,
    pub(crate) max_waiters: usize,
}

/// What somebody else has or wanted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConflictKind {
    Held,
    Queued,
}

/// Who stands in the way of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) user: UserId,
    pub(crate) scope: LockScope,
    pub(crate) kind: ConflictKind,
}

/// Why a request does not become a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GrantError {
    /// Somebody stands in the way, and the time to wait is over.
    Conflict(Conflict),
    TooManyLocks,
    TooManyWaiters,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TableChange {
    /// A request became a lock.
    Granted(Ticket, Lease),
    /// A request renewed the lease that its user has already.
    Renewed(Ticket, Lease),
    /// A request came to nothing.
    Refused(Ticket, GrantError),
    /// A lock was not renewed in time, and is gone.
    Expired(Lease),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Held,
    /// Its end is decided, and not known to the world yet: it still keeps others out, and what its holder did before
    /// still counts.
    Ending,
    /// Its end has its place in the document's order. Nothing that comes after is under this lock.
    Ended,
}

#[derive(Debug)]
struct HeldLock {
    lease: Lease,
    /// When the lease ends by the monotonic clock.
    until: Monotonic,
    /// The request that it came from.
    ticket: Ticket,
    /// Whether it was renewed since, so that it is not that request's alone.
    is_renewed: bool,
    phase: Phase,
}

impl HeldLock {
    fn is_live(&self, monotonic: Monotonic) -> bool {
        self.phase != Phase::Ended && monotonic < self.until
    }

    /// A lease is never shortened by a renewal: somebody else may count on it, in another tab.
    fn renew(&mut self, ttl: Duration, now: Now) -> Lease {
        self.is_renewed = true;
        if now.monotonic + ttl > self.until {
            self.until = now.monotonic + ttl;
            self.lease.expires_at = now.wall.saturating_add(ttl);
            self.lease.ttl = ttl;
        }
        self.lease.clone()
    }
}

#[derive(Debug)]
struct QueuedRequest {
    ticket: Ticket,
    request: LockRequest,
}

/// The locks of one document.
#[derive(Debug)]
pub(crate) struct LockTable {
    limits: TableLimits,
    held: BTreeMap<FencingToken, HeldLock>,
    queue: VecDeque<QueuedRequest>,
    last_ticket: u64,
}

impl LockTable {
    pub(crate) fn new(limits: TableLimits) -> Self {
        Self { limits, held: BTreeMap::new(), queue: VecDeque::new(), last_ticket: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.queue.is_empty()
    }

    /// Takes a request, whose answer comes as a [`TableChange`] with its ticket: now or later.
    pub(crate) fn acquire(
        &mut self,
        request: LockRequest,
        now: Now,
        issue: &mut dyn FnMut() -> FencingToken,
        changes: &mut Vec<TableChange>,
    ) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.queue.push_back(QueuedRequest { ticket, request });
        self.advance(now, issue, changes);
        if self.queue.len() > self.limits.max_waiters {
            self.queue.pop_back();
            changes.push(TableChange::Refused(ticket, GrantError::TooManyWaiters));
        }
        ticket
    }

    /// The lease, prolonged; `None` unless `user` holds a lock with this token.
    pub(crate) fn renew(
        &mut self,
        user: &UserId,
        token: FencingToken,
        ttl: Duration,
        now: Now,
    ) -> Option<Lease> {
        let held = self.held.get_mut(&token)?;
        let is_theirs =
            held.phase == Phase::Held && held.is_live(now.monotonic) && held.lease.holder == *user;
        is_theirs.then(|| held.renew(ttl, now))
    }

    /// Begins the end of every lock for which `ends` is true, and gives them in the order of their tokens. Each keeps
    /// others out until it is [removed](Self::remove).
    pub(crate) fn end(&mut self, ends: impl Fn(&Lease) -> bool) -> Vec<Lease> {
        let mut ended = Vec::new();
        for held in self.held.values_mut() {
            if held.phase == Phase::Held && ends(&held.lease) {
                held.phase = Phase::Ending;
                ended.push(held.lease.clone());
            }
        }
        ended
    }

    /// Takes back a request that nobody waits for any more. If it became a lock, that begins to end and is given, unless
    /// another request of the same user has come to count on it.
    pub(crate) fn withdraw(&mut self, ticket: Ticket) -> Option<Lease> {
        if let Some(index) = self.queue.iter().position(|waiter| waiter.ticket == ticket) {
            self.queue.remove(index);
            return None;
        }
        let lock = self.held.values().find(|held| held.ticket == ticket && !held.is_renewed)?;
        let token = lock.lease.token;
        self.end(|lease| lease.token == token).pop()
    }

    /// Forgets everyone who waits.
    pub(crate) fn clear_waiters(&mut self) {
        self.queue.clear();
    }

    /// Notes that the end of a lock has its place in the document's order.
    pub(crate) fn mark_ended(&mut self, token: FencingToken) {
        if let Some(held) = self.held.get_mut(&token) {
            held.phase = Phase::Ended;
        }
    }

    /// Takes back [`mark_ended`](Self::mark_ended): the end of the lock has no place in the document's order after all.
    pub(crate) fn unmark_ended(&mut self, token: FencingToken) {
        if let Some(held) = self.held.get_mut(&token)
            && held.phase == Phase::Ended
        {
            held.phase = Phase::Ending;
        }
    }

    /// Removes a lock: it is over, and the world knows. Its scope is free after the next [`advance`](Self::advance).
    pub(crate) fn remove(&mut self, token: FencingToken) {
        self.held.remove(&token);
    }

    /// The locks that count at this moment, in the order of their tokens.
    pub(crate) fn live(&self, monotonic: Monotonic) -> impl Iterator<Item = &Lease> {
        self.held.values().filter(move |held| held.is_live(monotonic)).map(|held| &held.lease)
    }

    /// Brings the table to `now`: removes the locks that have expired, gives those who wait what they can have, and
    /// sends those away whose time to wait is over. Somebody whose turn has come gets the lock even when their time is over
    /// by now: they are still there.
    ///
    /// One pass over locks and waiters.
    pub(crate) fn advance(
        &mut self,
        now: Now,
        issue: &mut dyn FnMut() -> FencingToken,
        changes: &mut Vec<TableChange>,
    ) {
        self.held.retain(|_, held| {
            let has_expired = now.monotonic >= held.until;
            if has_expired && held.phase == Phase::Held {
                changes.push(TableChange::Expired(held.lease.clone()));
            }
            !has_expired
        });
        if self.queue.is_empty() {
            return;
        }
        let mut conflicts = Conflicts::default();
        let mut renewable = HashMap::new();
        for held in self.held.values() {
            let Lease { token, scope, holder, .. } = &held.lease;
            conflicts.add(holder, scope, ConflictKind::Held);
            if held.phase == Phase::Held {
                renewable.insert((holder.clone(), scope.clone()), *token);
            }
        }
        for waiter in std::mem::take(&mut self.queue) {
            let QueuedRequest { ticket, request } = waiter;
            let own = renewable.get(&(request.user.clone(), request.scope.clone()));
            if let Some(held) = own.and_then(|token| self.held.get_mut(token)) {
                changes.push(TableChange::Renewed(ticket, held.renew(request.ttl, now)));
                continue;
            }
            match conflicts.find(&request.user, &request.scope) {
                None if self.held.len() >= self.limits.max_locks => {
                    changes.push(TableChange::Refused(ticket, GrantError::TooManyLocks));
                }
                None => {
                    conflicts.add(&request.user, &request.scope, ConflictKind::Held);
                    let lease = self.grant(ticket, request, now, issue());
                    renewable.insert((lease.holder.clone(), lease.scope.clone()), lease.token);
                    changes.push(TableChange::Granted(ticket, lease));
                }
                Some(conflict) if now.monotonic >= request.wait_until => {
                    changes.push(TableChange::Refused(ticket, GrantError::Conflict(conflict.clone())));
                }
                Some(_) => {
                    conflicts.add(&request.user, &request.scope, ConflictKind::Queued);
                    self.queue.push_back(QueuedRequest { ticket, request });
                }
            }
        }
    }

    fn grant(&mut self, ticket: Ticket, request: LockRequest, now: Now, token: FencingToken) -> Lease {
        let expires_at = now.wall.saturating_add(request.ttl);
        let lease = Lease::new(token, request.scope, request.user, expires_at, request.ttl);
        let held = HeldLock {
            lease: lease.clone(),
            until: now.monotonic + request.ttl,
            ticket,
            is_renewed: false,
            phase: Phase::Held,
        };
        self.held.insert(token, held);
        lease
    }
}

/// What is held and awaited up to some place in the queue, so that whether somebody stands in the way of the next
/// request is answered without going through all of it.
#[derive(Debug, Default)]
struct Conflicts {
    all: FirstConflicts,
    by_scope: HashMap<LockScope, FirstConflicts>,
}

/// The first claims of two different users: one of them is not by the user who asks.
#[derive(Debug, Default)]
struct FirstConflicts([Option<Conflict>; 2]);

impl Conflicts {
    fn add(&mut self, user: &UserId, scope: &LockScope, kind: ConflictKind) {
        let conflict = Conflict { user: user.clone(), scope: scope.clone(), kind };
        self.by_scope.entry(scope.clone()).or_default().add(&conflict);
        self.all.add(&conflict);
    }

    /// The claim of somebody else that overlaps `scope`.
    fn find(&self, user: &UserId, scope: &LockScope) -> Option<&Conflict> {
        match scope {
            LockScope::Document => self.all.by_another(user),
            LockScope::Region(_) => [&LockScope::Document, scope]
                .into_iter()
                .find_map(|scope| self.by_scope.get(scope)?.by_another(user)),
        }
    }
}

impl FirstConflicts {
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

    fn by_another(&self, user: &UserId) -> Option<&Conflict> {
        self.0.iter().flatten().find(|conflict| conflict.user != *user)
    }
}
