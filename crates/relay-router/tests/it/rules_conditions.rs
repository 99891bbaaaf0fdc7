//! Conditions: the refusals at load time with their lines and columns, and the results for events.

use proptest::prelude::*;
use relay_core::{Actor, DocumentId, Draft, Epoch, Event, Metadata, Offset, Payload, Seq, Timestamp, UserId};
use relay_router::rules::{Condition, RuleFormat, RuleSet, VerdictReason};
use serde_json::json;

fn rules_with(when: &str) -> Result<RuleSet, String> {
    let document = json!({"rules": [{"name": "r", "targets": ["t"], "when": when}]});
    RuleSet::parse(&document.to_string(), RuleFormat::Json).map_err(|error| error.to_string())
}

fn event() -> Event {
    let mut metadata = Metadata::default();
    metadata.insert("lang", "en").unwrap();
    metadata.insert("size", "12").unwrap();
    let payload = Payload::json(&json!({
        "title": "Über uns", "count": 3, "ratio": 0.5, "tags": ["a", "b"], "by": {"name": "ada"}, "nothing": null,
    }));
    let draft = Draft::new(
        DocumentId::new("notes/today").unwrap(),
        relay_events::kind("x-note").unwrap(),
        payload.unwrap(),
    );
    let draft = draft.actor(Actor::User(UserId::new("ada").unwrap())).metadata(metadata);
    let time: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
    let mut event = draft.into_event(Epoch::from_u64(1), Some(Seq::new(7)), time);
    event.offset = Some(Offset::new(70));
    event
}

#[track_caller]
fn verdict(when: &str, event: &Event) -> VerdictReason {
    let rules = rules_with(when).unwrap_or_else(|error| panic!("{when}: {error}"));
    let reason = rules.explain(event).remove(0).reason;
    let matched = rules.matches(event).into_iter().count() == 1;
    assert_eq!(matched, reason == VerdictReason::Matched, "{when}: matches and explain disagree");
    reason
}

#[track_caller]
fn holds(when: &str) {
    assert_eq!(verdict(when, &event()), VerdictReason::Matched, "{when}");
}

#[track_caller]
fn refused(when: &str, expected: &str) {
    let error = rules_with(when).err().unwrap_or_else(|| panic!("`{when}` is not refused"));
    assert_eq!(error, format!("line 1, rule r: `when`, {expected}"), "{when}");
}

#[test]
fn every_field_of_an_event_has_the_value_that_the_event_has() {
    holds("event.document == 'notes/today' && event.kind == 'x-note'");
    holds("event.seq == 7 && event.offset == 70");
    holds("event.actor == 'user:ada' && event.actor_type == 'user'");
    holds("event.session == '' && size(event.id) == 36");
    holds("event.time == timestamp('2026-01-02T03:04:05Z') && event.time.getFullYear() == 2026");
    holds("event.metadata['lang'] == 'en' && event.metadata.lang == 'en' && 'lang' in event.metadata");
    holds(
        "event.payload.title == 'Über uns' && event.payload.by.name == 'ada' && event.payload['count'] == 3",
    );
    holds("event.payload_bytes > 20 && event.payload_bytes < 200");
}

#[test]
fn the_language_works_on_events() {
    holds("event.payload.count + 1 == 4");
    holds("event.payload.ratio < 0.6 && event.payload.count > 2.5");
    holds("event.payload.tags.exists(t, t == 'b') && event.payload.tags.all(t, t < 'c')");
    holds("event.payload.tags.filter(t, t != 'a').size() == 1");
    holds("event.payload.tags.map(t, t + '!')[0] == 'a!'");
    holds("event.metadata.exists(k, event.metadata[k] == '12')");
    holds("has(event.payload.by.name) && !has(event.payload.by.age) && !has(event.metadata.nope)");
    holds("event.payload.nothing == null");
    holds("event.kind in ['x-note', 'document.edited']");
    holds(
        "event.document.startsWith('notes/') && event.document.endsWith('day') && event.document.contains('s/t')",
    );
    holds("event.document.matches('^notes/[a-z]+$') && matches(event.payload.title, 'ber')");
    holds("event.payload.tags.exists(t, t.matches('^b$'))");
    holds("int(event.metadata['size']) == 12");
    holds(
        "event.time > timestamp('2025-01-01T00:00:00Z') && event.time - timestamp('2026-01-01T00:00:00Z') > duration('1h')",
    );
    holds("(event.seq > 5 ? 'late' : 'early') == 'late'");
    holds("type(event.payload.count) == int");
    // A failure does not matter where the other operand decides.
    holds("event.payload.missing == 1 || event.seq == 7");
}

#[test]
fn a_condition_that_fails_does_not_match_and_says_why() {
    for (when, expected) in [
        ("event.payload.missing == 1", "there is no key `missing`"),
        ("event.metadata['nope'] == 'x'", "there is no key `nope`"),
        ("event.payload.tags[9] == 'x'", "an index is out of bounds"),
        ("event.payload.count / 0 == 1", "it divides by zero"),
        ("event.payload.count + 9223372036854775807 > 0", "a number overflows"),
        ("event.payload.count", "it is neither true nor false"),
        (
            "event.payload.count.matches('3')",
            "found no matching overload for 'matches' applied to 'int.(relay.regex)'",
        ),
    ] {
        let expected = VerdictReason::ConditionError { message: expected.to_owned() };
        assert_eq!(verdict(when, &event()), expected, "{when}");
    }
}

#[test]
fn failures_are_counted_per_rule() {
    let rules = rules_with("event.payload.missing == 1").unwrap();
    assert_eq!(rules.matches(&event()).condition_errors(), 1);
    rules.matches(&event());
    rules.explain(&event());
    assert_eq!(rules.rules()[0].condition_errors(), 2);
}

#[test]
fn payloads_that_are_binary_or_too_large_fail_only_what_looks_at_them() {
    let mut binary = event();
    binary.payload = Payload::Binary(vec![1, 2, 3].into());
    let mut large = event();
    large.payload = Payload::json(&json!({"text": "x".repeat(Condition::MAX_PAYLOAD_BYTES)})).unwrap();
    let failed = |message: &str| VerdictReason::ConditionError { message: message.to_owned() };
    assert_eq!(
        verdict("event.payload.count == 3", &binary),
        failed("the payload is binary; conditions can look at JSON alone")
    );
    assert_eq!(
        verdict("has(event.payload.text)", &large),
        failed("the payload has 65547 bytes; conditions look at up to 65536")
    );
    assert_eq!(verdict("event.payload_bytes == 3", &binary), VerdictReason::Matched);
    assert_eq!(verdict("event.payload_bytes > 65536", &large), VerdictReason::Matched);
}

#[test]
fn a_mistake_in_a_condition_is_refused_with_its_column() {
    refused("event.knd == 'x'", "column 6: an event has no field `knd`; did you mean `kind`?");
    refused("event.seq == 'x'", "column 11: `==` does not take int and string");
    refused("event.kind", "column 6: a condition must be a bool, this is string");
}

#[test]
fn types_are_checked_before_anything_runs() {
    refused(
        "event",
        "column 1: `event` has no value of its own; name one of its fields, for instance `event.kind`",
    );
    refused("evnt.kind == 'x'", "column 1: there is no variable `evnt`; the only one is `event`");
    refused("kind == 'x'", "column 1: there is no variable `kind`; did you mean `event.kind`?");
    refused("event.seq + 'x' == 'y'", "column 11: `+` does not take int and string");
    refused("event.seq < 'x'", "column 11: `<` does not take int and string");
    refused("event.kind && true", "column 12: `&&` does not take string and bool");
    refused("!event.kind", "column 1: `!` does not take string");
    refused(
        "event.kind.startWith('x')",
        "column 21: there is no function `startWith`; did you mean `startsWith`?",
    );
    refused("event.seq.startsWith('x')", "column 21: `startsWith` does not take (int, string)");
    refused("event.kind.foo == 1", "column 11: string has no field `foo`");
    refused("event.kind[0] == 'x'", "column 11: string cannot be indexed with int");
    refused("event.metadata[1] == 'x'", "column 15: map(string, string) cannot be indexed with int");
    refused("event.metadata.lang == 1", "column 21: `==` does not take string and int");
    refused("1 in event.metadata", "column 3: `in` does not take int and map(string, string)");
    refused("event.seq in ['a']", "column 11: `in` does not take int and list(string)");
    refused("event.time > 5", "column 12: `>` does not take timestamp and int");
    refused("event.kind.exists(c, c == 'x')", "column 18: string cannot be looped over; lists and maps can");
    refused("[1, 2].exists(x, x == 'a')", "column 20: `==` does not take int and string");
    refused("has(event.kind)", "column 4: `event.kind` is always there; `has` is for keys of maps");
    refused("size(5) == 1", "column 5: `size` does not take (int)");
    refused("true ? 1 : 2", "column 6: a condition must be a bool, this is int");
    refused(
        "event.kind.matches(event.document)",
        "column 25: the pattern of `matches` must be a literal text, so that it can be compiled beforehand",
    );
    refused(
        "event.kind.matches('(')",
        "column 20: the pattern of `matches` is no regular expression: unclosed group",
    );
    refused("event.kind == null", "column 12: `==` does not take string and null");
}

#[test]
fn a_position_in_a_condition_counts_lines_and_characters() {
    refused(
        "'ä' == 'ö' &&\n  event.knd == 1",
        "line 2 of it, column 8: an event has no field `knd`; did you mean `kind`?",
    );
}

#[test]
fn a_condition_that_can_cost_too_much_is_refused() {
    let items = "event.payload.items";
    assert!(rules_with(&format!("{items}.exists(a, a.name == 'x')")).is_ok());
    let nested = format!("{items}.exists(a, {items}.exists(b, a == b))");
    let error = rules_with(&nested).err().unwrap();
    assert!(error.contains("at most 1000000 is allowed"), "{error}");
    let within = format!("{items}.exists(a, a.exists(b, a.exists(c, b == c)))");
    assert!(rules_with(&within).is_err());
    let small = "event.metadata.exists(a, event.metadata.exists(b, a != b && event.metadata[a] == event.metadata[b]))";
    let rules = rules_with(small).unwrap();
    let cost = rules.rules()[0].when.as_ref().unwrap().cost();
    assert!((10_000..Condition::MAX_COST).contains(&cost), "{cost}");
    let big = "event.kind.matches('(a{1000}){1000}')";
    assert!(rules_with(big).err().unwrap().contains("compiled it takes more than"));
}

#[test]
fn hostile_depth_and_length_are_refused_and_end_nothing() {
    for deep in [
        format!("{}true{}", "(".repeat(1000), ")".repeat(1000)),
        format!("{}true", "!".repeat(2000)),
        vec!["1"; 1000].join("+") + " == 1",
        format!("event.payload{} == 1", ".a".repeat(1000)),
        format!("{}1{} == 1", "[".repeat(1000), "]".repeat(1000)),
        "true ? ".repeat(280),
        vec!["true"; 400].join("?true:"),
        "[1].all(x,".repeat(150),
    ] {
        let error = rules_with(&deep).err();
        assert!(error.is_some() || deep.starts_with('!'), "{deep}");
    }
    let error = rules_with(&"x".repeat(Condition::MAX_BYTES + 1)).err().unwrap();
    assert!(error.ends_with("column 1: it has 2049 bytes, at most 2048 are allowed"), "{error}");
}

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "event.kind",
        "event.seq",
        "event.time",
        "event.metadata",
        "event.payload",
        "event.payload.tags",
        "event.payload.count",
        "event.metadata.lang",
        "1",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
        "2u",
        "0.5",
        "'a'",
        "b'a'",
        "null",
        "true",
        "[]",
        "[1, 'a']",
        "{'a': 1}",
        "duration('1h')",
        "timestamp('2026-01-01T00:00:00Z')",
        "x",
        "int",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(4, 24, 3, |inner| {
        let operator =
            prop::sample::select(vec!["+", "-", "*", "/", "%", "==", "!=", "<", ">=", "&&", "||", "in"]);
        let function = prop::sample::select(vec![
            "size",
            "int",
            "uint",
            "double",
            "string",
            "bool",
            "bytes",
            "type",
            "dyn",
            "timestamp",
            "duration",
            "-",
            "!",
        ]);
        let member = prop::sample::select(vec![
            "size()",
            "getFullYear()",
            "getHours('Europe/Berlin')",
            "getHours('+25:99')",
            "contains('a')",
            "matches('a|b')",
            "all(x, x == 1)",
            "exists(x, x > 'a')",
            "exists_one(x, x)",
            "map(x, x + x)",
            "filter(x, true)",
            "map(x, x, x)",
            "a",
        ]);
        prop_oneof![
            (inner.clone(), operator, inner.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            (function, inner.clone()).prop_map(|(f, a)| format!("{f}({a})")),
            (inner.clone(), member).prop_map(|(a, m)| format!("({a}).{m}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})[{b}]")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("[{a}, {b}]")),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_the_compiler_panic(text in "\\PC{0,60}") {
        let _ = rules_with(&text);
    }

    #[test]
    fn no_expression_panics_and_what_is_accepted_fails_for_its_values_alone(text in expression()) {
        for text in [text.clone(), format!("dyn({text}) == 1"), format!("{text} == {text}")] {
            if let Ok(rules) = rules_with(&text) {
                let reason = rules.explain(&event()).remove(0).reason;
                let failed = VerdictReason::ConditionError { message: "the evaluator failed".to_owned() };
                prop_assert_ne!(&reason, &failed, "{}", text);
                prop_assert_eq!(reason == VerdictReason::Matched, rules.matches(&event()).into_iter().count() == 1);
            }
        }
    }
}
