//! Failures beside the target's own: of the log for a while, of a target that asks for much time, and restarts after a dead letter.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use relay_core::testing::MemoryLog;
use relay_core::{Delivery, DeliveryError, Event, FailureKind, LogError, Offset, Seq, Target};
use relay_events::ServiceState;
use relay_router::decisions::{DecisionFilter, Outcome};
use relay_router::rules::{RuleDocument, RuleFormat, TargetPolicy};
use relay_router::target::InProcessTarget;
use relay_router::{ReplayRequest, ReplayStart};
use tokio::sync::Notify;

use crate::support::{
    Recorder, TO_A, World, attach, decisions, failed, lost, name, note, number, patient, refused,
    router_without_cache, target, until, until_one_under_way, until_queued,
};

const TO_A_ELSE_B: &str = r#"
    [[rules]]
    name = "notes"
    kinds = ["x-note"]
    targets = ["a"]
    fallback = ["b"]
"#;

#[tokio::test(start_paused = true)]
async fn an_event_that_the_log_cannot_read_for_a_while_is_delivered_later() {
    let world = World::new();
    let (router, a, gate) = router_without_cache(&world, 3).await;
    world.log.fail_reads(Some(LogError::Corrupt { detail: "the disk is on fire".to_owned() }));
    world.publish(note("d0", 4)).await;
    gate.add_permits(4);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((a.taken().len(), router.stats().targets["a"].lost), (1, 0));
    world.log.fail_reads(None);
    a.wait_for(4).await;
    assert_eq!(a.numbers()["d0"], [1, 2, 3, 4]);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_not_delivered_after_a_restart() {
    let world = World::new();
    let a = Recorder::with(|_, _| Err(refused()));
    let router = world.router_to(TO_A, vec![target("a", &a, patient())]).await;
    world.publish(note("d", 1)).await;
    until(|| router.target(&name("a")).is_some_and(|a| a.dead_letters == 1)).await;
    router.stop(Duration::from_secs(5)).await;

    let a = Recorder::new();
    let router = world.router_to(TO_A, vec![target("a", &a, patient())]).await;
    assert_eq!(router.target(&name("a")).map(|a| (a.queued, a.dead_letters)), Some((0, 1)));
    world.publish(note("d", 2)).await;
    assert_eq!(number(&a.wait_for(1).await[0].event), 2);
    router.stop(Duration::from_secs(5)).await;
}

fn busy(retry_after: Duration) -> DeliveryError {
    DeliveryError::new(FailureKind::Retry, "busy").status(429).retry_after(retry_after)
}

#[tokio::test(start_paused = true)]
async fn a_target_that_asks_for_years_is_asked_again_after_an_hour() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let (hour, years) = (Duration::from_secs(60 * 60), Duration::from_secs(60 * 60 * 24 * 365 * 10));
    let a = Recorder::with(move |_, attempt| if attempt == 1 { Err(busy(years)) } else { Ok(()) });
    attach(&router, "a", &a, TargetPolicy::default()).await;
    let begun = world.clock.monotonic();
    world.publish(note("d", 1)).await;
    a.wait_for(1).await;
    let waited = world.clock.monotonic().since(begun);
    assert!(waited >= hour && waited < 2 * hour, "{waited:?}");
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_does_not_wait_for_a_busy_target_when_another_one_works() {
    let world = World::new();
    let router = world.router(TO_A_ELSE_B).await;
    let hour = Duration::from_secs(60 * 60);
    let (a, b) = (Recorder::with(move |_, _| Err(busy(hour))), Recorder::new());
    attach(&router, "a", &a, TargetPolicy::default()).await;
    attach(&router, "b", &b, TargetPolicy::default()).await;
    let begun = world.clock.monotonic();
    world.publish(note("d", 1)).await;
    b.wait_for(1).await;
    assert!(world.clock.monotonic().since(begun) < hour);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_lost_holds_the_log_no_longer() {
    let world = World::new();
    let rules = r#"rules = [{ name = "notes", kinds = ["x-note"], targets = ["gone"] }]"#;
    let mut config = world.config(TO_A);
    config.rules = toml(rules);
    let (gone, _) = Recorder::gated(0);
    config.targets = vec![target("gone", &gone, patient())];
    let router = world.router_with(config.clone()).await;
    world.publish_notes(2, 5).await;
    until_queued(&router, "gone", 5).await;
    until(|| world.log.held_after() == Some(Offset::ZERO)).await;
    router.stop(Duration::ZERO).await;

    let a = Recorder::new();
    config.rules = toml(r#"rules = [{ name = "others", kinds = ["x-other"], targets = ["a"] }]"#);
    config.targets = vec![target("a", &a, patient())];
    let router = world.router_with(config.clone()).await;
    lost(&router, 5).await;
    until(|| world.log.held_after() >= Some(Offset::new(5))).await;
    router.stop(Duration::from_secs(5)).await;

    // It is not delivered either when its rule and target return.
    let back = Recorder::new();
    config.rules = toml(rules);
    config.targets = vec![target("gone", &back, patient())];
    let router = world.router_with(config).await;
    assert_eq!(router.target(&name("gone")).unwrap().queued, 0);
    world.publish(note("d0", 6)).await;
    assert_eq!(number(&back.wait_for(1).await[0].event), 6);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_after_a_time_without_any_gets_what_happens_from_then_on() {
    let world = World::new();
    let a = Recorder::new();
    let router = world.router_to(TO_A, vec![target("a", &a, patient())]).await;
    world.publish(note("d", 1)).await;
    a.wait_for(1).await;
    until(|| router.stats().behind == 0 && router.target(&name("a")).unwrap().queued == 0).await;
    router.stop(Duration::from_secs(5)).await;
    let router = world.router(TO_A).await;
    until(|| world.log.held_after().is_none()).await;
    world.publish(note("d", 2)).await;
    router.stop(Duration::from_secs(5)).await;

    let a = Recorder::new();
    let router = world.router_to(TO_A, vec![target("a", &a, patient())]).await;
    world.publish(note("d", 3)).await;
    assert_eq!(number(&a.wait_for(1).await[0].event), 3);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn the_next_attempt_goes_to_another_target_and_each_is_decided() {
    let world = World::new();
    let router = world.router(TO_A_ELSE_B).await;
    let (a, b) = (Recorder::with(|_, _| Err(failed())), Recorder::new());
    let mut policy = TargetPolicy::default();
    policy.retry.max_attempts = NonZeroU32::MIN.saturating_add(1);
    attach(&router, "a", &a, policy).await;
    attach(&router, "b", &b, TargetPolicy::default()).await;
    let event = world.publish(note("d", 1)).await;
    b.wait_for(1).await;
    router.replay(&name("b"), ReplayRequest::new(ReplayStart::Offset(Offset::new(1)))).await.unwrap();
    b.wait_for(2).await;
    let mut filter = DecisionFilter::default();
    filter.event = Some(event.id);
    let mut decisions = decisions(&router, filter, 3).await;
    decisions.reverse();
    let target_of = |target: &str| Some(name(target));
    let decided: Vec<_> = decisions
        .iter()
        .map(|one| {
            (one.outcome, one.target.clone(), one.fallback, one.replay, one.attempt, one.error.is_some())
        })
        .collect();
    assert_eq!(
        decided,
        [
            (Outcome::Retrying, target_of("a"), false, false, 1, true),
            (Outcome::Delivered, target_of("b"), true, false, 2, false),
            (Outcome::Delivered, target_of("b"), false, true, 1, false),
        ]
    );
    assert!(decisions.iter().all(|one| one.rule.as_deref() == Some("notes") && one.verdicts.len() == 1));
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_waits_for_a_target_that_is_full_and_goes_to_no_fallback() {
    let world = World::new();
    let router = world.router(TO_A_ELSE_B).await;
    let ((a, gate), b) = (Recorder::gated(0), Recorder::new());
    let mut policy = patient();
    policy.concurrency = NonZeroUsize::MIN;
    attach(&router, "a", &a, policy).await;
    attach(&router, "b", &b, patient()).await;
    world.publish_notes(3, 3).await;
    until_one_under_way(&router, "a", 3).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    gate.add_permits(3);
    a.wait_for(3).await;
    assert!(b.taken().is_empty());
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_gone_is_asked_once_and_not_before_it_registers_again() {
    let world = World::new();
    let router = world.router(TO_A_ELSE_B).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let gone = move |_: &Event, _| {
        count.fetch_add(1, Ordering::SeqCst);
        Err(DeliveryError::new(FailureKind::Gone, "moved").status(410))
    };
    let (a, b) = (Recorder::with(gone), Recorder::new());
    attach(&router, "a", &a, TargetPolicy::default()).await;
    attach(&router, "b", &b, TargetPolicy::default()).await;
    for n in 1..=10 {
        world.publish(note("d", n)).await;
        b.wait_for(n).await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let a = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    world.publish(note("d", 11)).await;
    a.wait_for(1).await;
    router.stop(Duration::from_secs(5)).await;
}

/// A target that counts its requests, and answers none before it is released.
#[derive(Default)]
struct Counting {
    requests: AtomicUsize,
    released: Notify,
}

#[async_trait]
impl Target for Counting {
    async fn deliver(&self, _: Delivery) -> Result<(), DeliveryError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        self.released.notified().await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_replaced_keeps_the_places_of_its_requests_under_way() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Arc::new(Counting::default());
    let mut policy = patient();
    policy.concurrency = NonZeroUsize::MIN;
    let target = || InProcessTarget::new(name("a"), Arc::clone(&a) as Arc<dyn Target>).policy(policy.clone());
    router.attach(target()).await.unwrap();
    world.publish_notes(3, 3).await;
    until_one_under_way(&router, "a", 3).await;
    router.attach(target()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    for answered in 1..=3 {
        assert_eq!(a.requests.load(Ordering::SeqCst), answered, "one request at a time");
        a.released.notify_one();
        until_queued(&router, "a", 3 - answered).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_refuses_events_works() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::with(|event, _| if number(event) <= 30 { Err(refused()) } else { Ok(()) });
    let policy = TargetPolicy::default();
    let open_for = policy.breaker.open_for;
    attach(&router, "a", &a, policy).await;
    let begun = world.clock.monotonic();
    world.publish_notes(30, 31).await;
    a.wait_for(1).await;
    until(|| router.target(&name("a")).unwrap().dead_letters == 30).await;
    assert!(world.clock.monotonic().since(begun) < open_for, "the breaker was open");
    assert_eq!(router.target(&name("a")).unwrap().state, ServiceState::Healthy);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_damaged_while_it_waits_is_lost() {
    let world = World::new();
    let (router, a, gate) = router_without_cache(&world, 3).await;
    world.log.damage(&note("d0", 2).document, Seq::new(2));
    gate.add_permits(3);
    a.wait_for(2).await;
    assert_eq!(a.numbers()["d0"], [1, 3]);
    lost(&router, 1).await;
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_decides_a_damaged_event_as_lost() {
    let world = World::new();
    let router = world.router(r#"rules = [{ name = "all", documents = ["d0"], targets = ["a"] }]"#).await;
    let a = Recorder::new();
    attach(&router, "a", &a, patient()).await;
    world.publish_notes(1, 3).await;
    let offset = a.wait_for(3).await[1].event.offset;
    world.log.damage(&note("d0", 2).document, Seq::new(2));
    router.replay(&name("a"), ReplayRequest::new(ReplayStart::Offset(Offset::new(1)))).await.unwrap();
    a.wait_for(5).await;
    assert_eq!(a.numbers()["d0"], [1, 2, 3, 1, 3]);
    let lost = lost(&router, 1).await;
    let decided = (lost[0].replay, lost[0].rule.as_deref(), lost[0].offset);
    assert_eq!((lost.len(), decided), (1, (true, Some("all"), offset)));
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_place_in_the_log_another_one_has_is_lost() {
    let mut world = World::new();
    let mut config = world.config(TO_A);
    config.max_queued = 4;
    config.targets = vec![target("a", &Recorder::gated(0).0, patient())];
    let router = world.router_with(config.clone()).await;
    world.publish_notes(2, 10).await;
    until_queued(&router, "a", 10).await;
    router.stop(Duration::ZERO).await;

    // A crash of the machine took the end of the log, and others were published since.
    world.log = MemoryLog::new();
    world.publish_notes(2, 10).await;
    let a = Recorder::new();
    config.targets = vec![target("a", &a, patient())];
    let router = world.router_with(config).await;
    lost(&router, 10).await;
    world.publish(note("d0", 11)).await;
    a.wait_for(1).await;
    assert_eq!((a.taken().len(), a.numbers()["d0"].as_slice()), (1, &[11][..]));
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_does_not_answer_in_time_has_failed() {
    let world = World::new();
    let router = world.router(TO_A).await;
    let (a, _) = Recorder::gated(0);
    let mut policy = TargetPolicy::default();
    policy.timeout = Duration::from_secs(1);
    policy.retry.max_attempts = NonZeroU32::MIN;
    attach(&router, "a", &a, policy).await;
    let begun = world.clock.monotonic();
    world.publish(note("d", 1)).await;
    until(|| router.target(&name("a")).unwrap().dead_letters == 1).await;
    assert!(world.clock.monotonic().since(begun) < Duration::from_secs(10));
    router.stop(Duration::from_secs(5)).await;
}

fn toml(text: &str) -> RuleDocument {
    RuleDocument { text: text.to_owned(), format: RuleFormat::Toml }
}
