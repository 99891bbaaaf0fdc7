//! The assignment of a page's events to routes.

use std::sync::Arc;

use relay_core::{Event, Offset, ServiceName};

use crate::delivery::engine::Engine;
use crate::delivery::state::{Place, QueueLimits, State};
use crate::records::{QueuedEvent, RouteId};
use crate::routing_table::{Routed, RoutingTable};
use crate::store::WriteBatch;

/// A page whose events are assigned to routes.
pub(super) struct AssignedPage {
    pub(super) table: Arc<RoutingTable>,
    pub(super) routed: Vec<Routed>,
    pub(super) batch: WriteBatch,
    /// The events that are queued in memory once the batch is written.
    pub(super) assignments: Vec<Assignment>,
    pub(super) rejected: Vec<Rejected>,
}

pub(super) struct Assignment {
    pub(super) route: RouteId,
    pub(super) offset: Offset,
    pub(super) queued: Arc<QueuedEvent>,
    pub(super) event: Arc<Event>,
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
    engine.update(|state| {
        Arc::ptr_eq(state.table(), &table).then(|| assign(state, page, routed, through, limits))
    })
}

/// Assigns each event to its routes. The routes in memory are held until the events are queued.
fn assign(
    state: &mut State,
    page: &[(Offset, Arc<Event>)],
    routed: Vec<Routed>,
    through: Offset,
    limits: QueueLimits,
) -> AssignedPage {
    let table = Arc::clone(state.table());
    let (mut batch, mut assignments, mut rejected) = (WriteBatch::default(), Vec::new(), Vec::new());
    batch.cursor(Some(through));
    for ((offset, event), routed) in page.iter().zip(&routed) {
        let offset = *offset;
        for to in &routed.routes {
            let route = state.add_route(&to.key, || to.target_set(), &mut batch);
            let place = state.place(route, offset, limits);
            if place == Place::Full {
                let (rule, target) = (to.key.rule().cloned(), to.target_set().names().next().cloned());
                rejected.push(Rejected { event: Arc::clone(event), rule, target, limit: limits.in_all });
                continue;
            }
            let queued = Arc::new(QueuedEvent::new(event, table.version()));
            batch.put_queued(route, offset, &queued);
            if place == Place::Memory {
                state.hold(route);
                assignments.push(Assignment { route, offset, queued, event: Arc::clone(event) });
            }
        }
    }
    AssignedPage { table, routed, batch, assignments, rejected }
}
