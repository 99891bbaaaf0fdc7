//! The state of delivery: the routes with their queues, the pool of targets, and the routing table in force.
//!
//! Plain values without a clock: each step gets the moment. The engine keeps them behind its lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use relay_core::{Event, Monotonic, Offset, ServiceName, Timestamp};
use relay_events::ServiceState;

use super::attempt::InFlight;
use super::partition_queues::{PartitionKey, PartitionQueues, QueueEntry};
use super::pool::{AttemptPermit, Pool, TargetOutcome};
use super::selection::{Selection, SelectionContext, min_some};
use crate::records::{QueuedEvent, RouteId, RouteKey, RouteRecord, TargetSet};
use crate::routing_table::RoutingTable;
use crate::rules::{DeliveryOrder, RuleSet};
use crate::store::{PersistedState, WriteBatch};

/// The most events of one route that are looked at in vain before the next route's turn.
const MAX_LOOKS: usize = 64;

/// Everything about delivery that changes.
pub(crate) struct State {
    pub(crate) pool: Pool,
    table: Arc<RoutingTable>,
    routes: BTreeMap<RouteId, Route>,
    ids: HashMap<RouteKey, RouteId>,
    /// The highest id of a route so far. Ids are not used again, since the removal of a route may be written after the
    /// next route.
    last_id: u32,
    /// The bytes of queued events that are in memory.
    cached_bytes: usize,
    max_cached_bytes: usize,
}

struct Route {
    key: RouteKey,
    targets: TargetSet,
    queues: PartitionQueues,
    /// The number of selections so far.
    turn: u64,
    /// The offset up to which the log was routed here, if the route was full and lags behind the others.
    lag_cursor: Option<Offset>,
    /// True once the store has the route. Until then each batch that uses the route writes it.
    is_stored: bool,
    /// The number of events that are being committed to this route. It is not removed before they are queued.
    uncommitted: usize,
}

impl State {
    /// A state without routes.
    pub(crate) fn new(pool: Pool, table: RoutingTable, max_cached_bytes: usize) -> Self {
        Self {
            pool,
            table: Arc::new(table),
            routes: BTreeMap::new(),
            ids: HashMap::new(),
            last_id: 0,
            cached_bytes: 0,
            max_cached_bytes,
        }
    }

    /// Adds the routes and queues of the last run. The log ends at `head`.
    pub(crate) fn restore(&mut self, persisted: PersistedState, head: Offset) {
        for (id, record) in persisted.routes {
            self.insert_route(id, record.key, record.targets, true);
        }
        for (id, through) in persisted.lag_cursors {
            if let Some(route) = self.routes.get_mut(&id) {
                route.lag_cursor = Some(through.min(head));
            }
        }
        for (route, offset, queued) in persisted.queue {
            self.enqueue(route, offset, Arc::new(queued), None);
        }
    }

    /// The routing table in force.
    pub(crate) fn table(&self) -> &Arc<RoutingTable> {
        &self.table
    }

    /// Puts other rules in force. [`State::recompute_targets`] must follow.
    pub(crate) fn set_rules(&mut self, version: u64, rules: Arc<RuleSet>) {
        self.table = Arc::new(self.table.with_rules(version, rules));
    }

    /// Brings the table and the routes up to date after rules or targets have changed. Returns the changes of routes.
    ///
    /// A route whose rule is gone keeps its targets until its queues are empty.
    pub(crate) fn recompute_targets(&mut self) -> WriteBatch {
        let directory = self.pool.directory();
        if *self.table.directory() != directory {
            self.table = Arc::new(self.table.with_targets(directory));
        }
        let mut batch = WriteBatch::default();
        let (table, ids) = (&self.table, &mut self.ids);
        self.routes.retain(|id, route| match table.target_set(&route.key) {
            Some(targets) => {
                if targets != route.targets {
                    route.targets = targets;
                    batch.route(*id, &route.record());
                }
                true
            }
            None if route.queues.is_empty() && route.uncommitted == 0 => {
                ids.remove(&route.key);
                batch.remove_route(*id);
                batch.lag_cursor(*id, None);
                false
            }
            None => {
                // No rule routes further events here.
                if route.lag_cursor.take().is_some() {
                    batch.lag_cursor(*id, None);
                }
                true
            }
        });
        batch
    }

    /// Returns true if there are no targets, and no events that wait for some.
    pub(crate) fn is_idle(&self) -> bool {
        self.pool.is_empty() && self.routes.values().all(|route| route.queues.is_empty())
    }

    /// The route of `key`, if there is one.
    pub(crate) fn route_id(&self, key: &RouteKey) -> Option<RouteId> {
        self.ids.get(key).copied()
    }

    /// The route of `key`. A new one is added with the given targets. `batch` writes the route until the store has it, so
    /// that no queue entry is ever written without its route.
    pub(crate) fn add_route(
        &mut self,
        key: &RouteKey,
        targets: impl FnOnce() -> TargetSet,
        batch: &mut WriteBatch,
    ) -> RouteId {
        if let Some(id) = self.route_id(key) {
            if let Some(route) = self.routes.get(&id).filter(|route| !route.is_stored) {
                batch.route(id, &route.record());
            }
            return id;
        }
        let id = RouteId(self.last_id.saturating_add(1));
        let record = RouteRecord { key: key.clone(), targets: targets() };
        batch.route(id, &record);
        self.insert_route(id, record.key, record.targets, false);
        id
    }

    /// The route for events that go to `target` alone.
    pub(crate) fn add_direct_route(&mut self, target: &ServiceName, batch: &mut WriteBatch) -> RouteId {
        let targets = || TargetSet::only(target.clone());
        self.add_route(&RouteKey::Direct(target.clone()), targets, batch)
    }

    fn insert_route(&mut self, id: RouteId, key: RouteKey, targets: TargetSet, is_stored: bool) {
        self.ids.insert(key.clone(), id);
        self.last_id = self.last_id.max(id.0);
        let queues = PartitionQueues::default();
        let route = Route { key, targets, queues, turn: 0, lag_cursor: None, is_stored, uncommitted: 0 };
        self.routes.insert(id, route);
    }

    /// The offset up to which the log was routed to a route that lags.
    pub(crate) fn lag_cursor(&self, route: RouteId) -> Option<Offset> {
        self.routes.get(&route)?.lag_cursor
    }

    /// Returns true if the route lags, and so does not get the event at `offset` now. A route with `max_queued` events
    /// lags from there on.
    pub(crate) fn mark_lagging(
        &mut self,
        route: RouteId,
        offset: Offset,
        max_queued: usize,
        batch: &mut WriteBatch,
    ) -> bool {
        let Some(state) = self.routes.get_mut(&route) else { return false };
        if state.lag_cursor.is_none() && state.queues.len() >= max_queued {
            let through = Offset::new(offset.get().saturating_sub(1));
            state.lag_cursor = Some(through);
            batch.lag_cursor(route, Some(through));
        }
        state.lag_cursor.is_some()
    }

    /// Moves the cursor of a route that lags from `from` to `through`; none if it has caught up.
    pub(crate) fn advance_lag_cursor(&mut self, route: RouteId, from: Offset, through: Option<Offset>) {
        if let Some(route) = self.routes.get_mut(&route)
            && route.lag_cursor == Some(from)
        {
            route.lag_cursor = through;
        }
    }

    pub(crate) fn has_lagging_routes(&self) -> bool {
        self.routes.values().any(|route| route.lag_cursor.is_some())
    }

    /// The routes that lag and have at most `max_queued` events, with their cursors.
    pub(crate) fn lagging_routes(&self, max_queued: usize) -> Vec<(RouteId, Offset)> {
        let routes = self.routes.iter().filter(|(_, route)| route.queues.len() <= max_queued);
        routes.filter_map(|(id, route)| Some((*id, route.lag_cursor?))).collect()
    }

    /// Keeps a route while an event is being committed to it. [`State::release`] must follow.
    pub(crate) fn hold(&mut self, route: RouteId) {
        if let Some(route) = self.routes.get_mut(&route) {
            route.uncommitted += 1;
        }
    }

    /// Undoes one [`State::hold`].
    pub(crate) fn release(&mut self, route: RouteId) {
        if let Some(route) = self.routes.get_mut(&route) {
            route.uncommitted = route.uncommitted.saturating_sub(1);
        }
    }

    /// Adds a committed event to a route. `event` is kept in memory as far as there is space.
    pub(crate) fn enqueue(
        &mut self,
        route: RouteId,
        offset: Offset,
        queued: Arc<QueuedEvent>,
        event: Option<Arc<Event>>,
    ) {
        let Some(route) = self.routes.get_mut(&route) else {
            tracing::error!(event = %queued.event, route = route.0, "an event is queued for a route that does not exist");
            return;
        };
        route.is_stored = true;
        let in_order =
            |name| self.pool.policy(name).is_none_or(|policy| policy.ordering == DeliveryOrder::Document);
        let is_ordered = route.targets.names().next().is_none() || route.targets.names().any(in_order);
        let partition = if is_ordered {
            PartitionKey::Document(queued.document.clone())
        } else {
            PartitionKey::Event(offset)
        };
        let bytes = event.as_ref().map_or(0, |event| event.approx_bytes());
        let event = event.filter(|_| self.cached_bytes.saturating_add(bytes) <= self.max_cached_bytes);
        let cached = if event.is_some() { bytes } else { 0 };
        if route.queues.insert(partition, QueueEntry { offset, queued, event }) {
            self.cached_bytes += cached;
        }
    }

    /// Begins all attempts that can begin at `now`. Returns them, and the moment at which time alone may allow the next.
    pub(crate) fn schedule(
        &mut self,
        now: Monotonic,
        health: impl Fn(&ServiceName) -> ServiceState,
    ) -> (Vec<InFlight>, Option<Monotonic>) {
        let (mut attempts, mut next) = (Vec::new(), None);
        for (id, route) in &mut self.routes {
            route.queues.wake(now);
            let mut in_vain = 0;
            while in_vain < MAX_LOOKS.min(route.queues.ready()) {
                match route.begin(*id, &mut self.pool, &health, now) {
                    Ok(attempt) => attempts.push(attempt),
                    Err(until) => {
                        next = min_some(next, until);
                        route.queues.rotate();
                        in_vain += 1;
                    }
                }
            }
            next = min_some(next, route.queues.next_wake());
        }
        (attempts, next)
    }

    /// Ends an attempt. The events in `retries` are delivered again from `not_before` on; the others leave the queue.
    pub(crate) fn end(
        &mut self,
        attempt: &InFlight,
        outcome: &TargetOutcome,
        retries: Vec<(Offset, Arc<QueuedEvent>)>,
        now: Monotonic,
        not_before: Monotonic,
    ) {
        self.pool.end(&attempt.name, attempt.ticket, outcome, now);
        let Some(route) = self.routes.get_mut(&attempt.route) else { return };
        let done = route.queues.end(&attempt.dequeued.partition, retries, not_before);
        let freed: usize = done.iter().filter_map(|entry| Some(entry.event.as_ref()?.approx_bytes())).sum();
        self.cached_bytes = self.cached_bytes.saturating_sub(freed);
    }

    /// The number of events in the queues of a route.
    pub(crate) fn queued(&self, key: &RouteKey) -> usize {
        let route = self.route_id(key).and_then(|id| self.routes.get(&id));
        route.map_or(0, |route| route.queues.len())
    }

    /// The number of events in routes that may lead to `target`, and the time of the oldest.
    pub(crate) fn queued_for(&self, target: &ServiceName) -> (usize, Option<Timestamp>) {
        let routes = self.routes.values().filter(|route| route.targets.names().any(|name| name == target));
        routes.fold((0, None), |(queued, oldest), route| {
            let oldest = [oldest, route.queues.oldest()].into_iter().flatten().min();
            (queued + route.queues.len(), oldest)
        })
    }

    /// Returns true if `target` has requests under way, or events wait that no other target can take.
    pub(crate) fn is_needed(&self, target: &ServiceName) -> bool {
        self.pool.in_flight(target) > 0
            || self
                .routes
                .values()
                .any(|route| !route.queues.is_empty() && route.targets.names().all(|name| name == target))
    }
}

impl Route {
    fn record(&self) -> RouteRecord {
        RouteRecord { key: self.key.clone(), targets: self.targets.clone() }
    }

    /// Begins an attempt with the first ready events.
    ///
    /// # Errors
    /// The moment at which time alone may allow the attempt, if it may.
    fn begin(
        &mut self,
        id: RouteId,
        pool: &mut Pool,
        health: impl Fn(&ServiceName) -> ServiceState,
        now: Monotonic,
    ) -> Result<InFlight, Option<Monotonic>> {
        let head = self.queues.peek().ok_or(None)?;
        let context = SelectionContext::of(&head.queued, self.turn);
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
        let AttemptPermit { target, policy, ticket } = permit;
        let key = self.key.clone();
        Ok(InFlight { route: id, key, dequeued, name, target, policy, ticket, is_fallback })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Strategy;
    use crate::test_support::{name, paused_clock};

    fn state() -> State {
        let clock = paused_clock();
        let table = RoutingTable::new(1, Arc::default(), crate::routing_table::TargetDirectory::default());
        State::new(Pool::new(clock), table, 1_000)
    }

    fn queued() -> Arc<QueuedEvent> {
        let event = crate::test_support::note("d", 1).into_event(
            relay_core::Epoch::from_u64(1),
            Some(relay_core::Seq::FIRST),
            Timestamp::UNIX_EPOCH,
        );
        Arc::new(QueuedEvent::new(&event, 1))
    }

    #[test]
    fn each_batch_writes_a_route_until_the_store_has_it() {
        let mut state = state();
        let add = |state: &mut State| {
            let mut batch = WriteBatch::default();
            let route = state.add_direct_route(&name("a"), &mut batch);
            (route, !batch.is_empty())
        };
        let (route, is_written) = add(&mut state);
        assert!(is_written);
        // The first batch may have failed, or may be written later than the second one.
        assert_eq!(add(&mut state), (route, true));
        state.enqueue(route, Offset::new(1), queued(), None);
        assert_eq!(add(&mut state), (route, false));
    }

    #[test]
    fn the_id_of_a_removed_route_is_not_used_again() {
        let mut state = state();
        let mut batch = WriteBatch::default();
        let targets = || TargetSet { strategy: Strategy::All, targets: Vec::new(), fallback: Vec::new() };
        let removed = state.add_route(&RouteKey::Rule("gone".into()), targets, &mut batch);
        state.recompute_targets();
        assert_eq!(state.route_id(&RouteKey::Rule("gone".into())), None);
        assert!(state.add_direct_route(&name("a"), &mut batch) > removed);
    }
}
