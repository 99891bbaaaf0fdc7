//! The targets as deliveries see them: how busy each is, whether it is left alone for now, and which of several takes
//! the next event.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use relay_core::{Clock, DocumentId, Monotonic, ServiceName, Target};
use relay_events::ServiceState;

use crate::health::{BreakerState, CircuitBreaker, Ticket};
use crate::records::TargetSet;
use crate::rules::{Candidate, Capability, Strategy, TargetPolicy, TargetRef, order};

/// The relay's clock for rates.
#[derive(Debug, Clone)]
struct RateClock(Arc<dyn Clock>);

impl governor::clock::Clock for RateClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic().elapsed()
    }
}

type Rate = RateLimiter<NotKeyed, InMemoryState, RateClock, NoOpMiddleware<Duration>>;

/// A limit of so many events per second, all of which may come at once.
pub(crate) struct EventRate {
    limiter: Rate,
    clock: RateClock,
    burst: NonZeroU32,
}

impl EventRate {
    pub(crate) fn new(per_second: NonZeroU32, clock: Arc<dyn Clock>) -> Self {
        let clock = RateClock(clock);
        let limiter = RateLimiter::direct_with_clock(Quota::per_second(per_second), clock.clone());
        Self { limiter, clock, burst: per_second }
    }

    /// Takes `events` from the rate.
    ///
    /// # Errors
    /// When they may go, by the monotonic clock.
    pub(crate) fn take(&self, events: usize) -> Result<(), Monotonic> {
        // More than a whole second's worth at once is taken as one second's worth.
        let events = u32::try_from(events).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        match self.limiter.check_n(events.min(self.burst)) {
            Ok(Err(not_until)) => {
                let now = self.clock.now();
                Err(Monotonic::from_elapsed(now) + not_until.wait_time_from(now))
            }
            // It is never more than the burst.
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
}

/// One target.
struct TargetState {
    target: Arc<dyn Target>,
    policy: TargetPolicy,
    capabilities: Vec<Capability>,
    weight: NonZeroU32,
    breaker: CircuitBreaker,
    rate: Option<EventRate>,
    /// Its rate allows nothing until then.
    rate_until: Monotonic,
    /// Requests under way.
    in_flight: usize,
    /// It asked to be left alone until then.
    retry_after_until: Monotonic,
    /// It answered that it wants nothing any more.
    is_gone: bool,
}

/// What is to go, as far as choosing a target is concerned.
pub(crate) struct SelectionContext<'a> {
    pub(crate) document: &'a DocumentId,
    /// It never goes to who published it.
    pub(crate) publisher: Option<&'a ServiceName>,
    /// Who failed to take it last; somebody else is preferred.
    pub(crate) failed: Option<&'a ServiceName>,
    /// Counts the choices of the route.
    pub(crate) turn: u64,
}

/// Who takes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    Target {
        name: ServiceName,
        is_fallback: bool,
    },
    /// Nobody now; perhaps at that time, if there is one, or when something changes.
    Wait(Option<Monotonic>),
}

/// What an attempt works with.
pub(crate) struct Permit {
    pub(crate) target: Arc<dyn Target>,
    pub(crate) policy: TargetPolicy,
    pub(crate) ticket: Ticket,
}

/// All targets.
pub(crate) struct Pool {
    targets: HashMap<ServiceName, TargetState>,
    clock: Arc<dyn Clock>,
}

impl Pool {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { targets: HashMap::new(), clock }
    }

    /// Adds a target, or changes one; what is under way there goes on.
    pub(crate) fn put(
        &mut self,
        name: ServiceName,
        target: Arc<dyn Target>,
        capabilities: Vec<Capability>,
        weight: NonZeroU32,
        policy: TargetPolicy,
    ) {
        let rate = policy.rate.map(|rate| EventRate::new(rate, Arc::clone(&self.clock)));
        let in_flight = self.targets.get(&name).map_or(0, |target| target.in_flight);
        let breaker = CircuitBreaker::new(policy.breaker.clone());
        let target = TargetState {
            target,
            policy,
            capabilities,
            weight,
            breaker,
            rate,
            rate_until: Monotonic::ZERO,
            in_flight,
            retry_after_until: Monotonic::ZERO,
            is_gone: false,
        };
        self.targets.insert(name, target);
    }

    pub(crate) fn remove(&mut self, name: &ServiceName) {
        self.targets.remove(name);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// The targets that are meant, each once, in the order in which they are named; those of a capability by name.
    pub(crate) fn resolve(&self, wanted: &[TargetRef]) -> Vec<ServiceName> {
        let mut names: Vec<ServiceName> = Vec::with_capacity(wanted.len());
        for one in wanted {
            match one {
                TargetRef::Name(name) if self.targets.contains_key(name) => names.push(name.clone()),
                TargetRef::Name(_) => {}
                TargetRef::Capability(capability) => {
                    let able =
                        self.targets.iter().filter(|(_, target)| target.capabilities.contains(capability));
                    let mut able: Vec<_> = able.map(|(name, _)| name.clone()).collect();
                    able.sort_unstable();
                    names.append(&mut able);
                }
            }
        }
        let mut seen = HashSet::with_capacity(names.len());
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    pub(crate) fn contains(&self, name: &ServiceName) -> bool {
        self.targets.contains_key(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.targets.keys()
    }

    pub(crate) fn capabilities(&self, name: &ServiceName) -> Vec<Capability> {
        self.targets.get(name).map_or_else(Vec::new, |target| target.capabilities.clone())
    }

    pub(crate) fn in_flight(&self, name: &ServiceName) -> usize {
        self.targets.get(name).map_or(0, |target| target.in_flight)
    }

    pub(crate) fn policy(&self, name: &ServiceName) -> Option<&TargetPolicy> {
        self.targets.get(name).map(|target| &target.policy)
    }

    /// The breaker's state, for people.
    pub(crate) fn breaker(&self, name: &ServiceName, now: Monotonic) -> Option<BreakerState> {
        self.targets.get(name).map(|target| target.breaker.state(now))
    }

    pub(crate) fn is_gone(&self, name: &ServiceName) -> bool {
        self.targets.get(name).is_some_and(|target| target.is_gone)
    }

    /// Who of the plan takes what is wanted. Those that work come first, and among them the strategy decides; one that
    /// is only busy is waited for where the strategy names one target, so that an event does not go astray because
    /// of a full queue.
    pub(crate) fn choose(
        &self,
        set: &TargetSet,
        context: &SelectionContext<'_>,
        state: impl Fn(&ServiceName) -> ServiceState,
        now: Monotonic,
    ) -> Selection {
        let mut wait = None;
        // Who has just failed to take it is asked again when there is nobody else, fallback targets included.
        for avoided in context.failed.map(Some).into_iter().chain([None]) {
            for (names, is_fallback) in [(&set.targets, false), (&set.fallback, true)] {
                let names =
                    names.iter().filter(|name| context.publisher != Some(*name) && avoided != Some(*name));
                let strategy = if is_fallback { Strategy::FirstHealthy } else { set.strategy };
                match self.choose_among(strategy, names, context, &state, now) {
                    GroupSelection::Chosen(name) => return Selection::Target { name, is_fallback },
                    GroupSelection::Busy(until) => return Selection::Wait(min_some(wait, until)),
                    GroupSelection::NoneUsable(until) => wait = min_some(wait, until),
                }
            }
        }
        Selection::Wait(wait)
    }

    fn choose_among<'a>(
        &self,
        strategy: Strategy,
        names: impl Iterator<Item = &'a ServiceName>,
        context: &SelectionContext<'_>,
        state: &impl Fn(&ServiceName) -> ServiceState,
        now: Monotonic,
    ) -> GroupSelection {
        let mut later = None;
        let mut usable = Vec::new();
        for name in names {
            let Some(target) = self.targets.get(name) else { continue };
            let state = state(name);
            if target.is_gone || matches!(state, ServiceState::Unhealthy | ServiceState::Gone) {
                continue;
            }
            match target.breaker.ready_at(now).map(|at| at.max(target.retry_after_until)) {
                Some(at) if at > now => later = min_some(later, Some(at)),
                Some(_) => usable.push((name, target, state)),
                None => {}
            }
        }
        // Who leaves takes something only when nobody else does.
        let stays =
            |(_, _, state): &(&ServiceName, &TargetState, ServiceState)| *state != ServiceState::Draining;
        if usable.iter().any(stays) {
            usable.retain(stays);
        }
        if usable.is_empty() {
            return GroupSelection::NoneUsable(later);
        }
        let candidates: Vec<_> = usable
            .iter()
            .map(|(name, target, state)| Candidate {
                name,
                state: *state,
                outstanding: target.in_flight,
                weight: target.weight,
            })
            .collect();
        let order = order(strategy, &candidates, context.document, context.turn);
        let considered = match strategy {
            Strategy::RoundRobin | Strategy::LeastOutstanding => order.len(),
            Strategy::FirstHealthy | Strategy::All | Strategy::ConsistentHash => 1,
        };
        let mut until = None;
        for index in order.into_iter().take(considered) {
            let (name, target, _) = usable[index];
            if target.rate_until > now {
                until = min_some(until, Some(target.rate_until));
            } else if target.in_flight < target.policy.concurrency.get() {
                return GroupSelection::Chosen(name.clone());
            }
        }
        GroupSelection::Busy(until)
    }

    /// Counts a request to `target` as begun.
    ///
    /// # Errors
    /// When it may begin, if the target's rate does not allow it yet; none when there is no such target any more.
    pub(crate) fn begin(
        &mut self,
        target: &ServiceName,
        events: usize,
        now: Monotonic,
    ) -> Result<Permit, Option<Monotonic>> {
        let target = self.targets.get_mut(target).ok_or(None)?;
        if let Some(Err(at)) = target.rate.as_ref().map(|rate| rate.take(events)) {
            target.rate_until = at;
            return Err(Some(at));
        }
        target.in_flight += 1;
        let ticket = target.breaker.begin(now);
        Ok(Permit { target: Arc::clone(&target.target), policy: target.policy.clone(), ticket })
    }

    /// Counts a request as over.
    pub(crate) fn end(
        &mut self,
        target: &ServiceName,
        ticket: Ticket,
        outcome: &TargetOutcome,
        now: Monotonic,
    ) {
        let Some(target) = self.targets.get_mut(target) else { return };
        target.in_flight = target.in_flight.saturating_sub(1);
        match *outcome {
            TargetOutcome::Answered => target.breaker.success(ticket),
            TargetOutcome::Untried => target.breaker.cancel(ticket),
            TargetOutcome::Failed { retry_after, is_gone } => {
                target.breaker.failure(ticket, now);
                target.is_gone |= is_gone;
                if let Some(time) = retry_after {
                    target.retry_after_until = target.retry_after_until.max(now + time.min(MAX_PAUSE));
                }
            }
        }
    }
}

/// How a request ended, as far as the target is concerned.
pub(crate) enum TargetOutcome {
    /// It answered; also that it does not want this event.
    Answered,
    /// It was not asked after all.
    Untried,
    /// It did not do its work.
    Failed {
        /// For how long it wants to be left alone.
        retry_after: Option<Duration>,
        /// It wants nothing any more.
        is_gone: bool,
    },
}

/// The longest time that a target can ask to be left alone for.
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

enum GroupSelection {
    Chosen(ServiceName),
    /// Somebody works and has no room now.
    Busy(Option<Monotonic>),
    /// Nobody works; perhaps at that time.
    NoneUsable(Option<Monotonic>),
}

fn min_some(one: Option<Monotonic>, other: Option<Monotonic>) -> Option<Monotonic> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
