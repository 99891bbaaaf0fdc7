//! The dispatcher: follows the log from its cursor and queues each event for the routes that the rules send it to.
//!
//! A page of the log is routed outside the engine's lock, by the routing table of that moment. Under the lock its events
//! get their routes, if that table is still the one in force; if not, the page is routed again. Queue entries and cursor
//! commit in one batch, so no event is passed over and none is queued twice. Later changes of rules do not touch them.
//!
//! A route that has many events has the further ones in the store alone, and takes them into memory when it has space. An
//! event beyond its last limit is lost, and so is one whose rule and targets are gone; both are decided and counted. The
//! log is told which events wait, and holds them back from retention. Where it dropped events all the same before they were
//! routed, the gap is decided and counted too. While there are no targets nothing is read. The
//! first target gets the events from then on.

mod assign;
mod losses;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{Event, LogError, Offset, ReadLimit, ServiceName};
use relay_events::ServiceState;
use tokio::sync::watch;

use self::assign::{AssignedPage, assign_page, retry_under_lock};
use self::losses::find_gap;
use crate::decisions::{DecidedEvent, Decision, Outcome};
use crate::delivery::LOG_RETRY;
use crate::delivery::engine::Engine;
use crate::delivery::state::{QueueLimits, State};
use crate::log_page::{LogPage, read_page};
use crate::records::QueuedEvent;
use crate::routing_table::{RoutingDrop, RoutingTable};
use crate::store::{StoreError, WriteBatch};

/// The most events that a route takes into memory at a time.
const REFILL: usize = 256;

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

    /// Begins to route events after `head`, unless routing has begun already. `batch` writes a cursor that is new. It does
    /// not write the cursor of a dispatcher at work, which may be about to write a later one.
    pub(crate) fn begin(&self, head: Offset, batch: &mut WriteBatch) {
        let mut at = self.0.lock();
        if at.is_none() {
            *at = Some(head);
            batch.cursor(*at);
        }
    }
}

/// The task that reads the log and fills the routes.
pub(crate) struct Dispatcher {
    pub(crate) engine: Engine,
    pub(crate) cursor: RoutingCursor,
    /// The last offset of the log.
    pub(crate) head: watch::Receiver<Offset>,
    pub(crate) limits: QueueLimits,
    /// Held while rules or targets change.
    pub(crate) config_lock: Arc<tokio::sync::Mutex<()>>,
    /// True while events may wait for targets that no longer exist.
    pub(crate) may_have_abandoned: bool,
}

#[derive(Debug, thiserror::Error)]
enum DispatchError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Tells the log which events are still needed. After a failure of the store it goes on to hold them.
pub(crate) fn hold_log(engine: &Engine, cursor: &RoutingCursor) {
    if engine.failure().is_none() {
        let needed = cursor
            .get()
            .map(|cursor| engine.read(State::needed_after).map_or(cursor, |needed| needed.min(cursor)));
        engine.deps().log.hold(needed);
    }
}

impl Dispatcher {
    pub(crate) async fn run(&mut self) {
        let stopping = self.engine.stopping();
        let mut completions = self.engine.completions();
        let mut health_changes = self.engine.deps().monitor.changes();
        while !stopping.is_cancelled() {
            let pause = match self.step().await {
                Ok(true) => {
                    hold_log(&self.engine, &self.cursor);
                    continue;
                }
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
            hold_log(&self.engine, &self.cursor);
            let has_waiting = self.engine.read(State::has_waiting);
            tokio::select! {
                () = stopping.cancelled() => return,
                closed = self.head.changed() => if closed.is_err() { return },
                () = self.engine.routes_changed() => self.may_have_abandoned = true,
                closed = health_changes.changed() => if closed.is_err() { return },
                closed = completions.changed(), if has_waiting => if closed.is_err() { return },
                () = pause => {}
            }
        }
    }

    /// Routes one page of the log. Returns false if there was nothing to do.
    async fn step(&mut self) -> Result<bool, DispatchError> {
        if self.engine.failure().is_some() {
            return Ok(false);
        }
        if self.may_have_abandoned {
            self.may_have_abandoned = self.drop_abandoned().await?;
        }
        let is_refilled = self.refill().await?;
        let head = *self.head.borrow_and_update();
        let Some(cursor) = self.cursor.get() else { return Ok(is_refilled) };
        if self.engine.read(State::is_idle) {
            self.pause_when_idle().await?;
            return Ok(is_refilled);
        }
        if cursor >= head {
            return Ok(is_refilled);
        }
        let page = read_page(&*self.engine.deps().log, cursor, ReadLimit::default()).await?;
        // The page is empty if retention dropped everything up to the head.
        let through = page.last().map_or(head, |(offset, _)| *offset);
        self.route_page(page, cursor, through).await?;
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

    /// Takes events into memory for the routes that have space. Returns false if there was none.
    async fn refill(&self) -> Result<bool, DispatchError> {
        let routes = self.engine.read(|state| state.refillable(self.limits.in_memory));
        for &(route, from, space) in &routes {
            let (page, is_rest) = self.engine.deps().store.queued(route, from, space.min(REFILL)).await?;
            let mut events = self.events_of(&page).await?;
            let entries = page.into_iter().map(|(offset, queued)| {
                let event = events.remove(&offset).filter(|event| event.id == queued.event);
                (offset, Arc::new(queued), event)
            });
            let entries = entries.collect();
            self.engine.update(|state| state.refill(route, entries, is_rest));
        }
        Ok(!routes.is_empty())
    }

    /// The events that one read of the log has of a page of queue entries. The others are read when their turn comes.
    async fn events_of(
        &self,
        page: &[(Offset, QueuedEvent)],
    ) -> Result<HashMap<Offset, Arc<Event>>, LogError> {
        let Some((first, _)) = page.first() else { return Ok(HashMap::new()) };
        let before = Offset::new(first.get().saturating_sub(1));
        let read = read_page(&*self.engine.deps().log, before, ReadLimit::default()).await?;
        Ok(read.into_iter().collect())
    }

    /// Routes `page`, which is everything after `after` and up to `through` that the log still has. Commits its queue entries
    /// with the cursor at `through`, and queues its events.
    async fn route_page(&self, page: LogPage, after: Offset, through: Offset) -> Result<(), StoreError> {
        let deps = self.engine.deps();
        let gap = find_gap(&page, after, through).filter(|_| deps.log.offsets_are_contiguous());
        let is_draining = |name: &ServiceName| deps.monitor.state(name) == ServiceState::Draining;
        let assign = || assign_page(&self.engine, &page, through, self.limits, is_draining);
        let AssignedPage { table, routed, mut batch, held, rejected } =
            retry_under_lock(&self.config_lock, assign).await;
        let gap = gap.map(|(first, gap)| self.gap(first, gap));
        let unreadable =
            page.iter().filter(|(_, event)| event.is_lost()).map(|(_, event)| self.unreadable(event));
        let rejected = rejected.into_iter().map(|rejected| self.rejection(rejected));
        let losses = gap.into_iter().chain(unreadable).chain(rejected).map(|mut decision| {
            decision.rules_version = table.version();
            self.engine.decide_loss(decision, &mut batch)
        });
        let losses: Vec<_> = losses.collect();
        for routed in &routed {
            table.count_condition_errors(routed);
        }
        deps.store.commit(batch).await?;
        let now = deps.clock.wall();
        held.events().iter().for_each(|held| deps.metrics.record_routing(now.since(held.event.time)));
        held.queue();
        for loss in losses {
            self.engine.tell_loss(loss);
        }
        for ((_, event), routed) in page.iter().zip(routed) {
            routed.matched.iter().for_each(|rule| deps.metrics.count_match(rule));
            routed.drops.into_iter().for_each(|drop| self.record_drop(&table, event, drop));
        }
        Ok(())
    }

    fn record_drop(&self, table: &RoutingTable, event: &Arc<Event>, drop: RoutingDrop) {
        let deps = self.engine.deps();
        let RoutingDrop { rule, outcome, reason } = drop;
        deps.metrics.count_decisions(outcome, 1);
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

#[cfg(test)]
mod tests;
