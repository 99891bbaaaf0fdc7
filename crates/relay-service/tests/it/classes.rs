//! The classes of events: only content costs a document its history.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use relay_core::{DocumentId, Draft, Event, Payload, Seq, StartPosition, UserId};
use relay_log::{LogConfig, LogDurability};
use relay_presence::{AcquireLock, RenewLock};
use relay_service::{RelayService, ServiceConfig, Storage};
use serde_json::json;

use crate::support::socket::{Incoming, Socket};
use crate::support::{Server, data};

const EVERYTHING: StartPosition = StartPosition::After { epoch: None, seq: Seq::ZERO };

fn notes() -> DocumentId {
    DocumentId::new("notes").unwrap()
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn edit(text: &str) -> Payload {
    Payload::json(&json!({"patches": [[0, 0, text]]})).unwrap()
}

/// A service over a log that keeps 100 sequenced events of each document.
async fn start(directory: &std::path::Path) -> RelayService {
    let mut log = LogConfig::new(directory);
    log.durability = LogDurability::Logged;
    log.retention.max_events = 100;
    let mut config = ServiceConfig::in_process();
    config.bus.retention = log.retention;
    config.storage = Storage::Embedded(log);
    RelayService::start(config).await.unwrap()
}

/// The stored events of a stopped service, in the order of their offsets.
fn exported(directory: &std::path::Path) -> Vec<Event> {
    let mut events = Vec::new();
    let report = relay_log::export(directory, &mut |event| {
        events.push(event);
        Ok(())
    });
    assert_eq!(report.unwrap().problems, 0);
    events
}

#[tokio::test]
async fn looking_at_a_document_costs_none_of_its_content() {
    const VISITS: usize = 2_600;
    let directory = data();
    let service = start(directory.path()).await;
    for number in 0..100 {
        let draft = Draft::new(notes(), relay_events::DOCUMENT_EDITED, edit(&number.to_string()));
        service.publish(draft).await.unwrap();
    }
    for _ in 0..VISITS {
        service.join(notes(), user("bob"), StartPosition::Live).await.unwrap().leave();
    }
    let (ack, _) = service.subscribe(&notes(), EVERYTHING).await.unwrap();
    assert_eq!((ack.head.first, ack.head.last), (Seq::FIRST, Seq::new(100)));
    assert!(service.stop().await.unwrap().complete);

    let stored = exported(directory.path());
    let of = |kind: &str| stored.iter().filter(|event| event.kind.as_str() == kind).count();
    assert_eq!((of("document.edited"), of("session.started"), of("user.left")), (100, VISITS, VISITS));
    let service = start(directory.path()).await;
    let (ack, mut events) = service.subscribe(&notes(), EVERYTHING).await.unwrap();
    assert_eq!((ack.head.first, ack.head.last), (Seq::FIRST, Seq::new(100)));
    for seq in 1..=100 {
        assert_eq!(events.next().await.unwrap().unwrap().seq, Some(Seq::new(seq)));
    }
    drop(events);
    assert_eq!(service.stats().log.unwrap().dropped_events, 0);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_renewal_reaches_members_and_is_not_stored() {
    let directory = data();
    let service = start(directory.path()).await;
    let ada = service.join(notes(), user("ada"), StartPosition::Live).await.unwrap();
    let mut bob = service.join(notes(), user("bob"), StartPosition::Live).await.unwrap();
    let lease = ada.command(AcquireLock { region: None, ttl: None, wait: None }).await.unwrap();
    assert_eq!(bob.next().await.unwrap().unwrap().kind, relay_events::DOCUMENT_LOCKED);
    for seconds in 1..=20 {
        let ttl = Some(std::time::Duration::from_secs(30 + seconds));
        let renewed = ada.command(RenewLock { token: lease.token, ttl }).await.unwrap();
        assert_eq!((renewed.token, renewed.expires_at > lease.expires_at), (lease.token, true));
        let told = bob.next().await.unwrap().unwrap();
        assert_eq!((&told.kind, told.seq, told.offset), (&relay_events::LOCK_RENEWED, None, None));
        let Payload::Json(payload) = &told.payload else { panic!("{told:?}") };
        let payload: serde_json::Value = serde_json::from_str(payload.as_str()).unwrap();
        let expected = json!({"holder": "ada", "token": lease.token, "expires_at": renewed.expires_at});
        assert_eq!(payload, expected);
    }
    drop((ada, bob));
    assert!(service.stop().await.unwrap().complete);
    let stored = exported(directory.path());
    let locks: Vec<&str> =
        stored.iter().map(|event| event.kind.as_str()).filter(|kind| kind.contains("lock")).collect();
    assert_eq!(locks, ["document.locked", "document.unlocked"]);
}

#[test]
fn what_is_pushed_right_after_a_join_comes_after_the_events_of_the_session() {
    const DOCUMENTS: usize = 20;
    let directory = data();
    let server = Server::start(directory.path());
    let mut ada = Socket::open(server.address, "ada");
    for number in 0..DOCUMENTS {
        let topic = format!("document:d{number}");
        for (event, payload) in [("phx_join", json!({})), ("x-note", json!(1)), ("x-note", json!(2))] {
            assert!(ada.send(&json!(["1", format!("{number}/{event}"), topic, event, payload]).to_string()));
        }
    }
    let mut replies = 0;
    while replies < 3 * DOCUMENTS {
        match ada.next() {
            Incoming::Message(message) if message[3] == "phx_reply" => {
                assert_eq!(message[4]["status"], "ok", "{message}");
                replies += 1;
            }
            Incoming::Message(_) => {}
            other => panic!("{other:?}"),
        }
    }
    // Without a socket, too.
    server.post("/v1/documents/http/participants", &json!({"user": "bob"}));
    server.publish("http", &json!({"kind": "x-note", "payload": 1, "actor": "user:bob"}));
    server.signal("-TERM");
    assert_eq!(server.ended().code(), Some(0));
    let stored = exported(directory.path());
    let kinds = |document: &str| -> Vec<String> {
        let own = stored.iter().filter(|event| event.document.as_str() == document);
        own.map(|event| event.kind.to_string()).collect()
    };
    for number in 0..DOCUMENTS {
        let kinds = kinds(&format!("d{number}"));
        assert_eq!(kinds[..4], ["session.started", "user.joined", "x-note", "x-note"], "{kinds:?}");
        assert_eq!(kinds[4..], ["user.left", "session.ended"], "{kinds:?}");
    }
    assert_eq!(kinds("http")[..3], ["session.started", "user.joined", "x-note"]);
}

#[test]
fn what_a_killed_server_left_open_is_ended_before_anybody_is_served() {
    let directory = data();
    let server = Server::start(directory.path());
    let mut ada = Socket::open(server.address, "ada");
    for (event, payload) in [("phx_join", json!({})), ("lock:acquire", json!({"ttl_ms": 60_000}))] {
        assert!(ada.send(&json!(["1", event, "document:notes", event, payload]).to_string()));
    }
    assert_eq!(ada.reply()["status"], "ok");
    let token = ada.reply()["response"]["token"].as_u64().unwrap();
    server.kill();

    let server = Server::start(directory.path());
    server.publish(
        "notes",
        &json!({"kind": "document.edited", "payload": {"patches": [[0, 0, "b"]]}, "actor": "user:bob"}),
    );
    let (_, events) = server.history("notes");
    let kinds: Vec<_> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["document.locked", "document.unlocked", "document.edited"]);
    assert_eq!(events[1]["payload"], json!({"holder": "ada", "token": token, "reason": "crashed"}));
    let lease = server.post("/v1/documents/notes/locks", &json!({"user": "bob"})).json();
    assert!(lease["token"].as_u64().unwrap() > token, "tokens only grow: {lease}");
    server.kill();

    let server = Server::start(directory.path());
    let (_, events) = server.history("notes");
    assert_eq!(events.len(), 5, "{events:?}");
    assert_eq!(events[4]["payload"]["token"], lease["token"]);
    server.signal("-TERM");
    assert_eq!(server.ended().code(), Some(0));
    let stored = exported(directory.path());
    let logged = stored.iter().filter(|event| event.seq.is_none()).map(|event| event.kind.as_str());
    let expected = ["session.started", "user.joined", "user.left", "session.ended"];
    assert_eq!(logged.collect::<Vec<_>>(), expected);
}
