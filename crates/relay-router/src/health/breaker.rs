//! The circuit breaker in front of a target.
//!
//! After several failures in a row it opens, and nothing is sent for a while. Then it lets a few trial
//! requests through; the first answer closes it or opens it again. As in Nygard, *Release It!*.

use relay_core::Monotonic;
use serde::{Deserialize, Serialize};

use crate::rules::BreakerConfig;

/// The state of a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    /// All requests pass.
    Closed,
    /// No request passes.
    Open,
    /// A few trial requests pass, to find out if the target works again.
    HalfOpen,
}

/// A permission to send one request. Its result counts only while the breaker has not changed state since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// A circuit breaker. Each call passes the time of the monotonic clock.
#[derive(Debug)]
pub(crate) struct CircuitBreaker {
    config: BreakerConfig,
    phase: Phase,
    /// Counts the changes of phase.
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

    /// Returns the state at `now`.
    pub(crate) fn state(&self, now: Monotonic) -> BreakerState {
        match self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until } if until > now => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Returns the earliest moment at which a request may begin; a moment up to `now` means at once. `None`
    /// while the most trial requests are in flight.
    pub(crate) fn ready_at(&self, now: Monotonic) -> Option<Monotonic> {
        match self.phase {
            Phase::Closed { .. } => Some(now),
            Phase::Open { until } => Some(until),
            Phase::HalfOpen { under_way } => (under_way < self.config.half_open.get()).then_some(now),
        }
    }

    /// Counts a request as begun. The caller has checked [`CircuitBreaker::ready_at`] first.
    pub(crate) fn begin(&mut self, now: Monotonic) -> Ticket {
        match &mut self.phase {
            Phase::Open { until } if *until <= now => self.change(Phase::HalfOpen { under_way: 1 }),
            Phase::HalfOpen { under_way } => *under_way = under_way.saturating_add(1),
            Phase::Closed { .. } | Phase::Open { .. } => {}
        }
        Ticket(self.generation)
    }

    /// Records that the target answered the request.
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

    /// Records that the request failed.
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

    /// Takes back a request that was not sent.
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
