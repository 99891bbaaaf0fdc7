//! The classes of events: only content costs a document its history.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use relay_core::{DocumentId, Draft, Event, Payload, Seq, StartPosition, UserId};
use relay_log::{LogConfig, LogDurability};
use relay_presence::{AcquireLock, RenewLock};
use relay_service::{RelayService, ServiceConfig, Storage};
use serde_json::json;

use crate::support::data;

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
    for minutes in 1..=20 {
        let ttl = Some(std::time::Duration::from_secs(60 * minutes));
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
