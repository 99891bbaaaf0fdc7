//! The dispatcher: follows the log from its cursor and puts each event where the rules want it.
//!
//! What it puts into the routes and how far it has come is written as one: so an event is never passed over, and none is
//! queued twice. A route that is full is left behind by itself, with a cursor of its own, and catches up when it has
//! room again; the others go on. While there are no targets nothing is read at all: the first one gets what happens from
//! then on.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{Actor, Event, LogError, Offset, ReadLimit, ServiceName};
use relay_events::ServiceState;
use tokio::sync::watch;

use crate::decisions::{Decision, Outcome};
use crate::delivery::engine::{ActiveRules, Engine, State};

use crate::loop_detection;
use crate::records::{QueuedEvent, RouteId, RouteKey, RouteRecord, TargetSet};
use crate::rules::Strategy;
use crate::store::{StoreError, WriteBatch};

/// How long a log that cannot be read is left alone.
pub(crate) const LOG_RETRY: Duration = Duration::from_secs(1);

/// Up to where the log has been routed; none while there is nobody to route to.
#[derive(Clone)]
pub(crate) struct Cursor(Arc<Mutex<Option<Offset>>>);

impl Cursor {
    pub(crate) fn new(at: Option<Offset>) -> Self {
        Self(Arc::new(Mutex::new(at)))
    }

    pub(crate) fn get(&self) -> Option<Offset> {
        *self.0.lock()
    }

    fn set(&self, at: Option<Offset>) {
        *self.0.lock() = at;
    }

    /// Begins to route what comes after `head`, if nothing is routed yet; `batch` keeps that.
    pub(crate) fn begin(&self, head: Offset, batch: &mut WriteBatch) {
        let at = *self.0.lock().get_or_insert(head);
        batch.cursor(Some(at));
    }
}

/// Reads the log and fills the routes.
pub(crate) struct Dispatcher {
    pub(crate) engine: Engine,
    pub(crate) cursor: Cursor,
    /// The last offset of the log.
    pub(crate) head: watch::Receiver<Offset>,
    /// How many events wait in one route before it is left behind.
    pub(crate) max_queued: usize,
    /// Held while targets come or go.
    pub(crate) config_lock: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, thiserror::Error)]
enum DispatchError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the rules make of an event.
#[derive(Debug, Default)]
pub(crate) struct Routed {
    /// The rules that matched.
    pub(crate) matched: Vec<Arc<str>>,
    /// Where it goes.
    pub(crate) keys: Vec<RouteKey>,
    /// What was decided besides, and why.
    pub(crate) drops: Vec<(Option<Arc<str>>, Outcome, Option<String>)>,
}

impl Dispatcher {
    pub(crate) async fn run(mut self) {
        let stopping = self.engine.stopping();
        let mut completions = self.engine.completions();
        let mut changes = self.engine.deps().monitor.changes();
        while !stopping.is_cancelled() {
            let rest = match self.step().await {
                Ok(true) => continue,
                Ok(false) => None,
                Err(DispatchError::Log(LogError::Closed) | DispatchError::Store(StoreError::Closed)) => {
                    return;
                }
                Err(DispatchError::Log(error)) => {
                    tracing::error!(%error, "the log cannot be read for routing; it is tried again");
                    Some(LOG_RETRY)
                }
                Err(DispatchError::Store(error)) => return self.engine.fail(error),
            };
            let rest = async {
                match rest {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            let is_lagging =
                self.engine.read(|state| state.routes.values().any(|route| route.lag_cursor.is_some()));
            tokio::select! {
                () = stopping.cancelled() => return,
                closed = self.head.changed() => if closed.is_err() { return },
                closed = changes.changed() => if closed.is_err() { return },
                closed = completions.changed(), if is_lagging => if closed.is_err() { return },
                () = rest => {}
            }
        }
    }

    /// Routes one page of the log. False when there is nothing to do.
    async fn step(&mut self) -> Result<bool, DispatchError> {
        if self.engine.failure().is_some() {
            return Ok(false);
        }
        let caught_up = self.catch_up().await?;
        let head = *self.head.borrow_and_update();
        let Some(cursor) = self.cursor.get() else { return Ok(caught_up) };
        if self.engine.read(State::is_idle) {
            self.pause_when_idle().await?;
            return Ok(caught_up);
        }
        if cursor >= head {
            return Ok(caught_up);
        }
        let page = self.engine.deps().log.read(cursor, ReadLimit::default()).await?;
        // Nothing is there when all up to the head was dropped by retention.
        let through = page.last().and_then(|event| event.offset).unwrap_or(head);
        let mut batch = WriteBatch::default();
        batch.cursor(Some(through));
        self.route(page, batch, None).await?;
        self.cursor.set(Some(through));
        Ok(true)
    }

    /// Routes nothing more until there is somebody to route to.
    async fn pause_when_idle(&self) -> Result<(), StoreError> {
        // Nobody comes while it is looked whether somebody is there.
        let _changing = self.config_lock.lock().await;
        if self.engine.read(State::is_idle) {
            let mut batch = WriteBatch::default();
            batch.cursor(None);
            self.engine.deps().store.commit(batch).await?;
            self.cursor.set(None);
        }
        Ok(())
    }

    /// Gives the routes that were left behind what they have room for. False when there was nothing to do.
    async fn catch_up(&self) -> Result<bool, DispatchError> {
        let room = self.max_queued / 2;
        let lagging: Vec<_> = self.engine.read(|state| {
            let lagging = state.routes.iter().filter(|(_, route)| route.queues.len() <= room);
            lagging.filter_map(|(id, route)| Some((*id, route.lag_cursor?))).collect()
        });
        let cursor = self.cursor.get().unwrap_or_default();
        for &(route, from) in &lagging {
            let mut page = self.engine.deps().log.read(from, ReadLimit::default()).await?;
            page.retain(|event| event.offset.is_some_and(|offset| offset <= cursor));
            let through = page.last().and_then(|event| event.offset).filter(|through| *through < cursor);
            let mut batch = WriteBatch::default();
            batch.lag_cursor(route, through);
            self.route(page, batch, Some(route)).await?;
            self.engine.update(|state| {
                if let Some(route) = state.routes.get_mut(&route) {
                    route.lag_cursor = through;
                }
            });
        }
        Ok(!lagging.is_empty())
    }

    /// Puts each event where the rules want it, or into `only` if they want it there, together with `batch`.
    async fn route(
        &self,
        page: Vec<Event>,
        mut batch: WriteBatch,
        only: Option<RouteId>,
    ) -> Result<(), StoreError> {
        let deps = self.engine.deps();
        let health = |name: &ServiceName| deps.monitor.state(name);
        let page: Vec<_> = page.into_iter().map(Arc::new).collect();
        let (queued, drops, rules) = self.engine.update(|state| {
            let (mut queued, mut drops) = (Vec::new(), Vec::new());
            for event in &page {
                let Some(offset) = event.offset else { continue };
                let routed = state.route(event, health);
                for key in routed.keys {
                    let route = state.route_id(&key, &mut batch);
                    if only.is_some_and(|only| only != route)
                        || self.mark_lagging(state, route, offset, only, &mut batch)
                    {
                        continue;
                    }
                    let queued_event = Arc::new(QueuedEvent::new(event, state.rules.version));
                    batch.put_queued(route, offset, &queued_event);
                    queued.push((route, offset, queued_event, Arc::clone(event)));
                }
                if only.is_none() {
                    routed.matched.iter().for_each(|rule| deps.metrics.matched(rule));
                    drops.extend(routed.drops.into_iter().map(|decision| (Arc::clone(event), decision)));
                }
            }
            (queued, drops, state.rules.clone())
        });
        deps.store.commit(batch).await?;
        let now = deps.clock.wall();
        self.engine.update(|state| {
            for (route, offset, queued_event, event) in queued {
                deps.metrics.routed(now.since(event.time));
                state.enqueue(route, offset, queued_event, Some(event), deps.cache_bytes);
            }
        });
        for (event, decision) in drops {
            self.record_drop(&rules, event, decision);
        }
        Ok(())
    }

    /// Whether the route gets nothing now because it is full; from then on it has a cursor of its own.
    fn mark_lagging(
        &self,
        state: &mut State,
        route: RouteId,
        offset: Offset,
        only: Option<RouteId>,
        batch: &mut WriteBatch,
    ) -> bool {
        let Some(place) = state.routes.get_mut(&route) else { return false };
        if only.is_some() {
            return false;
        }
        if place.lag_cursor.is_none() && place.queues.len() >= self.max_queued {
            let through = Offset::new(offset.get().saturating_sub(1));
            place.lag_cursor = Some(through);
            batch.lag_cursor(route, Some(through));
        }
        place.lag_cursor.is_some()
    }

    fn record_drop(
        &self,
        rules: &ActiveRules,
        event: Arc<Event>,
        decision: (Option<Arc<str>>, Outcome, Option<String>),
    ) {
        let deps = self.engine.deps();
        let (rule, outcome, error) = decision;
        deps.metrics.decided(outcome);
        if let (Outcome::Cycle, Some(error)) = (outcome, &error) {
            tracing::error!(event = %event.id, %error, "an event that would go round in a circle is not delivered");
        }
        let explained = (Arc::clone(&rules.set), Arc::clone(&event));
        deps.decisions.record(Decision {
            at: deps.clock.wall(),
            event,
            rules_version: rules.version,
            rule,
            target: None,
            is_fallback: false,
            is_replay: false,
            outcome,
            attempt: 0,
            duration: Duration::ZERO,
            error,
            verdicts: Box::new(move || explained.0.explain(&explained.1)),
        });
    }
}

impl State {
    /// What the rules make of `event` at present.
    pub(crate) fn route(&self, event: &Event, health: impl Fn(&ServiceName) -> ServiceState) -> Routed {
        let mut routed = Routed::default();
        let publisher = match &event.actor {
            Actor::Service(name) => Some(name),
            Actor::User(_) | Actor::System => None,
        };
        for rule in self.rules.set.matches(event) {
            routed.matched.push(Arc::clone(&rule.name));
            if let Err(error) = loop_detection::extend_chain(event, &rule.name) {
                routed.drops.push((Some(Arc::clone(&rule.name)), Outcome::Cycle, Some(error.to_string())));
                continue;
            }
            // Who leaves takes nothing new.
            let open = |names: Vec<ServiceName>| {
                let open = names.into_iter().filter(|name| health(name) != ServiceState::Draining);
                open.collect::<Vec<_>>()
            };
            let (mut targets, mut fallback) =
                (open(self.pool.resolve(&rule.targets)), open(self.pool.resolve(&rule.fallback)));
            let known = targets.len() + fallback.len();
            targets.retain(|name| Some(name) != publisher);
            fallback.retain(|name| Some(name) != publisher);
            match (targets.is_empty(), fallback.is_empty()) {
                (true, true) => {
                    let (outcome, error) = match publisher {
                        Some(publisher) if known > 0 => {
                            let error = format!(
                                "`{publisher}` has published it, and nothing goes back to who published it"
                            );
                            (Outcome::Cycle, Some(error))
                        }
                        _ => (Outcome::NoTarget, None),
                    };
                    routed.drops.push((Some(Arc::clone(&rule.name)), outcome, error));
                }
                (false, _) if rule.strategy == Strategy::All => {
                    routed.keys.extend(
                        targets.into_iter().map(|target| RouteKey::Each(Arc::clone(&rule.name), target)),
                    );
                }
                _ => routed.keys.push(RouteKey::Rule(Arc::clone(&rule.name))),
            }
        }
        if routed.matched.is_empty() {
            routed.drops.push((None, Outcome::NoMatch, None));
        }
        routed
    }

    /// Whether there is nobody to route to, and nothing left of when there was.
    fn is_idle(&self) -> bool {
        self.pool.is_empty() && self.routes.values().all(|route| route.queues.is_empty())
    }

    /// The route of `key`; one that is new is added, and kept with `batch`.
    pub(crate) fn route_id(&mut self, key: &RouteKey, batch: &mut WriteBatch) -> RouteId {
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        let id = self.new_route(key);
        let targets = self.routes.get(&id).map_or_else(TargetSet::none, |route| route.targets.clone());
        batch.route(id, &RouteRecord { key: key.clone(), targets });
        id
    }
}
