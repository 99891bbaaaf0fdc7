//! The cost of finding the rules for one event, by the number of rules.
//!
//! `cargo bench -p relay-router --bench routing`. At most two rules apply to the event's kind and document;
//! the others are for other kinds or documents. `naive` evaluates all of them, as a comparison.
#![allow(missing_docs, reason = "criterion's macros make items without documentation")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot begin should say so")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use relay_core::{DocumentId, Draft, Epoch, Event, Metadata, Offset, Payload, Seq, Timestamp};
use relay_router::rules::{RuleFormat, RuleSet};
use serde_json::json;

fn event() -> Event {
    let mut metadata = Metadata::default();
    metadata.insert("lang", "en").unwrap();
    let payload = Payload::json(&json!({"patches": [[0, 0, "Hello"]], "by": "ada"})).unwrap();
    let kind = relay_events::kind("document.edited").unwrap();
    let draft = Draft::new(DocumentId::new("notes/today").unwrap(), kind, payload).metadata(metadata);
    let mut event = draft.into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
    event.offset = Some(Offset::new(1));
    event
}

/// Makes `count` rules of which two can match the event, with `when` as their condition.
fn rules(count: usize, when: Option<&str>) -> RuleSet {
    let rule = |index: usize| {
        let (kind, document) = match index {
            3 => ("document.edited", "notes/*".to_owned()),
            7 => ("document.*", "notes/today".to_owned()),
            _ if index.is_multiple_of(2) => ("document.edited", format!("reports/{index}/*")),
            _ => ("x-reviewed", "notes/*".to_owned()),
        };
        let name = format!("rule-{index}");
        json!({"name": name, "kinds": [kind], "documents": [document], "targets": ["t"], "when": when, "continue": true})
    };
    let mut document = json!({"rules": (0..count).map(rule).collect::<Vec<_>>()});
    if when.is_none() {
        for rule in document["rules"].as_array_mut().unwrap() {
            rule.as_object_mut().unwrap().remove("when");
        }
    }
    RuleSet::parse(&document.to_string(), RuleFormat::Json).unwrap()
}

fn routing(criterion: &mut Criterion) {
    let event = event();
    let conditions = [
        ("no_condition", None),
        ("metadata_condition", Some("event.metadata['lang'] == 'en'")),
        ("payload_condition", Some("event.payload.by == 'ada' && event.document.matches('^notes/')")),
    ];
    for (name, when) in conditions {
        let mut group = criterion.benchmark_group(name);
        for count in [10, 100, 1_000] {
            let rules = rules(count, when);
            assert_eq!(rules.matches(&event).into_iter().count(), 2);
            group.bench_with_input(BenchmarkId::new("indexed", count), &rules, |bencher, rules| {
                bencher.iter(|| rules.matches(black_box(&event)).into_iter().count());
            });
            group.bench_with_input(BenchmarkId::new("naive", count), &rules, |bencher, rules| {
                bencher.iter(|| rules.explain(black_box(&event)).len());
            });
        }
    }
}

criterion_group!(benches, routing);
criterion_main!(benches);
