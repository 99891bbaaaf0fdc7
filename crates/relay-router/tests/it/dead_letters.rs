//! Dead letters in number and size: pages, and retries of many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use relay_core::{DocumentId, Draft, EventLog, Offset, Payload, Seq};
use relay_router::{ReplayRequest, ReplayStart, Router, TargetError};

use crate::support::{
    Recorder, TO_A, World, attach, failed, lost, name, note, number, patient, refused, target, until,
    until_queued,
};

/// Two rules that send notes to target `a`.
const TWICE_TO_A: &str = r#"
    [[rules]]
    name = "one"
    kinds = ["x-note"]
    targets = ["a"]
    continue = true

    [[rules]]
    name = "two"
    kinds = ["x-note"]
    targets = ["a"]
"#;

/// An `x-note` event of more than `bytes`.
fn long_note(document: &str, n: usize, bytes: usize) -> Draft {
    let mut draft = note(document, n);
    draft.payload = Payload::json(&serde_json::json!({ "n": n, "text": "x".repeat(bytes) })).unwrap();
    draft
}

#[tokio::test(start_paused = true)]
async fn a_page_of_dead_letters_is_bounded_in_bytes_and_leads_to_the_next() {
    let world = World::new();
    let router = world.router(TO_A).await;
    attach(&router, "a", &Recorder::with(|_, _| Err(refused())), patient()).await;
    let target = name("a");
    for n in 1..=5 {
        world.publish(long_note("d", n, 400_000)).await;
    }
    until(|| router.target(&target).unwrap().dead_letters == 5).await;
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = router.dead_letters(&target, after, 1_000).await.unwrap();
        pages.push(page.dead_letters.len());
        after = page.next_after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [2, 2, 1]);
    // A page in number alone, at whose end there is nothing more.
    let page = router.dead_letters(&target, None, 1).await.unwrap();
    let page = router.dead_letters(&target, page.next_after, 1).await.unwrap();
    assert_eq!(page.dead_letters.len(), 1);
    // What is larger than a page is dropped as a whole too.
    assert_eq!(router.drop_dead_letters(&target).await.unwrap(), 5);
    router.stop(Duration::from_secs(5)).await;
}

/// Starts a router that keeps no event in memory.
async fn uncached_router(world: &World, a: &Arc<Recorder>) -> Router {
    let mut config = world.config(TO_A);
    config.cache_bytes = 0;
    config.targets = vec![target("a", a, patient())];
    world.router_with(config).await
}

#[tokio::test(start_paused = true)]
async fn a_retried_dead_letter_keeps_its_content_on_disk_over_failures_and_restarts() {
    let world = World::new();
    let router = uncached_router(&world, &Recorder::with(|_, _| Err(refused()))).await;
    for n in 1..=2 {
        world.publish(note("d", n)).await;
    }
    until(|| router.target(&name("a")).unwrap().dead_letters == 2).await;
    // The log has neither event any more.
    world.log.trim(&DocumentId::new("d").unwrap(), Seq::new(2)).await.unwrap();
    router.stop(Duration::from_secs(5)).await;

    let failures = Arc::new(AtomicUsize::new(0));
    let a = {
        let failures = Arc::clone(&failures);
        Recorder::with(move |_, _| {
            failures.fetch_add(1, Ordering::SeqCst);
            Err(failed())
        })
    };
    let router = uncached_router(&world, &a).await;
    assert_eq!(router.retry_dead_letters(&name("a")).await.unwrap(), 2);
    until(|| failures.load(Ordering::SeqCst) >= 2).await;
    router.stop(Duration::from_secs(5)).await;

    let a = Recorder::new();
    let router = uncached_router(&world, &a).await;
    let taken = a.wait_for(2).await;
    assert_eq!(taken.iter().map(|taken| number(&taken.event)).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(router.stats().targets["a"].lost, 0);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn each_of_two_dead_letters_of_one_event_is_delivered() {
    let world = World::new();
    let router = world.router(TWICE_TO_A).await;
    attach(&router, "a", &Recorder::with(|_, _| Err(refused())), patient()).await;
    world.publish(note("d", 1)).await;
    let target = name("a");
    until(|| router.target(&target).unwrap().dead_letters == 2).await;
    until_queued(&router, "a", 0).await;

    let (a, gate) = Recorder::gated(0);
    attach(&router, "a", &a, patient()).await;
    assert_eq!(router.retry_dead_letters(&target).await.unwrap(), 1);
    let left = router.dead_letters(&target, None, 10).await.unwrap().dead_letters;
    assert_eq!((left.len(), router.target(&target).unwrap().queued), (1, 1));
    let refusal = router.retry_dead_letter(&target, left[0].id).await;
    assert!(matches!(refusal, Err(TargetError::AlreadyWaiting { .. })), "{refusal:?}");
    gate.add_permits(2);
    until_queued(&router, "a", 0).await;
    router.retry_dead_letter(&target, left[0].id).await.unwrap();
    a.wait_for(2).await;
    assert_eq!(router.target(&target).unwrap().dead_letters, 0);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_is_delivered_for_its_dead_letter_and_for_its_replay() {
    let world = World::new();
    let router = world.router(TO_A).await;
    attach(&router, "a", &Recorder::with(|_, _| Err(refused())), patient()).await;
    world.publish(note("d", 1)).await;
    let target = name("a");
    until(|| router.target(&target).unwrap().dead_letters == 1).await;
    let (a, gate) = Recorder::gated(0);
    attach(&router, "a", &a, patient()).await;
    assert_eq!(router.retry_dead_letters(&target).await.unwrap(), 1);
    router.replay(&target, ReplayRequest::new(ReplayStart::Offset(Offset::new(1)))).await.unwrap();
    gate.add_permits(2);
    let taken = a.wait_for(2).await;
    assert_eq!(taken.iter().map(|taken| taken.is_replay).collect::<Vec<_>>(), [false, true]);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_dead_letters_wait_for_a_target_than_its_route_takes() {
    let world = World::new();
    let mut config = world.config(TO_A);
    config.max_queued = 3;
    let router = world.router_with(config.clone()).await;
    attach(&router, "a", &Recorder::with(|_, _| Err(refused())), patient()).await;
    world.publish_notes(5, 5).await;
    let target = name("a");
    until(|| router.target(&target).unwrap().dead_letters == 5).await;
    let (a, gate) = Recorder::gated(0);
    attach(&router, "a", &a, patient()).await;
    assert_eq!(router.retry_dead_letters(&target).await.unwrap(), 3);
    let left = router.dead_letters(&target, None, 10).await.unwrap().dead_letters;
    let refusal = router.retry_dead_letter(&target, left[0].id).await;
    assert!(matches!(refusal, Err(TargetError::TooManyWaiting { limit: 3, .. })), "{refusal:?}");
    gate.add_permits(5);
    a.wait_for(3).await;
    until_queued(&router, "a", 0).await;
    assert_eq!(router.retry_dead_letters(&target).await.unwrap(), 2);
    a.wait_for(5).await;
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn retried_dead_letters_beyond_a_lower_limit_are_delivered_after_a_restart() {
    let world = World::new();
    let mut config = world.config(TO_A);
    let router = world.router_with(config.clone()).await;
    attach(&router, "a", &Recorder::with(|_, _| Err(refused())), patient()).await;
    world.publish_notes(2, 6).await;
    until(|| router.target(&name("a")).unwrap().dead_letters == 6).await;
    attach(&router, "a", &Recorder::gated(0).0, patient()).await;
    assert_eq!(router.retry_dead_letters(&name("a")).await.unwrap(), 6);
    router.stop(Duration::ZERO).await;

    let a = Recorder::new();
    config.max_queued = 2;
    config.targets = vec![target("a", &a, patient())];
    let router = world.router_with(config).await;
    a.wait_for(6).await;
    until_queued(&router, "a", 0).await;
    assert_eq!(
        (a.numbers()["d0"].as_slice(), a.numbers()["d1"].as_slice()),
        (&[2, 4, 6][..], &[1, 3, 5][..])
    );
    router.stop(Duration::from_secs(5)).await;
}

/// Writes over the values of a keyspace of a closed store.
fn damage(world: &World, keyspace: &str, damage: impl Fn(usize, &str) -> String) {
    let database = fjall::Database::builder(world.directory.path().join("store")).open().unwrap();
    let keyspace = database.keyspace(keyspace, fjall::KeyspaceCreateOptions::default).unwrap();
    let stored: Vec<_> = keyspace.iter().map(|item| item.into_inner().unwrap()).collect();
    for (n, (key, value)) in stored.into_iter().enumerate() {
        let damaged = damage(n, std::str::from_utf8(&value).unwrap());
        keyspace.insert(key, damaged).unwrap();
    }
    database.persist(fjall::PersistMode::SyncAll).unwrap();
}

#[tokio::test(start_paused = true)]
async fn damaged_dead_letters_are_told_and_dropped_and_the_others_retried() {
    let world = World::new();
    let a = Recorder::with(|_, _| Err(refused()));
    let router = world.router_to(TO_A, vec![target("a", &a, patient())]).await;
    world.publish_notes(1, 4).await;
    let to = name("a");
    until(|| router.target(&to).unwrap().dead_letters == 4).await;
    router.stop(Duration::from_secs(5)).await;
    // The first is no JSON, and the second has no event that can be read.
    damage(&world, "dead_letters", |n, value| match n {
        0 => value[..value.len() / 2].to_owned(),
        1 => value.replace("\"kind\"", "\"other\""),
        _ => value.to_owned(),
    });

    let a = Recorder::new();
    let router = world.router_to(TO_A, vec![target("a", &a, patient())]).await;
    let page = router.dead_letters(&to, None, 1).await.unwrap();
    assert_eq!((page.dead_letters.len(), page.damaged.len()), (0, 1));
    let page = router.dead_letters(&to, page.next_after, 10).await.unwrap();
    assert_eq!((page.dead_letters.len(), page.damaged.len()), (3, 0));
    let second = page.dead_letters[0].id;
    assert_eq!(router.retry_dead_letters(&to).await.unwrap(), 2);
    assert_eq!(a.wait_for(2).await.iter().map(|taken| number(&taken.event)).collect::<Vec<_>>(), [3, 4]);
    let first = router.dead_letters(&to, None, 10).await.unwrap().damaged[0].id;
    for id in [first, second] {
        let refusal = router.retry_dead_letter(&to, id).await;
        assert!(matches!(refusal, Err(TargetError::Damaged { .. })), "{refusal:?}");
    }
    assert!(router.failure().is_none());
    router.drop_dead_letter(&to, first).await.unwrap();
    assert_eq!(router.drop_dead_letters(&to).await.unwrap(), 1);
    assert_eq!(router.target(&to).unwrap().dead_letters, 0);
    router.stop(Duration::from_secs(5)).await;

    // One that is damaged as a whole is dropped with the others.
    let a = Recorder::with(|_, _| Err(refused()));
    let router = world.router_to(TO_A, vec![target("a", &a, patient())]).await;
    world.publish_notes(1, 3).await;
    until(|| router.target(&to).unwrap().dead_letters == 3).await;
    router.stop(Duration::from_secs(5)).await;
    damage(&world, "dead_letters", |n, value| if n == 1 { "{".to_owned() } else { value.to_owned() });
    let router = world.router_to(TO_A, vec![target("a", &a, patient())]).await;
    assert_eq!(router.drop_dead_letters(&to).await.unwrap(), 3);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_retried_dead_letter_that_is_damaged_while_it_waits_is_lost_with_that_reason() {
    let world = World::new();
    let router = uncached_router(&world, &Recorder::with(|_, _| Err(refused()))).await;
    world.publish_notes(1, 1).await;
    until(|| router.target(&name("a")).unwrap().dead_letters == 1).await;
    attach(&router, "a", &Recorder::gated(0).0, patient()).await;
    assert_eq!(router.retry_dead_letters(&name("a")).await.unwrap(), 1);
    router.stop(Duration::ZERO).await;
    damage(&world, "queue", |_, value| value.replace("\"body\":\"", "\"body\":\"damaged"));

    let a = Recorder::new();
    let router = uncached_router(&world, &a).await;
    let lost = lost(&router, 1).await;
    let reason = "the event of the retried dead letter was damaged in the router's store";
    assert_eq!((lost.len(), lost[0].error.as_deref(), a.taken().len()), (1, Some(reason), 0));
    until_queued(&router, "a", 0).await;
    router.stop(Duration::from_secs(5)).await;
}
