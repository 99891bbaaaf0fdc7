//! Events that are being committed to routes.
//!
//! Each is counted in its route before the commit, so that the route takes no more than it may and is not removed
//! meanwhile. Events that were not queued are no longer counted when their holder is dropped: their task has panicked, or
//! the store has failed.

use std::sync::Arc;

use relay_core::{Event, Offset};

use super::engine::Engine;
use super::state::{Place, State};
use crate::records::{QueuedEvent, RouteId};

/// An event that is being committed to a route.
pub(crate) struct HeldEvent {
    pub(crate) route: RouteId,
    pub(crate) offset: Offset,
    pub(crate) place: Place,
    pub(crate) queued: Arc<QueuedEvent>,
    pub(crate) event: Arc<Event>,
}

impl HeldEvent {
    /// The bytes that the event takes in memory while it waits.
    pub(super) fn bytes(&self) -> usize {
        match self.place {
            Place::Memory => self.queued.approx_bytes(),
            Place::Store => 0,
        }
    }
}

/// The events of one commit.
pub(crate) struct HeldEvents {
    engine: Engine,
    events: Vec<HeldEvent>,
}

impl HeldEvents {
    pub(crate) fn new(engine: &Engine) -> Self {
        Self { engine: engine.clone(), events: Vec::new() }
    }

    /// Counts `event` in its route. Called within [`Engine::update`], from which `self` must not be dropped: that takes the
    /// lock of the state.
    pub(crate) fn hold(&mut self, state: &mut State, event: HeldEvent) {
        state.hold(&event);
        self.events.push(event);
    }

    pub(crate) fn events(&self) -> &[HeldEvent] {
        &self.events
    }

    /// Queues the events, which the store has now.
    pub(crate) fn queue(mut self) {
        let events = std::mem::take(&mut self.events);
        self.engine.update(|state| {
            for event in events {
                state.release(&event);
                state.queue(event);
            }
        });
    }
}

impl Drop for HeldEvents {
    fn drop(&mut self) {
        let events = std::mem::take(&mut self.events);
        if !events.is_empty() {
            self.engine.update(|state| events.iter().for_each(|event| state.release(event)));
        }
    }
}
