//! The health of one service as a state machine.
//!
//! Three inputs count:
//!
//! - The probe: several equal answers in a row change its verdict.
//! - The service itself, by its heartbeats.
//! - The deliveries: many failures in a row eject the service for a while, as Envoy's outlier detection does.
//!   Many failures within a minute degrade it until their share has clearly fallen.
//!
//! A service that flaps is suppressed until it has been quiet, as routes are in RFC 2439. Each fall adds a
//! penalty, also during suppression, and the penalty decays. A ceiling bounds it, so that suppression ends
//! three half-lives after the last fall at the latest.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use relay_core::{Monotonic, Timestamp};
use relay_events::ServiceState;

use super::config::HealthConfig;

/// The answers of a probe in a row that change its verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Successes after which the service works.
    pub(crate) rise: NonZeroU32,
    /// Failures after which it does not.
    pub(crate) fall: NonZeroU32,
}

/// The health of one service. Each call that depends on time passes the monotonic clock's time.
#[derive(Debug)]
pub(crate) struct Health {
    thresholds: Thresholds,
    /// The verdict of the probe; `None` before the first one.
    probe: Option<bool>,
    /// Answers in a row that contradict the verdict.
    contrary_answers: u32,
    probe_failure: Option<String>,
    /// The last report of the service about itself.
    report: Option<SelfReport>,
    failures_in_row: u32,
    last_failure: String,
    /// A delivery succeeded since the last ejection.
    has_delivered: bool,
    ejections: u32,
    ejected_until: Monotonic,
    /// Deliveries by second: the second, their number, and the number of failures.
    recent: VecDeque<(u64, u32, u32)>,
    /// The share of failures reached the limit, and has not clearly fallen since.
    is_failing: bool,
    penalty: f64,
    penalty_at: Monotonic,
    /// The best state that the service can have during suppression.
    suppressed_at: Option<ServiceState>,
    /// The last state before damping.
    undamped: ServiceState,
    availability: Availability,
    /// The state after damping, with its reason and the time of its last change.
    state: ServiceState,
    reason: Option<String>,
    since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Availability {
    Present,
    Draining,
    Gone,
}

#[derive(Debug)]
enum SelfReport {
    Works,
    /// The service works with errors, for this reason.
    Degraded(String),
}

/// The span over which deliveries count, in seconds.
const WINDOW_SECONDS: u64 = 60;
/// The penalty at which suppression begins, and the one below which it ends.
const SUPPRESS_AT: f64 = 3.0;
const REUSE_BELOW: f64 = 1.0;
/// The largest penalty.
const MAX_PENALTY: f64 = 8.0;
/// The penalty for a fall by one step: from healthy to degraded, or from degraded to unhealthy.
const PENALTY_PER_STEP: f64 = 0.5;
/// The ejections in a row up to which their length grows.
const MAX_EJECTIONS: u32 = 10;

impl Health {
    /// A service of unknown health.
    pub(crate) fn new(thresholds: Thresholds, since: Timestamp) -> Self {
        Self {
            thresholds,
            probe: None,
            contrary_answers: 0,
            probe_failure: None,
            report: None,
            failures_in_row: 0,
            last_failure: String::new(),
            has_delivered: false,
            ejections: 0,
            ejected_until: Monotonic::ZERO,
            recent: VecDeque::new(),
            is_failing: false,
            penalty: 0.0,
            penalty_at: Monotonic::ZERO,
            suppressed_at: None,
            undamped: ServiceState::Unknown,
            availability: Availability::Present,
            state: ServiceState::Unknown,
            reason: None,
            since,
        }
    }

    /// Returns the state after damping.
    pub(crate) fn state(&self) -> ServiceState {
        self.state
    }

    /// Returns the reason for the state, where one is known.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Returns the time of the last change of state.
    pub(crate) fn since(&self) -> Timestamp {
        self.since
    }

    /// Records a probe's answer, or the reason of its failure.
    pub(crate) fn record_probe(&mut self, answer: Result<(), String>) {
        let works = answer.is_ok();
        if let Err(reason) = answer {
            self.probe_failure = Some(reason);
        }
        if self.probe == Some(works) {
            self.contrary_answers = 0;
            if works {
                // A service that answers its probe is no longer ejected.
                self.ejected_until = Monotonic::ZERO;
            }
            return;
        }
        self.contrary_answers += 1;
        let enough = if works { self.thresholds.rise } else { self.thresholds.fall };
        // The first answer counts at once if it is a success.
        if self.contrary_answers >= enough.get() || (self.probe.is_none() && works) {
            self.probe = Some(works);
            self.contrary_answers = 0;
            if works {
                self.ejected_until = Monotonic::ZERO;
            }
        }
    }

    /// Records a heartbeat: the service works, or is degraded for a reason.
    pub(crate) fn record_report(&mut self, degraded: Option<String>) {
        self.report = Some(degraded.map_or(SelfReport::Works, SelfReport::Degraded));
    }

    /// Records a delivery that succeeded, or failed for a reason.
    pub(crate) fn record_delivery(
        &mut self,
        answer: Result<(), &str>,
        config: &HealthConfig,
        now: Monotonic,
    ) {
        let second = now.elapsed().as_secs();
        self.drop_old_deliveries(second);
        match self.recent.back_mut() {
            Some((at, all, failed)) if *at == second => {
                *all += 1;
                *failed += u32::from(answer.is_err());
            }
            _ => self.recent.push_back((second, 1, u32::from(answer.is_err()))),
        }
        match answer {
            Ok(()) => {
                self.has_delivered = true;
                self.failures_in_row = 0;
                self.ejections = 0;
            }
            Err(reason) => {
                self.failures_in_row = self.failures_in_row.saturating_add(1);
                if self.last_failure != reason {
                    reason.clone_into(&mut self.last_failure);
                }
                if self.failures_in_row >= config.eject_after && self.ejected_until <= now {
                    self.has_delivered = false;
                    self.ejections = (self.ejections + 1).min(MAX_EJECTIONS);
                    self.ejected_until = now + config.eject_for.saturating_mul(self.ejections);
                    // After the ejection one more failure ejects the service again.
                    self.failures_in_row = config.eject_after - 1;
                }
            }
        }
    }

    /// Records that the service drains.
    pub(crate) fn drain(&mut self) {
        self.availability = Availability::Draining;
    }

    /// Records that the service is gone.
    pub(crate) fn leave(&mut self) {
        self.availability = Availability::Gone;
    }

    /// Computes the state at `now`; `wall` becomes the time of the change. Returns true if the state changed.
    pub(crate) fn update(&mut self, config: &HealthConfig, now: Monotonic, wall: Timestamp) -> bool {
        self.decay(config, now);
        self.update_failing(config, now);
        let (mut state, mut reason) = self.undamped_state(config, now);
        let fall = severity(state).saturating_sub(severity(self.undamped));
        if fall > 0 && matches!(self.undamped, ServiceState::Healthy | ServiceState::Degraded) {
            self.penalty = (self.penalty + PENALTY_PER_STEP * f64::from(fall)).min(MAX_PENALTY);
            let is_deeper = self.suppressed_at.is_none_or(|held| severity(held) < severity(state));
            if self.penalty >= SUPPRESS_AT && is_deeper {
                self.suppressed_at = Some(state);
            }
        }
        self.undamped = state;
        let is_suppressed = |held: &ServiceState| {
            self.availability == Availability::Present && severity(state) < severity(*held)
        };
        if let Some(held) = self.suppressed_at.filter(is_suppressed) {
            state = held;
            reason =
                Some("it goes up and down; it is kept down until it has been quiet for a while".to_owned());
        }
        let has_changed = state != self.state;
        if has_changed {
            self.since = wall;
        }
        self.state = state;
        self.reason = reason;
        has_changed
    }

    fn undamped_state(&self, config: &HealthConfig, now: Monotonic) -> (ServiceState, Option<String>) {
        match self.availability {
            Availability::Gone => {
                return (ServiceState::Gone, Some("its lease expired or it has left".to_owned()));
            }
            Availability::Draining => return (ServiceState::Draining, None),
            Availability::Present => {}
        }
        if self.ejected_until > now {
            let reason =
                format!("deliveries failed, {} or more in a row: {}", config.eject_after, self.last_failure);
            return (ServiceState::Unhealthy, Some(reason));
        }
        if self.probe == Some(false) {
            return (
                ServiceState::Unhealthy,
                self.probe_failure.as_ref().map(|reason| format!("probe: {reason}")),
            );
        }
        if self.is_failing {
            let (all, failed) = self.recent_totals(now.elapsed().as_secs());
            let reason = format!("{failed} of the last {all} deliveries failed: {}", self.last_failure);
            return (ServiceState::Degraded, Some(reason));
        }
        match &self.report {
            Some(SelfReport::Degraded(reason)) => return (ServiceState::Degraded, Some(reason.clone())),
            Some(SelfReport::Works) => return (ServiceState::Healthy, None),
            None => {}
        }
        if self.probe == Some(true) || self.has_delivered {
            return (ServiceState::Healthy, None);
        }
        (ServiceState::Unknown, None)
    }

    /// Updates `is_failing` from the deliveries of the last minute. The share must fall to half before it
    /// ends, so that a single delivery does not flip the state.
    fn update_failing(&mut self, config: &HealthConfig, now: Monotonic) {
        let (all, failed) = self.recent_totals(now.elapsed().as_secs());
        let share = f64::from(failed) / f64::from(all.max(1));
        self.is_failing = if self.is_failing {
            share >= config.degraded_at / 2.0
        } else {
            all >= config.degraded_of && share >= config.degraded_at
        };
    }

    fn recent_totals(&self, second: u64) -> (u32, u32) {
        let recent = self.recent.iter().filter(|(at, ..)| at + WINDOW_SECONDS > second);
        recent.fold((0, 0), |(all, failed), (_, more, more_failed)| (all + more, failed + more_failed))
    }

    fn drop_old_deliveries(&mut self, second: u64) {
        while self.recent.front().is_some_and(|(at, ..)| at + WINDOW_SECONDS <= second) {
            self.recent.pop_front();
        }
    }

    fn decay(&mut self, config: &HealthConfig, now: Monotonic) {
        let elapsed = now.since(self.penalty_at).as_secs_f64();
        self.penalty *= 0.5_f64.powf(elapsed / config.flap_half_life.as_secs_f64());
        self.penalty_at = now;
        if self.penalty < REUSE_BELOW {
            self.suppressed_at = None;
        }
    }
}

/// Returns the number of steps below healthy.
fn severity(state: ServiceState) -> u8 {
    match state {
        ServiceState::Degraded => 1,
        ServiceState::Unhealthy => 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
