//! The health of one service beside a plain model, under a clock that the test holds.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Health, Thresholds};
use crate::health::HealthConfig;
use proptest::prelude::*;
use relay_core::{Monotonic, Timestamp};
use relay_events::ServiceState::{self, Degraded, Draining, Gone, Healthy, Unhealthy, Unknown};

#[derive(Debug, Clone, Copy)]
enum Heard {
    Nothing,
    /// A probe succeeds or fails.
    Probe(bool),
    /// The service reports that it works, or that it is degraded.
    Report(bool),
    /// A delivery succeeds or fails.
    Delivery(bool),
}

/// A service with the time of the test.
struct Service {
    health: Health,
    config: HealthConfig,
    now: Monotonic,
}

impl Service {
    fn new() -> Self {
        let (rise, fall) = (NonZeroU32::new(2).unwrap(), NonZeroU32::new(3).unwrap());
        let health = Health::new(Thresholds { rise, fall }, Timestamp::UNIX_EPOCH);
        Self { health, config: HealthConfig::default(), now: Monotonic::ZERO }
    }

    fn wait(&mut self, seconds: f64) -> ServiceState {
        self.now += Duration::from_secs_f64(seconds);
        self.hear(Heard::Nothing)
    }

    fn hear(&mut self, heard: Heard) -> ServiceState {
        match heard {
            Heard::Nothing => {}
            Heard::Probe(true) => self.health.record_probe(Ok(())),
            Heard::Probe(false) => self.health.record_probe(Err("status 503 instead of 200".to_owned())),
            Heard::Report(works) => self.health.record_report((!works).then(|| "disk full".to_owned())),
            Heard::Delivery(true) => self.health.record_delivery(Ok(()), &self.config, self.now),
            Heard::Delivery(false) => self.health.record_delivery(Err("status 500"), &self.config, self.now),
        }
        let before = self.health.state();
        let wall = Timestamp::UNIX_EPOCH.saturating_add(self.now.elapsed());
        let has_changed = self.health.update(&self.config, self.now, wall);
        assert_eq!(has_changed, before != self.health.state());
        if has_changed {
            assert_eq!(self.health.since(), wall);
        }
        self.health.state()
    }

    fn hear_times(&mut self, times: usize, heard: Heard) -> ServiceState {
        (0..times).map(|_| self.hear(heard)).last().unwrap()
    }

    /// Rises and falls again.
    fn fall(&mut self) -> ServiceState {
        self.hear_times(2, Heard::Probe(true));
        self.hear_times(3, Heard::Probe(false))
    }
}

/// The plain model: it keeps every input and evaluates all of them each time.
struct Model {
    config: HealthConfig,
    rise: usize,
    fall: usize,
    probes: Vec<bool>,
    verdict: Option<bool>,
    reports: Vec<bool>,
    /// The time of each delivery, and its success.
    deliveries: Vec<(Monotonic, bool)>,
    /// The begin and end of each ejection, and the number of deliveries before it.
    ejections: Vec<(Monotonic, Monotonic, usize)>,
    is_failing: bool,
    penalty: f64,
    penalty_at: Monotonic,
    held_at: Option<ServiceState>,
    seen: ServiceState,
}

impl Model {
    fn new(rise: u32, fall: u32, config: HealthConfig) -> Self {
        Self {
            config,
            rise: rise as usize,
            fall: fall as usize,
            probes: Vec::new(),
            verdict: None,
            reports: Vec::new(),
            deliveries: Vec::new(),
            ejections: Vec::new(),
            is_failing: false,
            penalty: 0.0,
            penalty_at: Monotonic::ZERO,
            held_at: None,
            seen: Unknown,
        }
    }

    fn hear(&mut self, heard: Heard, now: Monotonic) {
        match heard {
            Heard::Nothing => {}
            Heard::Report(works) => self.reports.push(works),
            Heard::Probe(works) => {
                self.probes.push(works);
                let in_row = self.probes.iter().rev().take_while(|one| **one == works).count();
                let enough = if works { self.rise } else { self.fall };
                if in_row >= enough || (self.verdict.is_none() && works) || self.verdict == Some(works) {
                    self.verdict = Some(works);
                    if works && let Some((_, end, _)) = self.ejections.last_mut() {
                        *end = now.min(*end);
                    }
                }
            }
            Heard::Delivery(taken) => {
                self.deliveries.push((now, taken));
                let in_row = self.deliveries.iter().rev().take_while(|(_, taken)| !taken).count();
                let good = self.deliveries.len() - in_row;
                let ejections = self.ejections.iter().filter(|(.., after)| *after > good).count();
                let is_ejected = self.ejections.iter().any(|(_, end, _)| *end > now);
                if !taken && !is_ejected && (in_row >= self.config.eject_after as usize || ejections > 0) {
                    let times = u32::try_from(ejections + 1).unwrap().min(10);
                    self.ejections.push((now, now + self.config.eject_for * times, self.deliveries.len()));
                }
            }
        }
    }

    fn undamped(&mut self, now: Monotonic) -> ServiceState {
        let recent =
            self.deliveries.iter().filter(|(at, _)| at.elapsed().as_secs() + 60 > now.elapsed().as_secs());
        let (all, failed) = recent
            .fold((0.0, 0.0), |(all, failed), (_, taken)| (all + 1.0, failed + f64::from(u8::from(!taken))));
        let limit = if self.is_failing { self.config.degraded_at / 2.0 } else { self.config.degraded_at };
        let is_enough = self.is_failing || all >= f64::from(self.config.degraded_of);
        self.is_failing = all > 0.0 && is_enough && failed / all >= limit;
        let since = self.ejections.last().map_or(0, |(.., after)| *after);
        if self.ejections.iter().any(|(_, end, _)| *end > now) || self.verdict == Some(false) {
            Unhealthy
        } else if self.is_failing || self.reports.last() == Some(&false) {
            Degraded
        } else if self.reports.last() == Some(&true)
            || self.verdict == Some(true)
            || self.deliveries[since..].iter().any(|(_, taken)| *taken)
        {
            Healthy
        } else {
            Unknown
        }
    }

    fn state(&mut self, now: Monotonic) -> ServiceState {
        let elapsed = now.since(self.penalty_at).as_secs_f64();
        self.penalty *= 0.5_f64.powf(elapsed / self.config.flap_half_life.as_secs_f64());
        self.penalty_at = now;
        if self.penalty < 1.0 {
            self.held_at = None;
        }
        let state = self.undamped(now);
        let added = match (self.seen, state) {
            (Healthy, Unhealthy) => 1.0,
            (Healthy, Degraded) | (Degraded, Unhealthy) => 0.5,
            _ => 0.0,
        };
        self.seen = state;
        self.penalty = (self.penalty + added).min(8.0);
        if added > 0.0 && self.penalty >= 3.0 && self.held_at != Some(Unhealthy) {
            self.held_at = Some(state);
        }
        match (self.held_at, state) {
            (Some(_), Unhealthy) | (None, _) => state,
            (Some(held), _) => held,
        }
    }
}

fn heard() -> impl Strategy<Value = Heard> {
    prop_oneof![
        1 => Just(Heard::Nothing),
        3 => any::<bool>().prop_map(Heard::Probe),
        1 => any::<bool>().prop_map(Heard::Report),
        5 => prop::bool::weighted(0.4).prop_map(Heard::Delivery),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_service_is_what_the_model_says(
        rise in 1_u32..4,
        fall in 1_u32..4,
        eject_after in 1_u32..6,
        degraded_of in 1_u32..8,
        steps in prop::collection::vec((prop_oneof![Just(0_u64), 0_u64..3_000, 0_u64..90_000], heard()), 1..250),
    ) {
        let mut service = Service::new();
        let thresholds = Thresholds { rise: NonZeroU32::new(rise).unwrap(), fall: NonZeroU32::new(fall).unwrap() };
        service.health = Health::new(thresholds, Timestamp::UNIX_EPOCH);
        service.config.eject_after = eject_after;
        service.config.degraded_of = degraded_of;
        let mut model = Model::new(rise, fall, service.config.clone());
        for (index, (wait, heard)) in steps.into_iter().enumerate() {
            service.now += Duration::from_millis(wait);
            let state = service.hear(heard);
            model.hear(heard, service.now);
            prop_assert_eq!(state, model.state(service.now), "step {}: {:?} at {:?}", index, heard, service.now);
        }
    }
}

#[test]
fn so_many_answers_of_the_probe_in_a_row_change_what_it_says() {
    let mut service = Service::new();
    assert_eq!(service.hear_times(2, Heard::Probe(false)), Unknown);
    assert_eq!(service.hear(Heard::Probe(true)), Healthy);
    assert_eq!(service.hear_times(2, Heard::Probe(false)), Healthy);
    assert_eq!(service.hear(Heard::Probe(true)), Healthy);
    assert_eq!(service.hear_times(2, Heard::Probe(false)), Healthy);
    assert_eq!(service.hear(Heard::Probe(false)), Unhealthy);
    assert_eq!(service.health.reason(), Some("probe: status 503 instead of 200"));
    assert_eq!(service.hear(Heard::Probe(true)), Unhealthy);
    assert_eq!(service.hear(Heard::Probe(true)), Healthy);
}

#[test]
fn a_service_that_says_it_is_degraded_is_degraded_for_that_reason() {
    let mut service = Service::new();
    assert_eq!(service.hear(Heard::Report(false)), Degraded);
    assert_eq!(service.health.reason(), Some("disk full"));
    assert_eq!(service.hear(Heard::Report(true)), Healthy);
}

#[test]
fn deliveries_that_fail_in_a_row_eject_a_service_for_longer_each_time_up_to_a_cap() {
    let mut service = Service::new();
    service.hear(Heard::Delivery(true));
    assert_eq!(service.hear_times(9, Heard::Delivery(false)), Healthy);
    let mut lasted = Vec::new();
    for _ in 0..12 {
        assert_eq!(service.hear(Heard::Delivery(false)), Unhealthy);
        let began = service.now;
        while service.wait(1.0) == Unhealthy {}
        lasted.push(service.now.since(began).as_secs());
    }
    assert_eq!(lasted, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100, 100]);
}

#[test]
fn a_probe_that_is_answered_ends_an_ejection() {
    let mut service = Service::new();
    service.hear(Heard::Probe(true));
    assert_eq!(service.hear_times(10, Heard::Delivery(false)), Unhealthy);
    assert_eq!(service.hear(Heard::Probe(true)), Healthy);
}

#[test]
fn a_service_that_gets_something_now_and_then_stays_healthy_in_between() {
    let mut service = Service::new();
    assert_eq!(service.hear(Heard::Delivery(true)), Healthy);
    assert_eq!(service.wait(3_600.0), Healthy);
}

#[test]
fn one_delivery_more_or_less_does_not_change_a_degraded_service_to_and_fro() {
    let mut service = Service::new();
    for _ in 0..10 {
        service.hear(Heard::Delivery(true));
        service.hear(Heard::Delivery(false));
    }
    assert_eq!(service.health.state(), Degraded);
    assert_eq!(service.hear(Heard::Delivery(true)), Degraded);
    // 10 failures of 41 deliveries are less than a quarter.
    assert_eq!(service.hear_times(20, Heard::Delivery(true)), Healthy);
}

#[test]
fn a_service_that_goes_up_and_down_is_left_alone_until_it_has_been_quiet() {
    let mut service = Service::new();
    assert_eq!(service.fall(), Unhealthy);
    assert_eq!(service.hear_times(2, Heard::Probe(true)), Healthy);
    service.fall();
    assert_eq!(service.hear_times(2, Heard::Probe(true)), Healthy);
    service.fall();
    assert_eq!(service.hear_times(2, Heard::Probe(true)), Unhealthy);
    assert!(service.health.reason().unwrap().starts_with("it goes up and down"));
    // A penalty of 3 is below 1 after 95.1 seconds.
    assert_eq!(service.wait(95.0), Unhealthy);
    assert_eq!(service.wait(0.2), Healthy);
}

#[test]
fn a_service_that_goes_on_falling_is_not_let_up_and_after_its_last_fall_within_three_half_lives() {
    let mut service = Service::new();
    for _ in 0..3 {
        service.fall();
    }
    for _ in 0..100 {
        service.wait(20.0);
        assert_eq!(service.hear_times(2, Heard::Probe(true)), Unhealthy);
        assert_eq!(service.hear_times(3, Heard::Probe(false)), Unhealthy);
    }
    service.hear_times(2, Heard::Probe(true));
    for _ in 0..100 {
        service.fall();
    }
    assert_eq!(service.hear_times(2, Heard::Probe(true)), Unhealthy);
    assert_eq!(service.wait(179.0), Unhealthy);
    assert_eq!(service.wait(1.1), Healthy);
}

#[test]
fn a_service_that_leaves_is_draining_and_then_gone_whatever_else_is_heard_of_it() {
    let mut service = Service::new();
    for _ in 0..4 {
        service.fall();
    }
    service.health.drain();
    assert_eq!(service.hear(Heard::Probe(true)), Draining);
    service.health.leave();
    assert_eq!(service.hear(Heard::Report(true)), Gone);
}
