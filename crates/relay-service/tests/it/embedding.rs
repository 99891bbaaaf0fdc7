//! A service inside another program, over a log of that program's own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect by unwrapping it")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use relay_core::testing::MemoryLog;
use relay_core::{
    Actor, Delivery, DeliveryError, DocumentId, Draft, Event, EventLog, FencingToken, Metadata, Offset,
    Payload, ReadLimit, Region, Seq, ServiceName, StartPosition, SystemClock, Target, UserId,
};
use relay_presence::{AcquireLock, FileTokens};
use relay_router::RouterConfig;
use relay_router::rules::{RuleDocument, RuleFormat};
use relay_router::target::InProcessTarget;
use relay_service::{PublishError, RelayService, ServiceConfig, Storage};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::support::PATIENCE;

/// A target that passes on the events that it gets.
struct Recorder(mpsc::UnboundedSender<Arc<Event>>);

#[async_trait]
impl Target for Recorder {
    async fn deliver(&self, delivery: Delivery) -> Result<(), DeliveryError> {
        for event in delivery.events {
            self.0.send(event).expect("the test waits for events");
        }
        Ok(())
    }
}

const RULES: &str = r#"
    [[rules]]
    name = "notes"
    kinds = ["x-note"]
    targets = ["recorder"]
"#;

/// The configuration of a service over `log`, and the events that its router delivers.
fn configure(directory: &Path, log: &MemoryLog) -> (ServiceConfig, mpsc::UnboundedReceiver<Arc<Event>>) {
    let (sender, delivered) = mpsc::unbounded_channel();
    let mut router = RouterConfig::new(directory.join("router"));
    router.rules = RuleDocument { text: RULES.to_owned(), format: RuleFormat::Toml };
    let recorder = ServiceName::new("recorder").unwrap();
    router.targets = vec![InProcessTarget::new(recorder, Arc::new(Recorder(sender)))];
    let tokens = FileTokens::open(directory.join("tokens"), &SystemClock::new()).unwrap();
    let storage = Storage::Custom {
        log: Arc::new(log.clone()),
        tokens: Arc::new(tokens),
        open_sessions: Some(directory.join("open-sessions")),
    };
    let mut config = ServiceConfig::in_process();
    config.storage = storage;
    config.router = Some(router);
    (config, delivered)
}

/// Publishes one note as a participant who acquires a lock first. Returns the note's seq and the lock's token.
async fn publish_under_lock(service: &RelayService, text: &str) -> (Seq, FencingToken) {
    let (notes, ada) = (DocumentId::new("notes").unwrap(), UserId::new("ada").unwrap());
    let ada = service.join(notes, ada, StartPosition::Live).await.unwrap();
    let acquire = AcquireLock { region: Some(Region::new("intro").unwrap()), ttl: None, wait: None };
    let lease = ada.command(acquire).await.unwrap();
    let payload = Payload::json(&text).unwrap();
    let ack = ada.publish(relay_events::kind("x-note").unwrap(), payload).await.unwrap();
    (ack.seq.unwrap(), lease.token)
}

/// Waits for the next delivered event, and returns its payload.
async fn next(delivered: &mut mpsc::UnboundedReceiver<Arc<Event>>) -> Payload {
    tokio::time::timeout(PATIENCE, delivered.recv()).await.unwrap().unwrap().payload.clone()
}

#[tokio::test]
async fn a_service_publishes_routes_and_restarts_over_a_log_of_its_owners() {
    let directory = tempfile::tempdir().unwrap();
    let log = MemoryLog::new();
    let (config, mut delivered) = configure(directory.path(), &log);
    let service = RelayService::start(config).await.unwrap();
    assert!(service.recovery().is_none());
    let (first_seq, first_token) = publish_under_lock(&service, "one").await;
    assert_eq!(next(&mut delivered).await, Payload::json(&"one").unwrap());
    let appended = service.stats().log.expect("a custom log has numbers too").appended_events;
    assert_eq!(Offset::new(appended), log.last_offset().await.unwrap());
    assert!(service.stop().await.unwrap().complete);
    assert!(log.last_offset().await.is_err(), "the service closes the log");

    let log = log.reopen();
    let (config, mut delivered) = configure(directory.path(), &log);
    let service = RelayService::start(config).await.unwrap();
    let (second_seq, second_token) = publish_under_lock(&service, "two").await;
    assert!(second_seq > first_seq, "{second_seq} after {first_seq}");
    assert!(second_token > first_token, "tokens grow over restarts");
    assert_eq!(next(&mut delivered).await, Payload::json(&"two").unwrap(), "nothing is delivered again");

    let everything = StartPosition::After { epoch: None, seq: Seq::ZERO };
    let notes = DocumentId::new("notes").unwrap();
    let (ack, mut events) = service.subscribe(&notes, everything).await.unwrap();
    assert!(ack.head.last >= second_seq);
    let mut texts = Vec::new();
    while texts.len() < 2 {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap();
        if event.kind.as_str() == "x-note" {
            texts.push(event.payload.clone());
        }
    }
    assert_eq!(texts, ["one", "two"].map(|text| Payload::json(&text).unwrap()));
    drop(events);
    assert!(service.stop().await.unwrap().complete);
}

#[test]
fn what_a_killed_service_left_open_in_a_log_of_ones_own_is_ended_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let log = MemoryLog::new();
    let killed = Runtime::new().unwrap();
    let participant = killed.block_on(async {
        let (mut config, _delivered) = configure(directory.path(), &log);
        config.router = None;
        let service = RelayService::start(config).await.unwrap();
        let (notes, ada) = (DocumentId::new("notes").unwrap(), UserId::new("ada").unwrap());
        let ada = service.join(notes, ada, StartPosition::Live).await.unwrap();
        ada.command(AcquireLock { region: None, ttl: None, wait: None }).await.unwrap();
        (service, ada)
    });
    // Nothing of it runs any more, so nothing is ended in order.
    killed.shutdown_background();
    let log = log.reopen();
    drop(participant);

    Runtime::new().unwrap().block_on(async {
        let before = log.last_offset().await.unwrap();
        let (mut config, _delivered) = configure(directory.path(), &log);
        config.router = None;
        let service = RelayService::start(config).await.unwrap();
        let ended = log.read(before, ReadLimit { events: 10, bytes: 1 << 20 }).await.unwrap();
        let kinds: Vec<_> = ended.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["document.unlocked", "user.left", "session.ended"]);
        assert!(service.stop().await.unwrap().complete);
    });
}

#[tokio::test]
async fn a_log_of_ones_own_that_fails_makes_the_service_refuse_publishers() {
    let directory = tempfile::tempdir().unwrap();
    let log = MemoryLog::new();
    let (mut config, _delivered) = configure(directory.path(), &log);
    config.router = None;
    config.stop_timeout = Duration::from_secs(1);
    let service = RelayService::start(config).await.unwrap();
    log.fail_after(0);
    let draft = Draft::new(
        DocumentId::new("notes").unwrap(),
        relay_events::kind("x-note").unwrap(),
        Payload::json(&1).unwrap(),
    );
    let refused = service.publish(draft).await.unwrap_err();
    assert!(refused.to_string().contains("told to fail"), "{refused}");
}

#[tokio::test]
async fn a_service_in_the_same_process_copies_its_causes_and_writes_none() {
    let directory = tempfile::tempdir().unwrap();
    let (config, mut delivered) = configure(directory.path(), &MemoryLog::new());
    let service = RelayService::start(config).await.unwrap();
    let draft = || {
        let (notes, kind) = (DocumentId::new("notes").unwrap(), relay_events::kind("x-note").unwrap());
        Draft::new(notes, kind, Payload::json(&"one").unwrap())
    };
    service.publish(draft()).await.unwrap();
    let event = tokio::time::timeout(PATIENCE, delivered.recv()).await.unwrap().unwrap();
    let by = |service: &str| Actor::Service(ServiceName::new(service).unwrap());
    let mut forged = Metadata::default();
    forged.insert("relay.causes", "notes").unwrap();
    let error = service.publish(draft().actor(by("other")).metadata(forged)).await.unwrap_err();
    assert!(
        matches!(error, PublishError::Channel(relay_core::PublishError::InvalidMetadata { .. })),
        "{error}"
    );
    service.publish(draft().actor(by("other")).metadata(event.metadata.clone())).await.unwrap();
    // The copied causes keep the rule away, and nothing else does.
    service.publish(draft().actor(by("other"))).await.unwrap();
    let event = tokio::time::timeout(PATIENCE, delivered.recv()).await.unwrap().unwrap();
    assert_eq!(event.seq, Some(Seq::new(3)));
    service.stop().await.unwrap();
}
