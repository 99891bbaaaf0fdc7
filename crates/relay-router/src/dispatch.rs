//! The dispatcher: follows the log from its cursor and queues each event for the routes that the rules send it to.
//!
//! A page of the log is routed outside the engine's lock, by the routing table of that moment. Under the lock its events
//! get their routes, if that table is still the one in force; if not, the page is routed again. Queue entries and cursor
//! commit in one batch, so no event is passed over and none is queued twice.
//!
//! A full route lags: it gets a cursor of its own and catches up when it has space, while the others go on. While there
//! are no targets nothing is read. The first target gets the events from then on.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{Event, LogError, Offset, ReadLimit, ServiceName};
use relay_events::ServiceState;
use tokio::sync::watch;

use crate::decisions::{DecidedEvent, Decision, Outcome};
use crate::delivery::LOG_RETRY;
use crate::delivery::engine::Engine;
use crate::delivery::state::State;
use crate::log_page::{LogPage, read_page};
use crate::records::{QueuedEvent, RouteId};
use crate::routing_table::{Routed, RoutingDrop, RoutingTable};
use crate::store::{StoreError, WriteBatch};

/// The offset up to which the log was routed; none while there are no targets. Clones share it.
#[derive(Clone)]
pub(crate) struct RoutingCursor(Arc<Mutex<Option<Offset>>>);

impl RoutingCursor {
    pub(crate) fn new(at: Option<Offset>) -> Self {
        Self(Arc::new(Mutex::new(at)))
    }

    pub(crate) fn get(&self) -> Option<Offset> {
        *self.0.lock()
    }

    fn set(&self, at: Option<Offset>) {
        *self.0.lock() = at;
    }

    /// Begins to route events after `head`, unless routing has begun already. `batch` writes the cursor.
    pub(crate) fn begin(&self, head: Offset, batch: &mut WriteBatch) {
        let at = *self.0.lock().get_or_insert(head);
        batch.cursor(Some(at));
    }
}

/// The task that reads the log and fills the routes.
pub(crate) struct Dispatcher {
    pub(crate) engine: Engine,
    pub(crate) cursor: RoutingCursor,
    /// The last offset of the log.
    pub(crate) head: watch::Receiver<Offset>,
    /// The number of events in a route from which on it lags.
    pub(crate) max_queued: usize,
    /// Held while rules or targets change.
    pub(crate) config_lock: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, thiserror::Error)]
enum DispatchError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The routes that a page is for.
#[derive(Debug, Clone, Copy)]
enum Scope {
    /// All routes that do not lag. The page ends at `through`.
    All { through: Offset },
    /// One route that lags. The page lies between `from` and `through`; none for the end of what was routed.
    Lagging { route: RouteId, from: Offset, through: Option<Offset> },
}

/// A page whose events are assigned to routes.
struct AssignedPage {
    table: Arc<RoutingTable>,
    routed: Vec<Routed>,
    batch: WriteBatch,
    assignments: Vec<Assignment>,
}

struct Assignment {
    route: RouteId,
    offset: Offset,
    queued: Arc<QueuedEvent>,
    event: Arc<Event>,
}

impl Dispatcher {
    pub(crate) async fn run(&mut self) {
        let stopping = self.engine.stopping();
        let mut completions = self.engine.completions();
        let mut health_changes = self.engine.deps().monitor.changes();
        while !stopping.is_cancelled() {
            let pause = match self.step().await {
                Ok(true) => continue,
                Ok(false) => None,
                Err(DispatchError::Log(LogError::Closed) | DispatchError::Store(StoreError::Closed)) => {
                    return;
                }
                Err(DispatchError::Log(error)) => {
                    tracing::error!(%error, "the log cannot be read for routing; retrying");
                    Some(LOG_RETRY)
                }
                Err(DispatchError::Store(error)) => return self.engine.fail(error),
            };
            let pause = async {
                match pause {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            let is_lagging = self.engine.read(State::has_lagging_routes);
            tokio::select! {
                () = stopping.cancelled() => return,
                closed = self.head.changed() => if closed.is_err() { return },
                closed = health_changes.changed() => if closed.is_err() { return },
                closed = completions.changed(), if is_lagging => if closed.is_err() { return },
                () = pause => {}
            }
        }
    }

    /// Routes one page of the log. Returns false if there was nothing to do.
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
        let page = read_page(&*self.engine.deps().log, cursor, ReadLimit::default()).await?;
        // The page is empty if retention dropped everything up to the head.
        let through = page.last().map_or(head, |(offset, _)| *offset);
        self.route_page(page, Scope::All { through }).await?;
        self.cursor.set(Some(through));
        Ok(true)
    }

    /// Removes the cursor if there are no targets, so that nothing is routed until one comes.
    async fn pause_when_idle(&self) -> Result<(), StoreError> {
        let _no_changes = self.config_lock.lock().await;
        if self.engine.read(State::is_idle) {
            let mut batch = WriteBatch::default();
            batch.cursor(None);
            self.engine.deps().store.commit(batch).await?;
            self.cursor.set(None);
        }
        Ok(())
    }

    /// Routes one page to each route that lags and has space. Returns false if there was none.
    async fn catch_up(&self) -> Result<bool, DispatchError> {
        let lagging = self.engine.read(|state| state.lagging_routes(self.max_queued / 2));
        let cursor = self.cursor.get().unwrap_or_default();
        for &(route, from) in &lagging {
            let mut page = read_page(&*self.engine.deps().log, from, ReadLimit::default()).await?;
            page.retain(|(offset, _)| *offset <= cursor);
            let through = page.last().map(|(offset, _)| *offset).filter(|through| *through < cursor);
            self.route_page(page, Scope::Lagging { route, from, through }).await?;
        }
        Ok(!lagging.is_empty())
    }

    /// Routes `page`, commits its queue entries with its cursor, and queues its events.
    async fn route_page(&self, page: LogPage, scope: Scope) -> Result<(), StoreError> {
        let deps = self.engine.deps();
        let is_draining = |name: &ServiceName| deps.monitor.state(name) == ServiceState::Draining;
        let assign = || assign_page(&self.engine, &page, scope, self.max_queued, is_draining);
        let AssignedPage { table, routed, batch, assignments } =
            retry_under_lock(&self.config_lock, assign).await;
        for routed in &routed {
            table.count_condition_errors(routed);
        }
        if !batch.is_empty() {
            deps.store.commit(batch).await?;
        }
        let now = deps.clock.wall();
        self.engine.update(|state| {
            if let Scope::Lagging { route, from, through } = scope {
                state.advance_lag_cursor(route, from, through);
            }
            for Assignment { route, offset, queued, event } in assignments {
                deps.metrics.record_routing(now.since(event.time));
                state.enqueue(route, offset, queued, Some(event));
                state.release(route);
            }
        });
        if matches!(scope, Scope::All { .. }) {
            for ((_, event), routed) in page.iter().zip(routed) {
                routed.matched.iter().for_each(|rule| deps.metrics.count_match(rule));
                routed.drops.into_iter().for_each(|drop| self.record_drop(&table, event, drop));
            }
        }
        Ok(())
    }

    fn record_drop(&self, table: &RoutingTable, event: &Arc<Event>, drop: RoutingDrop) {
        let deps = self.engine.deps();
        let RoutingDrop { rule, outcome, reason } = drop;
        deps.metrics.count_decision(outcome);
        if let (Outcome::Cycle, Some(reason)) = (outcome, &reason) {
            // A service that answers everything makes one for each event. Each is in the decision log.
            tracing::debug!(event = %event.id, %reason, "an event that would cause a loop is not delivered");
        }
        let explained = (Arc::clone(table.rules()), Arc::clone(event));
        deps.decisions.record(Decision {
            at: deps.clock.wall(),
            event: DecidedEvent::from(&**event),
            rules_version: table.version(),
            rule,
            target: None,
            is_fallback: false,
            is_replay: false,
            outcome,
            attempt: 0,
            duration: Duration::ZERO,
            error: reason,
            verdicts: Box::new(move || explained.0.explain(&explained.1)),
        });
    }
}

/// Calls `attempt` until it succeeds. After a failure it calls it once under `lock`, which keeps away the changes that made
/// it fail, and releases the lock before any further call.
async fn retry_under_lock<T>(lock: &tokio::sync::Mutex<()>, mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        let _no_changes = lock.lock().await;
        if let Some(result) = attempt() {
            return result;
        }
    }
}

/// Routes `page` outside the engine's lock, and assigns its events to routes under the lock. Returns none if rules or
/// targets have changed in between; then nothing was assigned.
fn assign_page(
    engine: &Engine,
    page: &[(Offset, Arc<Event>)],
    scope: Scope,
    max_queued: usize,
    is_draining: impl Fn(&ServiceName) -> bool,
) -> Option<AssignedPage> {
    let table = engine.routing_table();
    let routed: Vec<_> = page.iter().map(|(_, event)| table.route(event, &is_draining)).collect();
    let (batch, assignments) = engine.update(|state| {
        Arc::ptr_eq(state.table(), &table).then(|| assign(state, page, &routed, scope, max_queued))
    })?;
    Some(AssignedPage { table, routed, batch, assignments })
}

/// Assigns each event to its routes. The routes are held until the events are queued.
fn assign(
    state: &mut State,
    page: &[(Offset, Arc<Event>)],
    routed: &[Routed],
    scope: Scope,
    max_queued: usize,
) -> (WriteBatch, Vec<Assignment>) {
    let (mut batch, mut assignments) = (WriteBatch::default(), Vec::new());
    match scope {
        Scope::All { through } => batch.cursor(Some(through)),
        Scope::Lagging { route, from, through } if state.lag_cursor(route) == Some(from) => {
            batch.lag_cursor(route, through);
        }
        // The route was removed, or no rule sends anything there any more.
        Scope::Lagging { .. } => return (batch, assignments),
    }
    let version = state.table().version();
    for ((offset, event), routed) in page.iter().zip(routed) {
        let offset = *offset;
        for to in &routed.routes {
            let route = match scope {
                Scope::All { .. } => {
                    let route = state.add_route(&to.key, || to.target_set(), &mut batch);
                    if state.mark_lagging(route, offset, max_queued, &mut batch) {
                        continue;
                    }
                    route
                }
                Scope::Lagging { route, .. } if state.route_id(&to.key) == Some(route) => route,
                Scope::Lagging { .. } => continue,
            };
            let queued = Arc::new(QueuedEvent::new(event, version));
            batch.put_queued(route, offset, &queued);
            state.hold(route);
            assignments.push(Assignment { route, offset, queued, event: Arc::clone(event) });
        }
    }
    (batch, assignments)
}

#[cfg(test)]
mod tests;
