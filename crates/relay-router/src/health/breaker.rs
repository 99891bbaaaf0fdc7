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
pub(crate) struct BreakerTicket(u64);

/// A circuit breaker. Each call passes the time of the monotonic clock.
#[derive(Debug)]
pub(crate) struct CircuitBreaker {
    config: BreakerConfig,
    phase: BreakerPhase,
    /// Counts the changes of phase.
    generation: u64,
}

#[derive(Debug, Clone, Copy)]
enum BreakerPhase {
    Closed { failures: u32 },
    Open { until: Monotonic },
    HalfOpen { under_way: u32 },
}

impl CircuitBreaker {
    /// A closed breaker.
    pub(crate) fn new(config: BreakerConfig) -> Self {
        Self { config, phase: BreakerPhase::Closed { failures: 0 }, generation: 0 }
    }

    /// Returns the state at `now`.
    pub(crate) fn state(&self, now: Monotonic) -> BreakerState {
        match self.phase {
            BreakerPhase::Closed { .. } => BreakerState::Closed,
            BreakerPhase::Open { until } if until > now => BreakerState::Open,
            BreakerPhase::Open { .. } | BreakerPhase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Returns the earliest moment at which a request may begin; a moment up to `now` means at once. `None`
    /// while the most trial requests are in flight.
    pub(crate) fn ready_at(&self, now: Monotonic) -> Option<Monotonic> {
        match self.phase {
            BreakerPhase::Closed { .. } => Some(now),
            BreakerPhase::Open { until } => Some(until),
            BreakerPhase::HalfOpen { under_way } => (under_way < self.config.half_open.get()).then_some(now),
        }
    }

    /// Counts a request as begun. The caller has checked [`CircuitBreaker::ready_at`] first.
    pub(crate) fn begin(&mut self, now: Monotonic) -> BreakerTicket {
        match &mut self.phase {
            BreakerPhase::Open { until } if *until <= now => {
                self.change(BreakerPhase::HalfOpen { under_way: 1 });
            }
            BreakerPhase::HalfOpen { under_way } => *under_way = under_way.saturating_add(1),
            BreakerPhase::Closed { .. } | BreakerPhase::Open { .. } => {}
        }
        BreakerTicket(self.generation)
    }

    /// Records that the target answered the request.
    pub(crate) fn success(&mut self, ticket: BreakerTicket) {
        if ticket.0 != self.generation {
            return;
        }
        match &mut self.phase {
            BreakerPhase::Closed { failures } => *failures = 0,
            BreakerPhase::HalfOpen { .. } => self.change(BreakerPhase::Closed { failures: 0 }),
            BreakerPhase::Open { .. } => {}
        }
    }

    /// Records that the request failed.
    pub(crate) fn failure(&mut self, ticket: BreakerTicket, now: Monotonic) {
        if ticket.0 != self.generation {
            return;
        }
        let until = now + self.config.open_for;
        match &mut self.phase {
            BreakerPhase::Closed { failures } => {
                *failures = failures.saturating_add(1);
                if *failures >= self.config.failures.get() {
                    self.change(BreakerPhase::Open { until });
                }
            }
            BreakerPhase::HalfOpen { .. } => self.change(BreakerPhase::Open { until }),
            BreakerPhase::Open { .. } => {}
        }
    }

    /// Takes back a request that was not sent.
    pub(crate) fn cancel(&mut self, ticket: BreakerTicket) {
        if let (true, BreakerPhase::HalfOpen { under_way }) = (ticket.0 == self.generation, &mut self.phase) {
            *under_way = under_way.saturating_sub(1);
        }
    }

    fn change(&mut self, phase: BreakerPhase) {
        self.phase = phase;
        self.generation = self.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
