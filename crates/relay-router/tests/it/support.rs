//! A router on a log in memory, with scripted targets in this process.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use relay_core::testing::{FnClock, MemoryLog};
use relay_core::{
    Actor, CheckedDraft, Clock, Delivery, DeliveryError, DocumentId, Draft, Event, EventLog, EventSink,
    FailureKind, Payload, PublishAck, PublishError, ServiceName, Target,
};
use relay_router::decisions::{DecisionFilter, DecisionRecord, Outcome};
use relay_router::rules::{RuleDocument, RuleFormat, TargetPolicy};
use relay_router::target::InProcessTarget;
use relay_router::{CAUSES_KEY, CausesKey, Router, RouterConfig, RouterParts, VerifiedSink};
use relay_tasks::Supervisor;
use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};

/// The rule that sends notes to target `a`.
pub(crate) const TO_A: &str = r#"
    [[rules]]
    name = "notes"
    kinds = ["x-note"]
    targets = ["a"]
"#;

/// The longest wait of a test in real time before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The log, the clock and the directory, which outlive a router.
pub(crate) struct World {
    pub(crate) log: MemoryLog,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) directory: TempDir,
    pub(crate) supervisor: Supervisor,
    causes_key: CausesKey,
}

/// A sink that appends to the log.
struct Sink {
    log: MemoryLog,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl EventSink for Sink {
    async fn publish(&self, draft: CheckedDraft) -> Result<PublishAck, PublishError> {
        let event = append(&self.log, &*self.clock, Draft::clone(&draft)).await;
        Ok(PublishAck::of(&event, false))
    }
}

async fn append(log: &MemoryLog, clock: &dyn Clock, draft: Draft) -> Event {
    let head = log.head(&draft.document).await.unwrap();
    let document = draft.document.clone();
    let seq = draft.kind.is_sequenced().then(|| head.last.next());
    let mut event = draft.into_event(head.epoch, seq, clock.wall());
    let offsets = log.append(&document, std::slice::from_ref(&event)).await.unwrap();
    event.offset = offsets.first().copied();
    event
}

impl World {
    pub(crate) fn new() -> Self {
        // The clock of a paused runtime advances by itself while all tasks wait.
        let start = tokio::time::Instant::now();
        Self {
            log: MemoryLog::new(),
            clock: Arc::new(FnClock::new(move || start.elapsed())),
            directory: tempfile::tempdir().unwrap(),
            supervisor: Supervisor::default(),
            causes_key: CausesKey::new(&[7; CausesKey::BYTES]),
        }
    }

    pub(crate) fn config(&self, rules: &str) -> RouterConfig {
        let mut config = RouterConfig::new(self.directory.path());
        config.rules = RuleDocument { text: rules.to_owned(), format: RuleFormat::Toml };
        config
    }

    pub(crate) async fn router(&self, rules: &str) -> Router {
        self.router_with(self.config(rules)).await
    }

    /// Starts a router with targets from its start on, as after a restart.
    pub(crate) async fn router_to(&self, rules: &str, targets: Vec<InProcessTarget>) -> Router {
        let mut config = self.config(rules);
        config.targets = targets;
        self.router_with(config).await
    }

    pub(crate) async fn router_with(&self, config: RouterConfig) -> Router {
        let mut parts = RouterParts::new(Arc::new(self.log.clone()), self.sink(), Arc::clone(&self.clock));
        parts.causes_key = Some(self.causes_key.clone());
        parts.supervisor = self.supervisor.clone();
        Router::start(config, parts).await.unwrap()
    }

    fn sink(&self) -> Arc<dyn EventSink> {
        Arc::new(Sink { log: self.log.clone(), clock: Arc::clone(&self.clock) })
    }

    /// Publishes as a service does, whose causes are verified.
    pub(crate) async fn publish_verified(&self, draft: Draft) -> Result<PublishAck, PublishError> {
        let sink = VerifiedSink::new(self.sink(), self.causes_key.clone());
        sink.publish(relay_events::check(draft).unwrap()).await
    }

    /// Appends to the log that the router follows.
    pub(crate) async fn publish(&self, draft: Draft) -> Event {
        append(&self.log, &*self.clock, draft).await
    }

    /// Publishes `x-note` events numbered from 1, in turn to documents `d0`, `d1`, ….
    pub(crate) async fn publish_notes(&self, documents: usize, count: usize) {
        for n in 1..=count {
            self.publish(note(&format!("d{}", n % documents), n)).await;
        }
    }
}

pub(crate) fn note(document: &str, n: usize) -> Draft {
    let payload = Payload::json(&serde_json::json!({ "n": n })).unwrap();
    Draft::new(DocumentId::new(document).unwrap(), relay_events::kind("x-note").unwrap(), payload)
}

pub(crate) fn by(service: &str) -> Actor {
    Actor::Service(name(service))
}

pub(crate) fn name(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

/// The chain of causes of a delivered event, without its signature.
pub(crate) fn chain(event: &Event) -> &str {
    event.metadata.get(CAUSES_KEY).unwrap().split_once(';').unwrap().0
}

/// The number in an event of [`note`].
pub(crate) fn number(event: &Event) -> usize {
    let Payload::Json(text) = &event.payload else { panic!("a note is JSON") };
    let value: serde_json::Value = serde_json::from_slice(text.as_bytes()).unwrap();
    usize::try_from(value["n"].as_u64().unwrap()).unwrap()
}

/// The answer of a target to an event; `attempt` counts from 1.
pub(crate) type Script = Arc<dyn Fn(&Event, u32) -> Result<(), DeliveryError> + Send + Sync>;

/// A target that records the events that it took.
pub(crate) struct Recorder {
    script: Script,
    taken: watch::Sender<Vec<Taken>>,
    /// The gate of each answer; none for immediate answers.
    gate: Option<Arc<Semaphore>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) event: Arc<Event>,
    pub(crate) is_replay: bool,
}

impl Recorder {
    /// A target that takes everything.
    pub(crate) fn new() -> Arc<Self> {
        Self::with(|_, _| Ok(()))
    }

    /// A target that answers by `script`.
    pub(crate) fn with(
        script: impl Fn(&Event, u32) -> Result<(), DeliveryError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { script: Arc::new(script), taken: watch::Sender::new(Vec::new()), gate: None })
    }

    /// A target that works while `works` is true, and otherwise fails.
    pub(crate) fn switched(works: &Arc<AtomicBool>) -> Arc<Self> {
        let works = Arc::clone(works);
        Self::with(move |_, _| if works.load(Ordering::SeqCst) { Ok(()) } else { Err(failed()) })
    }

    /// A target that takes each request for one permit of the gate, which has `permits` of them at first.
    pub(crate) fn gated(permits: usize) -> (Arc<Self>, Arc<Semaphore>) {
        let gate = Arc::new(Semaphore::new(permits));
        let recorder = Self {
            script: Arc::new(|_, _| Ok(())),
            taken: watch::Sender::new(Vec::new()),
            gate: Some(Arc::clone(&gate)),
        };
        (Arc::new(recorder), gate)
    }

    /// The events that it took so far.
    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.taken.borrow().clone()
    }

    /// Waits until it has taken `count` events, and returns all. Fails after a day of the paused clock, which passes as soon
    /// as nothing else is left to do.
    #[track_caller]
    pub(crate) fn wait_for(&self, count: usize) -> impl Future<Output = Vec<Taken>> {
        let (caller, mut taken) = (Location::caller(), self.taken.subscribe());
        async move {
            let enough = taken.wait_for(|taken| taken.len() >= count);
            match tokio::time::timeout(Duration::from_secs(60 * 60 * 24), enough).await {
                Ok(enough) => return enough.unwrap().clone(),
                Err(_elapsed) => {}
            }
            panic!("{caller}: the target has taken {} of {count} events", taken.borrow().len());
        }
    }

    /// The numbers of the notes that it took, by document, in order.
    pub(crate) fn numbers(&self) -> HashMap<String, Vec<usize>> {
        let mut numbers: HashMap<String, Vec<usize>> = HashMap::new();
        for taken in &*self.taken.borrow() {
            numbers.entry(taken.event.document.to_string()).or_default().push(number(&taken.event));
        }
        numbers
    }
}

#[async_trait]
impl Target for Recorder {
    async fn deliver(&self, delivery: Delivery) -> Result<(), DeliveryError> {
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        for event in &delivery.events {
            (self.script)(event, delivery.attempt)?;
        }
        self.taken.send_modify(|taken| {
            taken.extend(
                delivery
                    .events
                    .iter()
                    .map(|event| Taken { event: Arc::clone(event), is_replay: delivery.is_replay }),
            );
        });
        Ok(())
    }
}

pub(crate) fn failed() -> DeliveryError {
    DeliveryError::new(FailureKind::Retry, "out of order").status(503)
}

pub(crate) fn refused() -> DeliveryError {
    DeliveryError::new(FailureKind::Reject, "not for me").status(400)
}

pub(crate) fn target(target: &str, recorder: &Arc<Recorder>, policy: TargetPolicy) -> InProcessTarget {
    InProcessTarget::new(name(target), Arc::clone(recorder) as Arc<dyn Target>).policy(policy)
}

/// A policy for targets that are made to wait: the paused clock advances meanwhile.
pub(crate) fn patient() -> TargetPolicy {
    let mut policy = TargetPolicy::default();
    policy.timeout = Duration::from_secs(60 * 60 * 24 * 365 * 10);
    policy
}

pub(crate) async fn attach(router: &Router, to: &str, recorder: &Arc<Recorder>, policy: TargetPolicy) {
    router.attach(target(to, recorder, policy)).await.unwrap();
}

/// Waits in a paused runtime until so many events wait for a target.
#[track_caller]
pub(crate) fn until_queued(router: &Router, target: &str, events: usize) -> impl Future<Output = ()> {
    until(move || router.target(&name(target)).is_some_and(|target| target.queued == events))
}

/// Waits in a paused runtime until so many events wait for a target, one of them under way.
#[track_caller]
pub(crate) fn until_one_under_way(router: &Router, target: &str, events: usize) -> impl Future<Output = ()> {
    until(move || {
        router.target(&name(target)).is_some_and(|target| (target.queued, target.in_flight) == (events, 1))
    })
}

/// A router that keeps no event in memory, and its target `a`, which answers for permits of the gate. `events` notes of document
/// `d0` wait, the first one of them under way.
pub(crate) async fn router_without_cache(
    world: &World,
    events: usize,
) -> (Router, Arc<Recorder>, Arc<Semaphore>) {
    let mut config = world.config(TO_A);
    // Each event is read from the log when its turn comes.
    config.cache_bytes = 0;
    let router = world.router_with(config).await;
    let (a, gate) = Recorder::gated(0);
    attach(&router, "a", &a, patient()).await;
    world.publish_notes(1, events).await;
    until_one_under_way(&router, "a", events).await;
    (router, a, gate)
}

/// Waits in a paused runtime until the condition holds. Checks it whenever all tasks wait, since the router follows the
/// log in a task of its own. Fails after [`PATIENCE`].
#[track_caller]
pub(crate) fn until(mut is_so: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if is_so() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{caller}: within {PATIENCE:?} this did not become true");
        }
    }
}

/// Waits until `count` events are decided as lost, and returns the decisions. Fails after [`PATIENCE`].
#[track_caller]
pub(crate) fn lost(router: &Router, count: usize) -> impl Future<Output = Vec<Arc<DecisionRecord>>> {
    let mut filter = DecisionFilter::default();
    filter.outcome = Some(Outcome::Lost);
    decisions(router, filter, count)
}

/// Waits until `count` decisions match, and returns them, the newest first. Fails after [`PATIENCE`].
#[track_caller]
pub(crate) fn decisions(
    router: &Router,
    filter: DecisionFilter,
    count: usize,
) -> impl Future<Output = Vec<Arc<DecisionRecord>>> {
    let caller = Location::caller();
    async move {
        let begun = Instant::now();
        loop {
            let found = router.decisions().query(filter.clone(), 1_000).await.unwrap();
            if found.len() >= count {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{caller}: there are {} of {count} decisions", found.len());
            tokio::task::yield_now().await;
        }
    }
}
