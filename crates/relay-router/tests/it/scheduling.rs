//! The choice of the next event among many documents.

use std::num::NonZeroU32;
use std::time::Duration;

use relay_core::{DocumentId, Draft, Payload};
use relay_router::rules::TargetPolicy;

use crate::support::{Recorder, World, failed, name, note, number, target, until};

/// Two rules that lead to target `a`. The events of a document wait for each other.
const RULES: &str = r#"
    [[rules]]
    name = "first"
    kinds = ["x-first"]
    targets = ["a"]

    [[rules]]
    name = "notes"
    kinds = ["x-note"]
    targets = ["a"]
"#;

fn first(document: &str) -> Draft {
    let kind = relay_events::kind("x-first").unwrap();
    Draft::new(
        DocumentId::new(document).unwrap(),
        kind,
        Payload::json(&serde_json::json!({ "n": 0 })).unwrap(),
    )
}

#[tokio::test(start_paused = true)]
async fn documents_that_wait_for_a_failed_event_delay_no_other() {
    const WAITING: usize = 600;
    let world = World::new();
    let hour = Duration::from_secs(60 * 60);
    let mut policy = TargetPolicy::default();
    (policy.retry.initial, policy.retry.max) = (hour, hour);
    policy.breaker.failures = NonZeroU32::new(1_000).unwrap();
    let a = Recorder::with(|event, _| if number(event) == 0 { Err(failed()) } else { Ok(()) });
    let mut config = world.config(RULES);
    config.health.eject_after = u32::MAX;
    config.targets = vec![target("a", &a, policy)];
    let router = world.router_with(config).await;
    for n in 1..=WAITING {
        world.publish(first(&format!("d{n}"))).await;
    }
    until(|| router.stats().targets.get("a").is_some_and(|a| a.retries >= WAITING as u64)).await;
    // Each waits for the failed event of its document.
    for n in 1..=WAITING {
        world.publish(note(&format!("d{n}"), n)).await;
    }
    until(|| router.target(&name("a")).is_some_and(|a| a.queued == 2 * WAITING)).await;
    let begun = world.clock.monotonic();
    world.publish(note("other", WAITING + 1)).await;
    let taken = a.wait_for(1).await;
    assert_eq!(taken[0].event.document.as_str(), "other");
    assert!(world.clock.monotonic().since(begun) < hour / 4);
    router.stop(Duration::from_secs(5)).await;
}
