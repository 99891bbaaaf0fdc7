//! The state of delivery: the routes with their queues, the pool of targets, and the routing table in force.
//!
//! Plain values without a clock: each step gets the moment. The engine keeps them behind its lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use relay_core::{Event, Monotonic, Offset, ServiceName, Timestamp};
use relay_events::ServiceState;

use super::attempt::InFlight;
use super::held_events::HeldEvent;
use super::needed_offsets::NeededOffsets;
use super::partition_queues::{PartitionKey, PartitionQueues, QueueEntry};
use super::pool::{AttemptPermit, Pool, TargetOutcome};
use super::selection::{Selection, SelectionContext, min_some};
use crate::records::{QueuedEvent, RouteId, RouteKey, RouteRecord, TargetSet};
use crate::routing_table::RoutingTable;
use crate::rules::{DeliveryOrder, RuleSet};
use crate::store::{PersistedState, WriteBatch};

/// The most events of one route that are looked at in vain in one step, which has the lock of the state.
const MAX_LOOKS: usize = 64;

/// The events that a route may have in memory whatever the others have. So a route whose targets fail keeps no other route
/// from delivering.
pub(crate) const LEAST_QUEUED: usize = 16;

/// The limits of the bytes that all routes have in memory together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteLimits {
    /// The events of queue entries.
    pub(crate) cached: usize,
    /// The queue entries.
    pub(crate) queued: usize,
}

/// The events that a step of scheduling looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// The first ones, after a change that may allow an attempt.
    New,
    /// Those that the round's earlier steps have left over.
    Continued,
}

/// The result of a step of scheduling.
pub(crate) struct Scheduled {
    pub(crate) attempts: Vec<InFlight>,
    /// The moment at which time alone may allow the next attempt.
    pub(crate) next: Option<Monotonic>,
    /// True if the round is not at its end: some ready events were not looked at.
    pub(crate) has_rest: bool,
}

/// Everything about delivery that changes.
pub(crate) struct State {
    pub(crate) pool: Pool,
    table: Arc<RoutingTable>,
    routes: BTreeMap<RouteId, Route>,
    ids: HashMap<RouteKey, RouteId>,
    /// The routes of rules that lead to each target. An event of a document waits there for the earlier ones in all of
    /// them.
    routes_to: HashMap<ServiceName, Vec<RouteId>>,
    /// The highest id of a route so far. Ids are not used again, since the removal of a route may be written after the
    /// next route.
    last_id: u32,
    /// The offsets of the events in memory that the log must keep.
    needed: NeededOffsets,
    /// The bytes of queued events that are in memory.
    cached_bytes: usize,
    /// The bytes of the queue entries, those that are being committed included.
    queued_bytes: usize,
    limits: ByteLimits,
}

struct Route {
    key: RouteKey,
    targets: TargetSet,
    queues: PartitionQueues,
    /// The number of selections so far.
    turn: u64,
    /// The events behind those in `queues`, if the store alone has some.
    overflow: Option<Overflow>,
    /// True once the store has the route. Until then each batch that uses the route writes it.
    is_stored: bool,
    /// The events that are being committed to this route. It is not removed before they are queued.
    uncommitted: Uncommitted,
    /// The offsets of the events in memory and of those being committed, where events come in no order: in a target's own
    /// route.
    unordered: HashSet<Offset>,
}

/// The numbers of events that are being committed to a route, by their place.
#[derive(Debug, Default)]
struct Uncommitted {
    in_memory: usize,
    in_store: usize,
}

impl Uncommitted {
    fn at(&mut self, place: Place) -> &mut usize {
        match place {
            Place::Memory => &mut self.in_memory,
            Place::Store => &mut self.in_store,
        }
    }
}

/// The events of a route that the store has and memory has not. They are behind all that memory has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow {
    /// The first one's offset, or one before it.
    pub(crate) from: Offset,
    pub(crate) count: usize,
}

/// The most events that wait in one route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    /// In memory. Further ones are in the store alone.
    pub(crate) in_memory: usize,
    /// In all. Further ones are lost.
    pub(crate) in_all: usize,
}

/// The place of a further event of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Memory and the store.
    Memory,
    /// The store alone.
    Store,
}

/// The reason for which an event cannot enter a target's own route now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirectRefusal {
    /// The event waits there already, and a second one would replace it.
    AlreadyWaiting,
    /// The route has no space in memory.
    Full,
}

/// Events that wait for targets which no longer exist, of one route.
pub(crate) struct Abandoned {
    pub(crate) route: RouteId,
    pub(crate) key: RouteKey,
    pub(crate) target: Option<ServiceName>,
    pub(crate) entries: Vec<QueueEntry>,
}

impl State {
    /// A state without routes.
    pub(crate) fn new(pool: Pool, table: RoutingTable, limits: ByteLimits) -> Self {
        Self {
            pool,
            table: Arc::new(table),
            routes: BTreeMap::new(),
            ids: HashMap::new(),
            routes_to: HashMap::new(),
            last_id: 0,
            needed: NeededOffsets::default(),
            cached_bytes: 0,
            queued_bytes: 0,
            limits,
        }
    }

    /// Adds the routes and queues of the last run.
    pub(crate) fn restore(&mut self, persisted: PersistedState) {
        for (id, record) in persisted.routes {
            self.insert_route(id, record.key, record.targets, true);
        }
        for (id, overflow) in persisted.overflows {
            if let Some(route) = self.routes.get_mut(&id) {
                route.overflow = Some(overflow);
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
    /// A route whose rule is gone keeps its targets until nothing waits in it.
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
            None if route.waiting() == 0 => {
                ids.remove(&route.key);
                batch.remove_route(*id);
                false
            }
            None => true,
        });
        self.routes_to.clear();
        for (id, route) in &self.routes {
            add_to_index(&mut self.routes_to, *id, route);
        }
        batch
    }

    /// Returns true if there are no targets, and no events that wait for some.
    pub(crate) fn is_idle(&self) -> bool {
        self.pool.is_empty() && !self.has_waiting()
    }

    /// Returns true if events wait in some route.
    pub(crate) fn has_waiting(&self) -> bool {
        self.routes.values().any(|route| route.waiting() > 0)
    }

    /// The offset before the first event that waits and that the log must keep, if one does.
    pub(crate) fn needed_after(&self) -> Option<Offset> {
        let overflows = self.routes.values().filter_map(|route| Some(route.overflow?.from));
        let first = overflows.chain(self.needed.first()).min()?;
        Some(Offset::new(first.get().saturating_sub(1)))
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
        let (queues, uncommitted, unordered) = Default::default();
        let route =
            Route { key, targets, queues, turn: 0, overflow: None, is_stored, uncommitted, unordered };
        add_to_index(&mut self.routes_to, id, &route);
        self.routes.insert(id, route);
    }

    /// Finds the place of a further event, whose offset is behind those of all others in the route. None if the route is full.
    pub(crate) fn place(&self, route: RouteId, limits: QueueLimits) -> Option<Place> {
        let Some(route) = self.routes.get(&route) else { return Some(Place::Memory) };
        if route.waiting() >= limits.in_all {
            return None;
        }
        let follows_others = route.overflow.is_some() || route.uncommitted.in_store > 0;
        let has_space = !follows_others && self.has_space(route, limits.in_memory);
        Some(if has_space { Place::Memory } else { Place::Store })
    }

    /// True when a further event of `route`, which may have `in_memory` of them, may be in memory.
    fn has_space(&self, route: &Route, in_memory: usize) -> bool {
        let is_full = self.queued_bytes >= self.limits.queued;
        route.in_memory() < if is_full { in_memory.min(LEAST_QUEUED) } else { in_memory }
    }

    /// The bytes of the queue entries in memory.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// The routes with events that the store alone has, and with space in memory for some of them: that space, and the
    /// offset to read from.
    pub(crate) fn refillable(&self, in_memory: usize) -> Vec<(RouteId, Offset, usize)> {
        // Beyond the least, a route waits until an eighth of the bytes is free, so that a read brings more than one event.
        let is_full = self.queued_bytes > self.limits.queued - self.limits.queued / 8;
        let in_memory = if is_full { in_memory.min(LEAST_QUEUED) } else { in_memory };
        let refillable = |(id, route): (&RouteId, &Route)| {
            let used = route.in_memory();
            Some((*id, route.overflow?.from, in_memory.saturating_sub(used)))
                .filter(|_| used <= in_memory / 2)
        };
        self.routes.iter().filter_map(refillable).collect()
    }

    /// Takes events into memory that the store alone had, the first ones from the offset of [`State::refillable`] on.
    /// `is_rest` tells that they are all. Those that the bytes of all routes leave no space for stay in the store.
    pub(crate) fn refill(
        &mut self,
        id: RouteId,
        entries: Vec<(Offset, Arc<QueuedEvent>, Option<Arc<Event>>)>,
        is_rest: bool,
    ) {
        let last = entries.last().filter(|_| !is_rest);
        let (mut taken, mut rest) = (0, last.map(|(offset, ..)| offset.next()));
        for (offset, queued, event) in entries {
            let route = self.routes.get(&id);
            if route.is_some_and(|route| !self.has_space(route, usize::MAX)) {
                rest = Some(offset);
                break;
            }
            taken += 1;
            self.enqueue(id, offset, queued, event);
        }
        if let Some(route) = self.routes.get_mut(&id) {
            let count = route.overflow.map_or(0, |overflow| overflow.count.saturating_sub(taken));
            route.overflow = rest.map(|from| Overflow { from, count });
        }
    }

    /// Returns true if events wait for targets which no longer exist and which no rule names.
    pub(crate) fn has_abandoned(&self) -> bool {
        self.routes.values().any(|route| route.is_abandoned(&self.pool, &self.table))
    }

    /// Takes the events that wait so and are in memory.
    pub(crate) fn take_abandoned(&mut self) -> Vec<Abandoned> {
        let mut abandoned = Vec::new();
        for (id, route) in &mut self.routes {
            if !route.is_abandoned(&self.pool, &self.table) {
                continue;
            }
            let entries = route.queues.take_idle();
            if !entries.is_empty() {
                for entry in &entries {
                    route.unordered.remove(&entry.offset);
                }
                let target = route.targets.names().next().cloned();
                abandoned.push(Abandoned { route: *id, key: route.key.clone(), target, entries });
            }
        }
        abandoned.iter().flat_map(|route| &route.entries).for_each(|entry| self.forget(entry));
        abandoned
    }

    /// Checks that an event may enter a target's own route, in which at most `in_memory` events wait.
    pub(crate) fn check_direct(
        &self,
        route: RouteId,
        offset: Offset,
        in_memory: usize,
    ) -> Result<(), DirectRefusal> {
        match self.routes.get(&route) {
            Some(route) if route.unordered.contains(&offset) => Err(DirectRefusal::AlreadyWaiting),
            // Those in the store are known by number alone, after a start with a lower limit.
            Some(route) if route.overflow.is_some() || !self.has_space(route, in_memory) => {
                Err(DirectRefusal::Full)
            }
            _ => Ok(()),
        }
    }

    /// Counts an event that is being committed. [`State::release`] must follow.
    pub(super) fn hold(&mut self, event: &HeldEvent) {
        if let Some(route) = self.routes.get_mut(&event.route) {
            *route.uncommitted.at(event.place) += 1;
            route.add_unordered(event.offset);
            self.queued_bytes += event.bytes();
        }
    }

    /// Undoes one [`State::hold`].
    pub(super) fn release(&mut self, event: &HeldEvent) {
        if let Some(route) = self.routes.get_mut(&event.route) {
            let count = route.uncommitted.at(event.place);
            *count = count.saturating_sub(1);
            route.unordered.remove(&event.offset);
            self.queued_bytes = self.queued_bytes.saturating_sub(event.bytes());
        }
    }

    /// Adds a committed event to its place.
    pub(super) fn queue(&mut self, event: HeldEvent) {
        let HeldEvent { route, offset, place, queued, event } = event;
        match (place, self.routes.get_mut(&route)) {
            (Place::Store, Some(route)) => {
                route.is_stored = true;
                route.overflow.get_or_insert(Overflow { from: offset, count: 0 }).count += 1;
            }
            _ => self.enqueue(route, offset, queued, Some(event)),
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
        route.add_unordered(offset);
        let in_order =
            |name| self.pool.policy(name).is_none_or(|policy| policy.ordering == DeliveryOrder::Document);
        let is_ordered = route.targets.names().next().is_none() || route.targets.names().any(in_order);
        let partition = if is_ordered {
            PartitionKey::Document(queued.document.clone())
        } else {
            PartitionKey::Event(offset)
        };
        let bytes = event.as_ref().map_or(0, |event| event.approx_bytes());
        let event = event.filter(|_| self.cached_bytes.saturating_add(bytes) <= self.limits.cached);
        let entry_bytes = queued.approx_bytes();
        let cached = if event.is_some() { bytes } else { 0 };
        let is_in_log = !queued.is_requeued;
        if route.queues.insert(partition, QueueEntry { offset, queued, event }) {
            self.cached_bytes += cached;
            self.queued_bytes += entry_bytes;
            if is_in_log {
                self.needed.add(offset);
            }
        }
    }

    /// Begins the attempts that can begin at `now`, with a bounded number of looks at each route. Further steps of the round
    /// look at the rest.
    pub(crate) fn schedule(
        &mut self,
        now: Monotonic,
        health: impl Fn(&ServiceName) -> ServiceState,
        round: Round,
    ) -> Scheduled {
        let (mut attempts, mut next, mut has_rest) = (Vec::new(), None, false);
        let mut turn = RouteId(0);
        while let Some((&id, route)) = self.routes.range_mut(turn..).next() {
            turn = RouteId(id.0.saturating_add(1));
            if round == Round::New {
                route.queues.begin_round();
            }
            route.queues.wake(now);
            let mut in_vain = 0;
            while in_vain < MAX_LOOKS && self.unseen(id) > 0 {
                match self.begin(id, &health, now) {
                    Ok(attempt) => attempts.push(attempt),
                    Err(until) => {
                        next = min_some(next, until);
                        self.routes.entry(id).and_modify(|route| route.queues.refuse());
                        in_vain += 1;
                    }
                }
            }
            has_rest |= self.unseen(id) > 0;
            next = min_some(next, self.routes.get(&id).and_then(|route| route.queues.next_wake()));
        }
        Scheduled { attempts, next, has_rest }
    }

    /// The number of documents of a route whose next event may be tried and was not looked at in this round.
    fn unseen(&self, route: RouteId) -> usize {
        self.routes.get(&route).map_or(0, |route| route.queues.unseen())
    }

    /// Begins an attempt with the first ready events of a route.
    ///
    /// # Errors
    /// The moment at which time alone may allow the attempt, if it may.
    fn begin(
        &mut self,
        id: RouteId,
        health: impl Fn(&ServiceName) -> ServiceState,
        now: Monotonic,
    ) -> Result<InFlight, Option<Monotonic>> {
        let route = self.routes.get(&id).ok_or(None)?;
        let (partition, head) = route.queues.peek().ok_or(None)?;
        let context = SelectionContext::of(&head.queued, route.turn);
        let (name, is_fallback) = match self.pool.select(&route.targets, &context, health, now) {
            Selection::Target { name, is_fallback } => (name, is_fallback),
            Selection::Wait(until) => return Err(until),
        };
        let end = self.end_of_turn(id, route, partition, &name);
        if head.offset >= end {
            return Err(None);
        }
        let most = self.pool.policy(&name).map_or(1, |policy| policy.batch_size.get());
        let route = self.routes.get_mut(&id).ok_or(None)?;
        let dequeued = route.queues.take(most, end).ok_or(None)?;
        let permit = match self.pool.begin(&name, dequeued.entries.len(), now) {
            Ok(permit) => permit,
            Err(until) => {
                route.queues.put_back(dequeued);
                return Err(until);
            }
        };
        route.turn = route.turn.wrapping_add(1);
        let AttemptPermit { target, policy, ticket } = permit;
        let key = route.key.clone();
        Ok(InFlight { route: id, key, dequeued, name, target, policy, ticket, is_fallback })
    }

    /// The offset from which on the events of `partition` in `route` wait for those in other routes that may go to
    /// `target`. Where several routes have the same event, the first route is first.
    fn end_of_turn(
        &self,
        id: RouteId,
        route: &Route,
        partition: &PartitionKey,
        target: &ServiceName,
    ) -> Offset {
        let is_ordered = matches!(partition, PartitionKey::Document(_))
            && route.key.rule().is_some()
            && self.pool.policy(target).is_none_or(|policy| policy.ordering == DeliveryOrder::Document);
        let others = self.routes_to.get(target).filter(|_| is_ordered);
        let others = others.into_iter().flatten().filter(|other| **other != id);
        let firsts = others.filter_map(|other| {
            let queue = self.routes.get(other)?;
            let first = queue.queues.first_offset(partition).or(queue.overflow.map(|rest| rest.from))?;
            Some(if *other < id { first } else { first.next() })
        });
        firsts.min().unwrap_or(Offset::new(u64::MAX))
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
        for entry in &done {
            route.unordered.remove(&entry.offset);
        }
        for entry in &done {
            self.forget(entry);
        }
    }

    /// Takes an event out of the sums over all queues.
    fn forget(&mut self, entry: &QueueEntry) {
        let bytes = entry.event.as_ref().map_or(0, |event| event.approx_bytes());
        self.cached_bytes = self.cached_bytes.saturating_sub(bytes);
        self.queued_bytes = self.queued_bytes.saturating_sub(entry.queued.approx_bytes());
        if !entry.queued.is_requeued {
            self.needed.remove(entry.offset);
        }
    }

    /// The number of events in the queues of a route.
    pub(crate) fn queued(&self, key: &RouteKey) -> usize {
        let route = self.route_id(key).and_then(|id| self.routes.get(&id));
        route.map_or(0, Route::waiting)
    }

    /// The number of events in routes that may lead to `target`, and the time of the oldest.
    pub(crate) fn queued_for(&self, target: &ServiceName) -> (usize, Option<Timestamp>) {
        let routes = self.routes.values().filter(|route| route.targets.names().any(|name| name == target));
        routes.fold((0, None), |(queued, oldest), route| {
            let oldest = [oldest, route.queues.oldest()].into_iter().flatten().min();
            (queued + route.waiting(), oldest)
        })
    }

    /// Returns true if `target` has requests under way, or events wait that no other target can take.
    pub(crate) fn is_needed(&self, target: &ServiceName) -> bool {
        self.pool.in_flight(target) > 0
            || self
                .routes
                .values()
                .any(|route| route.waiting() > 0 && route.targets.names().all(|name| name == target))
    }
}

fn add_to_index(routes_to: &mut HashMap<ServiceName, Vec<RouteId>>, id: RouteId, route: &Route) {
    // Replays and requeued dead letters are late whatever waits.
    if route.key.rule().is_some() {
        for name in route.targets.names() {
            routes_to.entry(name.clone()).or_default().push(id);
        }
    }
}

impl Route {
    /// The number of events that wait, those that are being committed included.
    fn waiting(&self) -> usize {
        let in_store = self.overflow.map_or(0, |overflow| overflow.count) + self.uncommitted.in_store;
        self.in_memory() + in_store
    }

    /// The number of events that wait in memory, those that are being committed included.
    fn in_memory(&self) -> usize {
        self.queues.len() + self.uncommitted.in_memory
    }

    fn add_unordered(&mut self, offset: Offset) {
        if self.key.rule().is_none() {
            self.unordered.insert(offset);
        }
    }

    fn is_abandoned(&self, pool: &Pool, table: &RoutingTable) -> bool {
        self.waiting() > 0
            && !self.targets.names().any(|name| pool.contains(name))
            && !table.awaits_targets(&self.key)
    }

    fn record(&self) -> RouteRecord {
        RouteRecord { key: self.key.clone(), targets: self.targets.clone() }
    }
}

#[cfg(test)]
mod tests {
    use relay_core::{Epoch, Seq};

    use super::*;
    use crate::routing_table::TargetDirectory;
    use crate::rules::Strategy;
    use crate::test_support::{add_target, name, note, paused_clock};

    fn state() -> State {
        let clock = paused_clock();
        let table = RoutingTable::new(1, Arc::default(), TargetDirectory::default());
        State::new(
            Pool::new(clock),
            table,
            ByteLimits { cached: 1_000, queued: 64 * queued().approx_bytes() },
        )
    }

    fn queued() -> Arc<QueuedEvent> {
        let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
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
    fn events_beyond_the_bytes_that_are_cached_are_left_in_the_log() {
        let mut state = state();
        let route = state.add_direct_route(&name("a"), &mut WriteBatch::default());
        let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
        let event = Arc::new(event);
        for offset in 1..=100 {
            state.enqueue(route, Offset::new(offset), queued(), Some(Arc::clone(&event)));
        }
        let kept = state.cached_bytes / event.approx_bytes();
        assert!(kept > 0 && state.cached_bytes <= 1_000 && event.approx_bytes() * (kept + 1) > 1_000);
    }

    fn held(route: RouteId, offset: u64, place: Place) -> HeldEvent {
        let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
        HeldEvent { route, offset: Offset::new(offset), place, queued: queued(), event: Arc::new(event) }
    }

    #[test]
    fn all_routes_have_one_limit_of_bytes_and_each_has_a_few_events_beyond_it() {
        let mut state = state();
        let limits = QueueLimits { in_memory: 1_000, in_all: 1_000 };
        let [first, second] =
            ["a", "b"].map(|target| state.add_direct_route(&name(target), &mut WriteBatch::default()));
        let add = |state: &mut State, route, offset| {
            let place = state.place(route, limits).unwrap();
            let event = held(route, offset, place);
            state.hold(&event);
            state.release(&event);
            state.queue(event);
            place == Place::Memory
        };
        let in_memory = (1..=100).filter(|offset| add(&mut state, first, *offset)).count();
        assert_eq!(in_memory, 64);
        let in_memory = (101..=200).filter(|offset| add(&mut state, second, *offset)).count();
        assert_eq!(in_memory, LEAST_QUEUED);
        let whole = (64 + LEAST_QUEUED) * queued().approx_bytes();
        assert_eq!((state.queued_bytes(), state.refillable(1_000)), (whole, Vec::new()));
        assert_eq!(state.check_direct(second, Offset::new(300), 1_000), Err(DirectRefusal::Full));

        // The first route delivers most of its events, so the second one takes what fits.
        let left = state.routes.get_mut(&first).unwrap().queues.take_idle();
        for entry in &left {
            state.forget(entry);
        }
        let refillable = state.refillable(1_000);
        let (from, of_first) = (Offset::new(101 + LEAST_QUEUED as u64), Offset::new(65));
        assert_eq!(refillable, [(first, of_first, 1_000), (second, from, 1_000 - LEAST_QUEUED)]);
        let entries = (117..=200).map(|offset| (Offset::new(offset), queued(), None)).collect();
        state.refill(second, entries, true);
        assert_eq!(state.queued_bytes(), 64 * queued().approx_bytes());
        let overflow = state.routes[&second].overflow;
        assert_eq!(overflow, Some(Overflow { from: Offset::new(165), count: 36 }));
        assert_eq!(state.queued_for(&name("b")).0, 100);
        // The first route has none in memory, so it takes a few all the same.
        assert_eq!(state.refillable(1_000), [(first, of_first, LEAST_QUEUED)]);
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

    #[test]
    fn an_event_that_its_target_has_left_behind_can_wait_for_it_again() {
        let mut state = state();
        let route = state.add_direct_route(&name("a"), &mut WriteBatch::default());
        state.enqueue(route, Offset::new(1), queued(), None);
        assert_eq!(state.check_direct(route, Offset::new(1), 10), Err(DirectRefusal::AlreadyWaiting));
        assert_eq!(state.take_abandoned().len(), 1);
        assert_eq!(state.check_direct(route, Offset::new(1), 10), Ok(()));
    }

    fn begin(state: &mut State) -> Vec<InFlight> {
        state.schedule(Monotonic::ZERO, |_| ServiceState::Healthy, Round::New).attempts
    }

    #[tokio::test]
    async fn an_event_waits_for_earlier_ones_that_the_store_alone_has_in_another_route() {
        let mut state = state();
        add_target(&mut state, "a");
        let [first, second] = ["one", "two"].map(|rule| {
            let targets =
                || TargetSet { strategy: Strategy::All, targets: vec![name("a")], fallback: Vec::new() };
            state.add_route(&RouteKey::Rule(rule.into()), targets, &mut WriteBatch::default())
        });
        let place = state.place(first, QueueLimits { in_memory: 0, in_all: 10 }).unwrap();
        let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
        let event = Arc::new(event);
        state.queue(HeldEvent { route: first, offset: Offset::new(3), place, queued: queued(), event });
        state.enqueue(second, Offset::new(5), queued(), None);
        assert!(begin(&mut state).is_empty());
        state.refill(first, Vec::new(), true);
        assert_eq!(begin(&mut state).len(), 1);
    }

    #[tokio::test]
    async fn what_waits_behind_an_attempt_under_way_is_abandoned_when_that_has_ended() {
        let mut state = state();
        add_target(&mut state, "a");
        let route = state.add_direct_route(&name("a"), &mut WriteBatch::default());
        state.enqueue(route, Offset::new(1), queued(), None);
        let attempts = begin(&mut state);
        state.enqueue(route, Offset::new(2), queued(), None);
        state.pool.remove(&name("a"));
        assert!(state.has_abandoned() && state.take_abandoned().is_empty());
        let retries = vec![(Offset::new(1), queued())];
        state.end(&attempts[0], &TargetOutcome::Untried, retries, Monotonic::ZERO, Monotonic::ZERO);
        let offsets =
            |one: &Abandoned| one.entries.iter().map(|entry| entry.offset.get()).collect::<Vec<_>>();
        assert_eq!(state.take_abandoned().iter().map(offsets).collect::<Vec<_>>(), [[1, 2]]);
        assert!(!state.has_abandoned());
    }

    #[test]
    fn events_that_the_store_turns_out_not_to_have_are_waited_for_no_longer() {
        let mut state = state();
        let route = state.add_direct_route(&name("a"), &mut WriteBatch::default());
        let limits = QueueLimits { in_memory: 0, in_all: 10 };
        let place = state.place(route, limits).unwrap();
        let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
        let (offset, event) = (Offset::new(3), Arc::new(event));
        state.queue(HeldEvent { route, offset, place, queued: queued(), event });
        assert_eq!(state.refillable(10), [(route, offset, 10)]);
        // No other one passes it on the way into memory.
        assert_eq!(state.check_direct(route, Offset::new(9), 10), Err(DirectRefusal::Full));
        state.refill(route, Vec::new(), true);
        assert!(state.refillable(10).is_empty());
        assert!(!state.has_waiting() && state.needed_after().is_none());
    }
}
