//! Routing from outside: services that register over HTTP, and the command line of operators.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by unwrapping it"
)]

use crate::support::service::{Service, routing_server};
use crate::support::{self, Server, data, failure, run, success};
use serde_json::{Value, json};
use standardwebhooks::Webhook;

const RULES: &str = r#"
[[rules]]
name = "notes"
kinds = ["x-note"]
documents = ["n*"]
when = 'event.payload.n < 100'
targets = ["capability:notes"]
"#;

fn register(server: &Server, service: &Service) -> Value {
    let body = json!({
        "url": format!("http://{}/events", service.address), "version": "1.2", "capabilities": ["notes"],
    });
    let answer = server.put("/v1/services/noter", "application/json", &body.to_string());
    assert_eq!(answer.status, 201, "{}", answer.body);
    answer.json()
}

fn note(server: &Server, n: usize) {
    server.publish("notes", &json!({"kind": "x-note", "payload": {"n": n}}));
}

#[test]
fn a_service_registers_and_gets_its_events_signed_until_it_leaves() {
    let data = data();
    let (server, service) = (routing_server(&data, RULES), Service::start());
    let registered = register(&server, &service);
    assert_eq!(registered["lease"]["ttl_ms"], 30_000);
    note(&server, 1);
    let got = service.next();
    let secret = registered["secret"].as_str().unwrap();
    Webhook::new(secret).unwrap().verify(&got.body, &got.headers).unwrap();
    let event: Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!((&event["type"], &event["data"]["n"]), (&json!("x-note"), &json!(1)));
    assert_eq!(got.headers["webhook-id"], event["id"].as_str().unwrap());

    let lease = json!({"lease": registered["lease"]["id"]});
    assert_eq!(server.post("/v1/services/noter/heartbeat", &lease).json()["ttl_ms"], 30_000);
    let wrong = json!({"lease": "0".repeat(32)});
    assert_eq!(server.post("/v1/services/noter/heartbeat", &wrong).json()["reason"], "lease_lost");
    assert_eq!(server.post("/v1/services/nobody/heartbeat", &lease).json()["reason"], "unknown_service");

    // With a new secret, both sign.
    let rotated = server.post("/v1/services/noter/rotate-secret", &lease).json();
    let rotated = rotated["secret"].as_str().unwrap();
    assert_ne!(rotated, secret);
    note(&server, 2);
    let got = service.next();
    for secret in [secret, rotated] {
        Webhook::new(secret).unwrap().verify(&got.body, &got.headers).unwrap();
    }

    let path = format!("/v1/services/noter?lease={}", registered["lease"]["id"].as_str().unwrap());
    assert_eq!(support::request(server.address, "DELETE", &path, &[], b"").status, 202);
    let gone = || server.get("/v1/services/noter").json()["state"] == "gone";
    while !gone() {
        std::thread::yield_now();
    }
    assert_eq!(server.get("/v1/services").json(), json!([]));
    assert_eq!(
        server.history("relay:services").1,
        Vec::<Value>::new(),
        "a change of a service is no content"
    );
    server.signal("-TERM");
    assert_eq!(server.ended().code(), Some(0));
    let exported = success(&run(&["log", "export", data.path().to_str().unwrap()]));
    let events = exported.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let changes = events.filter(|event| event["kind"] == "service.changed");
    let states: Vec<Value> = changes.map(|event| event["payload"]["state"].clone()).collect();
    assert_eq!((states.first(), states.last()), (Some(&json!("unknown")), Some(&json!("gone"))));
}

#[test]
fn an_address_that_is_not_public_is_refused_unless_it_is_allowed() {
    let data = data();
    let server = Server::start(data.path());
    for (url, reason) in [
        ("http://127.0.0.1:1/", "address_refused"),
        ("http://[::1]/", "address_refused"),
        ("http://169.254.169.254/latest", "address_refused"),
        ("http://2130706433/", "address_refused"),
        ("ftp://example.org/", "address_refused"),
        ("nonsense", "address_refused"),
    ] {
        let answer = server.put("/v1/services/x", "application/json", &json!({"url": url}).to_string());
        assert_eq!((answer.status, answer.json()["reason"].as_str()), (403, Some(reason)), "{url}");
    }
}

#[test]
fn an_event_that_a_service_refuses_is_listed_shown_retried_and_dropped() {
    let data = data();
    let (server, service) = (routing_server(&data, RULES), Service::start());
    register(&server, &service);
    service.answer(400);
    for n in 1..=3 {
        note(&server, n);
        service.next();
    }
    while server.get("/v1/targets/noter").json()["dead_letters"] != 3 {
        std::thread::yield_now();
    }
    let url = server.url();
    let list = success(&run(&["dead-letters", "list", "--target", "noter", "--url", &url]));
    assert_eq!(list.lines().count(), 4, "{list}");
    assert!(list.lines().nth(1).unwrap().ends_with("rejected  1         400 so"), "{list}");
    let page = server.get("/v1/targets/noter/dead-letters?limit=2").json();
    assert_eq!(page["dead_letters"].as_array().unwrap().len(), 2);
    let rest = format!("/v1/targets/noter/dead-letters?after={}", page["next_after"].as_str().unwrap());
    assert_eq!(server.get(&rest).json()["dead_letters"].as_array().unwrap().len(), 1);
    let id = page["dead_letters"][0]["id"].as_str().unwrap();
    let shown = success(&run(&["dead-letters", "show", id, "--target", "noter", "--url", &url]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["event"]["payload"]["n"], &shown["attempts"][0]["status"]), (&json!(1), &json!(400)));

    service.answer(200);
    success(&run(&["dead-letters", "retry", id, "--target", "noter", "--url", &url]));
    let event: Value = serde_json::from_slice(&service.next().body).unwrap();
    assert_eq!(event["data"]["n"], 1);
    let id = page["dead_letters"][1]["id"].as_str().unwrap();
    assert_eq!(
        success(&run(&["dead-letters", "drop", id, "--target", "noter", "--url", &url])),
        "dropped: 1\n"
    );
    assert_eq!(
        success(&run(&["dead-letters", "retry", "--all", "--target", "noter", "--url", &url])),
        "retried: 1\n"
    );
    let event: Value = serde_json::from_slice(&service.next().body).unwrap();
    assert_eq!(event["data"]["n"], 3);
    let error = failure(&run(&["dead-letters", "show", id, "--target", "noter", "--url", &url]));
    assert!(error.contains("unknown_dead_letter"), "{error}");
    let error = failure(&run(&["dead-letters", "list", "--target", "nobody", "--url", &url]));
    assert!(error.contains("unknown_target: there is no target `nobody`"), "{error}");
}

#[test]
fn deliveries_to_a_service_that_is_gone_wait_and_the_answer_says_so() {
    let data = data();
    let (server, service) = (routing_server(&data, RULES), Service::start());
    let registered = register(&server, &service);
    service.answer(400);
    note(&server, 1);
    service.next();
    while server.get("/v1/targets/noter").json()["dead_letters"] != 1 {
        std::thread::yield_now();
    }
    let path = format!("/v1/services/noter?lease={}", registered["lease"]["id"].as_str().unwrap());
    assert_eq!(support::request(server.address, "DELETE", &path, &[], b"").status, 202);
    while server.get("/v1/targets/noter").json()["state"] != "gone" {
        std::thread::yield_now();
    }
    let url = server.url();
    assert!(success(&run(&["services", "--url", &url])).contains("noter    gone"));
    let waits = "`noter` is gone: they wait until it registers again\n";
    let retried = success(&run(&["dead-letters", "retry", "--all", "--target", "noter", "--url", &url]));
    assert_eq!(retried, format!("retried: 1\n{waits}"));
    let replayed = success(&run(&["replay", "--target", "noter", "--from", "1", "--url", &url]));
    assert!(replayed.starts_with("replay ") && replayed.ends_with(waits), "{replayed}");
    // They do.
    service.answer(200);
    register(&server, &service);
    let event: Value = serde_json::from_slice(&service.next().body).unwrap();
    assert_eq!(event["data"]["n"], 1);
}

#[test]
fn as_many_replays_run_as_are_allowed_and_the_next_is_told_what_to_do() {
    let data = data();
    let (server, service) = (routing_server(&data, RULES), Service::start());
    register(&server, &service);
    let notes: Vec<_> = (1..=100).map(|n| json!({"kind": "x-note", "payload": {"n": n}})).collect();
    assert_eq!(server.post("/v1/documents/notes/events", &json!(notes)).status, 200);
    let path = "/v1/targets/noter/replays";
    let replay = || server.post(path, &json!({"from": {"offset": 1}, "rate": 1}));
    // At one event in a second, none of them ends meanwhile.
    let running: Vec<_> = (0..64).map(|_| replay()).collect();
    assert!(running.iter().all(|answer| answer.status == 202), "{running:?}");
    let refused = replay();
    assert_eq!((refused.status, &refused.json()["reason"]), (429, &json!("too_many_replays")));
    assert!(refused.body.contains("64 replays are running, the most that are allowed; cancel one, or wait"));
    let first = format!("{path}/{}", running[0].json()["id"]);
    assert_eq!(support::request(server.address, "DELETE", &first, &[], b"").status, 200);
    assert_eq!(replay().status, 202);
}

#[test]
fn history_is_sent_again_and_every_decision_can_be_asked_for() {
    let data = data();
    let (server, service) = (routing_server(&data, RULES), Service::start());
    register(&server, &service);
    for n in 1..=5 {
        note(&server, n);
        service.next();
    }
    server.publish("other", &json!({"kind": "x-note", "payload": {"n": 1}}));
    let url = server.url();
    let replayed = success(&run(&[
        "replay",
        "--target",
        "noter",
        "--from",
        "1",
        "--document",
        "notes",
        "--rate",
        "1000",
        "--wait",
        "--url",
        &url,
    ]));
    assert!(replayed.trim_end().lines().last().unwrap().contains("finished, 5 events queued"), "{replayed}");
    for n in 1..=5 {
        let got = service.next();
        assert_eq!(got.headers["relay-replay"], "true");
        let event: Value = serde_json::from_slice(&got.body).unwrap();
        assert_eq!(event["data"]["n"], n);
    }
    assert!(success(&run(&["replay", "list", "--target", "noter", "--url", &url])).contains("finished"));
    assert!(
        failure(&run(&["replay", "cancel", "1", "--target", "noter", "--url", &url]))
            .contains("unknown_replay")
    );

    while server.get("/v1/decisions?document=notes&outcome=delivered").json().as_array().unwrap().len() < 10 {
        std::thread::yield_now();
    }
    let other = server.get("/v1/decisions?document=other").json();
    assert_eq!(other[0]["outcome"], "no_match");
    assert_eq!(other[0]["verdicts"], json!([{"rule": "notes", "verdict": "document"}]));
    let shown = success(&run(&[
        "decisions",
        "--target",
        "noter",
        "--outcome",
        "delivered",
        "--limit",
        "3",
        "--url",
        &url,
    ]));
    let mut lines = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap()[..4], ["AT", "OUTCOME", "DOCUMENT", "KIND"], "{shown}");
    assert_eq!(lines.clone().count(), 3, "{shown}");
    assert!(
        lines.all(|line| line[1..4] == ["delivered", "notes", "x-note"] && line.contains(&"replay")),
        "{shown}"
    );
    let stats = server.get("/v1/stats").json()["router"].clone();
    assert_eq!(stats["targets"]["noter"]["delivered"], 10);
    assert_eq!(stats["rules"]["notes"], 5);
    assert!(success(&run(&["services", "--capability", "notes", "--url", &url])).contains("noter"));
    assert!(success(&run(&["targets", "--url", &url])).lines().nth(1).unwrap().starts_with("noter"));
}

#[test]
fn rules_are_replaced_as_a_whole_or_not_at_all_and_can_be_tried_first() {
    let data = data();
    let server = routing_server(&data, RULES);
    let url = server.url();
    let first = server.get("/v1/rules");
    assert_eq!((first.body.as_str(), first.header("etag")), (RULES, Some("\"1\"")));

    let bad = data.path().join("bad.toml");
    std::fs::write(&bad, "[[rules]]\nname = \"a\"\nwhen = 'event.knd == 1'\ntargets = [\"x\"]\n").unwrap();
    let error = failure_of_many_lines(&["rules", "check", bad.to_str().unwrap()]);
    assert!(error.contains("line 3") && error.contains("knd"), "{error}");
    let answer = server.put("/v1/rules", "application/toml", &std::fs::read_to_string(&bad).unwrap());
    assert_eq!((answer.status, answer.json()["reason"].as_str()), (422, Some("invalid_rules")));
    assert!(answer.json()["message"].as_str().unwrap().contains("line 3"), "{}", answer.body);
    assert_eq!(server.get("/v1/rules").body, RULES);

    let good = data.path().join("good.toml");
    std::fs::write(&good, "[[rules]]\nname = \"all\"\ntargets = [\"archive\"]\n").unwrap();
    let tried = [
        "rules",
        "dry-run",
        "--kind",
        "x-note",
        "--document",
        "notes",
        "--payload",
        r#"{"n": 500}"#,
        "--url",
        &url,
    ];
    let shown = success(&run(&tried));
    assert!(shown.contains("notes  condition"), "{shown}");
    let other = [&tried[..], &["--rules", good.to_str().unwrap()]].concat();
    let shown = success(&run(&other));
    assert!(shown.contains("all   matched") && shown.contains("no_target"), "{shown}");
    assert_eq!(
        success(&run(&["rules", "put", good.to_str().unwrap(), "--if-version", "1", "--url", &url])),
        "version 2 is in force\n"
    );
    let error = failure(&run(&["rules", "put", good.to_str().unwrap(), "--if-version", "1", "--url", &url]));
    assert!(error.contains("version_conflict"), "{error}");
    // They are kept.
    server.signal("-TERM");
    assert!(server.ended().success());
    let server = routing_server(&data, RULES);
    assert!(server.get("/v1/rules").body.contains("archive"));
    assert_eq!(success(&run(&["rules", "reset", "--url", &server.url()])), "version 3 is in force\n");
    assert_eq!(server.get("/v1/rules").body, RULES);
}

#[test]
fn the_log_has_twenty_lines_of_a_kind_in_a_minute_and_a_number_of_the_others() {
    let data = data();
    let rules = "[[rules]]\nname = \"all\"\ntargets = [\"capability:any\"]\nstrategy = \"all\"\nkinds = [\"x-note\"]\n";
    std::fs::write(data.path().join("rules.toml"), rules).unwrap();
    let file = format!("router.rules={}", data.path().join("rules.toml").display());
    let arguments = ["--set", "router.allow_networks=127.0.0.0/8", "--set", &file];
    let (server, service) = (Server::start_with(data.path(), &arguments), Service::start());
    let body = json!({"url": format!("http://{}/", service.address), "capabilities": ["any"]}).to_string();
    for n in 0..25 {
        let answer = server.put(&format!("/v1/services/s{n}"), "application/json", &body);
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    // Each has its first dead letter, which is worth a line.
    service.answer(400);
    note(&server, 1);
    server.counted("/drops/log_line", &json!(5));
    // The number comes with the next line, in one part or in several.
    server.signal("-TERM");
    let (mut written, mut left_out) = (0, 0);
    while (written, left_out) != (20, 5) {
        let line = server.logged("");
        let has = |text: &str| line["message"].as_str().is_some_and(|message| message.contains(text));
        written += u64::from(has("became a dead letter"));
        left_out += if has("log lines were left out") { line["lines"].as_u64().unwrap() } else { 0 };
    }
}

/// Runs a command that must fail, and returns its error: one line for each mistake of a file.
fn failure_of_many_lines(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}
