//! Rules beside a plain model that evaluates all of them.

use proptest::prelude::*;
use relay_core::{DocumentId, Draft, Epoch, Event, Payload, Seq, Timestamp};
use relay_router::rules::{RuleFormat, RuleSet, VerdictReason};
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
    /// The condition that the payload's count is above this number; an odd number makes it fail.
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
    let rule = |(index, plain): (usize, &Plain)| {
        let mut rule = json!({
            "name": format!("r{index}"), "targets": ["t"], "priority": plain.priority, "kinds": plain.kinds,
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

/// Returns the matching rules, found by evaluating all rules in turn.
fn expected(rules: &[Plain], kind: &str, document: &str, count: i64) -> Vec<String> {
    let mut turns: Vec<usize> = (0..rules.len()).collect();
    turns.sort_by_key(|&index| (-rules[index].priority, index));
    let mut matched = Vec::new();
    for index in turns {
        let rule = &rules[index];
        let condition = rule.above.is_none_or(|above| above % 2 == 0 && count > above);
        if rule.enabled && fits(&rule.kinds, kind) && fits(&rule.documents, document) && condition {
            matched.push(format!("r{index}"));
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
}
