//! Panics of the router's tasks while their changes are being committed.

use std::num::NonZeroU32;
use std::time::Duration;

use relay_core::Offset;
use relay_router::{ReplayRequest, ReplayStart, Router};
use relay_tasks::TaskName;

use crate::support::{
    Recorder, TO_A, World, attach, name, note, number, patient, refused, target, until, until_queued,
};

const DISPATCHER: TaskName = TaskName::new("router.dispatcher");
/// An operator's request of a test.
const REQUEST: TaskName = TaskName::new("test.request");
const OPERATION: TaskName = TaskName::new("router.operation");
const REPLAY: TaskName = TaskName::new("router.replay");

fn queued(router: &Router) -> usize {
    router.target(&name("a")).unwrap().queued
}

/// Ends a task by a panic as soon as more than `before` events wait or are being committed.
async fn kill_during_commit(world: &World, router: &Router, task: TaskName, before: usize) {
    while queued(router) <= before {
        for _ in 0..100 {
            if queued(router) > before {
                break;
            }
            tokio::task::yield_now().await;
        }
        // A task that has panicked starts again after a pause, which passes while all tasks wait.
        if queued(router) <= before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    world.supervisor.kill(task);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_dispatcher_counts_no_event_twice_and_loses_none() {
    const EVENTS: usize = 20;
    let world = World::new();
    let (a, gate) = Recorder::gated(0);
    let mut config = world.config(TO_A);
    config.targets = vec![target("a", &a, patient())];
    // Most of the events wait in the store alone.
    config.max_queued = 2;
    config.max_waiting = EVENTS;
    let router = world.router_with(config).await;
    for n in 1..=EVENTS {
        world.publish(note("d", n)).await;
        kill_during_commit(&world, &router, DISPATCHER, n - 1).await;
        until(|| router.stats().behind == 0).await;
        until_queued(&router, "a", n).await;
    }
    gate.add_permits(EVENTS);
    a.wait_for(EVENTS).await;
    until_queued(&router, "a", 0).await;
    assert_eq!(a.numbers()["d"], (1..=EVENTS).collect::<Vec<_>>());
    assert_eq!(router.stats().targets["a"].lost, 0);
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_replay_leaves_out_none_of_its_events() {
    const EVENTS: usize = 5;
    let world = World::new();
    let router = world.router(TO_A).await;
    let a = Recorder::new();
    attach(&router, "a", &a, patient()).await;
    world.publish_notes(1, EVENTS).await;
    a.wait_for(EVENTS).await;
    until_queued(&router, "a", 0).await;

    let (a, gate) = Recorder::gated(0);
    attach(&router, "a", &a, patient()).await;
    let mut request = ReplayRequest::new(ReplayStart::Offset(Offset::new(1)));
    request.rate = NonZeroU32::new(1_000).unwrap();
    router.replay(&name("a"), request).await.unwrap();
    for before in 0..EVENTS {
        kill_during_commit(&world, &router, REPLAY, before).await;
    }
    until_queued(&router, "a", EVENTS).await;
    gate.add_permits(EVENTS);
    let taken = a.wait_for(EVENTS).await;
    assert_eq!(taken.iter().map(|taken| number(&taken.event)).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    until_queued(&router, "a", 0).await;
    router.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn dead_letters_whose_retry_panics_during_its_commit_are_delivered_in_this_run() {
    const EVENTS: usize = 10;
    let world = World::new();
    let router = world.router(TO_A).await;
    attach(&router, "a", &Recorder::with(|_, _| Err(refused())), patient()).await;
    world.publish_notes(1, EVENTS).await;
    until(|| router.target(&name("a")).unwrap().dead_letters == EVENTS).await;
    until_queued(&router, "a", 0).await;

    let (a, gate) = Recorder::gated(0);
    attach(&router, "a", &a, patient()).await;
    // Each retry of one of them is ended while it is being committed, unless it is too fast for that.
    while let Some(letter) = router.dead_letters(&name("a"), None, 1).await.unwrap().dead_letters.pop() {
        let (retried, before) = (router.clone(), queued(&router));
        let retry = world.supervisor.group().spawn(REQUEST, async move {
            let retried = retried.retry_dead_letter(&name("a"), letter.id).await;
            drop(retried);
        });
        while queued(&router) == before && !retry.is_finished() {
            tokio::task::yield_now().await;
        }
        if !retry.is_finished() {
            world.supervisor.kill(OPERATION);
        }
        // The caller has the panic as well.
        let _panicked = retry.await;
    }
    gate.add_permits(EVENTS);
    a.wait_for(EVENTS).await;
    assert_eq!(router.target(&name("a")).unwrap().dead_letters, 0);
    router.stop(Duration::from_secs(5)).await;
}
