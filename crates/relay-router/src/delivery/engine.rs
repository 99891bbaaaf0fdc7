//! The engine: begins attempts for events that are ready, and records their results.
//!
//! The state is behind one lock. It is held for short, synchronous steps, in which nothing is awaited and no rule is
//! evaluated. One task schedules: it wakes up after every change that may allow an attempt (an event was queued, an
//! attempt ended, a service came back, a moment has come) and begins attempts, each a task of its own. The store has an
//! attempt's result before another attempt gets its slot. So after a crash no more events are delivered twice than
//! were under way.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{FailureKind, Monotonic, ServiceName};
use relay_tasks::{TaskGroup, TaskName};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::attempt::{AttemptResult, Disposition, InFlight};
use super::deps::Deps;
use super::selection::min_some;
use super::state::{Round, Scheduled, State};
use crate::decisions::{DecidedEvent, Decision, DecisionRecord, Outcome};
use crate::routing_table::RoutingTable;
use crate::store::{StoreError, WriteBatch};

/// The task that begins attempts.
const SCHEDULER: TaskName = TaskName::new("router.scheduler");
/// One attempt.
const ATTEMPT: TaskName = TaskName::new("router.attempt");
/// One change by a caller, which runs to its end.
const OPERATION: TaskName = TaskName::new("router.operation");

/// The shortest sleep between two steps of scheduling.
const MIN_SLEEP: Duration = Duration::from_millis(1);

/// A handle to the engine. Clones share it.
#[derive(Clone)]
pub(crate) struct Engine(Arc<Inner>);

struct Inner {
    deps: Deps,
    state: Mutex<State>,
    /// Wakes the scheduling task.
    ready: Notify,
    /// Wakes the dispatcher when targets or rules are gone.
    routes_changed: Notify,
    /// Counts the attempts that ended, each of which may free space in a route.
    completions: watch::Sender<u64>,
    tasks: TaskGroup,
    stopping: CancellationToken,
    aborting: CancellationToken,
}

impl Engine {
    pub(crate) fn new(deps: Deps, state: State, tasks: TaskGroup) -> Self {
        Self(Arc::new(Inner {
            deps,
            state: Mutex::new(state),
            ready: Notify::new(),
            routes_changed: Notify::new(),
            completions: watch::Sender::new(0),
            tasks,
            stopping: CancellationToken::new(),
            aborting: CancellationToken::new(),
        }))
    }

    pub(crate) fn deps(&self) -> &Deps {
        &self.0.deps
    }

    /// Changes the state, and then schedules.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.0.state.lock());
        self.0.ready.notify_one();
        result
    }

    /// Reads the state.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.0.state.lock())
    }

    /// The routing table in force.
    pub(crate) fn routing_table(&self) -> Arc<RoutingTable> {
        self.read(|state| Arc::clone(state.table()))
    }

    /// Counts the attempts that ended. After each one a route may have more space.
    pub(crate) fn completions(&self) -> watch::Receiver<u64> {
        self.0.completions.subscribe()
    }

    /// Tells the dispatcher that rules or targets have changed, so that some routes may lead nowhere.
    pub(crate) fn notify_routes_changed(&self) {
        self.0.routes_changed.notify_one();
    }

    /// Waits for [`Engine::notify_routes_changed`].
    pub(crate) async fn routes_changed(&self) {
        self.0.routes_changed.notified().await;
    }

    /// The failure that has stopped delivery, if there was one.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.0.deps.store.failure()
    }

    /// Stops delivery because of `error`, unless the store is only closed.
    pub(crate) fn fail(&self, error: StoreError) {
        self.0.deps.store.fail(error);
    }

    /// Decides that an event is lost, in the batch that ends its waiting, so that a killed process hides no loss. Once the
    /// batch is written, [`Engine::tell_loss`] must follow.
    pub(crate) fn decide_loss(&self, decision: Decision, batch: &mut WriteBatch) -> Arc<DecisionRecord> {
        let Deps { decisions, metrics, .. } = &self.0.deps;
        let record = decisions.record_of(decision);
        batch.loss(&record, &metrics.counted_name(record.target.as_ref()));
        record
    }

    /// Counts a stored loss and adds it to the decision log. The scheduling task logs it.
    pub(crate) fn tell_loss(&self, record: Arc<DecisionRecord>) {
        let Deps { decisions, metrics, losses, .. } = &self.0.deps;
        metrics.count_lost(record.target.as_ref(), record.events());
        losses.count(Arc::clone(&record));
        decisions.add_loss(record);
        self.0.ready.notify_one();
    }

    /// The tasks that [`Engine::stop`] waits for.
    pub(crate) fn tasks(&self) -> &TaskGroup {
        &self.0.tasks
    }

    /// Runs `operation` to its end, also when the caller stops waiting for it. So the operation never stops between its
    /// change of the state and its commit.
    pub(crate) async fn run_to_end<T: Send + 'static>(
        &self,
        operation: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match self.0.tasks.spawn(OPERATION, operation).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime shuts down, and with it the caller.
                Err(_cancelled) => std::future::pending().await,
            },
        }
    }

    /// A token that is cancelled when nothing new may begin.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// Begins to deliver. Called once.
    pub(crate) fn start(&self) {
        self.0.tasks.keep_running(SCHEDULER, self.clone(), |engine| Box::pin(engine.run()));
    }

    /// Ends delivery. Attempts under way are aborted after `timeout`. Returns true if all ended by themselves.
    pub(crate) async fn stop(&self, timeout: Duration) -> bool {
        self.0.stopping.cancel();
        self.0.tasks.close();
        let in_time = tokio::time::timeout(timeout, self.0.tasks.wait()).await.is_ok();
        self.0.aborting.cancel();
        self.0.tasks.wait().await;
        in_time
    }

    async fn run(&self) {
        let mut health_changes = self.0.deps.monitor.changes();
        let (mut round, mut wake) = (Round::New, None);
        loop {
            let now = self.0.deps.clock.monotonic();
            let (next, has_rest) = self.schedule(now, round);
            wake = if round == Round::New { next } else { min_some(wake, next) };
            wake = min_some(wake, self.0.deps.losses.log_due(now));
            let sleep = async {
                match wake {
                    _ if has_rest => tokio::time::sleep(MIN_SLEEP).await,
                    Some(at) => tokio::time::sleep(at.since(now).max(MIN_SLEEP)).await,
                    None => std::future::pending().await,
                }
            };
            round = tokio::select! {
                () = self.0.stopping.cancelled() => return,
                () = self.0.ready.notified() => Round::New,
                closed = health_changes.changed() => {
                    if closed.is_err() {
                        return;
                    }
                    Round::New
                }
                () = sleep => if has_rest { Round::Continued } else { Round::New },
            };
        }
    }

    /// Begins attempts that can begin. Returns the moment at which time alone may allow the next, and true if the round has
    /// further steps.
    fn schedule(&self, now: Monotonic, round: Round) -> (Option<Monotonic>, bool) {
        if self.failure().is_some() {
            return (None, false);
        }
        let health = |name: &ServiceName| self.0.deps.monitor.state(name);
        let Scheduled { attempts, next, has_rest } = self.0.state.lock().schedule(now, health, round);
        for attempt in attempts {
            let mut attempt = AttemptGuard { engine: self.clone(), attempt: Some(attempt) };
            drop(self.0.tasks.spawn(ATTEMPT, async move { attempt.run().await }));
        }
        (next, has_rest)
    }

    /// Records the result of an attempt and gives its slot to others.
    fn end(&self, attempt: &InFlight, mut result: AttemptResult) {
        self.record_decisions(attempt, &result);
        for loss in std::mem::take(&mut result.losses) {
            self.tell_loss(loss);
        }
        let deps = &self.0.deps;
        match &result.answer {
            Some(Ok(())) => deps.monitor.record_delivery(&attempt.name, Ok(())),
            // A rejected event is an answer too.
            Some(Err(error)) if error.kind == FailureKind::Reject => {
                deps.monitor.record_delivery(&attempt.name, Ok(()));
            }
            Some(Err(error)) => deps.monitor.record_delivery(&attempt.name, Err(&error.to_string())),
            None => {}
        }
        let now = deps.clock.monotonic();
        let outcome = result.of_target();
        let not_before = now + result.backoff;
        let entries = attempt.dequeued.entries.iter().zip(result.dispositions);
        let retries = entries.filter_map(|(entry, disposition)| match disposition {
            Disposition::Retry(queued) => Some((entry.offset, queued)),
            Disposition::Done(_) | Disposition::Lost(_) | Disposition::DeadLetter(..) => None,
        });
        let retries = retries.collect();
        self.update(|state| state.end(attempt, &outcome, retries, now, not_before));
        self.0.completions.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Records the result of an attempt in the metrics and the decision log.
    fn record_decisions(&self, attempt: &InFlight, result: &AttemptResult) {
        let Deps { metrics, decisions, clock, store, .. } = &self.0.deps;
        let table = self.routing_table();
        let error = result.answer.as_ref().and_then(|answer| answer.as_ref().err());
        for ((entry, disposition), event) in
            attempt.dequeued.entries.iter().zip(&result.dispositions).zip(&result.events)
        {
            let outcome = match disposition {
                Disposition::Done(outcome) => *outcome,
                Disposition::Retry(_) => Outcome::Retrying,
                Disposition::DeadLetter(..) => Outcome::DeadLettered,
                // Decided with its batch.
                Disposition::Lost(_) => continue,
            };
            metrics.count_outcome(&attempt.name, outcome, result.took, attempt.is_fallback);
            // An event that could not be read, which is logged, is tried again.
            let Some(event) = event else { continue };
            if let Disposition::DeadLetter(queued, reason) = disposition {
                let attempts = queued.tried;
                // A target that fails makes one for each event. Each is in the decision log, and the first few are here.
                if store.dead_letter_count(&attempt.name) <= attempt.dequeued.entries.len() {
                    tracing::warn!(event = %entry.queued.event, target = %attempt.name, ?reason, attempts, "the event became a dead letter, one of the first of its target");
                } else {
                    tracing::debug!(event = %entry.queued.event, target = %attempt.name, ?reason, attempts, "the event became a dead letter");
                }
            }
            // The rules that routed the event may be replaced, and others would explain something else.
            let is_explained = entry.queued.rules == table.version();
            let explained = (Arc::clone(table.rules()), Arc::clone(event));
            decisions.record(Decision {
                at: clock.wall(),
                event: DecidedEvent::from(&**event),
                rules_version: entry.queued.rules,
                rule: attempt.rule_of(&entry.queued).cloned(),
                target: Some(attempt.name.clone()),
                is_fallback: attempt.is_fallback,
                is_replay: entry.queued.is_replay,
                outcome,
                attempt: entry.queued.tried.saturating_add(u32::from(result.answer.is_some())),
                duration: result.took,
                error: error.map(ToString::to_string),
                verdicts: Box::new(
                    move || {
                        if is_explained { explained.0.explain(&explained.1) } else { Vec::new() }
                    },
                ),
            });
        }
    }

    /// Returns true if the state's lock is free.
    #[cfg(test)]
    pub(crate) fn is_unlocked(&self) -> bool {
        self.0.state.try_lock().is_some()
    }
}

/// An attempt under way. If its task panics, its events are tried again, and its slot is free for others.
struct AttemptGuard {
    engine: Engine,
    /// None once the attempt has ended.
    attempt: Option<InFlight>,
}

impl AttemptGuard {
    async fn run(&mut self) {
        let (Some(attempt), engine) = (&self.attempt, &self.engine) else { return };
        match attempt.run(engine, &engine.0.aborting).await {
            Ok(Some(result)) => engine.end(attempt, result),
            Ok(None) => {}
            Err(error) => engine.fail(error),
        }
        self.attempt = None;
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        if let Some(attempt) = &self.attempt {
            self.engine.end(attempt, attempt.interrupted());
        }
    }
}

#[cfg(test)]
mod tests {
    use relay_core::{Epoch, Offset, Seq, Timestamp};

    use super::*;
    use crate::records::QueuedEvent;
    use crate::test_support::{engine, loss, name, note};

    /// Queues the first event of `document` for target `a`.
    fn enqueue(engine: &Engine, document: &str) {
        let event = note(document, 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
        engine.update(|state| {
            let route = state.add_direct_route(&name("a"), &mut WriteBatch::default());
            let queued = Arc::new(QueuedEvent::new(&event, 1));
            state.enqueue(route, Offset::new(state.queued_for(&name("a")).0 as u64 + 1), queued, None);
        });
    }

    fn schedule(engine: &Engine) -> (Option<Monotonic>, usize) {
        let (next, _) = engine.schedule(engine.deps().clock.monotonic(), Round::New);
        (next, engine.read(|state| state.pool.in_flight(&name("a"))))
    }

    #[tokio::test]
    async fn no_attempt_begins_after_a_failure_of_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let engine = engine(directory.path(), "");
        enqueue(&engine, "before");
        assert_eq!(schedule(&engine), (None, 1));
        engine.fail(engine.deps().store.error(&"the disk is full"));
        enqueue(&engine, "after");
        assert_eq!(schedule(&engine), (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn losses_are_told_at_once_or_when_a_line_is_due_although_nothing_else_happens() {
        let directory = tempfile::tempdir().unwrap();
        let engine = engine(directory.path(), "");
        engine.start();
        let unreported = async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            engine.deps().losses.unreported()
        };
        let lose = || {
            let record = engine.decide_loss(loss("a"), &mut WriteBatch::default());
            engine.tell_loss(record);
        };
        // The scheduling task waits for something to happen.
        assert_eq!(unreported(1).await, 0);
        lose();
        assert_eq!(unreported(1).await, 0);
        lose();
        assert_eq!(unreported(50).await, 1);
        assert_eq!(unreported(10).await, 0);
    }
}
