//! [`DocumentLocks`]: one document's locks, the requests that wait for an answer, and the changes that wait to be published.
//!
//! Changes are published one after the other, in the order in which they were made. A request is answered when its change is
//! published.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use relay_core::{
    CheckedDraft, DocumentId, EventId, FencingToken, Lease, LockScope, Now, Place, TokenSource, UserId,
};
use relay_events::{DocumentLocked, DocumentUnlocked, LockRenewed, PayloadError, UnlockReason, server_draft};
use tokio::sync::oneshot;

use super::config::LockConfig;
use super::error::LockError;
use super::held_locks::RequestId;
use super::memory::LockMemory;
use super::stats::LockCounters;
use super::table::{Conflict, ConflictKind, GrantError, LockRequest, LockTable, TableChange, TableLimits};

/// The sender of a request's answer.
pub(super) type Answer = oneshot::Sender<Result<Lease, LockError>>;

/// The kind of a change of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChangeKind {
    Granted,
    Renewed,
    Ended(UnlockReason),
}

/// A change that is to be published.
#[derive(Debug)]
struct PendingChange {
    event: EventId,
    kind: ChangeKind,
    lease: Lease,
    answer: Option<Answer>,
    /// `None` for a lock whose memory is with another change of it.
    _memory: Option<LockMemory>,
    /// The place of the end of a lock, once it has one.
    ended_at: Option<Place>,
}

impl PendingChange {
    fn answer(self, answer: Result<(), LockError>) {
        if let Some(sender) = self.answer {
            // The receiver may be dropped.
            let _ = sender.send(answer.map(|()| self.lease));
        }
    }

    /// The event about the change.
    fn draft(&self, document: &DocumentId) -> Result<CheckedDraft, PayloadError> {
        let lease = &self.lease;
        let region = lease.scope.region().map(|region| region.as_str().to_owned());
        let (holder, token) = (lease.holder.as_str().to_owned(), lease.token.get());
        let expires_at = lease.expires_at;
        let draft = match self.kind {
            ChangeKind::Granted => {
                server_draft(document.clone(), &DocumentLocked { region, holder, token, expires_at })?
            }
            ChangeKind::Renewed => {
                let renewed = LockRenewed { region, holder, token, expires_at };
                let draft = server_draft(document.clone(), &renewed)?;
                // Of each scope the newest event is kept, and not of each token.
                match lease.scope.region() {
                    Some(region) => draft.key(region.as_str()),
                    None => draft,
                }
            }
            ChangeKind::Ended(reason) => {
                server_draft(document.clone(), &DocumentUnlocked { region, holder, token, reason })?.closing()
            }
        };
        Ok(draft.fresh_id(self.event))
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) scope: LockScope,
    pub(super) wait: Duration,
    pub(super) answer: Answer,
    pub(super) memory: LockMemory,
}

/// The time and the collaborators with which locks advance to the present.
pub(super) struct AdvanceContext<'a> {
    pub(super) now: Now,
    pub(super) tokens: &'a dyn TokenSource,
    pub(super) config: &'a LockConfig,
    pub(super) counters: &'a LockCounters,
}

/// The locks of one document.
#[derive(Debug)]
pub(super) struct DocumentLocks {
    table: LockTable,
    waiters: HashMap<RequestId, Waiter>,
    /// The memory of each lock whose end is not decided.
    memory: HashMap<FencingToken, LockMemory>,
    unpublished: VecDeque<PendingChange>,
    /// The change that is being published.
    publishing: Option<PendingChange>,
    /// True while the document is in the queue of those that have a change to publish.
    is_in_ready_queue: bool,
}

impl DocumentLocks {
    /// No locks yet.
    pub(super) fn new(config: &LockConfig) -> Self {
        let limits = TableLimits { max_locks: config.max_locks, max_waiters: config.max_waiters };
        Self {
            table: LockTable::new(limits),
            waiters: HashMap::new(),
            memory: HashMap::new(),
            unpublished: VecDeque::new(),
            publishing: None,
            is_in_ready_queue: false,
        }
    }

    /// True when there is nothing to remember.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty() && self.unpublished.is_empty() && self.publishing.is_none()
    }

    /// The number of changes that are not reported yet.
    pub(super) fn unreported(&self) -> usize {
        self.unpublished.len() + usize::from(self.publishing.is_some())
    }

    /// Returns true when a change can be published now, and the document is not in the ready queue: the caller puts it there.
    pub(super) fn claim_place_in_ready_queue(&mut self) -> bool {
        let claims = !self.is_in_ready_queue && self.publishing.is_none() && !self.unpublished.is_empty();
        self.is_in_ready_queue |= claims;
        claims
    }

    /// The table of the locks.
    pub(super) fn table(&self) -> &LockTable {
        &self.table
    }

    /// Takes a request, which is answered now or later.
    pub(super) fn acquire(
        &mut self,
        request: LockRequest,
        waiter: Waiter,
        cx: &AdvanceContext<'_>,
    ) -> RequestId {
        let mut changes = Vec::new();
        let id = self.table.acquire(request, cx.now, &mut || cx.tokens.issue(), &mut changes);
        self.waiters.insert(id, waiter);
        self.apply(changes, cx);
        id
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
        let stale = LockError::Stale { token };
        match self.memory.get(&token).map(LockMemory::renewal) {
            Some(Ok(memory)) => match self.table.renew(user, token, ttl, cx.now) {
                Some(lease) => self.publish(ChangeKind::Renewed, lease, Some(answer), Some(memory), cx),
                None => refuse(answer, stale, cx),
            },
            Some(Err(full)) => refuse(answer, full.into(), cx),
            None => refuse(answer, stale, cx),
        }
    }

    /// Ends the lock with this token, if `ends` agrees.
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
            Some(lease) => self.publish_end(reason, lease, Some(answer), cx),
            None => refuse(answer, LockError::Stale { token }, cx),
        }
    }

    /// Ends all locks for which `ends` is true.
    pub(super) fn end_all(
        &mut self,
        ends: impl Fn(&Lease) -> bool,
        reason: UnlockReason,
        cx: &AdvanceContext<'_>,
    ) {
        self.advance(cx);
        for lease in self.table.end(ends) {
            self.publish_end(reason, lease, None, cx);
        }
    }

    /// Refuses the requests of a user who is gone, and ends the user's locks.
    pub(super) fn end_user(&mut self, user: &UserId, cx: &AdvanceContext<'_>) {
        // The requests go first, so that no lock that ends here is granted to one of them.
        for id in self.table.withdraw_all(user) {
            if let Some(waiter) = self.waiters.remove(&id) {
                refuse(waiter.answer, LockError::UserGone, cx);
            }
        }
        self.end_all(|lease| lease.holder == *user, UnlockReason::HolderGone, cx);
    }

    /// Withdraws a request whose caller has stopped waiting.
    pub(super) fn withdraw(&mut self, id: RequestId, cx: &AdvanceContext<'_>) {
        self.waiters.remove(&id);
        if let Some(lease) = self.table.withdraw(id) {
            self.publish_end(UnlockReason::Released, lease, None, cx);
        }
        self.advance(cx);
    }

    /// Ends all locks and refuses the requests that wait, because the server stops.
    pub(super) fn shut_down(&mut self, cx: &AdvanceContext<'_>) {
        self.table.clear_waiters();
        for (_, waiter) in self.waiters.drain() {
            refuse(waiter.answer, LockError::Closed, cx);
        }
        self.end_all(|_| true, UnlockReason::Shutdown, cx);
    }

    /// Advances to the present: leases expire, and requests that wait are granted or refused.
    pub(super) fn advance(&mut self, cx: &AdvanceContext<'_>) {
        let mut changes = Vec::new();
        self.table.advance(cx.now, &mut || cx.tokens.issue(), &mut changes);
        self.apply(changes, cx);
    }

    fn apply(&mut self, changes: Vec<TableChange>, cx: &AdvanceContext<'_>) {
        for change in changes {
            match change {
                TableChange::Granted(id, lease) => {
                    let (answer, memory) = self.take_waiter(id);
                    self.memory.extend(memory.clone().map(|memory| (lease.token, memory)));
                    self.publish(ChangeKind::Granted, lease, answer, memory, cx);
                }
                TableChange::Renewed(id, lease) => {
                    let (answer, memory) = self.take_waiter(id);
                    self.publish(ChangeKind::Renewed, lease, answer, memory, cx);
                }
                TableChange::Expired(lease) => self.publish_end(UnlockReason::Expired, lease, None, cx),
                TableChange::Refused(id, error) => {
                    if let Some(waiter) = self.waiters.remove(&id) {
                        let error = lock_error(error, waiter.scope, waiter.wait, cx.config);
                        refuse(waiter.answer, error, cx);
                    }
                }
            }
        }
    }

    fn take_waiter(&mut self, id: RequestId) -> (Option<Answer>, Option<LockMemory>) {
        self.waiters.remove(&id).map(|waiter| (waiter.answer, waiter.memory)).unzip()
    }

    /// Publishes the end of a lock, whose memory is held until then.
    fn publish_end(
        &mut self,
        reason: UnlockReason,
        lease: Lease,
        answer: Option<Answer>,
        cx: &AdvanceContext<'_>,
    ) {
        let memory = self.memory.remove(&lease.token);
        self.publish(ChangeKind::Ended(reason), lease, answer, memory, cx);
    }

    fn publish(
        &mut self,
        kind: ChangeKind,
        lease: Lease,
        answer: Option<Answer>,
        memory: Option<LockMemory>,
        cx: &AdvanceContext<'_>,
    ) {
        let counter = match kind {
            ChangeKind::Granted => &cx.counters.granted,
            ChangeKind::Renewed => &cx.counters.renewed,
            ChangeKind::Ended(_) => &cx.counters.ended,
        };
        counter.increment();
        self.unpublished.push_back(PendingChange {
            event: EventId::new(),
            kind,
            lease,
            answer,
            _memory: memory,
            ended_at: None,
        });
    }

    /// True when so many changes wait that no further requests are taken.
    pub(super) fn is_overloaded(&self, config: &LockConfig) -> bool {
        self.unpublished.len() >= config.max_unpublished
    }

    /// Takes the document out of the ready queue. Returns the event about its next change, which is being published from now
    /// on; `None` when there is none, or one is being published.
    pub(super) fn begin_publishing(
        &mut self,
        document: &DocumentId,
    ) -> Option<Result<CheckedDraft, PayloadError>> {
        self.is_in_ready_queue = false;
        if self.publishing.is_some() {
            return None;
        }
        self.publishing = self.unpublished.pop_front();
        Some(self.publishing.as_ref()?.draft(document))
    }

    /// Takes the outcome of publishing.
    pub(super) fn end_publishing(&mut self, outcome: Result<(), LockError>, cx: &AdvanceContext<'_>) {
        let Some(change) = self.publishing.take() else { return };
        let token = change.lease.token;
        match (change.kind, &outcome) {
            (ChangeKind::Granted, Err(error)) => {
                // No reader knows of this lock. It ends without an event, and its further changes are dropped.
                self.table.remove(token);
                self.memory.remove(&token);
                self.drop_changes(token, error);
            }
            (ChangeKind::Ended(_), _) => self.table.remove(token),
            (ChangeKind::Granted, Ok(())) | (ChangeKind::Renewed, _) => {}
        }
        change.answer(outcome);
        self.advance(cx);
    }

    /// Drops the changes of a lock that wait, and answers their requests.
    fn drop_changes(&mut self, token: FencingToken, error: &LockError) {
        let (dropped, others): (VecDeque<PendingChange>, _) =
            std::mem::take(&mut self.unpublished).into_iter().partition(|change| change.lease.token == token);
        self.unpublished = others;
        for change in dropped {
            let outcome = match change.kind {
                // The lock has ended, as the request wanted.
                ChangeKind::Ended(_) => Ok(()),
                ChangeKind::Granted | ChangeKind::Renewed => Err(error.clone()),
            };
            change.answer(outcome);
        }
    }

    /// Notes that the event with this id has got `place`. If it is about the end of a lock, nothing after it is under that
    /// lock.
    pub(super) fn mark_placed(&mut self, event: EventId, place: Place) {
        if let Some(change) = &mut self.publishing
            && change.event == event
            && matches!(change.kind, ChangeKind::Ended(_))
        {
            change.ended_at = Some(place);
            self.table.mark_ended(change.lease.token);
        }
    }

    /// Notes that the log did not take the places from `from` on. A lock whose end has one of them counts until its end is
    /// reported.
    pub(super) fn mark_dropped(&mut self, from: Place) {
        if let Some(change) = &mut self.publishing
            && change.ended_at.take_if(|place| place.is_from(from)).is_some()
        {
            self.table.unmark_ended(change.lease.token);
        }
    }
}

fn refuse(answer: Answer, error: LockError, cx: &AdvanceContext<'_>) {
    cx.counters.refused.increment();
    // The receiver may be dropped.
    let _ = answer.send(Err(error));
}

fn lock_error(error: GrantError, wanted: LockScope, wait: Duration, config: &LockConfig) -> LockError {
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
