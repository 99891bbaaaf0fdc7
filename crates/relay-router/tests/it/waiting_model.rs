//! The fate of each event that a rule matched: it is delivered or lost, once, and decided so, whatever happens to the
//! rules, the targets, the log and the router.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use relay_core::{EventLog, Seq};
use relay_router::Router;
use relay_router::decisions::{DecisionFilter, Outcome};
use relay_router::rules::{RuleDocument, RuleFormat, TargetPolicy};

use crate::support::{Recorder, World, name, note, target, until};

const RULES: [&str; 6] = [
    r#"rules = [{ name = "one", kinds = ["x-note"], targets = ["a"] }]"#,
    r#"rules = [{ name = "two", kinds = ["x-note"], targets = ["a"] }]"#,
    r#"rules = [{ name = "one", kinds = ["x-other"], targets = ["a"] }]"#,
    "rules = []",
    r#"rules = [{ name = "one", targets = ["b"] }]"#,
    r#"rules = [
        { name = "one", targets = ["b", "a"], continue = true },
        { name = "two", targets = ["b"], fallback = ["a"] },
    ]"#,
];

#[derive(Debug, Clone)]
enum Step {
    Publish {
        document: usize,
        events: usize,
    },
    Rules(usize),
    /// Target `a` or `b` works from now on, or fails.
    Works {
        target: usize,
        works: bool,
    },
    /// Retention drops what is not held.
    Retention,
    /// The log drops events that may wait.
    Trim {
        document: usize,
    },
    Restart,
    Pause,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let document = 0..2_usize;
    let step = prop_oneof![
        6 => (document.clone(), 1..12_usize).prop_map(|(document, events)| Step::Publish { document, events }),
        3 => (0..RULES.len()).prop_map(Step::Rules),
        3 => (0..2_usize, any::<bool>()).prop_map(|(target, works)| Step::Works { target, works }),
        2 => Just(Step::Retention),
        1 => document.prop_map(|document| Step::Trim { document }),
        1 => Just(Step::Restart),
        2 => Just(Step::Pause),
    ];
    proptest::collection::vec(step, 1..25)
}

struct Run {
    world: World,
    router: Router,
    works: [Arc<AtomicBool>; 2],
    recorders: [Arc<Recorder>; 2],
    /// The matches of each rule in earlier runs of the router.
    matches: BTreeMap<Arc<str>, u64>,
}

async fn start(world: &World, recorders: &[Arc<Recorder>; 2]) -> Router {
    let mut policy = TargetPolicy::default();
    policy.retry.max_attempts = NonZeroU32::MAX;
    policy.retry.initial = Duration::from_millis(10);
    policy.retry.max = Duration::from_millis(50);
    policy.breaker.open_for = Duration::from_millis(20);
    let mut config = world.config(RULES[0]);
    config.targets =
        vec![target("a", &recorders[0], policy.clone()), target("b", &recorders[1], policy.clone())];
    config.max_queued = 4;
    config.max_waiting = 24;
    config.decisions.disk = true;
    config.health.eject_after = u32::MAX;
    world.router_with(config).await
}

impl Run {
    async fn new() -> Self {
        let works = [(); 2].map(|()| Arc::new(AtomicBool::new(true)));
        let recorders = [Recorder::switched(&works[0]), Recorder::switched(&works[1])];
        let world = World::new();
        let router = start(&world, &recorders).await;
        Self { world, router, works, recorders, matches: BTreeMap::new() }
    }

    async fn all_routed(&self) {
        until(|| self.world.log.held_after().is_some() && self.router.stats().behind == 0).await;
    }

    async fn stop(&mut self) {
        self.all_routed().await;
        self.router.stop(Duration::ZERO).await;
        for (rule, count) in self.router.stats().rules {
            *self.matches.entry(rule).or_default() += count;
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Publish { document, events } => {
                for n in 0..events {
                    self.world.publish(note(&format!("d{document}"), n)).await;
                }
            }
            Step::Rules(rules) => {
                let rules = RuleDocument { text: RULES[rules].to_owned(), format: RuleFormat::Toml };
                self.router.put_rules(rules, None).await.unwrap();
            }
            Step::Works { target, works } => self.works[target].store(works, Ordering::SeqCst),
            Step::Retention => self.world.log.apply_retention(3),
            Step::Trim { document } => {
                self.all_routed().await;
                let document = note(&format!("d{document}"), 0).document;
                let head = self.world.log.head(&document).await.unwrap();
                let middle = u64::midpoint(head.first.get(), head.last.get());
                self.world.log.trim(&document, Seq::new(middle)).await.unwrap();
            }
            Step::Restart => {
                self.stop().await;
                self.router = start(&self.world, &self.recorders).await;
            }
            Step::Pause => tokio::time::sleep(Duration::from_millis(30)).await,
        }
    }
}

async fn run(steps: Vec<Step>) {
    let mut run = Run::new().await;
    for step in steps {
        run.take(step).await;
    }
    run.works.iter().for_each(|works| works.store(true, Ordering::SeqCst));
    run.all_routed().await;
    until(|| ["a", "b"].iter().all(|to| run.router.target(&name(to)).is_some_and(|to| to.queued == 0))).await;
    run.stop().await;

    let decisions = run.router.decisions().query(DecisionFilter::default(), usize::MAX).await.unwrap();
    let mut ends: HashMap<_, usize> = HashMap::new();
    let mut by_rule: BTreeMap<Arc<str>, u64> = BTreeMap::new();
    let mut decided = std::collections::HashSet::new();
    for record in &decisions {
        decided.insert(record.event);
        if matches!(record.outcome, Outcome::Delivered | Outcome::Lost) {
            let rule = record.rule.clone().unwrap();
            *ends.entry((record.event, Arc::clone(&rule))).or_default() += 1;
            *by_rule.entry(rule).or_default() += 1;
        } else {
            assert!(matches!(record.outcome, Outcome::NoMatch | Outcome::Retrying), "{record:?}");
        }
    }
    assert!(ends.values().all(|count| *count == 1), "an event ends twice: {ends:?}");
    assert_eq!(by_rule, run.matches, "each match ends");
    assert_eq!(
        decided.len() as u64,
        run.world.log.last_offset().await.unwrap().get(),
        "each event is decided"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn each_event_that_matched_is_delivered_or_lost_once(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(steps));
    }
}
