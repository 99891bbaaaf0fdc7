//! What routing has done, in numbers: per rule and per target, and how long it took.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use relay_core::{Clock, LatencyStats, LatencyWindow, Monotonic, ServiceName};
use relay_events::ServiceState;
use serde::Serialize;

use crate::decisions::{DecisionLogStats, Outcome};

/// How many rules and how many targets are counted by name at most; what comes beyond is counted under the name `other`.
const MAX_NAMES: usize = 2_000;

/// Counts what routing does.
pub(crate) struct RouterMetrics {
    clock: Arc<dyn Clock>,
    outcomes: Outcomes,
    routed: LatencyWindow,
    rules: RwLock<BTreeMap<Arc<str>, Arc<AtomicU64>>>,
    targets: RwLock<BTreeMap<Arc<str>, Arc<TargetCounters>>>,
}

#[derive(Default)]
struct Outcomes([AtomicU64; Outcome::ALL.len()]);

impl Outcomes {
    fn count(&self, outcome: Outcome) {
        if let Some(at) = Outcome::ALL.iter().position(|one| *one == outcome) {
            self.0[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn get(&self, outcome: Outcome) -> u64 {
        let at = Outcome::ALL.iter().position(|one| *one == outcome);
        at.map_or(0, |at| self.0[at].load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct TargetCounters {
    outcomes: Outcomes,
    fallbacks: AtomicU64,
    dead_letters_dropped: AtomicU64,
    latency: LatencyWindow,
}

/// What routing has done, and what waits.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RouterStats {
    /// Decisions by outcome: each attempt to deliver an event is one, and each event or rule that leads to none.
    pub decisions: BTreeMap<&'static str, u64>,
    /// From an event's place in its document to its place in a queue.
    pub routing_latency: LatencyStats,
    /// Events of the log that are not routed yet.
    pub behind: u64,
    /// Events that matched each rule.
    pub rules: BTreeMap<Arc<str>, u64>,
    /// The targets.
    pub targets: BTreeMap<Arc<str>, TargetStats>,
    /// The decision log.
    pub decision_log: DecisionLogStats,
}

/// What was delivered to one target, and what waits for it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TargetStats {
    /// Whether it works.
    pub state: ServiceState,
    /// Events that it took.
    pub delivered: u64,
    /// Failed attempts after which an event was tried again.
    pub retries: u64,
    /// Events that were given up.
    pub dead_lettered: u64,
    /// Failed attempts in all.
    pub failures: u64,
    /// Events whose time was over.
    pub expired: u64,
    /// Events that were no longer kept in the log.
    pub lost: u64,
    /// Events that it took, or did not, in the place of others.
    pub fallbacks: u64,
    /// Dead letters that made room for others.
    pub dead_letters_dropped: u64,
    /// Dead letters that are kept.
    pub dead_letters: usize,
    /// Events that wait in routes that may lead to it.
    pub queued: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Events that it may still have to get, those that are not routed yet included.
    pub lag_events: u64,
    /// Age of the oldest event that waits, in seconds.
    pub lag_seconds: f64,
    /// How long the requests took that it answered well.
    pub latency: LatencyStats,
}

/// What waits for a target at one moment.
pub(crate) struct TargetGauges {
    pub(crate) target: ServiceName,
    pub(crate) state: ServiceState,
    pub(crate) queued: usize,
    pub(crate) in_flight: usize,
    pub(crate) lag_events: u64,
    pub(crate) lag_seconds: f64,
    pub(crate) dead_letters: usize,
}

impl RouterMetrics {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            outcomes: Outcomes::default(),
            routed: LatencyWindow::new(),
            rules: RwLock::default(),
            targets: RwLock::default(),
        }
    }

    /// A decision that leads to no delivery.
    pub(crate) fn decided(&self, outcome: Outcome) {
        self.outcomes.count(outcome);
    }

    /// A rule matched an event.
    pub(crate) fn matched(&self, rule: &Arc<str>) {
        entry(&self.rules, rule).fetch_add(1, Ordering::Relaxed);
    }

    /// An event was queued, so long after it got its place.
    pub(crate) fn routed(&self, latency: Duration) {
        self.routed.record(self.clock.monotonic(), latency);
    }

    /// One event of an attempt that took so long has ended so.
    pub(crate) fn ended(&self, target: &ServiceName, outcome: Outcome, took: Duration, is_fallback: bool) {
        self.outcomes.count(outcome);
        let counters = self.target(target);
        counters.outcomes.count(outcome);
        if is_fallback {
            counters.fallbacks.fetch_add(1, Ordering::Relaxed);
        }
        if outcome == Outcome::Delivered {
            counters.latency.record(self.clock.monotonic(), took);
        }
    }

    /// A dead letter made room for another.
    pub(crate) fn dead_letter_dropped(&self, target: &ServiceName) {
        self.target(target).dead_letters_dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn target(&self, name: &ServiceName) -> Arc<TargetCounters> {
        if let Some(counters) = self.targets.read().get(name.as_str()) {
            return Arc::clone(counters);
        }
        entry(&self.targets, &name.as_str().into())
    }

    pub(crate) fn snapshot(
        &self,
        gauges: Vec<TargetGauges>,
        behind: u64,
        decision_log: DecisionLogStats,
    ) -> RouterStats {
        let now = self.clock.monotonic();
        let mut targets: BTreeMap<Arc<str>, TargetStats> = BTreeMap::new();
        for (name, counters) in &*self.targets.read() {
            targets.insert(Arc::clone(name), counters.read(now));
        }
        for gauge in gauges {
            let unused = || TargetCounters::default().read(now);
            let target = targets.entry(gauge.target.as_str().into()).or_insert_with(unused);
            target.state = gauge.state;
            target.queued = gauge.queued;
            target.in_flight = gauge.in_flight;
            target.lag_events = gauge.lag_events;
            target.lag_seconds = gauge.lag_seconds;
            target.dead_letters = gauge.dead_letters;
        }
        let rules = self.rules.read();
        let rules = rules.iter().map(|(name, count)| (Arc::clone(name), count.load(Ordering::Relaxed)));
        RouterStats {
            decisions: Outcome::ALL.into_iter().map(|one| (one.name(), self.outcomes.get(one))).collect(),
            routing_latency: self.routed.stats(now),
            behind,
            rules: rules.collect(),
            targets,
            decision_log,
        }
    }
}

impl TargetCounters {
    fn read(&self, now: Monotonic) -> TargetStats {
        let of = |outcome| self.outcomes.get(outcome);
        TargetStats {
            delivered: of(Outcome::Delivered),
            retries: of(Outcome::Retrying),
            dead_lettered: of(Outcome::DeadLettered),
            failures: of(Outcome::Retrying) + of(Outcome::DeadLettered),
            expired: of(Outcome::Expired),
            lost: of(Outcome::Lost),
            fallbacks: self.fallbacks.load(Ordering::Relaxed),
            dead_letters_dropped: self.dead_letters_dropped.load(Ordering::Relaxed),
            latency: self.latency.stats(now),
            // Those that are no targets any more.
            state: ServiceState::Gone,
            dead_letters: 0,
            queued: 0,
            in_flight: 0,
            lag_events: 0,
            lag_seconds: 0.0,
        }
    }
}

/// The entry of `name`, or of `other` when there are too many names.
fn entry<T: Default>(table: &RwLock<BTreeMap<Arc<str>, Arc<T>>>, name: &Arc<str>) -> Arc<T> {
    if let Some(found) = table.read().get(name) {
        return Arc::clone(found);
    }
    let mut table = table.write();
    let name = if table.len() < MAX_NAMES { Arc::clone(name) } else { "other".into() };
    Arc::clone(table.entry(name).or_default())
}
