//! HTTP: publishing, history and server-sent events of the real binary.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use crate::support::socket::{Incoming, Socket};
use crate::support::{Answer, Events, Server, data, request, run, success};
use serde_json::{Value, json};

const NOTES: &str = "/v1/documents/notes/events";

fn note(text: &str) -> Value {
    json!({"kind": "x-note", "payload": {"text": text}})
}

fn texts(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["payload"]["text"].as_str().unwrap()).collect()
}

#[test]
fn published_events_are_read_back_in_order_page_by_page() {
    let data = data();
    let server = Server::start(data.path());
    let first = server.post(NOTES, &note("one"));
    assert_eq!(first.status, 201);
    assert_eq!((&first.json()["seq"], &first.json()["duplicate"]), (&json!(1), &json!(false)));
    let batch = server.post(NOTES, &json!([note("two"), note("three"), note("four")]));
    assert_eq!(batch.status, 200);
    let seqs: Vec<_> = batch.json().as_array().unwrap().iter().map(|r| r["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [2, 3, 4]);

    let page = server.get(&format!("{NOTES}?after_seq=1&limit=2")).json();
    assert_eq!(texts(page["events"].as_array().unwrap()), ["two", "three"]);
    assert_eq!(
        (&page["first_seq"], &page["last_seq"], &page["next_after_seq"]),
        (&json!(1), &json!(4), &json!(3))
    );
    assert_eq!(page["epoch"], first.json()["epoch"]);
    assert_eq!(page["reset_reason"], Value::Null);
    let beyond = server.get(&format!("{NOTES}?after_seq=99999")).json();
    assert_eq!(
        (&beyond["events"], &beyond["next_after_seq"]),
        (&json!([]), &json!(4)),
        "asking on comes to an end"
    );
    assert_eq!(beyond["reset_reason"], "ahead");
    let (opening, _) = Events::open(server.address, "notes", "?after_seq=99999", None);
    assert_eq!(opening.data["reset_reason"], "ahead");
    let (_, all) = server.history("notes");
    assert_eq!(texts(&all), ["one", "two", "three", "four"]);
}

#[test]
fn an_event_that_is_sent_again_under_its_id_happens_once() {
    let data = data();
    let server = Server::start(data.path());
    let draft = json!({"kind": "x-note", "payload": 1, "id": "0199c9a2-6a51-7cc0-8f3e-2b7d5c6f1a90", "actor": "user:ada"});
    assert_eq!(server.post(NOTES, &draft).status, 201);
    let again = server.post(NOTES, &draft);
    assert_eq!(
        (again.status, &again.json()["duplicate"], &again.json()["seq"]),
        (200, &json!(true), &json!(1))
    );
    let other = json!({"kind": "x-note", "payload": 2, "id": "0199c9a2-6a51-7cc0-8f3e-2b7d5c6f1a90", "actor": "user:ada"});
    let conflict = server.post(NOTES, &other);
    assert_eq!((conflict.status, &conflict.json()["reason"]), (409, &json!("id_conflict")));
    assert_eq!(server.history("notes").1.len(), 1);
}

#[test]
fn an_expired_event_keeps_its_place_and_shows_its_content_to_nobody() {
    let data = data();
    let server = Server::start(data.path());
    let short =
        json!({"kind": "x-note", "payload": {"text": "gone"}, "ttl_ms": 1, "metadata": {"gone": "gone"}});
    server.publish("notes", &short);
    server.publish("notes", &note("stays"));
    let expired = loop {
        let (_, events) = server.history("notes");
        if events[0]["expired"] == true {
            assert_eq!(
                (&events[1]["payload"]["text"], &events[1]["expired"]),
                (&json!("stays"), &Value::Null)
            );
            break events[0].clone();
        }
        std::thread::yield_now();
    };
    assert_eq!(
        (&expired["seq"], &expired["ttl_ms"], &expired["kind"]),
        (&json!(1), &json!(1), &json!("x-note"))
    );
    assert!(!expired.to_string().contains("gone"), "{expired}");

    let (_, mut events) = Events::open(server.address, "notes", "?after_seq=0", None);
    assert_eq!(events.next().unwrap().data, expired);
    assert_eq!(events.next().unwrap().data["seq"], 2);

    let mut socket = Socket::open(server.address, "ada");
    socket.send(r#"["1", "1", "document:notes", "phx_join", {"seq": 0, "presence": false}]"#);
    let mut received = Vec::new();
    while received.len() < 2 {
        let Incoming::Message(message) = socket.next() else { panic!("the connection ended") };
        if message[3] == "x-note" {
            received.push(message[4].clone());
        }
    }
    assert_eq!((&received[0], &received[1]["seq"]), (&expired, &json!(2)));

    server.signal("-TERM");
    assert!(server.ended().success());
    let exported = success(&run(&["log", "export", data.path().to_str().unwrap()]));
    let exported: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&exported[0], &exported[1]["seq"]), (&expired, &json!(2)));
}

#[test]
fn in_a_batch_each_draft_is_good_or_bad_by_itself() {
    let data = data();
    let server = Server::start(data.path());
    let batch = json!([{"kind": "no.such.kind", "payload": 1}, note("one"), {"kind": "document.edited", "payload": {"patches": 7}}, note("two")]);
    let outcomes = server.post(NOTES, &batch).json();
    assert_eq!(outcomes[0]["reason"], "unknown_event");
    assert_eq!(outcomes[1]["seq"], 1);
    assert_eq!(outcomes[2]["reason"], "invalid_payload");
    assert_eq!(outcomes[3]["seq"], 2);
}

#[test]
fn cloud_events_are_taken_one_by_one_and_in_batches() {
    let data = data();
    let server = Server::start(data.path());
    let event = |id: &str| json!({"specversion": "1.0", "id": id, "source": "/ci", "type": "x-checked", "data": {"ok": true}});
    let post = |kind: &str, body: Value| {
        let body = body.to_string();
        request(server.address, "POST", NOTES, &[("content-type", kind)], body.as_bytes())
    };
    assert_eq!(post("application/cloudevents+json; charset=utf-8", event("a")).status, 201);
    let batch = post("application/cloudevents-batch+json", json!([event("a"), event("b")])).json();
    assert_eq!((&batch[0]["duplicate"], &batch[1]["seq"]), (&json!(true), &json!(2)));
}

#[track_caller]
fn check(
    server: &Server,
    (method, path, content_type): (&str, &str, &str),
    body: &[u8],
    status: u16,
    reason: &str,
) {
    let answer = request(server.address, method, path, &[("content-type", content_type)], body);
    assert_eq!((answer.status, answer.json()["reason"].as_str().unwrap()), (status, reason), "{answer:?}");
    assert!(!answer.json()["message"].as_str().unwrap().is_empty());
}

#[test]
fn bad_requests_are_told_what_is_wrong_and_hurt_nobody_else() {
    let data = data();
    let server = Server::start_with(
        data.path(),
        &[
            "--set",
            "http.max_body_bytes=4096",
            "--set",
            "http.max_batch_events=3",
            "--set",
            "bus.max_payload_bytes=1000",
        ],
    );
    let (_, mut witness) = Events::open(server.address, "notes", "", None);
    let json = ("POST", NOTES, "application/json");
    check(&server, json, b"{", 400, "invalid_request");
    check(&server, json, b"\xff\xfe", 400, "invalid_request");
    check(&server, json, br#"{"kind":"x-note","payload":1,"colour":"blue"}"#, 400, "invalid_request");
    check(&server, json, br#"{"kind":"x-note","payload":1,"actor":"nobody"}"#, 400, "invalid_request");
    check(&server, json, br#"{"kind":"no.such.kind","payload":1}"#, 422, "unknown_event");
    check(&server, json, br#"{"kind":"document.edited","payload":{}}"#, 422, "invalid_payload");
    check(&server, json, note(&"x".repeat(1500)).to_string().as_bytes(), 413, "too_large");
    check(&server, json, &[b' '; 5000], 413, "too_large");
    check(&server, json, b"[1,2,3,4]", 413, "too_large");
    check(&server, ("POST", NOTES, "text/plain"), b"{}", 415, "unsupported_media_type");
    check(
        &server,
        ("POST", NOTES, "application/x-www-form-urlencoded"),
        b"a=b",
        415,
        "unsupported_media_type",
    );
    check(&server, ("PUT", NOTES, "application/json"), b"{}", 405, "method_not_allowed");
    check(&server, ("GET", "/v1/nothing", "-"), b"", 404, "not_found");
    check(&server, ("GET", "/v1/documents/%FF/events", "-"), b"", 400, "invalid_request");
    let long = format!("/v1/documents/{}/events", "x".repeat(257));
    check(&server, ("GET", &long, "-"), b"", 400, "invalid_request");
    for query in ["?after_seq=-1", "?limit=0", "?limit=100000", "?after=1"] {
        check(&server, ("GET", &format!("{NOTES}{query}"), "-"), b"", 400, "invalid_request");
    }
    check(&server, ("GET", &format!("{NOTES}/stream?after_seq=x"), "-"), b"", 400, "invalid_request");

    server.publish("notes", &note("still here"));
    assert_eq!(witness.next().unwrap().data["payload"]["text"], "still here");
}

#[test]
fn a_document_may_have_any_name() {
    let data = data();
    let server = Server::start(data.path());
    let name = "reports%2F2026%20Q4%20%E2%80%94%20%25";
    server.publish(name, &note("named"));
    let (_, events) = server.history(name);
    assert_eq!(events[0]["document"], "reports/2026 Q4 — %");
}

#[test]
fn a_stream_continues_after_the_last_event_id_without_a_gap_or_a_duplicate() {
    let data = data();
    let server = Server::start(data.path());
    server.publish("notes", &json!([note("one"), note("two"), note("three")]));
    let (opening, mut stream) = Events::open(server.address, "notes", "?after_seq=1", None);
    assert_eq!(
        (&opening.data["position"], &opening.data["recovered"], &opening.data["seq"]),
        (&json!(1), &json!(true), &json!(3))
    );
    let two = stream.next().unwrap();
    assert_eq!((two.name.as_str(), &two.data["seq"]), ("x-note", &json!(2)));
    drop(stream);

    server.publish("notes", &note("four"));
    let (opening, mut stream) = Events::open(server.address, "notes", "?after_seq=1", two.id.as_deref());
    assert_eq!(opening.data["reset"], false);
    server.publish("notes", &json!({"kind": "x-ephemeral-ping", "payload": 1}));
    server.publish("notes", &note("five"));
    let mut seqs = Vec::new();
    while seqs.len() < 3 {
        let message = stream.next().unwrap();
        match message.data["seq"].as_u64() {
            Some(seq) => seqs.push(seq),
            None => assert_eq!((message.name.as_str(), &message.id), ("x-ephemeral-ping", &None)),
        }
    }
    assert_eq!(seqs, [3, 4, 5]);

    let (opening, mut stream) = Events::open(server.address, "notes", "", Some("00c0ffee00c0ffee:2"));
    assert_eq!(
        (&opening.data["reset"], &opening.data["reset_reason"]),
        (&json!(true), &json!("epoch_changed"))
    );
    assert_eq!(stream.next().unwrap().data["seq"], 1);
}

#[test]
fn events_that_are_no_longer_kept_are_answered_with_where_history_begins() {
    let data = data();
    let server =
        Server::start_with(data.path(), &["--durability", "memory", "--set", "retention.max_events=2"]);
    for text in ["one", "two", "three", "four"] {
        server.publish("notes", &note(text));
    }
    let gone = server.get(NOTES);
    assert_eq!(
        (gone.status, &gone.json()["reason"], &gone.json()["first_seq"]),
        (410, &json!("trimmed"), &json!(3))
    );
    let (opening, _) = Events::open(server.address, "notes", "?after_seq=0", None);
    assert_eq!(opening.data["reset_reason"], "trimmed");
}

#[test]
fn pages_of_other_hosts_may_not_publish_unless_they_are_listed() {
    let data = data();
    let server = Server::start_with(data.path(), &["--set", "allowed_origins=https://app.example"]);
    let post = |origin: &str| {
        let headers = [("content-type", "application/json"), ("origin", origin)];
        request(server.address, "POST", NOTES, &headers, note("hello").to_string().as_bytes())
    };
    let refused = post("https://evil.example");
    assert_eq!((refused.status, &refused.json()["reason"]), (403, &json!("origin")));
    let allowed = post("https://app.example");
    assert_eq!(
        (allowed.status, allowed.header("access-control-allow-origin")),
        (201, Some("https://app.example"))
    );
    assert_eq!(post(&server.url()).status, 201);
    let headers = [("origin", "https://evil.example")];
    let read = request(server.address, "GET", NOTES, &headers, b"");
    assert_eq!(read.header("access-control-allow-origin"), None);
}

#[test]
fn events_that_retention_dropped_are_gone_while_the_document_is_in_use_too() {
    let data = data();
    let server = Server::start_with(data.path(), &["--set", "retention.max_events=8"]);
    for number in 0..40 {
        assert_eq!(server.post(NOTES, &note(&number.to_string())).status, 201);
    }
    let gone = server.get(&format!("{NOTES}?after_seq=0"));
    assert_eq!((gone.status, &gone.json()["reason"]), (410, &json!("trimmed")));
    let first = gone.json()["first_seq"].as_u64().unwrap();
    assert!(
        (32..=33).contains(&first),
        "of 40 events, 8 are kept, and up to an eighth more: from {first} on"
    );
    let page = server.get(&format!("{NOTES}?after_seq={}", first - 1)).json();
    assert_eq!(page["first_seq"], json!(first));
    assert_eq!(page["events"].as_array().unwrap().len() as u64, 41 - first);
}

#[test]
fn a_preflight_allows_each_method_and_header_that_the_paths_take_to_pages_of_allowed_sites() {
    let data = data();
    let server = Server::start_with(data.path(), &["--set", "allowed_origins=https://app.example"]);
    let preflight = |path: &str, origin: &str, method: &str, headers: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", method),
            ("access-control-request-headers", headers),
        ];
        request(server.address, "OPTIONS", path, &headers, b"")
    };
    let lists = |answer: &Answer, header: &str, wanted: &str| {
        let list = answer.header(header).unwrap_or_default().to_ascii_lowercase();
        list.split(',').any(|one| one.trim() == wanted.to_ascii_lowercase())
    };
    for (path, method, header) in [
        ("/v1/documents/notes/events", "GET", "last-event-id"),
        ("/v1/documents/notes/events", "POST", "content-type"),
        ("/v1/documents/notes/locks/7", "PUT", "content-type"),
        ("/v1/documents/notes/locks/7", "DELETE", "content-type"),
        ("/v1/rules", "PUT", "if-match"),
    ] {
        let allowed = preflight(path, "https://app.example", method, header);
        assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example"));
        assert!(lists(&allowed, "access-control-allow-methods", method), "{method} {path}: {allowed:?}");
        assert!(lists(&allowed, "access-control-allow-headers", header), "{method} {path}: {allowed:?}");
        let refused = preflight(path, "https://evil.example", method, header);
        assert_eq!(refused.header("access-control-allow-origin"), None, "{method} {path}");
    }
    let headers = [("origin", "https://app.example")];
    let rules = request(server.address, "GET", "/v1/rules", &headers, b"");
    for header in ["allow", "etag", "retry-after"] {
        assert!(lists(&rules, "access-control-expose-headers", header), "{header}: {rules:?}");
    }
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let data = data();
    let server = Server::start(data.path());
    let page = server.get("/");
    assert!(
        page.header("content-security-policy").unwrap().starts_with("default-src 'none'; script-src 'self'")
    );
    for file in ["page.js", "page.css", "icon.svg"] {
        assert!(page.body.contains(file), "{file}");
        assert_eq!(server.get(&format!("/{file}")).status, 200);
    }
    assert!(!page.body.contains("http://") && !page.body.contains("https://"));
}

#[test]
fn health_and_numbers_can_be_asked_for() {
    let data = data();
    let server = Server::start(data.path());
    server.publish("notes", &note("one"));
    assert_eq!(server.get("/health/live").json(), json!({"status": "live"}));
    assert_eq!(server.get("/health/ready").json(), json!({"status": "ready"}));
    let stats = server.get("/v1/stats").json();
    assert_eq!(
        (&stats["bus"]["sequenced_published"], &stats["log"]["appended_events"]),
        (&json!(1), &json!(1))
    );
}
