//! Presence, locks and token sources, held to the suites of `relay-core`.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use relay_core::testing::{
    CommandCase, ManualClock, command_suite, presence_suite, sequencer_suite, token_suite,
};
use relay_core::{
    Actor, CheckedDraft, Commands, DocumentId, Draft, LockScope, Metadata, Payload, Region, UserId,
};
use relay_presence::{AcquireRequest, FileTokens, LockConfig, Locks, MemoryTokens, PresenceConfig};

use serde_json::json;

use crate::support::Scene;

#[tokio::test]
async fn the_presence_of_one_server_passes_the_suite() {
    let mut config = PresenceConfig::default();
    config.flush_interval = Duration::from_millis(1);
    presence_suite(&Scene::with(config).presence).await;
}

#[tokio::test]
async fn the_commands_of_presence_pass_the_suite() {
    let scene = Scene::new();
    let mut commands = Commands::default();
    scene.presence.register_commands(&mut commands).unwrap();
    let (member, _joined) = scene.join("ada").await;
    let case =
        |name, arguments, malformed, members_only| CommandCase { name, arguments, malformed, members_only };
    let cases = [
        case("presence:update", |_| json!({"name": "Ada"}), Some("[]"), true),
        case("cursor", |_| json!({"position": {"x": 1}}), None, false),
        case("session:info", |_| json!({}), None, true),
        case(
            "lock:acquire",
            |_| json!({"region": "intro", "wait_ms": 1_000}),
            Some(r#"{"region": 7}"#),
            false,
        ),
        case("lock:renew", |lease| json!({"token": lease["token"]}), Some("{}"), false),
        case("lock:release", |lease| json!({"token": lease["token"]}), Some(r#"{"token": "x"}"#), false),
    ];
    let mut stranger = scene.membership("bob");
    stranger.document = DocumentId::new("elsewhere").unwrap();
    command_suite(&commands, &member, &stranger, &cases).await;
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

#[tokio::test]
async fn locks_pass_the_suite_of_stages() {
    let clock = Arc::new(ManualClock::new());
    let tokens = Arc::new(MemoryTokens::new(&*clock));
    let locks = Locks::new(LockConfig::default(), clock, tokens).unwrap();
    let document = DocumentId::new("notes").unwrap();
    let (ada, cleo) = (UserId::new("ada").unwrap(), UserId::new("cleo").unwrap());
    let cx = &mut Context::from_waker(Waker::noop());
    let request = |region| {
        let scope = LockScope::Region(Region::new(region).unwrap());
        AcquireRequest::new(scope)
    };
    let next = |cx: &mut Context<'_>| match Box::pin(locks.next_change()).as_mut().poll(cx) {
        Poll::Ready(Some(change)) => change,
        other => panic!("no change: {other:?}"),
    };
    let mut asking = Box::pin(locks.acquire(&document, &cleo, request("outro")));
    assert!(matches!(asking.as_mut().poll(cx), Poll::Pending));
    next(cx).publication.report(Ok(()));
    let token = asking.await.unwrap().token;
    // The end of this lock is being published.
    let mut releasing = Box::pin(locks.release(&document, &cleo, token));
    assert!(matches!(releasing.as_mut().poll(cx), Poll::Pending));
    let unlocked = next(cx);
    // Granted, though not published yet: from now on others are kept out.
    let mut asking = Box::pin(locks.acquire(&document, &ada, request("intro")));
    assert!(matches!(asking.as_mut().poll(cx), Poll::Pending));
    let admitted = [
        edit(&document, "ada", Some("intro")),
        edit(&document, "bob", Some("end")),
        unlocked.draft.clone(),
        edit(&document, "cleo", Some("outro")),
    ];
    let refused = [
        edit(&document, "bob", Some("intro")),
        edit(&document, "bob", Some("outro")),
        edit(&document, "bob", None),
    ];
    sequencer_suite(&locks, &admitted, &refused).await;
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
