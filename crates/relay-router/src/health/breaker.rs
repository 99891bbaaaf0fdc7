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
pub(crate) struct Ticket(u64);

/// A circuit breaker. It is told the time, by the monotonic clock, with each call.
#[derive(Debug)]
pub(crate) struct CircuitBreaker {
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
    pub(crate) fn new(config: BreakerConfig) -> Self {
        Self { config, phase: Phase::Closed { failures: 0 }, generation: 0 }
    }

    /// What it lets through.
    pub(crate) fn state(&self, now: Monotonic) -> BreakerState {
        match self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until } if until > now => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// From when on a request may begin; `now` or earlier: at once. None while as many as may try are under way.
    pub(crate) fn ready_at(&self, now: Monotonic) -> Option<Monotonic> {
        match self.phase {
            Phase::Closed { .. } => Some(now),
            Phase::Open { until } => Some(until),
            Phase::HalfOpen { under_way } => (under_way < self.config.half_open.get()).then_some(now),
        }
    }

    /// Counts a request as begun. Call it when [`CircuitBreaker::ready_at`] allows one.
    pub(crate) fn begin(&mut self, now: Monotonic) -> Ticket {
        match &mut self.phase {
            Phase::Open { until } if *until <= now => self.change(Phase::HalfOpen { under_way: 1 }),
            Phase::HalfOpen { under_way } => *under_way = under_way.saturating_add(1),
            Phase::Closed { .. } | Phase::Open { .. } => {}
        }
        Ticket(self.generation)
    }

    /// The target has answered.
    pub(crate) fn success(&mut self, ticket: Ticket) {
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
    pub(crate) fn failure(&mut self, ticket: Ticket, now: Monotonic) {
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
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        if let (true, Phase::HalfOpen { under_way }) = (ticket.0 == self.generation, &mut self.phase) {
            *under_way = under_way.saturating_sub(1);
        }
    }

    fn change(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation = self.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
