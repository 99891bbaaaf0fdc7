//! `relay demo`: the server with its four services, as a program that is started and stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect by unwrapping it")]

use crate::support::{Events, Server};
use serde_json::{Value, json};
use tempfile::TempDir;

const TEXT: &str = "# Minutes\n\nWe met at noon and the plan was read aloud. Ada had drawn the the map, which is at \
    https://example.org/map for all to see. Bob will bring bread. Nobody was late, and nobody left early.";

/// Types `text` word by word, as at a keyboard: no edit waits for the results of the last.
fn typed(server: &Server, document: &str, text: &str) {
    let mut position = 0;
    for word in text.split_inclusive(' ') {
        let payload = json!({"patches": [[position, 0, word]]});
        server
            .publish(document, &json!({"kind": "document.edited", "actor": "user:ada", "payload": payload}));
        position += word.chars().count();
    }
}

/// Waits for a summary that satisfies `is_so`, among the document's events from its first on.
#[track_caller]
fn summary(server: &Server, document: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let (_, mut events) = Events::open(server.address, document, "?after_seq=0", None);
    loop {
        let event = events.next().expect("another event").data;
        if event["kind"] == "x-summary" && is_so(&event["payload"]) {
            return event;
        }
    }
}

#[test]
fn typed_text_comes_back_as_the_four_services_results() {
    let data = TempDir::new().unwrap();
    let server = Server::demo(data.path());
    typed(&server, "minutes", TEXT);
    let annotation = json!({"annotation": "a1", "text": "the retry budget is missing"});
    server
        .publish("minutes", &json!({"kind": "annotation.added", "actor": "user:bob", "payload": annotation}));

    let words = 38;
    let event = summary(&server, "minutes", |summary| {
        summary["quality"]["result"]["words"] == words
            && summary["metadata"]["result"]["words"] == words
            && summary["annotations"] == 1
    });
    let found = &event["payload"];
    assert_eq!(found["metadata"]["result"]["title"], "Minutes");
    assert_eq!(found["metadata"]["result"]["language"]["name"], "English");
    assert_eq!(found["metadata"]["result"]["links"], json!(["https://example.org/map"]));
    assert_eq!(found["quality"]["result"]["sentences"], 5);
    assert!(found["quality"]["result"]["reading_ease"].as_f64().unwrap() > 70.0, "{found:#}");
    let flags = found["quality"]["result"]["flags"].as_array().unwrap();
    let flags: Vec<_> = flags.iter().map(|flag| flag["name"].as_str().unwrap()).collect();
    assert_eq!(flags, ["doubled_word"]);
    assert_eq!(found["tags"][0]["tag"], "retry budget");
    // Each came from its own service, and says which rules led to it.
    assert_eq!(event["actor"], "service:stitch");
    assert!(event["metadata"]["relay.causes"].as_str().unwrap().ends_with("coordination"), "{event:#}");

    let (_, events) = server.history("minutes");
    let by = |kind: &str| {
        let of_kind = events.iter().filter(|event| event["kind"] == kind);
        of_kind.map(|event| event["actor"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(by("x-tags"), ["service:cast"]);
    for (kind, actor) in [("x-quality", "service:sift"), ("x-metadata", "service:spawn")] {
        let actors = by(kind);
        assert!(actors.iter().all(|found| found == actor), "{actors:?}");
        // Fast typing is not answered letter by letter.
        assert!((1..=words).contains(&actors.len()), "{} results", actors.len());
    }

    server.signal("-TERM");
    assert!(server.ended().success());
}

#[test]
fn the_services_go_on_where_they_were_when_the_demo_is_started_again() {
    let data = TempDir::new().unwrap();
    let server = Server::demo(data.path());
    typed(&server, "again", "One two three.");
    summary(&server, "again", |summary| summary["quality"]["result"]["words"] == 3);
    // Killed: nothing was deregistered, and nothing was kept by the services.
    server.kill();

    let server = Server::demo(data.path());
    let payload = json!({"patches": [[14, 0, " Four five."]]});
    server.publish("again", &json!({"kind": "document.edited", "actor": "user:ada", "payload": payload}));
    let event = summary(&server, "again", |summary| summary["quality"]["result"]["words"] == 5);
    assert_eq!(event["payload"]["quality"]["result"]["sentences"], 2);
    server.signal("-TERM");
    assert!(server.ended().success());
}
