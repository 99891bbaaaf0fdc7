//! No set of rules makes events circulate without end: services that answer each event with another one come to an end
//! under any rules.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{World, by, chain, name, note, until};
use async_trait::async_trait;
use parking_lot::Mutex;
use proptest::prelude::*;
use relay_core::{Delivery, DeliveryError, Draft, Event, Metadata, Target};
use relay_router::rules::TargetPolicy;
use relay_router::target::InProcessTarget;

const KINDS: [&str; 3] = ["x-a", "x-b", "x-c"];
const TARGETS: [&str; 2] = ["one", "two"];

/// A rule, with its kinds and targets by number.
#[derive(Debug, Clone)]
struct Generated {
    kinds: BTreeSet<usize>,
    targets: BTreeSet<usize>,
    is_all: bool,
    goes_on: bool,
}

fn generated() -> impl Strategy<Value = Generated> {
    let kinds = prop::collection::btree_set(0..KINDS.len(), 1..=KINDS.len());
    let targets = prop::collection::btree_set(0..TARGETS.len(), 1..=TARGETS.len());
    (kinds, targets, any::<bool>(), any::<bool>()).prop_map(|(kinds, targets, is_all, goes_on)| Generated {
        kinds,
        targets,
        is_all,
        goes_on,
    })
}

fn document(rules: &[Generated]) -> String {
    let mut text = String::new();
    for (number, rule) in rules.iter().enumerate() {
        let kinds: Vec<_> = rule.kinds.iter().map(|kind| KINDS[*kind]).collect();
        let targets: Vec<_> = rule.targets.iter().map(|target| TARGETS[*target]).collect();
        let strategy = if rule.is_all { "all" } else { "round_robin" };
        writeln!(
            text,
            "[[rules]]\nname = \"rule-{number}\"\nkinds = {kinds:?}\ntargets = {targets:?}\nstrategy = \"{strategy}\"\ncontinue = {}",
            rule.goes_on
        )
        .unwrap();
    }
    text
}

/// A target that answers each event with one of the next kind, and copies its metadata.
struct Answering {
    name: &'static str,
    world: Arc<World>,
    taken: Arc<Mutex<Vec<Arc<Event>>>>,
}

#[async_trait]
impl Target for Answering {
    async fn deliver(&self, delivery: Delivery) -> Result<(), DeliveryError> {
        for event in &delivery.events {
            self.taken.lock().push(Arc::clone(event));
            let next = KINDS.iter().position(|kind| *kind == event.kind.as_str()).unwrap() + 1;
            let answer = of_kind(next % KINDS.len()).actor(by(self.name)).metadata(event.metadata.clone());
            self.world.publish_verified(answer).await.unwrap();
        }
        Ok(())
    }
}

fn of_kind(kind: usize) -> Draft {
    let Draft { document, payload, .. } = note("d", 0);
    Draft::new(document, relay_events::kind(KINDS[kind]).unwrap(), payload)
}

async fn comes_to_an_end(rules: Vec<Generated>, first: usize) {
    let world = Arc::new(World::new());
    let taken = Arc::new(Mutex::new(Vec::new()));
    let targets = TARGETS.map(|target| {
        let answering = Answering { name: target, world: Arc::clone(&world), taken: Arc::clone(&taken) };
        InProcessTarget::new(name(target), Arc::new(answering)).policy(TargetPolicy::default())
    });
    let router = world.router_to(&document(&rules), targets.to_vec()).await;
    // A user's event with as much metadata as possible, all of which is copied.
    let mut metadata = Metadata::default();
    for n in 0..Metadata::MAX_ENTRIES {
        metadata.insert(format!("key {n}"), "v").unwrap();
    }
    world.publish(of_kind(first).metadata(metadata)).await;
    until(|| {
        let stats = router.stats();
        stats.behind == 0 && stats.targets.values().all(|target| target.queued == 0)
    })
    .await;
    let matched = rules.iter().any(|rule| rule.kinds.contains(&first));
    assert_eq!(matched, !taken.lock().is_empty());
    for event in taken.lock().iter() {
        let chain: Vec<_> = chain(event).split(',').collect();
        assert_eq!(chain.iter().collect::<BTreeSet<_>>().len(), chain.len(), "{chain:?} goes round");
    }
    router.stop(Duration::from_secs(5)).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn services_that_answer_events_cause_no_endless_chain(
        rules in prop::collection::vec(generated(), 1..=3),
        first in 0..KINDS.len(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(comes_to_an_end(rules, first));
    }
}
