//! What is known of one service, and what follows from it.
//!
//! Three witnesses are heard: its probe (so many answers in a row change what it says), itself (with its heartbeats), and
//! the deliveries to it: many failures in a row eject it for a while, as Envoy's outlier detection does, and many of
//! the last minute degrade it until it is clearly better. One that goes up and down is held down until it has been quiet,
//! as flapping routes are (RFC 2439): each fall adds a penalty that decays, falls while it is held down too, up to a
//! ceiling, so that it is never held for more than three half-lives after its last fall.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use relay_core::{Monotonic, Timestamp};
use relay_events::ServiceState;

use super::config::HealthConfig;

/// How many answers of a probe in a row change what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Successes after which it says that the service works.
    pub(crate) rise: NonZeroU32,
    /// Failures after which it says that it does not.
    pub(crate) fall: NonZeroU32,
}

/// What is known of one service. It is told the time, by the monotonic clock, with each call.
#[derive(Debug)]
pub(crate) struct Health {
    thresholds: Thresholds,
    /// What the probe says; none before it has said anything.
    probe: Option<bool>,
    /// Answers in a row against what it says.
    contrary_answers: u32,
    probe_failure: Option<String>,
    /// What the service says of itself; none before it has said anything.
    report: Option<SelfReport>,
    failures_in_row: u32,
    last_failure: String,
    /// It has taken a delivery since it was last ejected.
    has_delivered: bool,
    ejections: u32,
    ejected_until: Monotonic,
    /// Deliveries by second: when, how many, how many of them failed.
    recent: VecDeque<(u64, u32, u32)>,
    /// Too many of them failed, and not clearly fewer since.
    is_failing: bool,
    penalty: f64,
    penalty_at: Monotonic,
    /// What it is at best while it is held down.
    suppressed_at: Option<ServiceState>,
    /// What followed last, before damping.
    undamped: ServiceState,
    availability: Availability,
    /// What follows from all that and is told, why, and since when.
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
    /// It works with errors, for this reason.
    Degraded(String),
}

/// How far back deliveries count, in seconds.
const WINDOW_SECONDS: u64 = 60;
/// The penalty with which a service is held down, and below which it is let up again.
const SUPPRESS_AT: f64 = 3.0;
const REUSE_BELOW: f64 = 1.0;
/// The most that it can be.
const MAX_PENALTY: f64 = 8.0;
/// What a fall by one step adds, of the two from healthy over degraded to unhealthy.
const PENALTY_PER_STEP: f64 = 0.5;
/// How often in a row an ejection grows.
const MAX_EJECTIONS: u32 = 10;

impl Health {
    /// A service of which nothing is known.
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

    /// What follows from what is known.
    pub(crate) fn state(&self) -> ServiceState {
        self.state
    }

    /// Why, where there is more to say.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Since when.
    pub(crate) fn since(&self) -> Timestamp {
        self.since
    }

    /// The probe was answered, or failed for a reason.
    pub(crate) fn record_probe(&mut self, answer: Result<(), String>) {
        let works = answer.is_ok();
        if let Err(reason) = answer {
            self.probe_failure = Some(reason);
        }
        if self.probe == Some(works) {
            self.contrary_answers = 0;
            if works {
                // Who answers again is not left out for what deliveries found before.
                self.ejected_until = Monotonic::ZERO;
            }
            return;
        }
        self.contrary_answers += 1;
        let enough = if works { self.thresholds.rise } else { self.thresholds.fall };
        // The first answer of all counts at once when it is good.
        if self.contrary_answers >= enough.get() || (self.probe.is_none() && works) {
            self.probe = Some(works);
            self.contrary_answers = 0;
            if works {
                self.ejected_until = Monotonic::ZERO;
            }
        }
    }

    /// The service has said that it works, or works with errors for a reason.
    pub(crate) fn record_report(&mut self, degraded: Option<String>) {
        self.report = Some(degraded.map_or(SelfReport::Works, SelfReport::Degraded));
    }

    /// A delivery was taken, or failed for a reason.
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
                    // One more failure after it has come back ejects it again.
                    self.failures_in_row = config.eject_after - 1;
                }
            }
        }
    }

    /// The service leaves.
    pub(crate) fn drain(&mut self) {
        self.availability = Availability::Draining;
    }

    /// The service is gone.
    pub(crate) fn leave(&mut self) {
        self.availability = Availability::Gone;
    }

    /// Draws the conclusion from what is known at `now`, which is `wall` for people. True when it has changed.
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
                Some("it goes up and down; it is left alone until it has been quiet for a while".to_owned());
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
            Availability::Gone => return (ServiceState::Gone, Some("it is silent or has left".to_owned())),
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

    /// Weighs the deliveries of the last minute. What degrades it must halve before it does no longer: one delivery
    /// more or less does not change its state to and fro.
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

/// How far down from healthy a state is.
fn severity(state: ServiceState) -> u8 {
    match state {
        ServiceState::Degraded => 1,
        ServiceState::Unhealthy => 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
