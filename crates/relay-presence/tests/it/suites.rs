//! Presence, locks and token sources, held to the suites of `relay-core`.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use relay_core::testing::{ManualClock, presence_suite, sequencer_suite, token_suite};
use relay_core::{Actor, CheckedDraft, DocumentId, Draft, LockScope, Metadata, Payload, Region, UserId};
use relay_presence::{AcquireRequest, FileTokens, LockConfig, Locks, MemoryTokens, PresenceConfig};

use crate::support::Scene;

#[tokio::test]
async fn the_presence_of_one_server_passes_the_suite() {
    let mut config = PresenceConfig::default();
    config.flush_interval = Duration::from_millis(1);
    presence_suite(&Scene::with(config).presence).await;
}

fn edit(document: &DocumentId, user: &str, region: Option<&str>) -> CheckedDraft {
    let mut metadata = Metadata::default();
    if let Some(region) = region {
        metadata.insert(LockScope::REGION_KEY, region).unwrap();
    }
    let payload = Payload::json(&serde_json::json!({"patches": []})).unwrap();
    let draft = Draft::new(document.clone(), relay_events::DOCUMENT_EDITED, payload)
        .actor(Actor::User(UserId::new(user).unwrap()))
        .metadata(metadata);
    relay_events::check(draft).unwrap()
}

#[test]
fn locks_pass_the_suite_of_stages() {
    let clock = Arc::new(ManualClock::new());
    let tokens = Arc::new(MemoryTokens::new(&*clock));
    let locks = Locks::new(LockConfig::default(), clock, tokens).unwrap();
    let document = DocumentId::new("notes").unwrap();
    let ada = UserId::new("ada").unwrap();
    let scope = LockScope::Region(Region::new("intro").unwrap());
    let mut asking =
        Box::pin(locks.acquire(&document, &ada, AcquireRequest { scope, ttl: None, wait: Duration::ZERO }));
    // Granted, though not published yet: from now on others are kept out.
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(matches!(asking.as_mut().poll(cx), Poll::Pending));
    let admitted = [
        edit(&document, "ada", Some("intro")),
        edit(&document, "bob", Some("end")),
        edit(&document, "ada", None),
    ];
    let refused = [edit(&document, "bob", Some("intro")), edit(&document, "bob", None)];
    sequencer_suite(&locks, &admitted, &refused);
}

#[tokio::test]
async fn token_sources_pass_the_suite() {
    let clock = ManualClock::new();
    token_suite(MemoryTokens::new(&clock), || {
        clock.advance(Duration::from_secs(1));
        MemoryTokens::new(&clock)
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let open = || FileTokens::open(directory.path().join("tokens"), &clock).unwrap();
    token_suite(open(), open).await;
}
