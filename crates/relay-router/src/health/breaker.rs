//! The circuit breaker in front of a target: after some failures in a row nothing is sent for a while, then a few
//! trials, of which the first answer decides. As in Nygard, *Release It!*.

use relay_core::Monotonic;
use serde::{Deserialize, Serialize};

use crate::rules::BreakerConfig;

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// A few requests that try whether the target works again.
    HalfOpen,
}

/// A request that a breaker has let through. What comes of it counts only as long as the breaker has not changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// A circuit breaker. It is told the time, by the monotonic clock, with each call.
///
/// ```
/// use std::time::Duration;
/// use relay_router::health::{BreakerState, CircuitBreaker};
/// use relay_router::rules::BreakerConfig;
///
/// let mut breaker = CircuitBreaker::new(BreakerConfig::default());
/// let now = Duration::ZERO;
/// for _ in 0..5 {
///     let ticket = breaker.begin(now);
///     breaker.failure(ticket, now);
/// }
/// assert_eq!(breaker.state(now), BreakerState::Open);
/// // Ten seconds later one request may try.
/// let later = breaker.ready_at(now).unwrap();
/// assert_eq!(later, Duration::from_secs(10));
/// let ticket = breaker.begin(later);
/// assert_eq!(breaker.ready_at(later), None);
/// breaker.success(ticket);
/// assert_eq!(breaker.state(later), BreakerState::Closed);
/// ```
#[derive(Debug)]
pub struct CircuitBreaker {
    config: BreakerConfig,
    phase: Phase,
    /// Counts changes of the phase.
    generation: u64,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed { failures: u32 },
    Open { until: Monotonic },
    HalfOpen { under_way: u32 },
}

impl CircuitBreaker {
    /// A closed breaker.
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, phase: Phase::Closed { failures: 0 }, generation: 0 }
    }

    /// What it lets through.
    pub fn state(&self, now: Monotonic) -> BreakerState {
        match self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until } if until > now => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// From when on a request may begin; `now` or earlier: at once. None while as many as may try are under way.
    pub fn ready_at(&self, now: Monotonic) -> Option<Monotonic> {
        match self.phase {
            Phase::Closed { .. } => Some(now),
            Phase::Open { until } => Some(until),
            Phase::HalfOpen { under_way } => (under_way < self.config.half_open.get()).then_some(now),
        }
    }

    /// Counts a request as begun. Call it when [`CircuitBreaker::ready_at`] allows one.
    pub fn begin(&mut self, now: Monotonic) -> Ticket {
        match &mut self.phase {
            Phase::Open { until } if *until <= now => self.change(Phase::HalfOpen { under_way: 1 }),
            Phase::HalfOpen { under_way } => *under_way = under_way.saturating_add(1),
            Phase::Closed { .. } | Phase::Open { .. } => {}
        }
        Ticket(self.generation)
    }

    /// The target has answered.
    pub fn success(&mut self, ticket: Ticket) {
        if ticket.0 != self.generation {
            return;
        }
        match &mut self.phase {
            Phase::Closed { failures } => *failures = 0,
            Phase::HalfOpen { .. } => self.change(Phase::Closed { failures: 0 }),
            Phase::Open { .. } => {}
        }
    }

    /// The target has not done its work.
    pub fn failure(&mut self, ticket: Ticket, now: Monotonic) {
        if ticket.0 != self.generation {
            return;
        }
        let until = now + self.config.open_for;
        match &mut self.phase {
            Phase::Closed { failures } => {
                *failures = failures.saturating_add(1);
                if *failures >= self.config.failures.get() {
                    self.change(Phase::Open { until });
                }
            }
            Phase::HalfOpen { .. } => self.change(Phase::Open { until }),
            Phase::Open { .. } => {}
        }
    }

    /// The request was not made after all.
    pub fn cancel(&mut self, ticket: Ticket) {
        if let (true, Phase::HalfOpen { under_way }) = (ticket.0 == self.generation, &mut self.phase) {
            *under_way = under_way.saturating_sub(1);
        }
    }

    fn change(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation = self.generation.wrapping_add(1);
    }
}
