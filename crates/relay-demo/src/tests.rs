//! The services over HTTP, with a fake relay.

use http::StatusCode;
use serde_json::{Value, json};

use super::fake_relay::{FakeRelay, SECRET, deliver, send};

const TEXT: &str = "# The plan\nWe meet at noon. Bring your notes. See https://example.org for the map.";

fn edit(relay: &FakeRelay, position: usize, inserted: &str) -> Value {
    relay.append("document.edited", "user:ada", &json!({"patches": [[position, 0, inserted]]}))
}

#[tokio::test]
async fn a_service_registers_for_what_it_can_do_and_says_that_it_is_there() {
    let (relay, _server) = FakeRelay::start().await;
    let sift = relay.service("sift").await;
    let asked = relay.until(|asked| asked.heartbeats.len() > 1).await;
    assert_eq!(asked.registrations[0]["url"], format!("http://{}/events", sift.address));
    assert_eq!(asked.registrations[0]["capabilities"], json!(["quality"]));
    assert_eq!(asked.heartbeats[1], json!({"lease": "7", "state": "healthy"}));
    sift.stop().await.unwrap();
    assert_eq!(relay.asked().deregistrations, 1);
}

#[tokio::test]
async fn a_service_that_the_relay_has_forgotten_registers_again() {
    let (relay, _server) = FakeRelay::start().await;
    let _sift = relay.service("sift").await;
    relay.forget(true);
    relay.until(|asked| asked.registrations.len() > 1).await;
    relay.forget(false);
    let beats = relay.asked().heartbeats.len();
    relay.until(|asked| asked.heartbeats.len() > beats + 1).await;
}

#[tokio::test]
async fn a_delivery_is_answered_when_its_result_is_in_the_document() {
    let (relay, _server) = FakeRelay::start().await;
    let [sift, spawn] = [relay.service("sift").await, relay.service("spawn").await];
    let edited = edit(&relay, 0, TEXT);
    assert_eq!(deliver(&sift, &edited).await, StatusCode::NO_CONTENT);
    let quality = relay.published("x-quality");
    assert_eq!(quality[0]["payload"]["sentences"], 4);
    assert_eq!(quality[0]["actor"], "service:sift");
    assert_eq!(quality[0]["metadata"], json!({"relay.causes": "quality"}));
    assert_eq!(deliver(&spawn, &edited).await, StatusCode::NO_CONTENT);
    let metadata = &relay.published("x-metadata")[0]["payload"];
    assert_eq!(
        (&metadata["title"], &metadata["links"]),
        (&json!("The plan"), &json!(["https://example.org"]))
    );
}

#[tokio::test]
async fn one_result_covers_all_edits_up_to_the_newest() {
    let (relay, _server) = FakeRelay::start().await;
    let sift = relay.service("sift").await;
    let edits: Vec<_> =
        "slowly typed".chars().rev().map(|letter| edit(&relay, 0, &letter.to_string())).collect();
    for edited in &edits {
        assert_eq!(deliver(&sift, edited).await, StatusCode::NO_CONTENT);
    }
    let quality = relay.published("x-quality");
    assert_eq!((quality.len(), &quality[0]["payload"]["words"]), (1, &json!(2)));
    assert_eq!(relay.asked().publications, 1);
}

#[tokio::test]
async fn an_event_that_comes_again_has_one_result_even_after_the_service_began_anew() {
    let (relay, _server) = FakeRelay::start().await;
    let edited = edit(&relay, 0, TEXT);
    let annotated = relay.append(
        "annotation.added",
        "user:bob",
        &json!({"annotation": "a", "text": "error handling here"}),
    );
    for _ in 0..2 {
        for (name, event) in [("sift", &edited), ("cast", &annotated)] {
            let service = relay.service(name).await;
            for _ in 0..2 {
                assert_eq!(deliver(&service, event).await, StatusCode::NO_CONTENT);
            }
            service.stop().await.unwrap();
        }
    }
    assert_eq!((relay.published("x-quality").len(), relay.published("x-tags").len()), (1, 1));
    // Within one run of the service it is not even published again.
    assert_eq!(relay.asked().publications, 4);
    assert_eq!(relay.published("x-tags")[0]["payload"]["tags"][0]["tag"], "error handling");
}

#[tokio::test]
async fn a_result_that_the_relay_does_not_take_is_published_when_the_event_comes_again() {
    let (relay, _server) = FakeRelay::start().await;
    let sift = relay.service("sift").await;
    let edited = edit(&relay, 0, TEXT);
    relay.overload(true);
    assert_eq!(deliver(&sift, &edited).await, StatusCode::SERVICE_UNAVAILABLE);
    let is_degraded = |beat: &Value| beat["state"] == "degraded";
    relay.until(|asked| asked.heartbeats.last().is_some_and(is_degraded)).await;
    relay.overload(false);
    assert_eq!(deliver(&sift, &edited).await, StatusCode::NO_CONTENT);
    assert_eq!(relay.published("x-quality").len(), 1);
    relay.until(|asked| asked.heartbeats.last().is_some_and(|beat| !is_degraded(beat))).await;
}

#[tokio::test]
async fn an_unsigned_or_malformed_delivery_is_refused() {
    let (relay, _server) = FakeRelay::start().await;
    let sift = relay.service("sift").await;
    let other = "whsec_YW5vdGhlciBzZWNyZXQ=";
    let json = "application/cloudevents+json";
    assert_eq!(send(&sift, b"{}", other, json).await, StatusCode::UNAUTHORIZED);
    assert_eq!(send(&sift, b"{}", SECRET, json).await, StatusCode::BAD_REQUEST);
    assert_eq!(send(&sift, b"{}", SECRET, "text/plain").await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(relay.asked().publications, 0);
}

#[tokio::test]
async fn results_are_put_together_from_the_history_alone() {
    let (relay, _server) = FakeRelay::start().await;
    relay.append("x-quality", "service:sift", &json!({"words": 12}));
    relay.append(
        "x-tags",
        "service:cast",
        &json!({"annotation": "a", "tags": [{"tag": "noon", "score": 1.0}]}),
    );
    let last = relay.append("x-metadata", "service:spawn", &json!({"title": "The plan"}));
    // A service that has just begun, and was given only the last of them.
    let stitch = relay.service("stitch").await;
    assert_eq!(deliver(&stitch, &last).await, StatusCode::NO_CONTENT);
    let summary = &relay.published("x-summary")[0]["payload"];
    assert_eq!(summary["quality"], json!({"by": "sift", "seq": 1, "result": {"words": 12}}));
    assert_eq!(summary["metadata"]["result"]["title"], "The plan");
    assert_eq!(summary["tags"], json!([{"tag": "noon", "annotations": 1}]));
}
