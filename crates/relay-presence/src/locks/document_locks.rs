//! One document's locks together with those who wait for an answer and the changes that wait to be published.
//!
//! Changes are published one after the other, in the order in which they came about. Whoever asked for one is answered when
//! it is published.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use relay_core::{EventId, FencingToken, Lease, LockScope, Now, TokenSource, UserId};
use relay_events::UnlockReason;
use tokio::sync::oneshot;

use super::config::LockConfig;
use super::counters::LockCounters;
use super::error::LockError;
use super::table::{
    Conflict, ConflictKind, GrantError, LockRequest, LockTable, TableChange, TableLimits, Ticket,
};

/// Where the answer of a request is awaited.
pub(super) type Answer = oneshot::Sender<Result<Lease, LockError>>;

/// What happened to a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChangeKind {
    Granted,
    Renewed,
    Ended(UnlockReason),
}

/// A change that is to be published.
#[derive(Debug)]
pub(super) struct PendingChange {
    pub(super) event: EventId,
    pub(super) kind: ChangeKind,
    pub(super) lease: Lease,
    answer: Option<Answer>,
}

impl PendingChange {
    fn answer(self, answer: Result<(), LockError>) {
        if let Some(sender) = self.answer {
            // Who asked may be gone.
            let _ = sender.send(answer.map(|()| self.lease));
        }
    }
}

/// A request that waits.
#[derive(Debug)]
struct Waiter {
    scope: LockScope,
    wait: Duration,
    answer: Answer,
}

/// What is needed to bring a document to the present.
pub(super) struct AdvanceContext<'a> {
    pub(super) now: Now,
    pub(super) tokens: &'a dyn TokenSource,
    pub(super) config: &'a LockConfig,
    pub(super) counters: &'a LockCounters,
}

#[derive(Debug)]
pub(super) struct DocumentLocks {
    table: LockTable,
    waiters: HashMap<Ticket, Waiter>,
    unpublished: VecDeque<PendingChange>,
    /// The change that is being published.
    publishing: Option<PendingChange>,
    /// Whether the document is in the line of those that have something to publish.
    pub(super) is_in_ready_queue: bool,
}

impl DocumentLocks {
    pub(super) fn new(config: &LockConfig) -> Self {
        let limits = TableLimits { max_locks: config.max_locks, max_waiters: config.max_waiters };
        Self {
            table: LockTable::new(limits),
            waiters: HashMap::new(),
            unpublished: VecDeque::new(),
            publishing: None,
            is_in_ready_queue: false,
        }
    }

    /// Whether nothing is lost when this is forgotten.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty() && self.unpublished.is_empty() && self.publishing.is_none()
    }

    /// Changes that are not reported yet.
    pub(super) fn unreported(&self) -> usize {
        self.unpublished.len() + usize::from(self.publishing.is_some())
    }

    /// Whether a change could be published now.
    pub(super) fn has_work(&self) -> bool {
        self.publishing.is_none() && !self.unpublished.is_empty()
    }

    pub(super) fn table(&self) -> &LockTable {
        &self.table
    }

    pub(super) fn acquire(
        &mut self,
        request: LockRequest,
        wait: Duration,
        answer: Answer,
        cx: &AdvanceContext<'_>,
    ) -> Ticket {
        let mut changes = Vec::new();
        let waiter = Waiter { scope: request.scope.clone(), wait, answer };
        let ticket = self.table.acquire(request, cx.now, &mut || cx.tokens.issue(), &mut changes);
        self.waiters.insert(ticket, waiter);
        self.apply(changes, cx);
        ticket
    }

    /// Prolongs a lease.
    pub(super) fn renew(
        &mut self,
        user: &UserId,
        token: FencingToken,
        ttl: Duration,
        answer: Answer,
        cx: &AdvanceContext<'_>,
    ) {
        self.advance(cx);
        match self.table.renew(user, token, ttl, cx.now) {
            Some(lease) => self.publish(ChangeKind::Renewed, lease, Some(answer), cx),
            None => refuse(answer, LockError::Stale { token }, cx),
        }
    }

    /// Ends the one lock that `ends` says, which has this token.
    pub(super) fn end_one(
        &mut self,
        token: FencingToken,
        ends: impl Fn(&Lease) -> bool,
        reason: UnlockReason,
        answer: Answer,
        cx: &AdvanceContext<'_>,
    ) {
        self.advance(cx);
        match self.table.end(|lease| lease.token == token && ends(lease)).pop() {
            Some(lease) => self.publish(ChangeKind::Ended(reason), lease, Some(answer), cx),
            None => refuse(answer, LockError::Stale { token }, cx),
        }
    }

    /// Ends all locks that `ends` says.
    pub(super) fn end_all(
        &mut self,
        ends: impl Fn(&Lease) -> bool,
        reason: UnlockReason,
        cx: &AdvanceContext<'_>,
    ) {
        self.advance(cx);
        for lease in self.table.end(ends) {
            self.publish(ChangeKind::Ended(reason), lease, None, cx);
        }
    }

    /// Takes back a request whose answer nobody waits for any more.
    pub(super) fn withdraw(&mut self, ticket: Ticket, cx: &AdvanceContext<'_>) {
        self.waiters.remove(&ticket);
        if let Some(lease) = self.table.withdraw(ticket) {
            self.publish(ChangeKind::Ended(UnlockReason::Released), lease, None, cx);
        }
        self.advance(cx);
    }

    /// Ends everything: the server stops.
    pub(super) fn shut_down(&mut self, cx: &AdvanceContext<'_>) {
        self.table.clear_waiters();
        for (_, waiter) in self.waiters.drain() {
            refuse(waiter.answer, LockError::Closed, cx);
        }
        self.end_all(|_| true, UnlockReason::Shutdown, cx);
    }

    /// Brings the document to the present: leases expire, those who wait get their turn or their refusal.
    pub(super) fn advance(&mut self, cx: &AdvanceContext<'_>) {
        let mut changes = Vec::new();
        self.table.advance(cx.now, &mut || cx.tokens.issue(), &mut changes);
        self.apply(changes, cx);
    }

    fn apply(&mut self, changes: Vec<TableChange>, cx: &AdvanceContext<'_>) {
        for change in changes {
            match change {
                TableChange::Granted(ticket, lease) => {
                    let answer = self.waiters.remove(&ticket).map(|waiter| waiter.answer);
                    self.publish(ChangeKind::Granted, lease, answer, cx);
                }
                TableChange::Renewed(ticket, lease) => {
                    let answer = self.waiters.remove(&ticket).map(|waiter| waiter.answer);
                    self.publish(ChangeKind::Renewed, lease, answer, cx);
                }
                TableChange::Expired(lease) => {
                    self.publish(ChangeKind::Ended(UnlockReason::Expired), lease, None, cx);
                }
                TableChange::Refused(ticket, refusal) => {
                    if let Some(waiter) = self.waiters.remove(&ticket) {
                        let error = refused(refusal, waiter.scope, waiter.wait, cx.config);
                        refuse(waiter.answer, error, cx);
                    }
                }
            }
        }
    }

    fn publish(&mut self, kind: ChangeKind, lease: Lease, answer: Option<Answer>, cx: &AdvanceContext<'_>) {
        cx.counters.count(kind);
        self.unpublished.push_back(PendingChange { event: EventId::new(), kind, lease, answer });
    }

    /// Whether so many changes wait that no more may be asked for.
    pub(super) fn is_overloaded(&self, config: &LockConfig) -> bool {
        self.unpublished.len() >= config.max_unpublished
    }

    /// The next change, which is being published from now on.
    pub(super) fn begin_publishing(&mut self) -> Option<&PendingChange> {
        if self.publishing.is_some() {
            return None;
        }
        self.publishing = self.unpublished.pop_front();
        self.publishing.as_ref()
    }

    /// Takes the outcome of publishing.
    pub(super) fn end_publishing(&mut self, outcome: Result<(), LockError>, cx: &AdvanceContext<'_>) {
        let Some(change) = self.publishing.take() else { return };
        let token = change.lease.token;
        match (change.kind, &outcome) {
            (ChangeKind::Granted, Err(error)) => {
                // Nobody has heard of this lock: it ends as it began, together with what was to be said of it.
                self.table.remove(token);
                self.forget(token, error);
            }
            (ChangeKind::Ended(_), _) => self.table.remove(token),
            (ChangeKind::Granted, Ok(())) | (ChangeKind::Renewed, _) => {}
        }
        if outcome.is_err() {
            cx.counters.unpublished.add(1);
        }
        change.answer(outcome);
        self.advance(cx);
    }

    fn forget(&mut self, token: FencingToken, error: &LockError) {
        let (about, others) =
            std::mem::take(&mut self.unpublished).into_iter().partition(|change| change.lease.token == token);
        self.unpublished = others;
        let about: VecDeque<PendingChange> = about;
        for change in about {
            // A lock that is to end has ended.
            let outcome = match change.kind {
                ChangeKind::Ended(_) => Ok(()),
                ChangeKind::Granted | ChangeKind::Renewed => Err(error.clone()),
            };
            change.answer(outcome);
        }
    }

    /// Notes that the event with this id has its place: if it says that a lock has ended, nothing after it is under that
    /// lock.
    pub(super) fn mark_placed(&mut self, event: EventId) {
        if let Some(change) = &self.publishing
            && change.event == event
            && matches!(change.kind, ChangeKind::Ended(_))
        {
            self.table.mark_ended(change.lease.token);
        }
    }

    /// Notes that the log did not take the event that is being published: the lock counts until its end is reported.
    pub(super) fn mark_dropped(&mut self) {
        if let Some(change) = &self.publishing
            && matches!(change.kind, ChangeKind::Ended(_))
        {
            self.table.unmark_ended(change.lease.token);
        }
    }
}

fn refuse(answer: Answer, error: LockError, cx: &AdvanceContext<'_>) {
    cx.counters.refused.add(1);
    // Who asked may be gone.
    let _ = answer.send(Err(error));
}

fn refused(error: GrantError, wanted: LockScope, wait: Duration, config: &LockConfig) -> LockError {
    match error {
        GrantError::TooManyLocks => LockError::TooManyLocks { max: config.max_locks },
        GrantError::TooManyWaiters => LockError::TooManyWaiters { max: config.max_waiters },
        GrantError::Conflict(Conflict { user: holder, scope, .. }) if !wait.is_zero() => {
            LockError::WaitTimeout { wanted, wait, scope, holder }
        }
        GrantError::Conflict(Conflict { user: holder, scope, kind: ConflictKind::Held }) => {
            LockError::Locked { wanted, scope, holder }
        }
        GrantError::Conflict(Conflict { user: first, scope, kind: ConflictKind::Queued }) => {
            LockError::Awaited { wanted, scope, first }
        }
    }
}
