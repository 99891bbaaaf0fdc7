//! Delivery through the router's API to targets in this process: order, retries, dead letters, restarts, replays.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    Recorder, TO_A, World, attach, by, chain, failed, lost, name, note, number, patient, refused, target,
    until, until_queued,
};
use relay_core::{DeliveryError, Event, EventLog, FailureKind, Metadata, Offset, Seq};
use relay_router::rules::TargetPolicy;
use relay_router::{ReplayRequest, ReplayStart, ReplayState};
use tokio::sync::Semaphore;

const TO_A_ELSE_B: &str = r#"
    [[rules]]
    name = "notes"
    kinds = ["x-note"]
    targets = ["a"]
    fallback = ["b"]
"#;

fn attempts(max_attempts: u32) -> TargetPolicy {
    let mut policy = TargetPolicy::default();
    policy.retry.max_attempts = NonZeroU32::new(max_attempts).unwrap();
    policy
}

fn is_sorted(numbers: &[usize]) -> bool {
    numbers.windows(2).all(|pair| pair[0] < pair[1])
}

#[tokio::test(start_paused = true)]
async fn every_event_reaches_its_target_once_and_in_its_documents_order() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    world.publish_notes(7, 1_000).await;
    a.wait_for(1_000).await;
    assert_eq!(a.taken().len(), 1_000);
    assert_eq!(a.numbers().len(), 7);
    assert!(a.numbers().values().all(|numbers| is_sorted(numbers)));
    // The paused clock runs on while the store writes on its own thread, so the time-out of `stop` can pass meanwhile.
    until(|| router.target(&name("a")).is_some_and(|a| a.in_flight == 0)).await;
    assert!(router.stop(Duration::from_secs(5)).await);
}

#[tokio::test(start_paused = true)]
async fn the_first_target_ever_gets_what_happens_from_then_on() {
    let world = World::new();
    let router = world.router(TO_A).await;
    world.publish_notes(1, 10).await;
    let a = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    world.publish(note("d0", 11)).await;
    let taken = a.wait_for(1).await;
    assert_eq!(number(&taken[0].event), 11);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_event_holds_up_its_own_document_alone_and_ends_as_a_dead_letter() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::with(|event, _| {
        if event.document.as_str() == "bad" && number(event) == 1 { Err(failed()) } else { Ok(()) }
    });
    attach(&router, "a", &a, attempts(3)).await;
    world.publish(note("bad", 1)).await;
    world.publish(note("bad", 2)).await;
    world.publish(note("good", 3)).await;
    let taken = a.wait_for(2).await;
    assert_eq!(taken.iter().map(|taken| number(&taken.event)).collect::<Vec<_>>(), [3, 2]);

    let letters = router.dead_letters(&name("a"), None, 10).await.unwrap().dead_letters;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].attempts.len(), 3);
    assert!(letters[0].attempts.iter().all(|attempt| attempt.status == Some(503)));
    assert!(letters[0].attempts.windows(2).all(|pair| pair[0].at < pair[1].at));
    assert!(letters[0].event.get().contains("\"n\":1"));
    assert_eq!(router.target(&name("a")).unwrap().dead_letters, 1);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_can_be_retried_or_dropped_also_when_the_log_has_forgotten_it() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let broken = Arc::new(AtomicUsize::new(1));
    let a = {
        let broken = Arc::clone(&broken);
        Recorder::with(move |_, _| if broken.load(Ordering::SeqCst) == 1 { Err(refused()) } else { Ok(()) })
    };
    attach(&router, "a", &a, attempts(3)).await;
    let target = name("a");
    for n in 1..=3 {
        world.publish(note("d", n)).await;
    }
    until(|| router.target(&target).unwrap().dead_letters == 3).await;
    let letters = router.dead_letters(&target, None, 10).await.unwrap().dead_letters;
    // A rejected event is not tried again.
    assert!(letters.iter().all(|letter| letter.attempts.len() == 1));
    world.log.trim(&letters[0].document, Seq::new(3)).await.unwrap();
    broken.store(0, Ordering::SeqCst);
    router.retry_dead_letter(&target, letters[1].id).await.unwrap();
    assert_eq!(number(&a.wait_for(1).await[0].event), 2);
    router.drop_dead_letter(&target, letters[0].id).await.unwrap();
    assert!(router.dead_letter(&target, letters[0].id).await.is_err());
    assert_eq!(router.retry_dead_letters(&target).await.unwrap(), 1);
    assert_eq!(number(&a.wait_for(2).await[1].event), 3);
    assert_eq!(router.target(&target).unwrap().dead_letters, 0);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_goes_on_when_its_caller_stops_waiting() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let is_broken = Arc::new(AtomicBool::new(true));
    let a = {
        let is_broken = Arc::clone(&is_broken);
        Recorder::with(move |_, _| if is_broken.load(Ordering::SeqCst) { Err(refused()) } else { Ok(()) })
    };
    attach(&router, "a", &a, attempts(1)).await;
    let target = name("a");
    world.publish_notes(1, 3).await;
    until(|| router.target(&target).unwrap().dead_letters == 3).await;
    is_broken.store(false, Ordering::SeqCst);
    let mut retry = Box::pin(router.retry_dead_letters(&target));
    assert!(futures_util::poll!(&mut retry).is_pending());
    drop(retry);
    a.wait_for(3).await;
    assert_eq!(router.target(&target).unwrap().dead_letters, 0);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn the_oldest_dead_letters_make_room_for_those_of_a_batch() {
    let world = World::new();
    let mut config = world.config(TO_A);
    config.max_dead_letters = 2;
    let router = world.router_with(config).await;
    let a = Recorder::with(|_, _| Err(failed()));
    let mut policy = attempts(1);
    policy.batch_size = NonZeroUsize::MIN.saturating_add(1);
    attach(&router, "a", &a, policy).await;
    world.publish_notes(1, 8).await;
    until(|| router.stats().targets["a"].dead_lettered == 8).await;
    let letters = router.dead_letters(&name("a"), None, 10).await.unwrap().dead_letters;
    assert_eq!(letters.len(), 2);
    let stats = &router.stats().targets["a"];
    assert_eq!((stats.dead_letters, stats.dead_letters_dropped), (2, 6));
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_replay_does_not_come_back_after_a_restart() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    world.publish_notes(2, 60).await;
    a.wait_for(60).await;
    let mut request = ReplayRequest::new(ReplayStart::Offset(Offset::new(1)));
    // The clock is paused, so that the replay waits before its second event.
    request.rate = NonZeroU32::MIN;
    let replay = router.replay(&name("a"), request).await.unwrap();
    until(|| router.replays(&name("a"))[0].queued > 0).await;
    let cancelled = router.cancel_replay(&name("a"), replay.id).await.unwrap();
    assert_eq!(cancelled.state, ReplayState::Cancelled);
    router.stop(Duration::from_secs(5)).await;

    let router = world.router_to(TO_A, vec![target("a", &a, TargetPolicy::default())]).await;
    assert!(router.replays(&name("a")).is_empty());
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn one_refused_event_of_a_batch_does_not_take_the_others_with_it() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::with(|event, _| if number(event) == 5 { Err(refused()) } else { Ok(()) });
    let mut policy = attempts(3);
    policy.batch_size = NonZeroUsize::new(4).unwrap();
    attach(&router, "a", &a, policy).await;
    world.publish_notes(1, 12).await;
    until(|| router.stats().targets.get("a").is_some_and(|a| a.delivered + a.dead_lettered == 12)).await;
    let numbers = a.numbers().remove("d0").unwrap();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted, [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]);
    assert!(is_sorted(&numbers), "{numbers:?}");
    let letters = router.dead_letters(&name("a"), None, 10).await.unwrap().dead_letters;
    assert_eq!(letters.len(), 1);
    assert!(letters[0].event.get().contains("\"n\":5"));
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn events_that_the_first_target_fails_go_to_the_fallback_in_order() {
    let world = World::new();
    let router = world.router(TO_A_ELSE_B).await;
    let a = Recorder::with(|_, _| Err(failed()));
    let b = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    attach(&router, "b", &b, TargetPolicy::default()).await;
    world.publish_notes(3, 60).await;
    b.wait_for(60).await;
    assert_eq!(b.taken().len(), 60);
    assert!(b.numbers().values().all(|numbers| is_sorted(numbers)));
    assert!(router.dead_letters(&name("a"), None, 1).await.unwrap().dead_letters.is_empty());
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn all_of_several_targets_get_everything_at_their_own_pace() {
    let world = World::new();
    let rules = r#"
        [[rules]]
        name = "notes"
        targets = ["a", "b"]
        strategy = "all"
    "#;
    let router = world.router(rules).await;
    let ((a, gate), b) = (Recorder::gated(0), Recorder::new());
    attach(&router, "a", &a, patient()).await;
    attach(&router, "b", &b, patient()).await;
    world.publish_notes(2, 20).await;
    b.wait_for(20).await;
    assert!(a.taken().is_empty());
    gate.add_permits(20);
    a.wait_for(20).await;
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_stop_at_any_moment_the_next_router_delivers_the_rest_and_little_twice() {
    let world = World::new();
    let concurrency = 4;
    let mut policy = patient();
    policy.concurrency = NonZeroUsize::new(concurrency).unwrap();
    let total = 500;
    let mut seen = Vec::new();
    let mut published = 0;
    let mut stops = 0;
    while seen.len() < total {
        let (a, _) = Recorder::gated(37);
        let router = world.router_to(TO_A, vec![target("a", &a, policy.clone())]).await;
        for n in published + 1..=(published + 100).min(total) {
            world.publish(note(&format!("d{}", n % 9), n)).await;
            published = n;
        }
        a.wait_for(37.min(total - seen.len())).await;
        // Attempts under way are aborted at once.
        router.stop(Duration::ZERO).await;
        stops += 1;
        seen.extend(a.taken().iter().map(|taken| (taken.event.document.clone(), number(&taken.event))));
        let mut once = seen.clone();
        once.sort();
        once.dedup();
        assert!(seen.len() - once.len() <= stops * concurrency);
        // Without repeated events each document is in order.
        let mut first = std::collections::HashSet::new();
        seen.retain(|one| first.insert(one.clone()));
    }
    for document in 0..9 {
        let numbers: Vec<_> =
            seen.iter().filter(|(d, _)| d.as_str() == format!("d{document}")).map(|(_, n)| *n).collect();
        assert!(is_sorted(&numbers), "{numbers:?}");
    }
    assert!(stops > 5);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_remembered_over_a_restart() {
    let world = World::new();
    for round in 1..=3 {
        let gate = Arc::new(Semaphore::new(1));
        let tried = Arc::clone(&gate);
        let a = Recorder::with(move |_, attempt| {
            assert_eq!(attempt, round);
            tried.try_acquire().map_err(|_| failed())?.forget();
            Err(failed())
        });
        let mut policy = attempts(3);
        policy.retry.initial = Duration::from_secs(3600);
        policy.retry.max = Duration::from_secs(3600);
        let router = world.router_to(TO_A, vec![target("a", &a, policy)]).await;
        if round == 1 {
            world.publish(note("d", 1)).await;
        }
        until(|| gate.available_permits() == 0).await;
        if round == 3 {
            until(|| router.target(&name("a")).unwrap().dead_letters == 1).await;
            let letters = router.dead_letters(&name("a"), None, 1).await.unwrap().dead_letters;
            assert_eq!(letters[0].attempts.len(), 3);
        }
        router.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_log_no_longer_has_is_counted_and_decided_as_lost() {
    let world = World::new();
    let router = world.router(TO_A).await;
    attach(&router, "a", &Recorder::gated(0).0, patient()).await;
    let mut events = Vec::new();
    for n in 1..=3 {
        events.push(world.publish(note("d", n)).await);
    }
    until_queued(&router, "a", 3).await;
    router.stop(Duration::ZERO).await;
    world.log.trim(&events[0].document, Seq::new(2)).await.unwrap();

    let router = world.router(TO_A).await;
    let a = Recorder::new();
    attach(&router, "a", &a, patient()).await;
    assert_eq!(number(&a.wait_for(1).await[0].event), 3);
    let mut lost = lost(&router, 2).await;
    lost.sort_by_key(|record| record.offset);
    for (record, event) in lost.iter().zip(&events) {
        assert_eq!(
            (record.event, record.document.as_ref(), record.offset),
            (Some(event.id), Some(&event.document), event.offset)
        );
        assert_eq!((record.target.as_ref(), record.kind.as_ref()), (Some(&name("a")), None));
    }
    assert_eq!(router.stats().targets["a"].lost, 2);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_event_is_decided_as_lost_and_stops_no_other() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::new();
    attach(&router, "a", &a, patient()).await;
    let mut events = Vec::new();
    for n in 1..=3 {
        events.push(world.publish(note("d", n)).await);
    }
    world.log.damage(&events[1].document, Seq::new(2));
    let taken = a.wait_for(2).await;
    assert_eq!(taken.iter().map(|taken| number(&taken.event)).collect::<Vec<_>>(), [1, 3]);
    let lost = lost(&router, 1).await;
    let document = Some(&events[1].document);
    assert_eq!((lost.len(), lost[0].offset, lost[0].document.as_ref()), (1, events[1].offset, document));
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_time_is_over_is_not_delivered() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::with(
        |event, attempt| {
            if number(event) == 1 && attempt < 3 { Err(failed()) } else { Ok(()) }
        },
    );
    let mut policy = attempts(10);
    policy.retry.initial = Duration::from_secs(10);
    attach(&router, "a", &a, policy).await;
    world.publish(note("d", 1)).await;
    // It waits behind the first one for longer than its TTL.
    world.publish(note("d", 2).ttl(Duration::from_secs(1))).await;
    world.publish(note("d", 3)).await;
    let taken = a.wait_for(2).await;
    assert_eq!(taken.iter().map(|taken| number(&taken.event)).collect::<Vec<_>>(), [1, 3]);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_carries_its_causes_and_goes_round_no_loop() {
    let world = World::new();
    let rules = r#"
        [[rules]]
        name = "first"
        kinds = ["x-note"]
        targets = ["a"]
        continue = true
        [[rules]]
        name = "second"
        kinds = ["x-note"]
        targets = ["b"]
    "#;
    let router = world.router(rules).await;
    let (a, b) = (Recorder::new(), Recorder::new());
    attach(&router, "a", &a, TargetPolicy::default()).await;
    attach(&router, "b", &b, TargetPolicy::default()).await;
    world.publish(note("d", 1)).await;
    let given = Arc::clone(&a.wait_for(1).await[0].event);
    b.wait_for(1).await;
    assert_eq!(chain(&given), "first");
    // A user's event is not kept from the services by metadata that the user sets.
    let mut forged = Metadata::default();
    forged.insert("relay.causes", "first,second").unwrap();
    world.publish(note("forged", 1).metadata(forged)).await;
    let given_forged = Arc::clone(&a.wait_for(2).await[1].event);
    assert_eq!(chain(&given_forged), "first");
    b.wait_for(2).await;
    // The event that this target publishes goes to the other one alone, and that one's event goes nowhere.
    let publish = async |n, service: &str, because: &Event| {
        let draft = note("d", n).actor(by(service)).metadata(because.metadata.clone());
        world.publish_verified(draft).await.unwrap();
    };
    publish(2, "a", &given).await;
    let given = Arc::clone(&b.wait_for(3).await[2].event);
    assert_eq!(chain(&given), "first,second");
    publish(3, "b", &given).await;
    world.publish(note("d", 4)).await;
    a.wait_for(3).await;
    b.wait_for(4).await;
    assert_eq!(a.numbers()["d"], [1, 4]);
    assert_eq!(b.numbers()["d"], [1, 2, 4]);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn no_event_goes_back_to_its_publisher() {
    let world = World::new();
    let router = world.router(TO_A_ELSE_B).await;
    let (a, b) = (Recorder::new(), Recorder::new());
    attach(&router, "a", &a, TargetPolicy::default()).await;
    attach(&router, "b", &b, TargetPolicy::default()).await;
    world.publish(note("d", 1).actor(by("a"))).await;
    world.publish(note("d", 2).actor(by("b"))).await;
    a.wait_for(1).await;
    b.wait_for(1).await;
    assert_eq!((a.numbers()["d"].clone(), b.numbers()["d"].clone()), (vec![2], vec![1]));
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_sends_history_again_marked_while_live_events_go_on() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    world.publish_notes(2, 20).await;
    a.wait_for(20).await;
    let to = name("a");
    let mut request = ReplayRequest::new(ReplayStart::Offset(Offset::new(5)));
    request.document = Some(note("d1", 0).document);
    request.rate = NonZeroU32::MIN;
    let replay = router.replay(&to, request).await.unwrap();
    world.publish(note("d1", 21)).await;
    let taken = a.wait_for(21 + 8).await;
    let replayed: Vec<_> =
        taken.iter().filter(|taken| taken.is_replay).map(|taken| number(&taken.event)).collect();
    assert_eq!(replayed, [5, 7, 9, 11, 13, 15, 17, 19]);
    // At one event a second the live event overtakes them.
    let live = taken.iter().position(|taken| number(&taken.event) == 21).unwrap();
    assert!(live < 24, "{live}");
    until(|| router.replays(&to)[0].state == ReplayState::Finished).await;
    assert_eq!(router.replays(&to)[0].queued, 8);
    assert_eq!(router.replays(&to)[0].id, replay.id);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_sends_what_routing_sends_with_the_same_causes() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    world.publish(note("d", 1)).await;
    // By the target itself, and by another service because of the first event.
    world.publish(note("d", 2).actor(by("a"))).await;
    let given = Arc::clone(&a.wait_for(1).await[0].event);
    world.publish(note("d", 3).actor(by("b")).metadata(given.metadata.clone())).await;
    world.publish(note("d", 4).actor(by("b"))).await;
    a.wait_for(2).await;
    router.replay(&name("a"), ReplayRequest::new(ReplayStart::Offset(Offset::new(1)))).await.unwrap();
    let taken = a.wait_for(4).await;
    assert_eq!(taken.iter().map(|taken| number(&taken.event)).collect::<Vec<_>>(), [1, 4, 1, 4]);
    for pair in [[0, 2], [1, 3]] {
        let [live, replayed] = pair.map(|index| &taken[index].event.metadata);
        assert_eq!(live, replayed);
    }
    until(|| router.replays(&name("a"))[0].state == ReplayState::Finished).await;
    assert_eq!(router.replays(&name("a"))[0].queued, 2);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_from_a_time_begins_with_what_happened_then_and_goes_on_after_a_restart() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    world.publish_notes(1, 10).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let time = world.clock.wall();
    tokio::time::sleep(Duration::from_secs(60)).await;
    for n in 11..=20 {
        world.publish(note("d0", n)).await;
    }
    a.wait_for(20).await;
    let mut request = ReplayRequest::new(ReplayStart::Time(time));
    request.rate = NonZeroU32::MIN;
    router.replay(&name("a"), request).await.unwrap();
    let before = a.wait_for(23).await.len() - 20;
    router.stop(Duration::from_secs(5)).await;
    let before = before.max(a.taken().len() - 20);

    let again = Recorder::new();
    let router = world.router_to(TO_A, vec![target("a", &again, TargetPolicy::default())]).await;
    again.wait_for(10 - before).await;
    let all = a.taken().into_iter().skip(20).chain(again.taken());
    let numbers: Vec<_> = all.map(|taken| (taken.is_replay, number(&taken.event))).collect();
    assert_eq!(numbers, (11..=20).map(|n| (true, n)).collect::<Vec<_>>());
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn waiting_events_of_a_removed_rule_are_still_delivered() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let (a, _) = Recorder::gated(0);
    attach(&router, "a", &a, patient()).await;
    world.publish_notes(1, 10).await;
    until_queued(&router, "a", 10).await;
    let rules = relay_router::rules::RuleDocument {
        text: String::new(),
        format: relay_router::rules::RuleFormat::Toml,
    };
    let version = router.rules().version;
    assert_eq!(router.put_rules(rules.clone(), Some(version)).await.unwrap().version, version + 1);
    assert!(router.put_rules(rules, Some(version)).await.is_err());
    world.publish(note("d0", 11)).await;
    router.stop(Duration::ZERO).await;

    let a = Recorder::new();
    let router = world.router_to(TO_A, vec![target("a", &a, patient())]).await;
    assert_eq!(router.rules().version, version + 1);
    a.wait_for(10).await;
    until_queued(&router, "a", 0).await;
    assert_eq!(a.numbers()["d0"], (1..=10).collect::<Vec<_>>());
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_route_is_left_behind_by_itself_and_catches_up() {
    let world = World::new();
    let rules = r#"
        [[rules]]
        name = "slow"
        kinds = ["x-note"]
        targets = ["a"]
        continue = true
        [[rules]]
        name = "fast"
        kinds = ["x-note"]
        targets = ["b"]
    "#;
    let mut config = world.config(rules);
    config.max_queued = 10;
    let router = world.router_with(config.clone()).await;
    let ((a, gate), b) = (Recorder::gated(0), Recorder::new());
    attach(&router, "a", &a, patient()).await;
    attach(&router, "b", &b, patient()).await;
    world.publish_notes(5, 1_000).await;
    b.wait_for(1_000).await;
    assert!(a.taken().is_empty());
    // Most of them wait on disk alone.
    assert_eq!(router.target(&name("a")).unwrap().queued, 1_000);
    gate.add_permits(300);
    a.wait_for(300).await;
    until_queued(&router, "a", 700).await;
    router.stop(Duration::ZERO).await;

    let (rest, gate) = Recorder::gated(0);
    config.targets = vec![target("a", &rest, patient()), target("b", &b, patient())];
    let router = world.router_with(config).await;
    assert_eq!(router.target(&name("a")).unwrap().queued, 700);
    gate.add_permits(700);
    rest.wait_for(700).await;
    let mut numbers: Vec<_> =
        a.taken().iter().chain(&rest.taken()).map(|taken| number(&taken.event)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (1..=1_000).collect::<Vec<_>>());
    assert!(rest.numbers().values().all(|numbers| is_sorted(numbers)));
    assert_eq!(b.taken().len(), 1_000);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_gets_no_request_before_its_retry_after() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let clock = Arc::clone(&world.clock);
    let begun = clock.monotonic();
    let a = Recorder::with(move |_, _| {
        if clock.monotonic() < begun + Duration::from_secs(100) {
            Err(DeliveryError::new(FailureKind::Retry, "busy")
                .status(429)
                .retry_after(Duration::from_secs(100)))
        } else {
            Ok(())
        }
    });
    // One attempt too many would be one dead letter.
    attach(&router, "a", &a, attempts(2)).await;
    world.publish(note("d", 1)).await;
    a.wait_for(1).await;
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_gets_no_more_at_once_and_no_more_a_second_than_it_takes() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let (a, gate) = Recorder::gated(0);
    let mut policy = patient();
    policy.concurrency = NonZeroUsize::new(3).unwrap();
    policy.rate = NonZeroU32::new(10);
    attach(&router, "a", &a, policy).await;
    world.publish_notes(50, 50).await;
    until_queued(&router, "a", 50).await;
    assert_eq!(router.target(&name("a")).unwrap().in_flight, 3);
    let begun = world.clock.monotonic();
    gate.add_permits(50);
    a.wait_for(50).await;
    // Ten at once, and then ten a second.
    assert!(world.clock.monotonic() >= begun + Duration::from_secs(3));
    router.stop(Duration::from_secs(5)).await;
}
