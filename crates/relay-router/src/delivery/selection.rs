//! The selection of a target for an event: a pure function of the targets' states at that moment.

use std::num::NonZeroU32;

use relay_core::{DocumentId, Monotonic, ServiceName};
use relay_events::ServiceState;

use crate::records::{QueuedEvent, TargetSet};
use crate::rules::{Candidate, Strategy, order};

/// The properties of an event that its selection depends on.
pub(crate) struct SelectionContext<'a> {
    document: &'a DocumentId,
    /// The service that published the event. It never gets the event back.
    publisher: Option<&'a ServiceName>,
    /// The target that failed to take the event last. Another one is preferred.
    failed: Option<&'a ServiceName>,
    /// The number of selections that the route has made.
    turn: u64,
}

impl<'a> SelectionContext<'a> {
    pub(crate) fn of(queued: &'a QueuedEvent, turn: u64) -> Self {
        Self {
            document: &queued.document,
            publisher: queued.publisher.as_ref(),
            failed: queued.failed.as_ref(),
            turn,
        }
    }
}

/// The result of a selection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    Target {
        name: ServiceName,
        is_fallback: bool,
    },
    /// No target can take the event now. One may at the moment that is given, or after a change.
    Wait(Option<Monotonic>),
}

/// The state of a target that is neither unhealthy nor gone.
pub(super) struct Usability {
    pub(super) health: ServiceState,
    /// The moment from which the breaker and the target's `Retry-After` allow a request; none while trials are under way.
    pub(super) open_from: Option<Monotonic>,
    /// The moment from which the target's rate allows a request.
    pub(super) rate_from: Monotonic,
    pub(super) in_flight: usize,
    pub(super) concurrency: usize,
    pub(super) weight: NonZeroU32,
}

/// The result of a selection among the targets or among the fallback targets of a set.
enum GroupSelection {
    Chosen(ServiceName),
    /// The selected target is usable but busy. Time may bring another selection then.
    Busy(Option<Monotonic>),
    /// No target of the group is usable, perhaps until then.
    NoneUsable(Option<Monotonic>),
}

/// Selects a target of `set` for the event that `context` describes. `usability` tells of each target whether it is
/// usable.
///
/// Usable targets come first, and among them the strategy decides. Where the strategy names one target and that one is
/// busy, the event waits for it, so that a full target does not send events elsewhere.
pub(super) fn select(
    set: &TargetSet,
    context: &SelectionContext<'_>,
    usability: impl Fn(&ServiceName) -> Option<Usability>,
    now: Monotonic,
) -> Selection {
    let mut wait = None;
    // Retry the last-failed target only if no other is usable, fallback targets included.
    for avoided in context.failed.map(Some).into_iter().chain([None]) {
        for (names, is_fallback) in [(&set.targets, false), (&set.fallback, true)] {
            let names =
                names.iter().filter(|name| context.publisher != Some(*name) && avoided != Some(*name));
            let strategy = if is_fallback { Strategy::FirstHealthy } else { set.strategy };
            match select_in_group(strategy, names, context, &usability, now) {
                GroupSelection::Chosen(name) => return Selection::Target { name, is_fallback },
                GroupSelection::Busy(until) => return Selection::Wait(min_some(wait, until)),
                GroupSelection::NoneUsable(until) => wait = min_some(wait, until),
            }
        }
    }
    Selection::Wait(wait)
}

fn select_in_group<'a>(
    strategy: Strategy,
    names: impl Iterator<Item = &'a ServiceName>,
    context: &SelectionContext<'_>,
    usability: &impl Fn(&ServiceName) -> Option<Usability>,
    now: Monotonic,
) -> GroupSelection {
    let mut later = None;
    let mut usable = Vec::new();
    for name in names {
        let Some(target) = usability(name) else { continue };
        match target.open_from {
            Some(at) if at > now => later = min_some(later, Some(at)),
            Some(_) => usable.push((name, target)),
            None => {}
        }
    }
    // A draining target is used only if no other is usable.
    let stays = |(_, target): &(&ServiceName, Usability)| target.health != ServiceState::Draining;
    if usable.iter().any(stays) {
        usable.retain(stays);
    }
    if usable.is_empty() {
        return GroupSelection::NoneUsable(later);
    }
    let candidates: Vec<_> = usable
        .iter()
        .map(|(name, target)| Candidate {
            name,
            state: target.health,
            outstanding: target.in_flight,
            weight: target.weight,
        })
        .collect();
    let order = order(strategy, &candidates, context.document, context.turn);
    let considered = match strategy {
        Strategy::RoundRobin | Strategy::LeastOutstanding => order.len(),
        Strategy::FirstHealthy | Strategy::All | Strategy::ConsistentHash => 1,
    };
    // A target that is not usable yet may be preferred to the busy one.
    let mut until = later;
    for index in order.into_iter().take(considered) {
        let (name, target) = &usable[index];
        if target.rate_from > now {
            until = min_some(until, Some(target.rate_from));
        } else if target.in_flight < target.concurrency {
            return GroupSelection::Chosen((*name).clone());
        }
    }
    GroupSelection::Busy(until)
}

/// The earlier of two moments that may be absent.
pub(super) fn min_some(one: Option<Monotonic>, other: Option<Monotonic>) -> Option<Monotonic> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
