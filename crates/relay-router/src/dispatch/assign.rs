//! The assignment of a page's events to routes.

use std::sync::Arc;

use relay_core::{Event, Offset, ServiceName};

use crate::delivery::engine::Engine;
use crate::delivery::held_events::{HeldEvent, HeldEvents};
use crate::delivery::state::{QueueLimits, State};
use crate::records::QueuedEvent;
use crate::routing_table::{Routed, RoutingTable};
use crate::store::WriteBatch;

/// A page whose events are assigned to routes.
pub(super) struct AssignedPage {
    pub(super) table: Arc<RoutingTable>,
    pub(super) routed: Vec<Routed>,
    pub(super) batch: WriteBatch,
    /// The events that are queued once the batch is written.
    pub(super) held: HeldEvents,
    pub(super) rejected: Vec<Rejected>,
}

/// An event that found its route full.
pub(super) struct Rejected {
    pub(super) event: Arc<Event>,
    pub(super) rule: Option<Arc<str>>,
    pub(super) target: Option<ServiceName>,
    /// The most events that wait in the route.
    pub(super) limit: usize,
}

/// Calls `attempt` until it succeeds. After a failure it calls it once under `lock`, which keeps away the changes that made
/// it fail, and releases the lock before any further call.
pub(super) async fn retry_under_lock<T>(
    lock: &tokio::sync::Mutex<()>,
    mut attempt: impl FnMut() -> Option<T>,
) -> T {
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
pub(super) fn assign_page(
    engine: &Engine,
    page: &[(Offset, Arc<Event>)],
    through: Offset,
    limits: QueueLimits,
    is_draining: impl Fn(&ServiceName) -> bool,
) -> Option<AssignedPage> {
    let table = engine.routing_table();
    let routed: Vec<_> = page.iter().map(|(_, event)| table.route(event, &is_draining)).collect();
    let mut assigned = AssignedPage {
        table: Arc::clone(&table),
        routed,
        batch: WriteBatch::default(),
        held: HeldEvents::new(engine),
        rejected: Vec::new(),
    };
    assigned.batch.cursor(Some(through));
    let is_current = engine.update(|state| {
        let is_current = Arc::ptr_eq(state.table(), &table);
        if is_current {
            assign(state, page, limits, &mut assigned);
        }
        is_current
    });
    is_current.then_some(assigned)
}

/// Assigns each event to its routes.
fn assign(
    state: &mut State,
    page: &[(Offset, Arc<Event>)],
    limits: QueueLimits,
    assigned: &mut AssignedPage,
) {
    let AssignedPage { table, routed, batch, held, rejected } = assigned;
    for ((offset, event), routed) in page.iter().zip(routed.iter()) {
        let offset = *offset;
        for to in &routed.routes {
            let route = state.add_route(&to.key, || to.target_set(), batch);
            let Some(place) = state.place(route, limits) else {
                let (rule, target) = (to.key.rule().cloned(), to.target_set().names().next().cloned());
                rejected.push(Rejected { event: Arc::clone(event), rule, target, limit: limits.in_all });
                continue;
            };
            let queued = Arc::new(QueuedEvent::new(event, table.version()));
            batch.put_queued(route, offset, &queued);
            held.hold(state, HeldEvent { route, offset, place, queued, event: Arc::clone(event) });
        }
    }
}
