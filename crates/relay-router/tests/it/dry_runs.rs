//! A dry run changes nothing: no counter, no breaker, and no target's turn.

use std::time::Duration;

use crate::support::{Recorder, World, attach, failed, name, note, number, until};
use relay_core::{Epoch, Event, Offset, Seq, Timestamp};
use relay_router::Router;
use relay_router::decisions::DecisionLogStats;
use relay_router::rules::{Rule, RuleDocument, RuleFormat, TargetPolicy};
use serde_json::Value;

const RULES: &str = r#"
    [[rules]]
    name = "all"
    documents = ["all"]
    targets = ["a", "b", "c"]
    strategy = "all"
    [[rules]]
    name = "fails"
    kinds = ["x-note"]
    when = "event.payload.missing == 1"
    targets = ["a"]
    [[rules]]
    name = "turns"
    kinds = ["x-note"]
    targets = ["a", "b", "c"]
    strategy = "round_robin"
    continue = true
    [[rules]]
    name = "broken"
    kinds = ["x-note"]
    targets = ["broken"]
"#;

fn event() -> Event {
    let mut event = note("d", 0).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
    event.offset = Some(Offset::new(1));
    event
}

/// Everything that a dry run could change and that can be seen.
fn seen(router: &Router) -> (Value, Value, u64) {
    let mut stats = router.stats();
    // The decision log counts on a thread of its own.
    stats.decision_log = DecisionLogStats::default();
    let errors = router.rules().set.rules().iter().map(Rule::condition_errors).sum();
    (serde_json::to_value(stats).unwrap(), serde_json::to_value(router.targets()).unwrap(), errors)
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_changes_no_counter_no_breaker_and_nobodys_turn() {
    let world = World::new();
    let router = world.router(RULES).await;
    let targets = ["a", "b", "c"].map(|target| (target, Recorder::new()));
    for (target, recorder) in &targets {
        attach(&router, target, recorder, TargetPolicy::default()).await;
    }
    let broken = Recorder::with(|_, _| Err(failed()));
    let mut policy = TargetPolicy::default();
    policy.breaker.failures = std::num::NonZeroU32::MIN;
    policy.breaker.open_for = Duration::from_secs(1);
    // The paused clock runs on while the store writes: the retry must not come.
    policy.retry.initial = Duration::from_secs(60 * 60 * 24 * 365 * 10);
    policy.retry.max = policy.retry.initial;
    attach(&router, "broken", &broken, policy).await;

    world.publish(note("all", 0)).await;
    for (_, recorder) in &targets {
        recorder.wait_for(1).await;
    }
    world.publish(note("d", 1)).await;
    targets[0].1.wait_for(2).await;
    // The breaker opens, and after its time lets one request through.
    until(|| router.stats().targets["broken"].retries == 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    let before = seen(&router);
    assert_eq!(before.2, 1);
    let other = RuleDocument { text: RULES.replace("fails", "others"), format: RuleFormat::Toml };
    for rules in [None, Some(&other)].into_iter().cycle().take(20) {
        let run = router.dry_run(&event(), rules).unwrap();
        let chosen: Vec<_> = run.routes.iter().map(|route| route.target.clone()).collect();
        assert_eq!(chosen, [Some(name("a")), Some(name("broken"))]);
    }
    assert_eq!(seen(&router), before);
    assert_eq!(router.rules().document.text, RULES);

    // The turns go on where they were.
    for (n, (_, recorder)) in (2..).zip([&targets[1], &targets[2], &targets[0]]) {
        let taken = recorder.taken().len();
        world.publish(note("e", n)).await;
        assert_eq!(number(&recorder.wait_for(taken + 1).await[taken].event), n);
    }
    router.stop(Duration::from_secs(5)).await;
}
