//! The engine: takes what the lanes have ready to targets that can take it, and puts down what became of it.
//!
//! Its state is behind one lock, held for moments and never while anything is awaited. Whenever something may go that
//! could not go before (something was queued, an attempt ended, a service came back, a time has come) one task looks
//! through the routes and begins attempts, each a task of its own. What an attempt found is kept by the store before
//! its place is given to another: so after a crash no more is delivered twice than was under way.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{Clock, Event, EventLog, Monotonic, Offset, ServiceName, Timestamp};
use relay_events::ServiceState;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempt::{AttemptResult, Disposition, InFlight};
use super::dead_letters::DeadLetters;
use super::partition_queues::{PartitionKey, PartitionQueues, QueueEntry};
use super::pool::{Permit, Pool};
use super::selection::{Selection, SelectionContext, min_some};
use crate::decisions::{Decision, DecisionLog};
use crate::metrics::RouterMetrics;
use crate::monitor::HealthMonitor;
use crate::records::{QueuedEvent, RouteId, RouteKey, RouteRecord, TargetSet};
use crate::rules::{DeliveryOrder, RuleSet, Strategy};
use crate::store::{Store, StoreError, WriteBatch};

/// How many lanes of one route are looked at in vain before the next route's turn.
const MAX_LOOKS: usize = 64;

/// The shortest time that is waited for.
const MIN_SLEEP: Duration = Duration::from_millis(1);

/// What the engine works with.
pub(crate) struct Deps {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) monitor: HealthMonitor,
    pub(crate) decisions: DecisionLog,
    pub(crate) metrics: Arc<RouterMetrics>,
    pub(crate) dead_letters: DeadLetters,
    /// How many bytes of queued events are kept in memory; others are read from the log again.
    pub(crate) cache_bytes: usize,
}

/// Rules, with their version.
#[derive(Clone)]
pub(crate) struct ActiveRules {
    pub(crate) version: u64,
    pub(crate) set: Arc<RuleSet>,
}

/// All that changes.
pub(crate) struct State {
    pub(crate) routes: BTreeMap<RouteId, Route>,
    pub(crate) ids: HashMap<RouteKey, RouteId>,
    pub(crate) pool: Pool,
    pub(crate) rules: ActiveRules,
    cached_bytes: usize,
}

/// Where events wait, and for whom.
pub(crate) struct Route {
    pub(crate) key: RouteKey,
    pub(crate) targets: TargetSet,
    pub(crate) queues: PartitionQueues,
    /// How many targets were chosen.
    turn: u64,
    /// Up to where the log was routed here, if that is not as far as for the others: there was no room.
    pub(crate) lag_cursor: Option<Offset>,
}

/// A handle to the engine; clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Engine(Arc<Inner>);

struct Inner {
    deps: Deps,
    state: Mutex<State>,
    /// Something may go.
    ready: Notify,
    /// Counts completions, for those who wait for room in a route.
    finished_attempts: watch::Sender<u64>,
    /// Why nothing more is delivered, if that is so.
    failure: Mutex<Option<StoreError>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    aborting: CancellationToken,
}

impl Engine {
    pub(crate) fn new(deps: Deps, rules: ActiveRules) -> Self {
        let pool = Pool::new(Arc::clone(&deps.clock));
        let state = State { routes: BTreeMap::new(), ids: HashMap::new(), pool, rules, cached_bytes: 0 };
        Self(Arc::new(Inner {
            deps,
            state: Mutex::new(state),
            ready: Notify::new(),
            finished_attempts: watch::Sender::new(0),
            failure: Mutex::new(None),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            aborting: CancellationToken::new(),
        }))
    }

    pub(crate) fn deps(&self) -> &Deps {
        &self.0.deps
    }

    /// Looks at the state, or changes it; then whatever may go now goes.
    pub(crate) fn update<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.0.state.lock());
        self.0.ready.notify_one();
        result
    }

    /// The rules in force.
    pub(crate) fn rules(&self) -> ActiveRules {
        self.read(|state| state.rules.clone())
    }

    /// Looks at the state.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.state.lock())
    }

    /// Counts completions of attempts, after each of which there may be more room.
    pub(crate) fn completions(&self) -> watch::Receiver<u64> {
        self.0.finished_attempts.subscribe()
    }

    /// Why nothing more is delivered, if that is so.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.0.failure.lock().clone()
    }

    pub(crate) fn fail(&self, error: StoreError) {
        if matches!(error, StoreError::Failed { .. }) {
            self.0.failure.lock().get_or_insert(error);
        }
    }

    /// Runs `task` until the engine stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(task);
    }

    /// Resolves when nothing new is to be begun.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.0.stopping.clone()
    }

    /// Resolves when what is under way is to be given up.
    pub(crate) async fn aborting(&self) {
        self.0.aborting.cancelled().await;
    }

    /// Begins to deliver. Call it once.
    pub(crate) fn start(&self) {
        let engine = self.clone();
        self.spawn(async move { engine.run().await });
    }

    /// Ends deliveries: those under way have until `timeout` is over. True when all ended by themselves.
    pub(crate) async fn stop(&self, timeout: Duration) -> bool {
        self.0.stopping.cancel();
        self.0.tasks.close();
        let in_time = tokio::time::timeout(timeout, self.0.tasks.wait()).await.is_ok();
        self.0.aborting.cancel();
        self.0.tasks.wait().await;
        in_time
    }

    async fn run(&self) {
        let mut changes = self.0.deps.monitor.changes();
        loop {
            let now = self.0.deps.clock.monotonic();
            let next = self.schedule(now);
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep(at.since(now).max(MIN_SLEEP)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.0.stopping.cancelled() => return,
                () = self.0.ready.notified() => {}
                closed = changes.changed() => if closed.is_err() { return },
                () = sleep => {}
            }
        }
    }

    /// Begins all attempts that can begin. Returns when the next one may be possible by time alone.
    fn schedule(&self, now: Monotonic) -> Option<Monotonic> {
        if self.failure().is_some() {
            return None;
        }
        let mut next = None;
        let mut begun = Vec::new();
        {
            let State { routes, pool, .. } = &mut *self.0.state.lock();
            let health = |name: &ServiceName| self.0.deps.monitor.state(name);
            for (id, route) in routes {
                route.queues.wake(now);
                let mut in_vain = 0;
                while in_vain < MAX_LOOKS.min(route.queues.ready()) {
                    match route.begin(*id, pool, health, now) {
                        Ok(attempt) => begun.push(attempt),
                        Err(until) => {
                            next = min_some(next, until);
                            route.queues.rotate();
                            in_vain += 1;
                        }
                    }
                }
                next = min_some(next, route.queues.next_wake());
            }
        }
        for attempt in begun {
            let engine = self.clone();
            self.0.tasks.spawn(async move {
                match attempt.run(&engine).await {
                    Ok(Some(result)) => engine.end(&attempt, result),
                    Ok(None) => {}
                    Err(error) => engine.fail(error),
                }
            });
        }
        next
    }

    /// Gives the attempt's place to others, and tells what came of it.
    fn end(&self, attempt: &InFlight, result: AttemptResult) {
        self.record_decisions(attempt, &result);
        let deps = &self.0.deps;
        match &result.answer {
            Some(Ok(())) => deps.monitor.record_delivery(&attempt.name, Ok(())),
            // Not taking an event is an answer too.
            Some(Err(error)) if error.kind == relay_core::FailureKind::Reject => {
                deps.monitor.record_delivery(&attempt.name, Ok(()));
            }
            Some(Err(error)) => deps.monitor.record_delivery(&attempt.name, Err(&error.to_string())),
            None => {}
        }
        let now = deps.clock.monotonic();
        let target = result.of_target();
        let again =
            attempt.dequeued.entries.iter().zip(result.dispositions).filter_map(|(entry, disposition)| {
                match disposition {
                    Disposition::Retry(queued) => Some((entry.offset, queued)),
                    Disposition::Done(_) | Disposition::DeadLetter(..) => None,
                }
            });
        let again = again.collect();
        self.update(|state| {
            state.pool.end(&attempt.name, attempt.ticket, &target, now);
            let Some(route) = state.routes.get_mut(&attempt.route) else { return };
            let done = route.queues.end(&attempt.dequeued.partition, again, now + result.backoff);
            let freed: usize =
                done.iter().filter_map(|entry| Some(entry.event.as_ref()?.approx_bytes())).sum();
            state.cached_bytes = state.cached_bytes.saturating_sub(freed);
        });
        self.0.finished_attempts.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Tells the metrics and the decision log.
    fn record_decisions(&self, attempt: &InFlight, result: &AttemptResult) {
        let Deps { metrics, decisions, clock, .. } = &self.0.deps;
        let rules = self.rules();
        let error = result.answer.as_ref().and_then(|answer| answer.as_ref().err());
        for ((entry, disposition), event) in
            attempt.dequeued.entries.iter().zip(&result.dispositions).zip(&result.events)
        {
            let outcome = disposition.outcome();
            metrics.ended(&attempt.name, outcome, result.took, attempt.is_fallback);
            let Some(event) = event else {
                let (event, document) = (&entry.queued.event, &entry.queued.document);
                tracing::error!(%event, %document, target = %attempt.name, "the event is no longer in the log and cannot be delivered; keep more history (`retention`)");
                continue;
            };
            if let Disposition::DeadLetter(queued, reason) = disposition {
                let attempts = queued.tried;
                tracing::warn!(event = %event.id, target = %attempt.name, ?reason, attempts, "a dead letter");
            }
            let explained = (Arc::clone(&rules.set), Arc::clone(event));
            decisions.record(Decision {
                at: clock.wall(),
                event: Arc::clone(event),
                rules_version: entry.queued.rules,
                rule: attempt.key.rule().cloned(),
                target: Some(attempt.name.clone()),
                is_fallback: attempt.is_fallback,
                is_replay: entry.queued.is_replay,
                outcome,
                attempt: entry.queued.tried.saturating_add(u32::from(result.answer.is_some())),
                duration: result.took,
                error: error.map(ToString::to_string),
                verdicts: Box::new(move || explained.0.explain(&explained.1)),
            });
        }
    }
}

impl Route {
    pub(crate) fn new(key: RouteKey, targets: TargetSet) -> Self {
        Self { key, targets, queues: PartitionQueues::default(), turn: 0, lag_cursor: None }
    }

    /// Takes what is ready first to a target.
    ///
    /// # Errors
    /// When nobody takes it now: when that may change by time alone, if it may.
    fn begin(
        &mut self,
        id: RouteId,
        pool: &mut Pool,
        health: impl Fn(&ServiceName) -> ServiceState,
        now: Monotonic,
    ) -> Result<InFlight, Option<Monotonic>> {
        let head = self.queues.peek().ok_or(None)?;
        let context = SelectionContext {
            document: &head.queued.document,
            publisher: head.queued.publisher.as_ref(),
            failed: head.queued.attempts.last().map(|attempt| &attempt.target),
            turn: self.turn,
        };
        let (name, is_fallback) = match pool.select(&self.targets, &context, health, now) {
            Selection::Target { name, is_fallback } => (name, is_fallback),
            Selection::Wait(until) => return Err(until),
        };
        let most = pool.policy(&name).map_or(1, |policy| policy.batch_size.get());
        let dequeued = self.queues.take(most).ok_or(None)?;
        let permit = match pool.begin(&name, dequeued.entries.len(), now) {
            Ok(permit) => permit,
            Err(until) => {
                self.queues.put_back(dequeued);
                return Err(until);
            }
        };
        self.turn = self.turn.wrapping_add(1);
        let Permit { target, policy, ticket } = permit;
        Ok(InFlight { route: id, key: self.key.clone(), dequeued, name, target, policy, ticket, is_fallback })
    }
}

impl State {
    pub(crate) fn new_route(&mut self, key: &RouteKey) -> RouteId {
        let id = RouteId(self.routes.keys().next_back().map_or(1, |last| last.0.saturating_add(1)));
        let targets = self.target_set(key).unwrap_or_else(TargetSet::none);
        self.routes.insert(id, Route::new(key.clone(), targets));
        self.ids.insert(key.clone(), id);
        id
    }

    /// Adds what waits to a route that there is.
    pub(crate) fn enqueue(
        &mut self,
        route: RouteId,
        offset: Offset,
        queued: Arc<QueuedEvent>,
        event: Option<Arc<Event>>,
        cache_bytes: usize,
    ) {
        let Some(route_state) = self.routes.get_mut(&route) else { return };
        let in_order =
            |name| self.pool.policy(name).is_none_or(|policy| policy.ordering == DeliveryOrder::Document);
        let is_ordered =
            route_state.targets.names().next().is_none() || route_state.targets.names().any(in_order);
        let partition = if is_ordered {
            PartitionKey::Document(queued.document.clone())
        } else {
            PartitionKey::Event(offset)
        };
        let bytes = event.as_ref().map_or(0, |event| event.approx_bytes());
        let event = event.filter(|_| self.cached_bytes.saturating_add(bytes) <= cache_bytes);
        let cached = if event.is_some() { bytes } else { 0 };
        if route_state.queues.insert(partition, QueueEntry { offset, queued, event }) {
            self.cached_bytes += cached;
        }
    }

    /// Which targets what waits under `key` may go to; none when a rule decides that is no more.
    pub(crate) fn target_set(&self, key: &RouteKey) -> Option<TargetSet> {
        let rule = key.rule().map(|name| self.rules.set.rule(name));
        match (key, rule) {
            (RouteKey::Direct(target), _) => Some(TargetSet::only(target.clone())),
            (_, None | Some(None)) => None,
            (RouteKey::Each(_, target), Some(Some(rule))) => Some(TargetSet {
                strategy: Strategy::FirstHealthy,
                targets: vec![target.clone()],
                fallback: self.pool.resolve(&rule.fallback),
            }),
            (RouteKey::Rule(_), Some(Some(rule))) => Some(TargetSet {
                strategy: rule.strategy,
                targets: self.pool.resolve(&rule.targets),
                fallback: self.pool.resolve(&rule.fallback),
            }),
        }
    }

    /// Whether some rule names the target.
    pub(crate) fn is_named(&self, target: &ServiceName) -> bool {
        self.rules.set.rules().iter().any(|rule| {
            [&rule.targets, &rule.fallback]
                .into_iter()
                .any(|context| self.pool.resolve(context).contains(target))
        })
    }

    /// How many events wait in routes that may lead to the target, and the time of the oldest.
    pub(crate) fn waiting_for(&self, target: &ServiceName) -> (usize, Option<Timestamp>) {
        let routes = self.routes.values().filter(|route| route.targets.names().any(|name| name == target));
        routes.fold((0, None), |(queued, oldest), route| {
            let oldest = [oldest, route.queues.oldest()].into_iter().flatten().min();
            (queued + route.queues.len(), oldest)
        })
    }

    /// Who would take `event`, of which nothing was tried, by `targets` at this moment.
    pub(crate) fn would_choose(
        &self,
        targets: &TargetSet,
        event: &QueuedEvent,
        health: impl Fn(&ServiceName) -> ServiceState,
        now: Monotonic,
    ) -> (Option<ServiceName>, bool) {
        let context = SelectionContext {
            document: &event.document,
            publisher: event.publisher.as_ref(),
            failed: None,
            turn: 0,
        };
        match self.pool.select(targets, &context, health, now) {
            Selection::Target { name, is_fallback } => (Some(name), is_fallback),
            Selection::Wait(_) => (None, false),
        }
    }

    /// Whether the rules would have `event` go to `target`, now or when others fail.
    pub(crate) fn sends(&self, event: &Event, target: &ServiceName) -> bool {
        self.rules.set.matches(event).into_iter().any(|rule| {
            [&rule.targets, &rule.fallback]
                .into_iter()
                .any(|context| self.pool.resolve(context).contains(target))
        })
    }

    /// Brings the routes' plans up to date after rules or targets have changed. What waits in a route whose rule is no
    /// more goes to the targets that the rule had.
    pub(crate) fn recompute_targets(&mut self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        let ids: Vec<_> = self.routes.keys().copied().collect();
        for id in ids {
            let Some(key) = self.routes.get(&id).map(|route| route.key.clone()) else { continue };
            let targets = self.target_set(&key);
            let Some(route) = self.routes.get_mut(&id) else { continue };
            match targets {
                Some(targets) if targets != route.targets => {
                    route.targets = targets;
                    batch.route(id, &RouteRecord { key, targets: route.targets.clone() });
                }
                None if route.queues.is_empty() => {
                    self.routes.remove(&id);
                    self.ids.remove(&key);
                    batch.remove_route(id);
                    batch.lag_cursor(id, None);
                }
                // No rule sends anything here any more.
                None if route.lag_cursor.take().is_some() => batch.lag_cursor(id, None),
                Some(_) | None => {}
            }
        }
        batch
    }
}
