//! The pool of targets: the requests, pauses and limits of each.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use relay_core::{Clock, Monotonic, ServiceName, Target};
use relay_events::ServiceState;

use super::event_rate::EventRate;
use super::selection::{Selection, SelectionContext, Usability, select};
use crate::health::{BreakerState, BreakerTicket, CircuitBreaker};
use crate::records::TargetSet;
use crate::routing_table::TargetDirectory;
use crate::rules::{Capability, TargetPolicy};

/// The longest pause that a target's `Retry-After` can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// All targets, by name.
pub(crate) struct Pool {
    targets: HashMap<ServiceName, TargetState>,
    clock: Arc<dyn Clock>,
}

struct TargetState {
    target: Arc<dyn Target>,
    policy: TargetPolicy,
    capabilities: Vec<Capability>,
    weight: NonZeroU32,
    breaker: CircuitBreaker,
    rate: Option<EventRate>,
    /// The moment from which `rate` allows a request.
    rate_from: Monotonic,
    /// The number of requests under way.
    in_flight: usize,
    /// The end of the pause that the target's last `Retry-After` asked for.
    retry_after_until: Monotonic,
    /// True after the target answered that it wants no events any more.
    is_gone: bool,
}

/// The means for one request to a target.
pub(crate) struct AttemptPermit {
    pub(crate) target: Arc<dyn Target>,
    pub(crate) policy: TargetPolicy,
    pub(crate) ticket: BreakerTicket,
}

/// The result of a request as far as the target's state depends on it.
pub(crate) enum TargetOutcome {
    /// The target answered. A rejected event is an answer too.
    Answered,
    /// The request was not made.
    Untried,
    /// The target failed.
    Failed {
        /// The pause that the target asked for.
        retry_after: Option<Duration>,
        /// True if the target wants no events any more.
        is_gone: bool,
    },
}

impl Pool {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { targets: HashMap::new(), clock }
    }

    /// Adds or replaces a target. Its requests under way go on.
    pub(crate) fn put(
        &mut self,
        name: ServiceName,
        target: Arc<dyn Target>,
        capabilities: Vec<Capability>,
        weight: NonZeroU32,
        policy: TargetPolicy,
    ) {
        let rate = policy.rate.map(|rate| EventRate::new(rate, Arc::clone(&self.clock)));
        let in_flight = self.in_flight(&name);
        let breaker = CircuitBreaker::new(policy.breaker.clone());
        let state = TargetState {
            target,
            policy,
            capabilities,
            weight,
            breaker,
            rate,
            rate_from: Monotonic::ZERO,
            in_flight,
            retry_after_until: Monotonic::ZERO,
            is_gone: false,
        };
        self.targets.insert(name, state);
    }

    pub(crate) fn remove(&mut self, name: &ServiceName) {
        self.targets.remove(name);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    pub(crate) fn contains(&self, name: &ServiceName) -> bool {
        self.targets.contains_key(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.targets.keys()
    }

    /// The targets with their capabilities.
    pub(crate) fn directory(&self) -> TargetDirectory {
        self.targets.iter().map(|(name, target)| (name.clone(), target.capabilities.clone())).collect()
    }

    pub(crate) fn capabilities(&self, name: &ServiceName) -> Vec<Capability> {
        self.targets.get(name).map_or_else(Vec::new, |target| target.capabilities.clone())
    }

    /// The number of requests under way to the target.
    pub(crate) fn in_flight(&self, name: &ServiceName) -> usize {
        self.targets.get(name).map_or(0, |target| target.in_flight)
    }

    pub(crate) fn policy(&self, name: &ServiceName) -> Option<&TargetPolicy> {
        self.targets.get(name).map(|target| &target.policy)
    }

    pub(crate) fn breaker(&self, name: &ServiceName, now: Monotonic) -> Option<BreakerState> {
        self.targets.get(name).map(|target| target.breaker.state(now))
    }

    pub(crate) fn is_gone(&self, name: &ServiceName) -> bool {
        self.targets.get(name).is_some_and(|target| target.is_gone)
    }

    /// Selects a target of `set`. Changes nothing.
    pub(crate) fn select(
        &self,
        set: &TargetSet,
        context: &SelectionContext<'_>,
        health: impl Fn(&ServiceName) -> ServiceState,
        now: Monotonic,
    ) -> Selection {
        let usability = |name: &ServiceName| {
            let target = self.targets.get(name)?;
            let health = health(name);
            if target.is_gone || matches!(health, ServiceState::Unhealthy | ServiceState::Gone) {
                return None;
            }
            Some(Usability {
                health,
                open_from: target.breaker.ready_at(now).map(|at| at.max(target.retry_after_until)),
                rate_from: target.rate_from,
                in_flight: target.in_flight,
                concurrency: target.policy.concurrency.get(),
                weight: target.weight,
            })
        };
        select(set, context, usability, now)
    }

    /// Counts a request with `events` to `target` as begun.
    ///
    /// # Errors
    /// The moment at which the target's rate allows the request; none if there is no such target.
    pub(crate) fn begin(
        &mut self,
        target: &ServiceName,
        events: usize,
        now: Monotonic,
    ) -> Result<AttemptPermit, Option<Monotonic>> {
        let state = self.targets.get_mut(target).ok_or(None)?;
        if let Some(Err(at)) = state.rate.as_ref().map(|rate| rate.take(events)) {
            state.rate_from = at;
            return Err(Some(at));
        }
        state.in_flight += 1;
        let ticket = state.breaker.begin(now);
        Ok(AttemptPermit { target: Arc::clone(&state.target), policy: state.policy.clone(), ticket })
    }

    /// Counts a request as ended.
    pub(crate) fn end(
        &mut self,
        target: &ServiceName,
        ticket: BreakerTicket,
        outcome: &TargetOutcome,
        now: Monotonic,
    ) {
        let Some(state) = self.targets.get_mut(target) else { return };
        state.in_flight = state.in_flight.saturating_sub(1);
        match *outcome {
            TargetOutcome::Answered => state.breaker.success(ticket),
            TargetOutcome::Untried => state.breaker.cancel(ticket),
            TargetOutcome::Failed { retry_after, is_gone } => {
                state.breaker.failure(ticket, now);
                state.is_gone |= is_gone;
                if let Some(pause) = retry_after {
                    state.retry_after_until = state.retry_after_until.max(now + pause.min(MAX_RETRY_AFTER));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
