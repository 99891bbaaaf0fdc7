//! The order of each strategy: its shares, its stability, and the healthiest target first.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::collections::HashMap;
use std::num::NonZeroU32;

use proptest::prelude::*;
use relay_core::{DocumentId, ServiceName};
use relay_events::ServiceState;

use super::{Candidate, Strategy as Choice, order};

#[test]
fn a_healthy_target_comes_before_an_unhealthy_one() {
    let (a, b) = (ServiceName::new("a").unwrap(), ServiceName::new("b").unwrap());
    let candidate = |name, state| Candidate { name, state, outstanding: 0, weight: NonZeroU32::MIN };
    let both = [candidate(&a, ServiceState::Unhealthy), candidate(&b, ServiceState::Healthy)];
    assert_eq!(order(Choice::FirstHealthy, &both, &DocumentId::new("notes").unwrap(), 0), [1, 0]);
}

proptest! {
    #[test]
    fn every_order_names_each_candidate_once_and_the_healthiest_first(
        targets in prop::collection::vec((0..5_usize, 0..10_usize, 1..5_u32), 0..8), turn in any::<u64>(), which in 0..5_usize,
    ) {
        let names: Vec<ServiceName> = (0..targets.len()).map(|n| ServiceName::new(format!("s{n}")).unwrap()).collect();
        let states = [ServiceState::Healthy, ServiceState::Degraded, ServiceState::Unknown, ServiceState::Unhealthy, ServiceState::Draining];
        let candidates: Vec<_> = names.iter().zip(&targets).map(|(name, &(state, outstanding, weight))| Candidate {
            name, state: states[state], outstanding, weight: NonZeroU32::new(weight).unwrap(),
        }).collect();
        let choices = [Choice::FirstHealthy, Choice::All, Choice::RoundRobin, Choice::LeastOutstanding, Choice::ConsistentHash];
        let indexes = order(choices[which], &candidates, &DocumentId::new("d").unwrap(), turn);
        let ranks: Vec<usize> = indexes.iter().map(|&index| targets[index].0).collect();
        prop_assert!(ranks.is_sorted());
        let mut each = indexes;
        each.sort_unstable();
        prop_assert_eq!(each, (0..targets.len()).collect::<Vec<_>>());
    }
}
fn healthy<'a>(names: &'a [ServiceName], weights: &[u32]) -> Vec<Candidate<'a>> {
    let candidate = |(name, weight): (&'a ServiceName, &u32)| Candidate {
        name,
        state: ServiceState::Healthy,
        outstanding: 0,
        weight: NonZeroU32::new(*weight).unwrap(),
    };
    names.iter().zip(weights).map(candidate).collect()
}

fn names(count: usize) -> Vec<ServiceName> {
    (0..count).map(|index| ServiceName::new(format!("s{index}")).unwrap()).collect()
}

#[test]
fn round_robin_gives_each_its_share_and_none_two_shares_running_without_need() {
    let (names, document) = (names(3), DocumentId::new("d").unwrap());
    let even = healthy(&names, &[2, 2, 2]);
    let chosen: Vec<usize> =
        (0..6).map(|turn| order(Choice::RoundRobin, &even, &document, turn)[0]).collect();
    assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
    let uneven = healthy(&names, &[5, 1, 2]);
    let mut counts = [0; 3];
    for turn in 0..80 {
        counts[order(Choice::RoundRobin, &uneven, &document, turn)[0]] += 1;
    }
    assert_eq!(counts, [50, 10, 20]);
}

#[test]
fn least_outstanding_counts_by_weight() {
    let (names, document) = (names(3), DocumentId::new("d").unwrap());
    let mut candidates = healthy(&names, &[1, 4, 1]);
    for (candidate, outstanding) in candidates.iter_mut().zip([2, 6, 3]) {
        candidate.outstanding = outstanding;
    }
    assert_eq!(order(Choice::LeastOutstanding, &candidates, &document, 0), [1, 0, 2]);
}

#[test]
fn consistent_hash_moves_only_what_a_target_that_comes_or_goes_has() {
    let names = names(5);
    let documents: Vec<_> = (0..5_000).map(|n| DocumentId::new(format!("d{n}")).unwrap()).collect();
    let weights: [u32; 5] = [1, 1, 2, 1, 1];
    let all = healthy(&names, &weights);
    let first =
        |candidates: &[Candidate<'_>], document| order(Choice::ConsistentHash, candidates, document, 0)[0];
    let mut counts: HashMap<usize, usize> = HashMap::new();
    for document in &documents {
        let before = first(&all, document);
        *counts.entry(before).or_default() += 1;
        let after = first(&all[..4], document);
        assert!(before == 4 || before == after, "{document} moved from {before} to {after}");
    }
    for (index, weight) in weights.iter().enumerate() {
        let fair = 5_000 * *weight as usize / 6;
        assert!(counts[&index].abs_diff(fair) < fair / 5, "{counts:?}");
    }
}
