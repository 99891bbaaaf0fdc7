//! The chain of causes from outside: services that copy it end every loop, and no service can write one of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use crate::support::service::{Service, routing_server};
use crate::support::{Answer, Server, data, request};
use serde_json::{Value, json};

/// Each service answers the other's kind, without end.
const RULES: &str = r#"
[[rules]]
name = "ping"
kinds = ["x-ping"]
targets = ["capability:pinged"]
[[rules]]
name = "pong"
kinds = ["x-pong"]
targets = ["capability:ponged"]
"#;

fn register(server: &Server, name: &str, service: &Service) {
    let url = format!("http://{}/events", service.address);
    let body = json!({"url": url, "capabilities": [name]}).to_string();
    let answer = server.put(&format!("/v1/services/{name}"), "application/json", &body);
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
}

/// The metadata of the next event that the service gets, as the text of its CloudEvent.
fn delivered(service: &Service) -> String {
    let event: Value = serde_json::from_slice(&service.next().body).unwrap();
    event["relaymetadata"].as_str().unwrap().to_owned()
}

/// A result of `service` because of an event with this metadata.
fn result(service: &str, kind: &str, metadata: &str) -> Value {
    let metadata: Value = serde_json::from_str(metadata).unwrap();
    json!({"kind": kind, "actor": format!("service:{service}"), "payload": 1, "metadata": metadata})
}

fn publish(server: &Server, document: &str, draft: &Value) -> Answer {
    server.post(&format!("/v1/documents/{document}/events"), draft)
}

fn causes(signed: &str) -> String {
    json!({"relay.causes": signed}).to_string()
}

/// The signed chain of a delivery because of a user's ping in `document`.
fn signed_ping(server: &Server, pinged: &Service, document: &str) -> String {
    server.publish(document, &json!({"kind": "x-ping", "actor": "user:ada", "payload": 0}));
    let metadata: Value = serde_json::from_str(&delivered(pinged)).unwrap();
    metadata["relay.causes"].as_str().unwrap().to_owned()
}

#[test]
fn services_that_copy_their_causes_end_a_loop_and_what_is_stored_has_no_signature() {
    let data = data();
    let server = routing_server(&data, RULES);
    let (pinged, other) = (Service::start(), Service::start());
    register(&server, "pinged", &pinged);
    register(&server, "ponged", &other);
    server.publish("game", &json!({"kind": "x-ping", "actor": "user:ada", "payload": 0}));
    let first = delivered(&pinged);
    assert!(first.starts_with(r#"{"relay.causes":"ping;"#), "{first}");
    // A loop may go over several documents.
    server.publish("score", &result("pinged", "x-pong", &first));
    let second = delivered(&other);
    assert!(second.starts_with(r#"{"relay.causes":"ping,pong;"#), "{second}");
    server.publish("game", &result("ponged", "x-ping", &second));
    let cycles = || server.get("/v1/decisions?document=game&outcome=cycle").json();
    while cycles() == json!([]) {
        std::thread::yield_now();
    }
    let stored = |document| {
        let (_, events) = server.history(document);
        let causes = |event: &Value| event["metadata"]["relay.causes"].as_str().map(str::to_owned);
        events.iter().map(causes).collect::<Vec<_>>()
    };
    assert_eq!(stored("game"), [None, Some("ping,pong".to_owned())]);
    assert_eq!(stored("score"), [Some("ping".to_owned())]);
    let decisions = cycles();
    assert!(decisions[0]["error"].as_str().unwrap().contains("`ping,pong`"), "{decisions:#}");
    assert!(!decisions.to_string().contains(';'), "{decisions:#}");
}

#[test]
fn a_chain_that_the_server_did_not_sign_is_refused_at_every_entrance() {
    let data = data();
    let server = routing_server(&data, RULES);
    let pinged = Service::start();
    register(&server, "pinged", &pinged);
    let signed = signed_ping(&server, &pinged, "game");
    let (_, signature) = signed.split_once(';').unwrap();
    let bad = [
        ("ping".to_owned(), "no signature"),
        (format!("ping,pong;{signature}"), "another chain"),
        (format!("ping;{}", &signature[1..]), "not 43 characters"),
        (format!("ping;{}", "A".repeat(43)), "another server"),
    ];
    for (value, wrong) in &bad {
        let draft = result("pinged", "x-pong", &causes(value));
        let path = "/v1/documents/game/events";
        let event = json!({
            "specversion": "1.0", "id": "1", "source": "/pinged", "type": "x-pong", "data": 1,
            "relayactor": "service:pinged", "relaymetadata": causes(value),
        });
        let cloud = |media_type, body: &Value| {
            request(
                server.address,
                "POST",
                path,
                &[("content-type", media_type)],
                body.to_string().as_bytes(),
            )
        };
        let good = result("pinged", "x-fine", &causes(&signed));
        let refusals = [
            publish(&server, "game", &draft).json(),
            publish(&server, "game", &json!([good, draft])).json()[1].clone(),
            cloud("application/cloudevents+json", &event).json(),
            cloud("application/cloudevents-batch+json", &json!([event])).json()[0].clone(),
        ];
        for refusal in refusals {
            assert_eq!(refusal["reason"], "invalid_request", "{refusal}");
            let message = refusal["message"].as_str().unwrap();
            let named = ["`relay.causes`", "`ping", wrong, "copy it unchanged from the delivery"];
            assert!(named.iter().all(|part| message.contains(part)), "{message}");
        }
        assert_eq!(publish(&server, "game", &draft).status, 400);
    }
    let other_key = result("pinged", "x-pong", r#"{"relay.priority": "1"}"#);
    let refused = publish(&server, "game", &other_key);
    assert_eq!((refused.status, refused.json()["reason"].as_str()), (400, Some("invalid_request")));
    assert!(refused.body.contains("`relay.priority`"), "{refused:?}");
    let (_, events) = server.history("game");
    let kinds: Vec<_> = events.iter().skip(1).map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, vec!["x-fine"; bad.len()]);
}

#[test]
fn a_signature_outlives_the_server_and_every_delivery_of_an_event_has_the_same_one() {
    let data = data();
    let first = routing_server(&data, RULES);
    let pinged = Service::start();
    register(&first, "pinged", &pinged);
    let signed = signed_ping(&first, &pinged, "game");
    first.counted("/router/targets/pinged/delivered", &json!(1));
    first.kill();

    let server = routing_server(&data, RULES);
    let mut draft = result("pinged", "x-pong", &causes(&signed));
    draft["id"] = json!("0199c9a2-6a51-7cc0-8f3e-2b7d5c6f1a90");
    assert_eq!(publish(&server, "game", &draft).status, 201);
    let again = publish(&server, "game", &draft);
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)));
    assert_eq!(signed_ping(&server, &pinged, "game"), signed);

    // A replay, a dead letter, and a dead letter of a dead letter.
    let replayed =
        server.post("/v1/targets/pinged/replays", &json!({"from": {"offset": 1}, "document": "game"}));
    assert_eq!(replayed.status, 202, "{replayed:?}");
    for _ in 0..2 {
        assert_eq!(delivered(&pinged), causes(&signed));
    }
    pinged.answer(400);
    assert_eq!(signed_ping(&server, &pinged, "game"), signed);
    server.counted("/router/targets/pinged/dead_letters", &json!(1));
    for _ in 0..2 {
        let retried = server.post("/v1/targets/pinged/dead-letters/retry", &json!({}));
        assert_eq!(retried.json()["retried"], 1, "{retried:?}");
        assert_eq!(delivered(&pinged), causes(&signed));
        server.counted("/router/targets/pinged/dead_letters", &json!(1));
    }
    let letters = server.get("/v1/targets/pinged/dead-letters").body;
    assert!(!letters.contains("relay.causes") && letters.contains(r#""rule":"ping""#), "{letters}");
}
