//! Rules beside a plain model that looks at all of them, and strategies.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::collections::HashMap;
use std::num::NonZeroU32;

use proptest::prelude::*;
use relay_core::{DocumentId, Draft, Epoch, Event, Payload, Seq, ServiceName, Timestamp};
use relay_events::ServiceState;
use relay_router::rules::{Candidate, RuleFormat, RuleSet, Strategy as Choice, VerdictReason, order};
use serde_json::{Value, json};

fn event(kind: &str, document: &str, count: i64) -> Event {
    let payload = Payload::json(&json!({"count": count})).unwrap();
    Draft::new(DocumentId::new(document).unwrap(), relay_events::kind(kind).unwrap(), payload).into_event(
        Epoch::from_u64(1),
        Some(Seq::FIRST),
        Timestamp::UNIX_EPOCH,
    )
}

const KINDS: &[&str] = &["document.edited", "document.saved", "annotation.added", "x-a", "x-ab"];
const KIND_PATTERNS: &[&str] =
    &["document.edited", "document.*", "x-*", "x-a", "x-a*", "*", "annotation.added"];
const DOCUMENTS: &[&str] = &["a", "a/b", "a/bc", "ä/b", "b"];
const DOCUMENT_PATTERNS: &[&str] = &["a", "a/*", "a/b*", "a/b", "*", "ä*", "ä/b", "b"];

#[derive(Debug, Clone)]
struct Plain {
    priority: i64,
    kinds: Vec<&'static str>,
    documents: Vec<&'static str>,
    /// The condition is that the payload's count is above it; an odd one makes it fail.
    above: Option<i64>,
    continues: bool,
    enabled: bool,
}

fn plain() -> impl Strategy<Value = Plain> {
    let some = |of: &'static [&'static str]| prop::collection::vec(prop::sample::select(of), 0..3);
    (
        -2..3_i64,
        some(KIND_PATTERNS),
        some(DOCUMENT_PATTERNS),
        prop::option::of(0..6_i64),
        any::<bool>(),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(priority, kinds, documents, above, continues, enabled)| Plain {
            priority,
            kinds,
            documents,
            above,
            continues,
            enabled,
        })
}

fn document(rules: &[Plain]) -> String {
    let rule = |(place, plain): (usize, &Plain)| {
        let mut rule = json!({
            "name": format!("r{place}"), "targets": ["t"], "priority": plain.priority, "kinds": plain.kinds,
            "documents": plain.documents, "continue": plain.continues, "enabled": plain.enabled,
        });
        if let Some(above) = plain.above {
            let key = if above % 2 == 1 { "missing" } else { "count" };
            rule["when"] = Value::String(format!("event.payload.{key} > {above}"));
        }
        rule
    };
    json!({"rules": rules.iter().enumerate().map(rule).collect::<Vec<_>>()}).to_string()
}

fn fits(patterns: &[&str], text: &str) -> bool {
    let one =
        |pattern: &&str| pattern.strip_suffix('*').map_or(*pattern == text, |start| text.starts_with(start));
    patterns.is_empty() || patterns.iter().any(one)
}

/// What matches, found by looking at all rules in turn.
fn expected(rules: &[Plain], kind: &str, document: &str, count: i64) -> Vec<String> {
    let mut turns: Vec<usize> = (0..rules.len()).collect();
    turns.sort_by_key(|&place| (-rules[place].priority, place));
    let mut matched = Vec::new();
    for place in turns {
        let rule = &rules[place];
        let condition = rule.above.is_none_or(|above| above % 2 == 0 && count > above);
        if rule.enabled && fits(&rule.kinds, kind) && fits(&rule.documents, document) && condition {
            matched.push(format!("r{place}"));
            if !rule.continues {
                break;
            }
        }
    }
    matched
}

proptest! {
    #[test]
    fn the_rules_that_match_are_those_that_a_look_at_all_of_them_finds(
        rules in prop::collection::vec(plain(), 0..20),
        kind in prop::sample::select(KINDS),
        document_id in prop::sample::select(DOCUMENTS),
        count in 0..8_i64,
    ) {
        let set = RuleSet::parse(&document(&rules), RuleFormat::Json).unwrap();
        let event = event(kind, document_id, count);
        let matched = || set.matches(&event).into_iter().map(|rule| rule.name.to_string()).collect::<Vec<_>>();
        prop_assert_eq!(matched(), expected(&rules, kind, document_id, count));
        prop_assert_eq!(matched(), matched());
        let verdicts = set.explain(&event);
        prop_assert_eq!(verdicts.len(), rules.len());
        let explained = verdicts.iter().filter(|verdict| verdict.reason == VerdictReason::Matched);
        prop_assert_eq!(explained.map(|verdict| verdict.rule.to_string()).collect::<Vec<_>>(), matched());
        let failed = verdicts.iter().filter(|verdict| matches!(verdict.reason, VerdictReason::ConditionError { .. }));
        prop_assert_eq!(failed.count(), set.matches(&event).condition_errors());
    }

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
        let places = order(choices[which], &candidates, &DocumentId::new("d").unwrap(), turn);
        let ranks: Vec<usize> = places.iter().map(|&place| targets[place].0).collect();
        prop_assert!(ranks.is_sorted());
        let mut each = places;
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
    (0..count).map(|place| ServiceName::new(format!("s{place}")).unwrap()).collect()
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
    for (place, weight) in weights.iter().enumerate() {
        let fair = 5_000 * *weight as usize / 6;
        assert!(counts[&place].abs_diff(fair) < fair / 5, "{counts:?}");
    }
}
