//! A log that returns an event without its offset. Each reader of the log reads the page again, and loses no event.

use std::time::Duration;

use relay_core::Offset;
use relay_router::rules::TargetPolicy;
use relay_router::{ReplayRequest, ReplayStart};

use crate::support::{Recorder, Taken, World, attach, name, note, number, patient};

const TO_A_AND_B: &str = r#"
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

fn numbers(taken: &[Taken]) -> Vec<usize> {
    taken.iter().map(|taken| number(&taken.event)).collect()
}

#[tokio::test(start_paused = true)]
async fn the_dispatcher_passes_over_no_event() {
    let world = World::new();
    let router = world.router(TO_A_AND_B).await;
    let a = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    let first = world.publish(note("d", 1)).await.offset.unwrap();
    world.log.omit_offset_once(Offset::new(first.get() + 1));
    world.publish(note("d", 2)).await;
    world.publish(note("d", 3)).await;
    assert_eq!(numbers(&a.wait_for(2).await)[..2], [1, 2]);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_route_that_catches_up_passes_over_no_event() {
    let world = World::new();
    let mut config = world.config(TO_A_AND_B);
    config.max_queued = 10;
    let router = world.router_with(config).await;
    let ((a, gate), b) = (Recorder::gated(0), Recorder::new());
    attach(&router, "a", &a, patient()).await;
    attach(&router, "b", &b, patient()).await;
    world.publish_notes(1, 400).await;
    let taken = b.wait_for(400).await;
    // Its route has one page of the log beyond the limit at most.
    world.log.omit_offset_once(taken[349].event.offset.unwrap());
    gate.add_permits(400);
    assert_eq!(numbers(&a.wait_for(399).await)[..399], (1..=399).collect::<Vec<_>>());
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_passes_over_no_event() {
    let world = World::new();
    let router = world.router(TO_A_AND_B).await;
    let a = Recorder::new();
    attach(&router, "a", &a, TargetPolicy::default()).await;
    world.publish_notes(1, 20).await;
    let taken = a.wait_for(20).await;
    world.log.omit_offset_once(taken[9].event.offset.unwrap());
    let request = ReplayRequest::new(ReplayStart::Offset(Offset::new(1)));
    router.replay(&name("a"), request).await.unwrap();
    let replayed = a.wait_for(39).await.split_off(20);
    assert_eq!(numbers(&replayed)[..19], (1..=19).collect::<Vec<_>>());
    router.stop(Duration::from_secs(5)).await;
}
