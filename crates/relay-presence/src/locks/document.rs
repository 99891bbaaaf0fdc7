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
use super::counters::Counters;
use super::error::LockError;
use super::table::{Change, Claim, LockTable, Obstacle, Refusal, TableLimits, Ticket, Wanted};

/// Where the answer of a request is awaited.
pub(super) type Answer = oneshot::Sender<Result<Lease, LockError>>;

/// What happened to a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Granted,
    Renewed,
    Ended(UnlockReason),
}

/// A change that is to be published.
#[derive(Debug)]
pub(super) struct Unpublished {
    pub(super) event: EventId,
    pub(super) step: Step,
    pub(super) lease: Lease,
    answer: Option<Answer>,
}

impl Unpublished {
    fn answer(self, answer: Result<(), LockError>) {
        if let Some(sender) = self.answer {
            // Who asked may be gone.
            let _ = sender.send(answer.map(|()| self.lease));
        }
    }
}

/// A request that waits.
#[derive(Debug)]
struct Asker {
    scope: LockScope,
    wait: Duration,
    answer: Answer,
}

/// What is needed to bring a document to the present.
pub(super) struct Present<'a> {
    pub(super) now: Now,
    pub(super) tokens: &'a dyn TokenSource,
    pub(super) config: &'a LockConfig,
    pub(super) counters: &'a Counters,
}

#[derive(Debug)]
pub(super) struct Document {
    table: LockTable,
    askers: HashMap<Ticket, Asker>,
    unpublished: VecDeque<Unpublished>,
    /// The change that is being published.
    publishing: Option<Unpublished>,
    /// Whether the document is in the line of those that have something to publish.
    pub(super) is_in_line: bool,
}

impl Document {
    pub(super) fn new(config: &LockConfig) -> Self {
        let limits = TableLimits { max_locks: config.max_locks, max_waiters: config.max_waiters };
        Self {
            table: LockTable::new(limits),
            askers: HashMap::new(),
            unpublished: VecDeque::new(),
            publishing: None,
            is_in_line: false,
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
        wanted: Wanted,
        wait: Duration,
        answer: Answer,
        present: &Present<'_>,
    ) -> Ticket {
        let mut changes = Vec::new();
        let asker = Asker { scope: wanted.scope.clone(), wait, answer };
        let ticket = self.table.acquire(wanted, present.now, &mut || present.tokens.issue(), &mut changes);
        self.askers.insert(ticket, asker);
        self.apply(changes, present);
        ticket
    }

    /// Prolongs a lease.
    pub(super) fn renew(
        &mut self,
        user: &UserId,
        token: FencingToken,
        ttl: Duration,
        answer: Answer,
        present: &Present<'_>,
    ) {
        self.settle(present);
        match self.table.renew(user, token, ttl, present.now) {
            Some(lease) => self.publish(Step::Renewed, lease, Some(answer), present),
            None => refuse(answer, LockError::Stale { token }, present),
        }
    }

    /// Ends the one lock that `ends` says, which has this token.
    pub(super) fn end_one(
        &mut self,
        token: FencingToken,
        ends: impl Fn(&Lease) -> bool,
        reason: UnlockReason,
        answer: Answer,
        present: &Present<'_>,
    ) {
        self.settle(present);
        match self.table.end(|lease| lease.token == token && ends(lease)).pop() {
            Some(lease) => self.publish(Step::Ended(reason), lease, Some(answer), present),
            None => refuse(answer, LockError::Stale { token }, present),
        }
    }

    /// Ends all locks that `ends` says.
    pub(super) fn end_all(
        &mut self,
        ends: impl Fn(&Lease) -> bool,
        reason: UnlockReason,
        present: &Present<'_>,
    ) {
        self.settle(present);
        for lease in self.table.end(ends) {
            self.publish(Step::Ended(reason), lease, None, present);
        }
    }

    /// Takes back a request whose answer nobody waits for any more.
    pub(super) fn withdraw(&mut self, ticket: Ticket, present: &Present<'_>) {
        self.askers.remove(&ticket);
        if let Some(lease) = self.table.withdraw(ticket) {
            self.publish(Step::Ended(UnlockReason::Released), lease, None, present);
        }
        self.settle(present);
    }

    /// Ends everything: the server stops.
    pub(super) fn shut_down(&mut self, present: &Present<'_>) {
        self.table.dismiss();
        for (_, asker) in self.askers.drain() {
            refuse(asker.answer, LockError::Closed, present);
        }
        self.end_all(|_| true, UnlockReason::Shutdown, present);
    }

    /// Brings the document to the present: leases expire, those who wait get their turn or their refusal.
    pub(super) fn settle(&mut self, present: &Present<'_>) {
        let mut changes = Vec::new();
        self.table.settle(present.now, &mut || present.tokens.issue(), &mut changes);
        self.apply(changes, present);
    }

    fn apply(&mut self, changes: Vec<Change>, present: &Present<'_>) {
        for change in changes {
            match change {
                Change::Granted(ticket, lease) => {
                    let answer = self.askers.remove(&ticket).map(|asker| asker.answer);
                    self.publish(Step::Granted, lease, answer, present);
                }
                Change::Renewed(ticket, lease) => {
                    let answer = self.askers.remove(&ticket).map(|asker| asker.answer);
                    self.publish(Step::Renewed, lease, answer, present);
                }
                Change::Expired(lease) => {
                    self.publish(Step::Ended(UnlockReason::Expired), lease, None, present);
                }
                Change::Refused(ticket, refusal) => {
                    if let Some(asker) = self.askers.remove(&ticket) {
                        let error = refused(refusal, asker.scope, asker.wait, present.config);
                        refuse(asker.answer, error, present);
                    }
                }
            }
        }
    }

    fn publish(&mut self, step: Step, lease: Lease, answer: Option<Answer>, present: &Present<'_>) {
        present.counters.count(step);
        self.unpublished.push_back(Unpublished { event: EventId::new(), step, lease, answer });
    }

    /// Whether so many changes wait that no more may be asked for.
    pub(super) fn is_overloaded(&self, config: &LockConfig) -> bool {
        self.unpublished.len() >= config.max_unpublished
    }

    /// The next change, which is being published from now on.
    pub(super) fn begin_publishing(&mut self) -> Option<&Unpublished> {
        if self.publishing.is_some() {
            return None;
        }
        self.publishing = self.unpublished.pop_front();
        self.publishing.as_ref()
    }

    /// Takes the outcome of publishing.
    pub(super) fn end_publishing(&mut self, outcome: Result<(), LockError>, present: &Present<'_>) {
        let Some(change) = self.publishing.take() else { return };
        let token = change.lease.token;
        match (change.step, &outcome) {
            (Step::Granted, Err(error)) => {
                // Nobody has heard of this lock: it ends as it began, together with what was to be said of it.
                self.table.remove(token);
                self.forget(token, error);
            }
            (Step::Ended(_), _) => self.table.remove(token),
            (Step::Granted, Ok(())) | (Step::Renewed, _) => {}
        }
        if outcome.is_err() {
            present.counters.unpublished.add(1);
        }
        change.answer(outcome);
        self.settle(present);
    }

    fn forget(&mut self, token: FencingToken, error: &LockError) {
        let (about, others) =
            std::mem::take(&mut self.unpublished).into_iter().partition(|change| change.lease.token == token);
        self.unpublished = others;
        let about: VecDeque<Unpublished> = about;
        for change in about {
            // A lock that is to end has ended.
            let outcome = match change.step {
                Step::Ended(_) => Ok(()),
                Step::Granted | Step::Renewed => Err(error.clone()),
            };
            change.answer(outcome);
        }
    }

    /// Notes that the event with this id has its place: if it says that a lock has ended, nothing after it is under that
    /// lock.
    pub(super) fn note_placed(&mut self, event: EventId) {
        if let Some(change) = &self.publishing
            && change.event == event
            && matches!(change.step, Step::Ended(_))
        {
            self.table.note_over(change.lease.token);
        }
    }

    /// Notes that the log did not take the event that is being published: the lock counts until its end is reported.
    pub(super) fn note_dropped(&mut self) {
        if let Some(change) = &self.publishing
            && matches!(change.step, Step::Ended(_))
        {
            self.table.note_not_over(change.lease.token);
        }
    }
}

fn refuse(answer: Answer, error: LockError, present: &Present<'_>) {
    present.counters.refused.add(1);
    // Who asked may be gone.
    let _ = answer.send(Err(error));
}

fn refused(refusal: Refusal, wanted: LockScope, wait: Duration, config: &LockConfig) -> LockError {
    match refusal {
        Refusal::TooManyLocks => LockError::TooManyLocks { max: config.max_locks },
        Refusal::TooManyWaiters => LockError::TooManyWaiters { max: config.max_waiters },
        Refusal::Busy(Obstacle { user: holder, scope, .. }) if !wait.is_zero() => {
            LockError::WaitTimeout { wanted, wait, scope, holder }
        }
        Refusal::Busy(Obstacle { user: holder, scope, claim: Claim::Held }) => {
            LockError::Locked { wanted, scope, holder }
        }
        Refusal::Busy(Obstacle { user: first, scope, claim: Claim::Awaited }) => {
            LockError::Awaited { wanted, scope, first }
        }
    }
}
