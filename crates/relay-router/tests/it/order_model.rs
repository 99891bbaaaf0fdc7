//! The order of a document at each target, whatever rules lead there and whatever fails: its events come in their order.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use proptest::prelude::*;
use relay_core::{DocumentId, Draft, Offset, Payload};
use relay_router::rules::TargetPolicy;

use crate::support::{Recorder, World, failed, name, target, until};

const TARGETS: [&str; 3] = ["a", "b", "c"];

/// A rule for some of the kinds `x-0` to `x-3`, with targets by index.
#[derive(Debug, Clone)]
struct RuleCase {
    kinds: Vec<usize>,
    targets: Vec<usize>,
    fallback: Vec<usize>,
    strategy: &'static str,
}

#[derive(Debug, Clone)]
struct Case {
    rules: Vec<RuleCase>,
    /// The kind and the document of each event.
    events: Vec<(usize, usize)>,
    /// One attempt in so many fails.
    failure: u64,
    max_queued: usize,
    batch: usize,
}

fn some_of(count: usize, at_least: usize) -> impl Strategy<Value = Vec<usize>> {
    proptest::sample::subsequence((0..count).collect::<Vec<_>>(), at_least..=count)
}

fn cases() -> impl Strategy<Value = Case> {
    let strategy = proptest::sample::select(vec![
        "first_healthy",
        "all",
        "round_robin",
        "least_outstanding",
        "consistent_hash",
    ]);
    let rule = (some_of(4, 1), some_of(3, 1), some_of(3, 0), strategy)
        .prop_map(|(kinds, targets, fallback, strategy)| RuleCase { kinds, targets, fallback, strategy });
    (
        proptest::collection::vec(rule, 2..5),
        proptest::collection::vec((0..4_usize, 0..2_usize), 1..60),
        2..6_u64,
        prop_oneof![Just(3_usize), Just(1_000)],
        1..4_usize,
    )
        .prop_map(|(rules, events, failure, max_queued, batch)| Case {
            rules,
            events,
            failure,
            max_queued,
            batch,
        })
}

fn document_text(rules: &[RuleCase]) -> String {
    let list = |names: Vec<String>| format!("{names:?}");
    let targets = |indexes: &[usize]| list(indexes.iter().map(|at| TARGETS[*at].to_owned()).collect());
    let rule = |(number, rule): (usize, &RuleCase)| {
        format!(
            "[[rules]]\nname = \"r{number}\"\nkinds = {}\ntargets = {}\nfallback = {}\nstrategy = {:?}\ncontinue = true\n",
            list(rule.kinds.iter().map(|kind| format!("x-{kind}")).collect()),
            targets(&rule.targets),
            targets(&rule.fallback),
            rule.strategy,
        )
    };
    rules.iter().enumerate().map(rule).collect()
}

async fn run(case: Case) {
    let world = World::new();
    let mut policy = TargetPolicy::default();
    policy.retry.max_attempts = std::num::NonZeroU32::MAX;
    policy.retry.initial = Duration::from_millis(20);
    policy.retry.max = Duration::from_millis(100);
    policy.breaker.open_for = Duration::from_millis(50);
    policy.batch_size = NonZeroUsize::new(case.batch).unwrap();
    let failure = case.failure;
    let recorders = TARGETS.map(|_| {
        Recorder::with(move |event, attempt| {
            let offset = event.offset.unwrap().get();
            let chance = (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) ^ u64::from(attempt);
            if chance.is_multiple_of(failure) { Err(failed()) } else { Ok(()) }
        })
    });
    let mut config = world.config(&document_text(&case.rules));
    config.max_queued = case.max_queued;
    config.health.eject_after = u32::MAX;
    config.targets = TARGETS
        .iter()
        .zip(&recorders)
        .map(|(name, recorder)| target(name, recorder, policy.clone()))
        .collect();
    let router = world.router_with(config).await;
    for (kind, document) in &case.events {
        let document = DocumentId::new(format!("d{document}")).unwrap();
        let kind = relay_events::kind(&format!("x-{kind}")).unwrap();
        world.publish(Draft::new(document, kind, Payload::json(&1).unwrap())).await;
    }
    until(|| router.stats().behind == 0).await;
    until(|| TARGETS.iter().all(|to| router.target(&name(to)).is_some_and(|to| to.queued == 0))).await;
    for (to, recorder) in TARGETS.iter().zip(&recorders) {
        let mut by_document: HashMap<DocumentId, Vec<Offset>> = HashMap::new();
        for taken in recorder.taken() {
            by_document.entry(taken.event.document.clone()).or_default().push(taken.event.offset.unwrap());
        }
        for (document, offsets) in by_document {
            assert!(offsets.is_sorted(), "{to} gets {offsets:?} of {document} by {case:?}");
        }
    }
    router.stop(Duration::from_secs(5)).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn each_target_gets_the_events_of_a_document_in_order(case in cases()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(case));
    }
}
