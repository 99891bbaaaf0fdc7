//! The circuit breaker beside a plain model, under a clock that the test holds.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::num::NonZeroU32;
use std::time::Duration;

use super::{BreakerState, BreakerTicket, CircuitBreaker};
use crate::rules::BreakerConfig;
use proptest::prelude::*;
use relay_core::Monotonic;

fn config(failures: u32, open_for: u64, half_open: u32) -> BreakerConfig {
    BreakerConfig {
        failures: NonZeroU32::new(failures).unwrap(),
        open_for: Duration::from_millis(open_for),
        half_open: NonZeroU32::new(half_open).unwrap(),
    }
}

fn at(millis: u64) -> Monotonic {
    Monotonic::from_elapsed(Duration::from_millis(millis))
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    Begin,
    /// The request at this index, modulo the number of requests in flight, ends.
    Succeed(usize),
    Fail(usize),
    Cancel(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_u64..80).prop_map(Step::Wait),
        4 => Just(Step::Begin),
        2 => any::<usize>().prop_map(Step::Succeed),
        4 => any::<usize>().prop_map(Step::Fail),
        1 => any::<usize>().prop_map(Step::Cancel),
    ]
}

/// A request in flight, and the chapter of the breaker's life in which it began.
struct Request {
    ticket: BreakerTicket,
    chapter: usize,
}

/// The plain model of a breaker: chapters, each closed or with the time until which it is open.
struct Model {
    config: BreakerConfig,
    /// The end of the open time of each chapter; `None` for a closed one. After that time trials may begin in
    /// it.
    chapters: Vec<Option<u64>>,
    /// The answers in this chapter, oldest first: true for a success.
    answers: Vec<bool>,
    /// A trial has begun in this open chapter.
    is_tried: bool,
}

impl Model {
    fn chapter(&self) -> usize {
        self.chapters.len() - 1
    }

    fn begin_chapter(&mut self, until: Option<u64>) {
        self.chapters.push(until);
        self.answers.clear();
        self.is_tried = false;
    }

    fn state(&self, now: u64) -> BreakerState {
        match self.chapters[self.chapter()] {
            None => BreakerState::Closed,
            Some(until) if now < until => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// Returns the earliest time at which a request may begin, with `requests` in flight.
    fn ready_at(&self, now: u64, requests: &[Request]) -> Option<u64> {
        let trials = requests.iter().filter(|request| request.chapter == self.chapter()).count();
        match self.chapters[self.chapter()] {
            None => Some(now),
            Some(until) if !self.is_tried => Some(until),
            Some(_) => (trials < self.config.half_open.get() as usize).then_some(now),
        }
    }

    fn answer(&mut self, request: &Request, worked: bool, now: u64) {
        if request.chapter != self.chapter() {
            return;
        }
        self.answers.push(worked);
        let failed = self.answers.iter().rev().take_while(|worked| !**worked).count();
        let open_for = u64::try_from(self.config.open_for.as_millis()).unwrap();
        match (self.chapters[self.chapter()], worked) {
            (None, false) if failed >= self.config.failures.get() as usize => {
                self.begin_chapter(Some(now + open_for));
            }
            (Some(_), false) => self.begin_chapter(Some(now + open_for)),
            (Some(_), true) => self.begin_chapter(None),
            (None, _) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_breaker_does_what_the_model_says(
        failures in 1_u32..5,
        open_for in 1_u64..200,
        half_open in 1_u32..4,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let config = config(failures, open_for, half_open);
        let mut breaker = CircuitBreaker::new(config.clone());
        let mut model = Model { config, chapters: vec![None], answers: Vec::new(), is_tried: false };
        let mut requests: Vec<Request> = Vec::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Wait(millis) => now += millis,
                Step::Begin => {
                    if model.ready_at(now, &requests).is_some_and(|ready| ready <= now) {
                        // Requests from before the breaker opened belong to an earlier chapter, and do not
                        // count.
                        model.is_tried |= model.chapters[model.chapter()].is_some();
                        let ticket = breaker.begin(at(now));
                        requests.push(Request { ticket, chapter: model.chapter() });
                    }
                }
                Step::Succeed(which) if !requests.is_empty() => {
                    let request = requests.swap_remove(which % requests.len());
                    breaker.success(request.ticket);
                    model.answer(&request, true, now);
                }
                Step::Fail(which) if !requests.is_empty() => {
                    let request = requests.swap_remove(which % requests.len());
                    breaker.failure(request.ticket, at(now));
                    model.answer(&request, false, now);
                }
                Step::Cancel(which) if !requests.is_empty() => {
                    let request = requests.swap_remove(which % requests.len());
                    breaker.cancel(request.ticket);
                }
                Step::Succeed(_) | Step::Fail(_) | Step::Cancel(_) => {}
            }
            prop_assert_eq!(breaker.state(at(now)), model.state(now), "after {:?} at {}", step, now);
            prop_assert_eq!(breaker.ready_at(at(now)), model.ready_at(now, &requests).map(at), "after {:?} at {}", step, now);
        }
    }
}

#[test]
fn an_answer_to_a_request_from_before_it_opened_changes_nothing() {
    let mut breaker = CircuitBreaker::new(config(1, 100, 1));
    let (first, second) = (breaker.begin(at(0)), breaker.begin(at(0)));
    breaker.failure(first, at(10));
    breaker.success(second);
    assert_eq!(breaker.state(at(10)), BreakerState::Open);
    assert_eq!(breaker.ready_at(at(10)), Some(at(110)));
}

#[test]
fn a_trial_that_was_not_made_is_given_back() {
    let mut breaker = CircuitBreaker::new(config(1, 100, 1));
    let first = breaker.begin(at(0));
    breaker.failure(first, at(0));
    let trial = breaker.begin(at(100));
    assert_eq!(breaker.ready_at(at(100)), None);
    breaker.cancel(trial);
    assert_eq!(breaker.ready_at(at(100)), Some(at(100)));
}

#[test]
fn five_failures_open_it_by_default_and_one_trial_closes_it() {
    let mut breaker = CircuitBreaker::new(BreakerConfig::default());
    let now = Monotonic::ZERO;
    for _ in 0..5 {
        let ticket = breaker.begin(now);
        breaker.failure(ticket, now);
    }
    assert_eq!(breaker.state(now), BreakerState::Open);
    // Ten seconds later one request may try.
    let later = breaker.ready_at(now).unwrap();
    assert_eq!(later, at(10_000));
    let ticket = breaker.begin(later);
    assert_eq!(breaker.ready_at(later), None);
    breaker.success(ticket);
    assert_eq!(breaker.state(later), BreakerState::Closed);
}
