//! The selection as its rules say it: for all states of a few targets, and at each of the next moments.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::Strategy;

use super::*;
use crate::rules::Strategy as Choice;
use crate::test_support::name;

/// The moments that are looked at. All times of a case are before the last one.
const MOMENTS: u64 = 6;

#[derive(Debug, Clone)]
struct KnownTarget {
    /// None for a target that is unhealthy or gone.
    health: Option<ServiceState>,
    open_from: Option<u64>,
    rate_from: u64,
    in_flight: usize,
    concurrency: usize,
}

#[derive(Debug, Clone)]
struct Case {
    known: Vec<KnownTarget>,
    strategy: Choice,
    /// The targets by index: those from here on are fallback targets.
    fallback_from: usize,
    publisher: Option<usize>,
    failed: Option<usize>,
    turn: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    use ServiceState::{Degraded, Draining, Healthy, Unknown};
    let health = proptest::option::weighted(
        0.9,
        proptest::sample::select(vec![Healthy, Healthy, Degraded, Unknown, Draining, Draining]),
    );
    let moment = || prop_oneof![Just(0), 0..MOMENTS - 1];
    let known = (health, proptest::option::weighted(0.9, moment()), moment(), 0..3_usize, 1..3_usize)
        .prop_map(|(health, open_from, rate_from, in_flight, concurrency)| KnownTarget {
            health,
            open_from,
            rate_from,
            in_flight,
            concurrency,
        });
    let strategy = proptest::sample::select(vec![
        Choice::FirstHealthy,
        Choice::RoundRobin,
        Choice::LeastOutstanding,
        Choice::ConsistentHash,
    ]);
    let some_target = || proptest::option::weighted(0.3, 0..4_usize);
    let known = proptest::collection::vec(known, 4);
    (known, strategy, 1..=4_usize, some_target(), some_target(), 0..8_u64).prop_map(
        |(known, strategy, fallback_from, publisher, failed, turn)| Case {
            known,
            strategy,
            fallback_from,
            publisher,
            failed,
            turn,
        },
    )
}

fn at(moment: u64) -> Monotonic {
    Monotonic::from_elapsed(Duration::from_secs(moment))
}

fn name_of(index: usize) -> ServiceName {
    name(&format!("t{index}"))
}

impl Case {
    fn select(&self, now: u64) -> Selection {
        let names = |range: std::ops::Range<usize>| range.map(name_of).collect();
        let set = TargetSet {
            strategy: self.strategy,
            targets: names(0..self.fallback_from),
            fallback: names(self.fallback_from..self.known.len()),
        };
        let (document, publisher) = (DocumentId::new("d").unwrap(), self.publisher.map(name_of));
        let failed = self.failed.map(name_of);
        let context = SelectionContext {
            document: &document,
            publisher: publisher.as_ref(),
            failed: failed.as_ref(),
            turn: self.turn,
        };
        let usability = |name: &ServiceName| {
            let index = (0..self.known.len()).find(|index| name_of(*index) == *name).unwrap();
            let known = &self.known[index];
            Some(Usability {
                health: known.health?,
                open_from: known.open_from.map(at),
                rate_from: at(known.rate_from),
                in_flight: known.in_flight,
                concurrency: known.concurrency,
                weight: NonZeroU32::MIN,
            })
        };
        select(&set, &context, usability, at(now))
    }

    /// True for a target that may get the event now or when it is less busy.
    fn is_usable(&self, index: usize, now: u64) -> bool {
        let known = &self.known[index];
        self.publisher != Some(index)
            && known.health.is_some()
            && known.open_from.is_some_and(|moment| moment <= now)
    }

    fn is_free(&self, index: usize, now: u64) -> bool {
        let known = &self.known[index];
        known.rate_from <= now && known.in_flight < known.concurrency
    }

    /// The usable targets that did not fail last, among the targets or among the fallback targets.
    fn others(&self, is_fallback: bool, now: u64) -> Vec<usize> {
        let of_group = |index: &usize| (*index >= self.fallback_from) == is_fallback;
        let all = (0..self.known.len()).filter(of_group);
        all.filter(|index| self.is_usable(*index, now) && self.failed != Some(*index)).collect()
    }

    fn is_draining(&self, index: usize) -> bool {
        self.known[index].health == Some(ServiceState::Draining)
    }

    /// This case with targets that have nothing to do.
    fn idle(&self) -> Self {
        let mut idle = self.clone();
        for known in &mut idle.known {
            (known.rate_from, known.in_flight) = (0, 0);
        }
        idle
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_selected_target_may_take_the_event_and_none_that_is_to_be_preferred_works(case in cases(), now in 0..MOMENTS) {
        if let Selection::Target { name, is_fallback } = case.select(now) {
            let index = (0..case.known.len()).find(|index| name_of(*index) == name).unwrap();
            prop_assert_eq!(is_fallback, index >= case.fallback_from);
            prop_assert!(case.is_usable(index, now) && case.is_free(index, now));
            let others = case.others(is_fallback, now);
            let is_better = |other: &usize| !case.is_draining(*other) && *other != index;
            prop_assert!(!case.is_draining(index) || !others.iter().any(is_better), "{index} is draining");
            let is_last_resort = case.failed == Some(index);
            prop_assert!(!is_last_resort || (others.is_empty() && case.others(!is_fallback, now).is_empty()));
            prop_assert!(!is_fallback || case.others(false, now).is_empty(), "{index} is a fallback target");
        }
    }

    #[test]
    fn an_event_waits_for_a_busy_target_unless_the_strategy_has_others(case in cases(), now in 0..MOMENTS) {
        let (selected, idle) = (case.select(now), case.idle().select(now));
        let has_others = matches!(case.strategy, Choice::RoundRobin | Choice::LeastOutstanding);
        let group = case.others(false, now);
        if has_others && group.iter().any(|index| case.is_free(*index, now) && !case.is_draining(*index)) {
            let is_target = matches!(selected, Selection::Target { is_fallback: false, .. });
            prop_assert!(is_target, "{selected:?}");
        }
        match (&selected, &idle) {
            (Selection::Target { .. }, Selection::Target { .. }) if !has_others => prop_assert_eq!(selected, idle),
            (Selection::Target { .. }, Selection::Wait(_)) => prop_assert!(false, "{:?} has nothing to take", idle),
            _ => {}
        }
    }

    /// Time alone brings no target before the moment until which an event waits.
    #[test]
    fn no_event_waits_for_longer_than_until_the_next_target_may_take_it(case in cases(), now in 0..MOMENTS) {
        if let Selection::Wait(until) = case.select(now) {
            prop_assert!(until.is_none_or(|until| until > at(now)));
            for later in (now..MOMENTS).filter(|later| until.is_none_or(|until| at(*later) < until)) {
                let selected = case.select(later);
                prop_assert!(matches!(selected, Selection::Wait(_)), "{selected:?} at {later}, and not {until:?}");
            }
        }
    }
}
