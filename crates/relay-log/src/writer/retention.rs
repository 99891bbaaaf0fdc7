//! Retention: the documents that have events to trim, and the scan that finds those that nothing appends to.
//! [Logged events](super::logged) have limits of their own and are trimmed beside the documents.
//!
//! A document is queued for trimming by an append that takes it over its limits, by a caller's trim, or by the scan over
//! all documents. The queue is worked off in small parts, one part in each commit. A document that a hold keeps over its
//! limits leaves the queue, and returns when the hold moves on.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use relay_core::{DocumentId, Head, LogError, Monotonic, Offset, Retention, Seq, Timestamp};

use super::held_history::HeldHistory;
use super::limits::RetentionLimits;
use super::logged::{LoggedEvents, LoggedLimits};
use super::request::{PendingReplies, QueuePermits, ReplySender};
use super::staging::{ListedDocument, Staging, TrimProgress};
use crate::config::{LogConfig, LoggedRetention};
use crate::stats::Counters;
use crate::status::LogStatus;
use crate::store::{DocumentState, StoreBatch};

/// The most events that one commit trims.
const TRIMS_PER_COMMIT: usize = 1024;
/// The most documents that a scan checks between two commits.
const SCAN_SLICE: usize = 256;

/// A document with events to trim.
struct TrimTask {
    document: DocumentId,
    goal: TrimGoal,
}

enum TrimGoal {
    /// The document is within retention's limits.
    WithinRetention,
    /// The events through this seq are gone.
    Through { seq: Seq, reply: ReplySender<Head>, _permits: QueuePermits },
}

impl TrimGoal {
    /// Returns true when the document's oldest event must go.
    fn is_exceeded(&self, document: &DocumentState, limits: &RetentionLimits, now: Timestamp) -> bool {
        match self {
            Self::WithinRetention => limits.exceeded_by(document, now),
            Self::Through { seq, .. } => document.trimmed < (*seq).min(document.last),
        }
    }
}

/// A walk over all documents for those that exceed their limits.
struct RetentionScan {
    /// The last document that was checked.
    after: Option<DocumentId>,
    finished: bool,
    callers: Vec<(ReplySender<()>, QueuePermits)>,
}

/// The pending work of retention.
pub(super) struct RetentionQueue {
    status: Arc<LogStatus>,
    retention: Retention,
    logged_retention: LoggedRetention,
    /// True when logged events are to go.
    logged_due: bool,
    scan_interval: Duration,
    next_scan: Monotonic,
    scan: Option<RetentionScan>,
    tasks: VecDeque<TrimTask>,
    /// The documents with a task [`TrimGoal::WithinRetention`], each of which has one.
    within_retention: HashSet<DocumentId>,
    /// The number of tasks that a caller waits for.
    requested: usize,
    held: HeldHistory,
}

impl RetentionQueue {
    pub(super) fn new(status: Arc<LogStatus>, config: &LogConfig, now: Monotonic) -> Self {
        Self {
            held: HeldHistory::new(Arc::clone(&status), config.max_held_bytes),
            status,
            retention: config.retention,
            logged_retention: config.logged_retention,
            logged_due: false,
            scan_interval: config.sweep_interval,
            next_scan: now + config.sweep_interval,
            scan: None,
            tasks: VecDeque::new(),
            within_retention: HashSet::new(),
            requested: 0,
        }
    }

    /// Returns true when there is nothing to trim and no scan is running.
    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.scan.is_none() && !self.logged_due
    }

    /// Returns true when a caller waits for a trim or a scan.
    pub(super) fn has_callers(&self) -> bool {
        self.scan.as_ref().is_some_and(|scan| !scan.callers.is_empty()) || self.requested > 0
    }

    pub(super) fn until_next_scan(&self, now: Monotonic) -> Duration {
        self.next_scan.since(now)
    }

    pub(super) fn start_scan_if_due(&mut self, now: Monotonic) {
        if self.scan.is_none() && now >= self.next_scan {
            self.start_scan(now, Vec::new());
        }
    }

    /// Queues the documents that the hold has kept over their limits and keeps no more.
    pub(super) fn follow_hold(&mut self) {
        let before = self.held.hold();
        for document in self.held.refresh() {
            self.push_within_retention(document);
        }
        self.logged_due |= self.held.hold() != before && self.held.has_logged();
    }

    /// Starts a scan from the first document, for a caller and for the callers of the running scan. The running scan may
    /// have passed documents that the new caller is waiting for.
    pub(super) fn restart_scan(&mut self, now: Monotonic, reply: ReplySender<()>, permits: QueuePermits) {
        let mut callers = self.scan.take().map_or_else(Vec::new, |scan| scan.callers);
        callers.push((reply, permits));
        self.start_scan(now, callers);
    }

    fn start_scan(&mut self, now: Monotonic, callers: Vec<(ReplySender<()>, QueuePermits)>) {
        self.held.report();
        self.next_scan = now + self.scan_interval;
        self.scan = Some(RetentionScan { after: None, finished: false, callers });
    }

    /// Queues a trim that a caller asked for.
    pub(super) fn push_trim(
        &mut self,
        document: DocumentId,
        seq: Seq,
        reply: ReplySender<Head>,
        permits: QueuePermits,
    ) {
        self.requested += 1;
        self.tasks
            .push_back(TrimTask { document, goal: TrimGoal::Through { seq, reply, _permits: permits } });
    }

    /// Queues a document that an append took over its limits.
    pub(super) fn check_after_append(&mut self, id: &DocumentId, document: &DocumentState, now: Timestamp) {
        if self.held.grow(id, document.kept_bytes()) {
            return;
        }
        if RetentionLimits::with_slack(self.retention).exceeded_by(document, now) {
            self.push_within_retention(id.clone());
        }
    }

    /// Notes if logged events are to go, after an append of some.
    pub(super) fn check_logged(&mut self, logged: &LoggedEvents, now: Timestamp) {
        self.logged_due |= logged.exceeds(&LoggedLimits::with_slack(self.logged_retention), now);
    }

    /// Queues a document that exceeds its limits, unless it is queued already: each of its appends comes here.
    fn push_within_retention(&mut self, document: DocumentId) {
        if self.within_retention.insert(document.clone()) {
            self.tasks.push_back(TrimTask { document, goal: TrimGoal::WithinRetention });
        }
    }

    /// Returns the caller of a task that has ended, if it has one.
    fn end_task(&mut self, task: TrimTask) -> Option<ReplySender<Head>> {
        match task.goal {
            TrimGoal::WithinRetention => {
                self.within_retention.remove(&task.document);
                None
            }
            TrimGoal::Through { reply, .. } => {
                self.requested -= 1;
                Some(reply)
            }
        }
    }

    /// Checks the scan's next documents, once those found before are trimmed.
    pub(super) fn scan_slice(&mut self, staging: &Staging, now: Timestamp) {
        let Some(scan) = self.scan.as_mut().filter(|scan| !scan.finished && self.tasks.is_empty()) else {
            return;
        };
        let logged_limits = LoggedLimits::exact(self.logged_retention);
        self.logged_due |= staging.logged().exceeds(&logged_limits, now);
        let limits = RetentionLimits::exact(self.retention);
        let slice = match staging.documents_after(scan.after.as_ref(), SCAN_SLICE) {
            Ok(slice) => slice,
            Err(error) => {
                Counters::add(&self.status.counters.retention_failures, 1);
                tracing::error!(%error, "retention could not list the documents");
                scan.finished = true;
                return;
            }
        };
        scan.finished = slice.len() < SCAN_SLICE;
        scan.after = slice.last().map(|listed| listed.id.clone());
        for ListedDocument { id: document, state } in slice {
            match state {
                Ok(Some(state)) if limits.exceeded_by(&state, now) => {
                    self.push_within_retention(document);
                }
                Ok(_) => {}
                Err(error) => {
                    Counters::add(&self.status.counters.retention_failures, 1);
                    tracing::error!(%document, %error, "retention could not read a document's state");
                }
            }
        }
    }

    /// Stages some of the removals that are due.
    pub(super) fn run_tasks(
        &mut self,
        staging: &mut Staging,
        batch: &mut StoreBatch<'_>,
        replies: &mut PendingReplies,
        now: Timestamp,
    ) {
        if self.logged_due {
            self.trim_logged(staging, batch, now);
        }
        let limits = RetentionLimits::exact(self.retention);
        let has_staged_appends = !replies.appends.is_empty();
        let mut budget = TRIMS_PER_COMMIT;
        // Each task has one turn: a task that awaits this batch's commit goes on in the next batch.
        for _ in 0..self.tasks.len() {
            if budget == 0 {
                break;
            }
            let Some(task) = self.tasks.pop_front() else { break };
            let is_own = matches!(task.goal, TrimGoal::WithinRetention);
            let max_held_bytes = self.held.max_bytes_of(&task.document);
            let (mut held_state, mut dropped_held) = (None, 0);
            let excess = |document: &DocumentState, offset: Option<Offset>| {
                if !task.goal.is_exceeded(document, &limits, now) {
                    return false;
                }
                let is_held = is_own && self.held.covers(offset);
                if is_held && document.kept_bytes() <= max_held_bytes {
                    held_state = Some((document.kept_bytes(), offset));
                    return false;
                }
                dropped_held += u64::from(is_held && offset.is_some());
                true
            };
            let trimmed = staging.trim(batch, &task.document, excess, has_staged_appends, &mut budget);
            if is_own {
                self.held.set(&task.document, held_state);
                self.held.count_dropped(dropped_held);
            }
            match trimmed {
                Ok((_, TrimProgress::BudgetSpent)) => self.tasks.push_front(task),
                Ok((_, TrimProgress::AwaitsCommit)) => self.tasks.push_back(task),
                Ok((head, TrimProgress::Done)) => {
                    if let Some(reply) = self.end_task(task) {
                        replies.trims.push((reply, Ok(head)));
                    }
                }
                Err(error) => {
                    let document = task.document.clone();
                    if let Some(reply) = self.end_task(task) {
                        replies.trims.push((reply, Err(error)));
                    } else {
                        Counters::add(&self.status.counters.retention_failures, 1);
                        tracing::error!(%document, %error, "retention could not trim old events");
                    }
                }
            }
        }
    }

    /// Stages some of the removals of logged events. Those that the hold covers stay within its bound.
    fn trim_logged(&mut self, staging: &mut Staging, batch: &mut StoreBatch<'_>, now: Timestamp) {
        let limits = LoggedLimits::exact(self.logged_retention);
        let max_held_bytes = self.held.max_bytes_of_logged();
        let (mut held_bytes, mut dropped_held) = (0, 0);
        let excess = |logged: &LoggedEvents, offset: Offset| {
            if !logged.exceeds(&limits, now) {
                return false;
            }
            let is_held = self.held.covers(Some(offset));
            if is_held && logged.kept_bytes() <= max_held_bytes {
                held_bytes = logged.kept_bytes();
                return false;
            }
            dropped_held += u64::from(is_held);
            true
        };
        let trimmed = staging.trim_logged(batch, excess, TRIMS_PER_COMMIT);
        self.held.set_logged(held_bytes);
        self.held.count_dropped(dropped_held);
        self.logged_due = trimmed.unwrap_or_else(|error| {
            Counters::add(&self.status.counters.retention_failures, 1);
            tracing::error!(%error, "retention could not drop old logged events");
            false
        });
    }

    /// Replies to the scan's callers once the scan is complete, or at once when the commit failed.
    pub(super) fn finish_scan(&mut self, committed: &Result<(), LogError>) {
        let is_done = self.tasks.is_empty() && !self.logged_due;
        let is_over = |scan: &mut RetentionScan| committed.is_err() || (scan.finished && is_done);
        if let Some(scan) = self.scan.take_if(is_over) {
            for (reply, _permits) in scan.callers {
                // Receiver dropped: ignore the send error.
                let _ = reply.send(committed.clone());
            }
        }
        if committed.is_err() {
            self.tasks.clear();
            self.logged_due = false;
            self.within_retention.clear();
            self.requested = 0;
        }
    }
}
