//! Rule documents: their meaning, and every refusal with its line.

use std::time::Duration;

use relay_core::ServiceName;
use relay_router::rules::{
    Capability, DeliveryFormat, DeliveryOrder, ProbeCheck, ProbeSpec, RuleDocument, RuleFormat, RuleSet,
    Strategy, TargetRef,
};

#[track_caller]
fn refused(document: &str, expected: &[&str]) {
    let error = RuleSet::parse(document, RuleFormat::Toml).unwrap_err();
    let problems: Vec<String> = error.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, expected, "{document}");
}

/// Checks a document whose rule on line 1 is valid except for `line`, which is line 4.
#[track_caller]
fn refused_in_rule(line: &str, expected: &str) {
    let document = format!("[[rules]]\nname = 'r'\ntargets = ['t']\n{line}\n");
    refused(&document, &[&format!("line 4, rule r: {expected}")]);
}

#[track_caller]
fn refused_in_target(line: &str, expected: &str) {
    let document = format!("[[targets]]\nname = 't'\nurl = 'https://t.example'\n{line}\n");
    refused(&document, &[&format!("line 4, target t: {expected}")]);
}

const WHOLE: &str = r#"
[[targets]]
name = "audit"
url = "https://audit.example/events"
format = "batch"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
capabilities = ["audit"]
weight = 3
concurrency = 4
rate = 100
timeout = "2s"
batch_size = 50
ordering = "none"
retry = { max_attempts = 3, initial = "10ms", max = "1s", statuses = [429, "5xx"] }
breaker = { failures = 2, open_for = "1m", half_open = 2 }
probe = { type = "http", path = "/health", body = "ok", interval = "10s" }

[[rules]]
name = "late"
kinds = ["x-*"]
targets = ["audit"]

[[rules]]
name = "early"
priority = 100
kinds = ["document.edited"]
documents = ["notes/*"]
when = 'event.metadata["lang"] == "en"'
targets = ["audit", "capability:quality"]
strategy = "consistent_hash"
fallback = ["other"]
continue = true
"#;

#[test]
fn a_whole_document_means_what_it_says() {
    let rules = RuleSet::parse(WHOLE, RuleFormat::Toml).unwrap();
    let names: Vec<&str> = rules.rules().iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["early", "late"]);
    let early = rules.rule("early").unwrap();
    assert_eq!(early.strategy, Strategy::ConsistentHash);
    let audit = TargetRef::Name(ServiceName::new("audit").unwrap());
    assert_eq!(early.targets, [audit, TargetRef::Capability(Capability::new("quality").unwrap())]);
    assert!(early.continues && early.enabled);
    let audit = rules.target(&ServiceName::new("audit").unwrap()).unwrap();
    assert_eq!((audit.format, audit.weight.get()), (DeliveryFormat::Batch, 3));
    let policy = &audit.policy;
    assert_eq!((policy.concurrency.get(), policy.rate.unwrap().get(), policy.batch_size.get()), (4, 100, 50));
    assert_eq!((policy.timeout, policy.ordering), (Duration::from_secs(2), DeliveryOrder::None));
    assert_eq!((policy.retry.max_attempts.get(), policy.retry.max), (3, Duration::from_secs(1)));
    assert!(policy.retry.statuses.contains(503) && !policy.retry.statuses.contains(408));
    assert_eq!((policy.breaker.failures.get(), policy.breaker.open_for), (2, Duration::from_secs(60)));
    let probe = audit.probe.as_ref().unwrap();
    let check = ProbeCheck::Http { path: "/health".into(), status: 200, body: Some("ok".into()) };
    assert_eq!((&probe.check, probe.interval), (&check, Duration::from_secs(10)));
    assert!(!format!("{audit:?}").contains("whsec_"), "a secret is shown");
    let warnings: Vec<String> = rules.warnings().iter().map(ToString::to_string).collect();
    let expected = "no [[targets]] entry is called `other`; its events wait until such a service registers";
    assert_eq!(warnings, [format!("line 23, rule early: {expected}")]);
}

#[test]
fn the_same_in_json_means_the_same() {
    let json = serde_json::to_string_pretty(&toml::from_str::<serde_json::Value>(WHOLE).unwrap()).unwrap();
    let (toml, json) =
        (RuleSet::parse(WHOLE, RuleFormat::Toml).unwrap(), RuleSet::parse(&json, RuleFormat::Json).unwrap());
    assert_eq!(toml.targets(), json.targets());
    assert_eq!(format!("{:?}", toml.rules()), format!("{:?}", json.rules()));
}

#[test]
fn the_rules_that_ship_are_right() {
    let rules = RuleSet::parse(&RuleDocument::default().text, RuleFormat::Toml).unwrap();
    let names: Vec<&str> = rules.rules().iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["quality", "tags", "metadata", "coordination"]);
    assert!(rules.rules().iter().all(|rule| rule.continues));
    assert!(rules.warnings().is_empty() && rules.targets().is_empty());
}

#[test]
fn everything_that_is_wrong_is_told_at_once_by_line() {
    refused(
        "[[targets]]\nname = 't'\nurl = 'ftp://t'\n[[rules]]\nname = 'a b'\nkinds = ['document.edit']\nwhne = 'x'\n[[rules]]\nname = 'r'\n",
        &[
            "line 3, target t: `url` `ftp://t` must begin with `http://` or `https://`",
            "line 4, rule 1: `targets` must name at least one target, or `capability:<name>`",
            "line 5, rule 1: the name `a b` must be 1 to 64 of the characters A-Z a-z 0-9 . _ -",
            "line 6, rule 1: `kinds`: there is no event kind `document.edit`; known are `session.started`, `session.ended`, `user.joined`, `user.left`, `presence.updated`, `cursor.moved`, `document.edited`, `document.saved`, `document.locked`, `document.unlocked`, `lock.renewed`, `annotation.added`, `annotation.resolved`, `service.changed`, `system.notice`, and your own beginning with `x-`; did you mean `document.edited`?",
            "line 7, rule 1: there is no `whne` here; did you mean `when`?",
            "line 8, rule r: `targets` must name at least one target, or `capability:<name>`",
        ],
    );
}

#[test]
fn each_mistake_in_a_rule_is_reported_with_its_line() {
    refused_in_rule("priority = 'high'", "`priority` must be a whole number, not text");
    refused_in_rule("priority = 9999999", "`priority` is 9999999; it must lie between -1000000 and 1000000");
    refused_in_rule(
        "kinds = ['cursor.moved']",
        "`kinds`: kind `cursor.moved` is ephemeral; only kinds that are stored are routed, so leave it out",
    );
    refused_in_rule(
        "kinds = ['x-ephemeral-*']",
        "`kinds`: every kind of `x-ephemeral-*` is ephemeral; only kinds that are stored are routed, so leave it out",
    );
    refused_in_rule("kinds = ['foo.*']", "`kinds`: no kind begins with `foo.`; your own begin with `x-`");
    refused_in_rule(
        "documents = ['a*b']",
        "`documents`: `a*b` has a `*` before its end; only the last character may be one",
    );
    refused_in_rule(
        "strategy = 'random'",
        "`strategy`: unknown variant `random`, expected one of `first_healthy`, `all`, `round_robin`, `least_outstanding`, `consistent_hash`",
    );
    refused_in_rule("continue = 1", "`continue` must be true or false, not a whole number");
    refused_in_rule(
        "fallback = ['capability:']",
        "`fallback`: capability `` is refused; it must have 1 to 64 bytes and no control characters",
    );
    refused_in_rule("when = ''", "`when`, column 1: it is empty; leave `when` out to match always");
    refused(
        "[[rules]]\nname = 'r'\ntargets = ['t']\n[[rules]]\nname = 'r'\ntargets = ['t']\n",
        &["line 4, rule r: there is another rule of this name on line 1; rename one"],
    );
}

#[test]
fn each_mistake_in_a_target_is_reported_with_its_line() {
    refused_in_target("concurrency = 0", "`concurrency` is 0; it must lie between 1 and 1000");
    refused_in_target("batch_size = 2", "`batch_size` is 2, which needs `format = \"batch\"`");
    refused_in_target(
        "timeout = '15'",
        "`timeout`: `15` is no duration; write a number and its unit, for instance `500ms`, `15s` or `5m`",
    );
    refused_in_target("timeout = '1h'", "`timeout` is 1h; it must lie between 1ms and 5m");
    refused_in_target("secrets = ['geheim']", "`secrets`: a secret must begin with `whsec_`");
    refused_in_target(
        "secrets = ['whsec_AAAA']",
        "`secrets`: a secret must be 24 to 64 bytes in base64, this is 3",
    );
    refused_in_target(
        "retry = { statuses = ['6xx'] }",
        "`statuses`: `6xx` is no status to retry; write one of 300 to 599, or `3xx`, `4xx` or `5xx`",
    );
    refused_in_target("breaker = { failure = 3 }", "there is no `failure` here; did you mean `failures`?");
    refused_in_target(
        "probe = { type = 'heartbeat' }",
        "`probe`: a target of the rule document sends no heartbeats; use `http`, `tcp` or `grpc`, or leave it out",
    );
    refused_in_target(
        "probe = { type = 'tcp', path = '/x' }",
        "`probe`: `path` has no meaning for a probe of type `tcp`; leave it out",
    );
    refused(
        "[[targets]]\nname = 't'\nurl = 'https://u:p@t.example'\n",
        &[
            "line 3, target t: `url` has a user name or password in it; deliveries are signed with `secrets` instead",
        ],
    );
}

#[test]
fn text_that_is_neither_toml_nor_json_is_refused_with_its_line() {
    let error = RuleSet::parse("[[rules]]\nname = \n", RuleFormat::Toml).unwrap_err();
    assert_eq!(error.problems()[0].line, 2, "{error}");
    let error = RuleSet::parse("{\n\"rules\": [,]}", RuleFormat::Json).unwrap_err();
    assert_eq!(error.problems()[0].line, 2, "{error}");
    let error = RuleSet::parse(
        "{\"rules\": [\n{\"name\": \"r\",\n\"targets\": [\"t\"],\n\"when\": \"1\"}]}",
        RuleFormat::Json,
    );
    let expected = "line 4, rule r: `when`, column 1: a condition must be a bool, this is int";
    assert_eq!(error.unwrap_err().to_string(), expected);
    let large = " ".repeat(RuleSet::MAX_BYTES + 1);
    let error = RuleSet::parse(&large, RuleFormat::Toml).unwrap_err();
    assert_eq!(error.to_string(), "line 1: the rule document has 1048577 bytes, at most 1048576 are allowed");
}

#[test]
fn a_probe_reads_back_what_it_wrote() {
    for text in [
        r#"{"type":"http","path":"/h","status":204,"body":"ok","interval":"10s","timeout":"500ms","rise":1,"fall":4}"#,
        r#"{"type":"grpc","service":"docs"}"#,
        r#"{"type":"tcp"}"#,
        r#"{"type":"heartbeat"}"#,
    ] {
        let probe: ProbeSpec = serde_json::from_str(text).unwrap();
        assert_eq!(
            serde_json::from_str::<ProbeSpec>(&serde_json::to_string(&probe).unwrap()).unwrap(),
            probe
        );
    }
    assert!(serde_json::from_str::<ProbeSpec>(r#"{"type":"tcp","timeout":"1h"}"#).is_err());
}
