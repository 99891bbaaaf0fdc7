//! Events that wait for a target that does not take them: through changes of the rules, through retention, and beyond the
//! limits.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use relay_core::{EventLog, Offset, Seq};
use relay_router::rules::{RuleDocument, RuleFormat, TargetPolicy};
use relay_router::{Router, RouterConfig};

use crate::support::{Recorder, TO_A, World, attach, lost, name, note, number, target, until, until_queued};

/// A target that fails until it is told to work.
fn switched() -> (Arc<AtomicBool>, Arc<Recorder>) {
    let works = Arc::new(AtomicBool::new(false));
    let recorder = Recorder::switched(&works);
    (works, recorder)
}

fn persistent() -> TargetPolicy {
    let mut policy = TargetPolicy::default();
    policy.retry.max_attempts = std::num::NonZeroU32::MAX;
    policy.retry.max = Duration::from_secs(1);
    policy
}

fn toml(text: &str) -> RuleDocument {
    RuleDocument { text: text.to_owned(), format: RuleFormat::Toml }
}

fn small(world: &World, rules: &str) -> RouterConfig {
    let mut config = world.config(rules);
    config.max_queued = 20;
    config
}

/// Waits until the dispatcher has routed the whole log.
async fn all_routed(router: &Router, events: u64) {
    until(|| router.stats().targets["a"].lag_events + router.stats().targets["a"].lost >= events).await;
    until(|| router.stats().behind == 0).await;
}

async fn survive(changes: &[&str]) {
    let world = World::new();
    let router = world.router_with(small(&world, TO_A)).await;
    let (works, a) = switched();
    attach(&router, "a", &a, persistent()).await;
    world.publish_notes(3, 90).await;
    all_routed(&router, 90).await;
    for rules in changes {
        router.put_rules(toml(rules), None).await.unwrap();
    }
    assert_eq!(router.stats().targets["a"].lag_events, 90);
    works.store(true, Ordering::SeqCst);
    until_queued(&router, "a", 0).await;
    let mut numbers: Vec<_> = a.taken().iter().map(|taken| number(&taken.event)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=90).collect::<Vec<_>>(), "after {changes:?}");
    assert_eq!(router.stats().targets["a"].lost, 0);
    router.stop(Duration::from_secs(5)).await;
}

const RENAMED: &str = r#"
    [[rules]]
    name = "renamed"
    kinds = ["x-note"]
    targets = ["a"]
"#;

const NARROWED: &str = r#"
    [[rules]]
    name = "notes"
    kinds = ["x-other"]
    targets = ["a"]
"#;

const NOTHING: &str = "rules = []";

#[tokio::test(start_paused = true)]
async fn events_that_wait_are_delivered_after_their_rule_is_renamed() {
    survive(&[RENAMED]).await;
}

#[tokio::test(start_paused = true)]
async fn events_that_wait_are_delivered_after_their_rule_is_narrowed() {
    survive(&[NARROWED]).await;
}

#[tokio::test(start_paused = true)]
async fn events_that_wait_are_delivered_after_their_rule_is_dropped_and_made_again() {
    survive(&[NOTHING]).await;
    survive(&[NOTHING, TO_A]).await;
}

#[tokio::test(start_paused = true)]
async fn retention_does_not_pass_the_events_that_wait() {
    let world = World::new();
    let mut config = small(&world, TO_A);
    config.max_queued = 5;
    let router = world.router_with(config.clone()).await;
    let (_, broken) = switched();
    attach(&router, "a", &broken, persistent()).await;
    for _ in 0..5 {
        world.publish_notes(2, 20).await;
        world.log.apply_retention(10);
    }
    all_routed(&router, 100).await;
    assert_eq!(router.target(&name("a")).unwrap().queued, 100, "all of them are part of the lag");
    router.stop(Duration::ZERO).await;

    let (works, a) = switched();
    config.targets = vec![target("a", &a, persistent())];
    let router = world.router_with(config).await;
    world.log.apply_retention(10);
    works.store(true, Ordering::SeqCst);
    until_queued(&router, "a", 0).await;
    assert_eq!((a.taken().len(), router.stats().targets["a"].lost), (100, 0));
    // Nothing waits any more, so that retention is free.
    let end = world.log.last_offset().await.unwrap();
    until(|| world.log.held_after() >= Some(end)).await;
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn the_log_is_held_for_no_router_without_targets() {
    let world = World::new();
    EventLog::hold(&world.log, Some(Offset::ZERO));
    let router = world.router(TO_A).await;
    until(|| world.log.held_after().is_none()).await;
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_log_dropped_while_it_waited_on_disk_is_lost() {
    let world = World::new();
    let router = world.router_with(small(&world, TO_A)).await;
    let (works, a) = switched();
    attach(&router, "a", &a, persistent()).await;
    world.publish_notes(1, 100).await;
    all_routed(&router, 100).await;
    world.log.trim(&note("d0", 0).document, Seq::new(70)).await.unwrap();
    works.store(true, Ordering::SeqCst);
    until_queued(&router, "a", 0).await;
    let lost = lost(&router, 50).await;
    assert!(lost.iter().all(|record| record.error.as_ref().unwrap().contains("log.max_held_bytes")));
    assert!(lost.iter().all(|record| record.rule.as_deref() == Some("notes")));
    assert_eq!(router.stats().targets["a"].lost, lost.len() as u64);
    assert_eq!(a.taken().len() + lost.len(), 100, "each is delivered or lost");
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_beyond_the_most_that_wait_is_lost() {
    let world = World::new();
    let mut config = small(&world, TO_A);
    config.max_waiting = 50;
    let router = world.router_with(config).await;
    let (works, a) = switched();
    attach(&router, "a", &a, persistent()).await;
    world.publish_notes(2, 80).await;
    all_routed(&router, 80).await;
    let lost = lost(&router, 30).await;
    assert_eq!((lost.len(), router.stats().targets["a"].lost), (30, 30));
    assert!(
        lost.iter().all(|record| record.target == Some(name("a")) && record.offset > Some(Offset::new(50)))
    );
    works.store(true, Ordering::SeqCst);
    until_queued(&router, "a", 0).await;
    assert_eq!(a.taken().len(), 50);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_rule_and_target_are_gone_is_lost_with_that_reason() {
    let world = World::new();
    let rules = r#"rules = [{ name = "notes", kinds = ["x-note"], targets = ["gone"] }]"#;
    let mut config = small(&world, rules);
    let (_, gone) = switched();
    config.targets = vec![target("gone", &gone, persistent())];
    let router = world.router_with(config.clone()).await;
    world.publish_notes(2, 50).await;
    until_queued(&router, "gone", 50).await;
    router.stop(Duration::ZERO).await;

    config.rules = toml(RENAMED);
    config.targets.clear();
    let router = world.router_with(config).await;
    let lost = lost(&router, 50).await;
    assert_eq!((lost.len(), router.stats().targets["gone"].lost), (50, 50));
    let reason = "rule `notes` no longer leads to a target that exists";
    assert!(lost.iter().all(|record| record.error.as_deref() == Some(reason)));
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_event_whose_rule_and_target_go_while_it_is_under_way_is_lost_when_the_attempt_has_failed() {
    let world = World::new();
    // The service accepts connections and answers nothing.
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let rules = format!(
        r#"
        [[targets]]
        name = "gone"
        url = "http://{}/"
        timeout = "1s"

        [[rules]]
        name = "notes"
        kinds = ["x-note"]
        targets = ["gone"]
        "#,
        service.local_addr().unwrap()
    );
    let mut config = small(&world, &rules);
    config.outbound.allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let router = world.router_with(config).await;
    world.publish_notes(2, 10).await;
    let state = || router.target(&name("gone")).map(|gone| (gone.queued, gone.in_flight));
    until(|| state() == Some((10, 2))).await;
    router.put_rules(toml(RENAMED), None).await.unwrap();
    let lost = lost(&router, 10).await;
    assert_eq!((lost.len(), router.stats().targets["gone"].lost), (10, 10));
    router.stop(Duration::from_secs(5)).await;
}
