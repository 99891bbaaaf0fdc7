//! Statistics and metrics: every number moves by exactly the events that it counts, and all ways to read it agree.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::socket::Socket;
use crate::support::{Server, data, run, success};
use relay_core::{DocumentId, Payload, StartPosition, UserId};
use relay_service::{RelayService, ServiceConfig};
use serde_json::{Value, json};

/// The parser of Prometheus' own client library for Python.
const PARSER: &str = "prometheus_client==0.26.0";

const READ: &str = r"
import json, math, sys
from prometheus_client.parser import text_string_to_metric_families
families = {}
for family in text_string_to_metric_families(sys.stdin.read()):
    samples = [[s.name, s.labels, None if math.isnan(s.value) else s.value] for s in family.samples]
    families[family.name] = {'type': family.type, 'help': family.documentation, 'samples': samples}
json.dump(families, sys.stdout)
";

#[tokio::test]
async fn each_number_moves_by_what_happened_in_this_process() {
    let service = RelayService::start(ServiceConfig::in_process()).await.unwrap();
    let before = service.stats();
    assert_eq!((before.bus.sequenced_published, before.publish_latency.p50), (0, None));

    let (notes, ada) = (DocumentId::new("notes").unwrap(), UserId::new("ada").unwrap());
    let mut ada = service.join(notes, ada, StartPosition::Live).await.unwrap();
    let edit = Payload::json(&json!({"patches": [[0, 0, "hi"]]})).unwrap();
    for _ in 0..3 {
        ada.publish(relay_events::DOCUMENT_EDITED, edit.clone()).await.unwrap();
    }
    ada.publish(relay_events::kind("x-own").unwrap(), edit.clone()).await.unwrap();
    ada.publish(relay_events::kind("x-ephemeral-own").unwrap(), edit).await.unwrap();
    // Three edits and a kind of our own.
    let mut sequenced = 0;
    while sequenced < 4 {
        sequenced += usize::from(ada.next().await.unwrap().unwrap().seq.is_some());
    }
    // The events about sessions and users are published in the background, and no reader gets them.
    let there = loop {
        let there = service.stats();
        if there.bus.by_kind["user.joined"] > 0 {
            break there;
        }
        tokio::task::yield_now().await;
    };
    let kinds = &there.bus.by_kind;
    assert_eq!(
        (kinds["document.edited"], kinds["x-own"], kinds["x-ephemeral-own"], kinds["document.saved"]),
        (3, 1, 1, 0)
    );
    assert_eq!((kinds["session.started"], kinds["user.joined"], kinds["user.left"]), (1, 1, 0));
    let bus = &there.bus;
    let by_class = bus.sequenced_published + bus.logged_published + bus.ephemeral_published;
    assert_eq!(kinds.values().sum::<u64>(), by_class);
    assert_eq!(there.publish_latency.total_count, 1, "without a log the first of 64 is measured");
    let people = there.presence;
    assert_eq!((people.sessions, people.users, people.joins, people.leaves), (1, 1, 1, 0));
    assert_eq!((people.sessions_started, people.sessions_ended), (1, 0));

    ada.leave();
    let gone = service.stats().presence;
    assert_eq!((gone.sessions, gone.users, gone.joins, gone.leaves), (0, 0, 1, 1));
    assert_eq!((gone.sessions_started, gone.sessions_ended), (1, 1));
    service.stop().await.unwrap();
}

/// A server to which a little of everything has happened: two events over HTTP and one over WebSocket, of which a member
/// has got all; two refusals over HTTP and one over WebSocket.
fn with_some_history(data: &Path) -> Server {
    let server = Server::start(data);
    let mut ada = Socket::joined(server.address, "ada", "notes");
    for text in ["one", "two"] {
        server.publish(
            "notes",
            &json!({"kind": "document.saved", "payload": {"through": 1}, "metadata": {"text": text}}),
        );
    }
    let path = "/v1/documents/notes/events";
    assert_eq!(server.post(path, &json!({"kind": "no.such.kind", "payload": 1})).status, 422);
    assert_eq!(server.post(path, &json!({"kind": 1})).status, 400);
    ada.push("x-note", &json!({"ok": true})).unwrap();
    assert_eq!(ada.reply()["status"], "ok");
    ada.push("document.edited", &json!({"patches": 1})).unwrap();
    assert_eq!(ada.reply()["response"]["reason"], "invalid_payload");
    server.counted("/ws/deliveries", &json!(3));
    // A measurement is written down after the last member has got its event.
    drop(ada);
    server.counted("/ws/connections_open", &json!(0));
    server
}

#[test]
fn each_number_moves_by_what_clients_did() {
    let data = data();
    let server = with_some_history(data.path());
    let stats = server.get("/v1/stats").json();
    let number =
        |pointer: &str| stats.pointer(pointer).unwrap_or_else(|| panic!("{pointer}: {stats:#}")).clone();
    assert_eq!(number("/bus/by_kind/document.saved"), 2);
    assert_eq!(number("/bus/by_kind/x-note"), 1);
    assert_eq!(number("/requests/successes"), 5, "upgrade, join, push, and two events over HTTP");
    assert_eq!(
        number("/requests/errors"),
        json!({"invalid_payload": 1, "invalid_request": 1, "unknown_event": 1})
    );
    assert_eq!(number("/requests/success_rate"), 5.0 / 8.0);
    assert_eq!(number("/publish_latency/total_count"), 3, "with a log, every draft that was kept");
    for latency in ["publish_latency", "broadcast_latency"] {
        let of = |name: &str| number(&format!("/{latency}/{name}")).as_f64().unwrap();
        assert!(of("total_count") >= 1.0 && of("p50") > 0.0, "{stats:#}");
        assert!(of("p50") <= of("p95") && of("p95") <= of("p99") && of("p99") <= of("max"), "{stats:#}");
    }
    for queue in ["log_requests", "presence_events", "lock_changes"] {
        assert_eq!(number(&format!("/queues/{queue}")), 0);
    }
}

#[test]
fn looking_at_the_numbers_does_not_change_how_requests_went() {
    let data = data();
    let server = Server::start(data.path());
    for path in ["/metrics", "/health/ready", "/v1/stats", "/", "/nothing/here"] {
        server.get(path);
    }
    let requests = &server.get("/v1/stats").json()["requests"];
    assert_eq!(requests, &json!({"successes": 0, "errors": {}, "success_rate": null}));
    assert_eq!(server.get("/v1/documents/notes/session").status, 404);
    let requests = &server.get("/v1/stats").json()["requests"];
    assert_eq!(requests, &json!({"successes": 0, "errors": {"no_session": 1}, "success_rate": 0.0}));
}

#[test]
fn the_table_shows_what_the_server_answers() {
    let data = data();
    let server = with_some_history(data.path());
    let table = success(&run(&["stats", "--url", &server.url()]));
    for (name, value) in [("document.saved", "2"), ("unknown_event", "1"), ("success rate", "62.50 %")] {
        let line = table.lines().find(|line| line.trim_start().starts_with(name));
        assert!(line.is_some_and(|line| line.ends_with(value)), "{name}: {table}");
    }
    let printed: Value =
        serde_json::from_str(&success(&run(&["stats", "--json", "--url", &server.url()]))).unwrap();
    assert_eq!(printed["bus"]["by_kind"], server.get("/v1/stats").json()["bus"]["by_kind"]);
}

#[test]
fn prometheus_reads_the_same_numbers() {
    let Some(python) = python_with_parser() else { return };
    let data = data();
    let server = with_some_history(data.path());
    let stats = server.get("/v1/stats").json();
    let answer = server.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let families = parsed(&python, data.path(), &answer.body);
    let sample = |family: &str, name: &str, labels: &Value| {
        let samples = families[family]["samples"].as_array().unwrap_or_else(|| panic!("no {family}"));
        let found = samples.iter().find(|sample| sample[0] == name && &sample[1] == labels);
        found.unwrap_or_else(|| panic!("no {name}{labels} in {samples:?}"))[2].as_f64()
    };
    let check = |name: &str, labels: Value, pointer: &str| {
        let family = name.trim_end_matches("_total").trim_end_matches("_sum").trim_end_matches("_count");
        let expected = stats.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")).as_f64();
        assert_eq!(sample(family, name, &labels), expected, "{name}{labels} and {pointer}");
    };
    let none = || json!({});
    for (kind, count) in stats["bus"]["by_kind"].as_object().unwrap() {
        let found = sample("relay_events", "relay_events_total", &json!({"kind": kind}));
        assert_eq!(found, count.as_f64(), "{kind}");
    }
    check("relay_requests_succeeded_total", none(), "/requests/successes");
    check("relay_request_errors_total", json!({"reason": "unknown_event"}), "/requests/errors/unknown_event");
    check("relay_publish_duration_seconds", json!({"quantile": "0.99"}), "/publish_latency/p99");
    check("relay_publish_duration_seconds_count", none(), "/publish_latency/total_count");
    check("relay_broadcast_duration_seconds_sum", none(), "/broadcast_latency/total_sum");
    check("relay_sessions_started_total", none(), "/presence/sessions_started");
    check("relay_websocket_connections", none(), "/ws/connections_open");
    check("relay_websocket_deliveries_total", none(), "/ws/deliveries");
    check("relay_log_appended_bytes_total", none(), "/log/appended_bytes");
    check("relay_log_lost_events_total", none(), "/log/lost_events");
    check("relay_log_retention_failures_total", none(), "/log/retention_failures");
    check("relay_queue_depth", json!({"queue": "log_requests"}), "/queues/log_requests");
    assert_eq!(families["relay_publish_duration_seconds"]["type"], "summary");
    assert_eq!(families["relay_events"]["type"], "counter");
    assert_eq!(families["relay_sessions"]["type"], "gauge");
}

#[test]
fn names_and_units_are_as_prometheus_recommends() {
    let data = data();
    let server = with_some_history(data.path());
    let text = server.get("/metrics").body;
    for Metric { name, kind, help } in metrics(&text) {
        assert!(name.starts_with("relay_"), "{name}: no prefix");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}: not in snake case");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(help.ends_with('.') && help.len() > 10, "{name}: {help}");
        let base = name.trim_end_matches("_total");
        for unit in ["seconds", "bytes"] {
            assert!(!base.contains(unit) || base.ends_with(unit), "{name}: the unit is not at the end");
        }
        for unit in ["ms", "millis", "milliseconds", "micros", "minutes", "kb", "kib", "mib", "percent"] {
            assert!(!base.split('_').any(|word| word == unit), "{name}: not a base unit");
        }
        assert!(kind != "summary" || base.ends_with("_seconds"), "{name}: durations are in seconds");
        let series = text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).count();
        assert!(series <= 64, "{name} has {series} series");
    }
}

#[test]
fn the_documentation_lists_every_metric() {
    let data = data();
    let server = Server::start(data.path());
    let text = server.get("/metrics").body;
    let heading = "| metric | type | meaning |\n| --- | --- | --- |".to_owned();
    let row = |Metric { name, kind, help }: Metric<'_>| format!("| `{name}` | {kind} | {help} |");
    let rows = metrics(&text).into_iter().map(row);
    let table = std::iter::once(heading).chain(rows).collect::<Vec<_>>().join("\n");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let documentation = std::fs::read_to_string(file).unwrap();
    assert!(documentation.contains(&table), "docs/metrics.md must contain this table:\n{table}");
}

#[test]
fn each_refusal_that_the_channels_count_has_a_documented_series() {
    let data = data();
    let server = Server::start(data.path());
    let text = server.get("/metrics").body;
    let series = text.lines().filter(|line| line.starts_with("relay_publish_refused_total{"));
    let stats = server.get("/v1/stats").json();
    let counters = stats["bus"].as_object().unwrap().keys().filter(|key| key.starts_with("refused_"));
    assert_eq!(series.clone().count(), counters.count(), "one series for each counter");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let documentation = std::fs::read_to_string(file).unwrap();
    for line in series {
        let reason = line.split('"').nth(1).unwrap();
        assert!(documentation.contains(&format!("| `{reason}` | drafts ")), "{reason} is not documented");
    }
}

struct Metric<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
}

/// Every metric of a page, from its `HELP` line and the `TYPE` line that must follow.
fn metrics(text: &str) -> Vec<Metric<'_>> {
    let mut lines = text.lines();
    let mut all = Vec::new();
    while let Some(line) = lines.next() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        all.push(Metric { name, kind: kind.unwrap_or_else(|| panic!("{name} has no type")), help });
    }
    assert!(all.len() > 40, "{text}");
    all
}

/// Parses a page with Prometheus' own parser.
fn parsed(python: &Path, folder: &Path, page: &str) -> Value {
    let file = folder.join("metrics.txt");
    std::fs::write(&file, page).unwrap();
    let output =
        Command::new(python).args(["-c", READ]).stdin(std::fs::File::open(file).unwrap()).output().unwrap();
    serde_json::from_str(&success(&output)).unwrap()
}

/// Returns a Python that has the parser, installed from the package index if need be. Without one the test is skipped,
/// but not in CI.
fn python_with_parser() -> Option<PathBuf> {
    let skip = |why: &str| {
        assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1"), "{why}");
        eprintln!("skipped: {why}; to install it: apt-get install python3-pip python3-venv");
        None
    };
    let worked = |output: std::io::Result<Output>| output.is_ok_and(|output| output.status.success());
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prometheus-parser");
    let python = environment.join("bin/python");
    let has_parser = || worked(Command::new(&python).args(["-c", "import prometheus_client"]).output());
    if has_parser() {
        return Some(python);
    }
    if !worked(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment).output()) {
        return skip("python3 with venv is not installed");
    }
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PARSER];
    match Command::new(&python).args(pip).output() {
        Ok(output) if output.status.success() => Some(python),
        Ok(output) => {
            skip(&format!("pip cannot install {PARSER}: {}", String::from_utf8_lossy(&output.stderr)))
        }
        Err(error) => skip(&format!("pip does not run: {error}")),
    }
}
