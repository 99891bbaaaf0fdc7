//! The counters of routing, per rule and per target.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use relay_core::{Clock, Monotonic, ServiceName};
use relay_events::ServiceState;
use relay_metrics::{LatencyStats, LatencyWindow};
use serde::Serialize;

use crate::decisions::{DecisionLogStats, Outcome};

/// The most rules and the most targets that are counted by name. Further ones are counted under the name
/// `other`.
const MAX_NAMES: usize = 2_000;
const OTHER: &str = "other";

/// The counters of a router.
pub(crate) struct RouterMetrics {
    clock: Arc<dyn Clock>,
    outcomes: Outcomes,
    routing_latency: LatencyWindow,
    rules: RwLock<BTreeMap<Arc<str>, Arc<AtomicU64>>>,
    targets: RwLock<BTreeMap<Arc<str>, Arc<TargetCounters>>>,
}

#[derive(Default)]
struct Outcomes([AtomicU64; Outcome::ALL.len()]);

impl Outcomes {
    fn count(&self, outcome: Outcome, events: u64) {
        if let Some(at) = Outcome::ALL.iter().position(|one| *one == outcome) {
            self.0[at].fetch_add(events, Ordering::Relaxed);
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
    latency: LatencyWindow,
}

/// The statistics of a router.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RouterStats {
    /// Decisions by outcome: one for each attempt to deliver an event, and one for each event or rule without
    /// an attempt. Lost events are counted since the store was made, all else since the start.
    pub decisions: BTreeMap<&'static str, u64>,
    /// The time from an event's place in its document to its entry in a queue.
    pub routing_latency: LatencyStats,
    /// Events of the log that are not routed yet.
    pub behind: u64,
    /// The bytes that waiting events take in memory beside their content, over all routes.
    pub queued_bytes: usize,
    /// Events that matched, by rule.
    pub rules: BTreeMap<Arc<str>, u64>,
    /// The targets.
    pub targets: BTreeMap<Arc<str>, TargetStats>,
    /// The decision log.
    pub decision_log: DecisionLogStats,
}

/// The statistics of one target.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TargetStats {
    /// The health.
    pub state: ServiceState,
    /// Delivered events.
    pub delivered: u64,
    /// Failed attempts whose event was tried again.
    pub retries: u64,
    /// Events that became dead letters.
    pub dead_lettered: u64,
    /// Failed attempts in all.
    pub failures: u64,
    /// Events whose time to live was over.
    pub expired: u64,
    /// Events that a rule selected and the target never gets, since the store was made.
    pub lost: u64,
    /// Attempts, successful or not, at this target as a fallback.
    pub fallbacks: u64,
    /// Dead letters that were dropped for newer ones, since the store was made.
    pub dead_letters_dropped: u64,
    /// Dead letters that are kept.
    pub dead_letters: usize,
    /// Events that wait in routes that may lead to this target.
    pub queued: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// Events that may still reach this target, including those that are not routed yet.
    pub lag_events: u64,
    /// The age of the oldest waiting event, in seconds.
    pub lag_seconds: f64,
    /// The latency of successful requests.
    pub latency: LatencyStats,
}

/// The queue and state of a target at one moment.
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
            routing_latency: LatencyWindow::new(),
            rules: RwLock::default(),
            targets: RwLock::default(),
        }
    }

    /// Counts decisions without a delivery, by their events.
    pub(crate) fn count_decisions(&self, outcome: Outcome, events: u64) {
        self.outcomes.count(outcome, events);
    }

    /// Counts an event that `rule` matched.
    pub(crate) fn count_match(&self, rule: &Arc<str>) {
        counters_of(&self.rules, rule).fetch_add(1, Ordering::Relaxed);
    }

    /// Records the time from an event's place in its document to its entry in a queue.
    pub(crate) fn record_routing(&self, latency: Duration) {
        self.routing_latency.record(self.clock.monotonic(), latency);
    }

    /// Counts the outcome of one event of an attempt, and the time that the attempt took.
    pub(crate) fn count_outcome(
        &self,
        target: &ServiceName,
        outcome: Outcome,
        took: Duration,
        is_fallback: bool,
    ) {
        self.outcomes.count(outcome, 1);
        let counters = self.target(target);
        counters.outcomes.count(outcome, 1);
        if is_fallback {
            counters.fallbacks.fetch_add(1, Ordering::Relaxed);
        }
        if outcome == Outcome::Delivered {
            counters.latency.record(self.clock.monotonic(), took);
        }
    }

    /// Counts events that are lost, under the target's name if it is known.
    pub(crate) fn count_lost(&self, target: Option<&ServiceName>, events: u64) {
        self.outcomes.count(Outcome::Lost, events);
        if let Some(target) = target {
            self.target(target).outcomes.count(Outcome::Lost, events);
        }
    }

    /// The name under which the target's events are counted; empty without a target.
    pub(crate) fn counted_name(&self, target: Option<&ServiceName>) -> Arc<str> {
        let Some(target) = target else { return "".into() };
        let name = target.as_str().into();
        self.target(target);
        if self.targets.read().contains_key(&name) { name } else { OTHER.into() }
    }

    /// Begins with the events that were lost in earlier runs, by the names of [`RouterMetrics::counted_name`].
    pub(crate) fn restore_lost(&self, lost: Vec<(String, u64)>) {
        for (name, events) in lost {
            self.outcomes.count(Outcome::Lost, events);
            if !name.is_empty() {
                counters_of(&self.targets, &name.into()).outcomes.count(Outcome::Lost, events);
            }
        }
    }

    fn target(&self, name: &ServiceName) -> Arc<TargetCounters> {
        if let Some(counters) = self.targets.read().get(name.as_str()) {
            return Arc::clone(counters);
        }
        counters_of(&self.targets, &name.as_str().into())
    }

    pub(crate) fn snapshot(
        &self,
        gauges: Vec<TargetGauges>,
        behind: u64,
        queued_bytes: usize,
        decision_log: DecisionLogStats,
        dead_letters_dropped: impl Fn(&str) -> u64,
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
        for (name, target) in &mut targets {
            target.dead_letters_dropped = dead_letters_dropped(name);
        }
        let rules = self.rules.read();
        let rules = rules.iter().map(|(name, count)| (Arc::clone(name), count.load(Ordering::Relaxed)));
        RouterStats {
            decisions: Outcome::ALL.into_iter().map(|one| (one.name(), self.outcomes.get(one))).collect(),
            routing_latency: self.routing_latency.stats(now),
            behind,
            queued_bytes,
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
            latency: self.latency.stats(now),
            // Names that are no longer targets.
            state: ServiceState::Gone,
            dead_letters: 0,
            dead_letters_dropped: 0,
            queued: 0,
            in_flight: 0,
            lag_events: 0,
            lag_seconds: 0.0,
        }
    }
}

/// Returns the entry of `name`, or of `other` if there are too many names.
fn counters_of<T: Default>(table: &RwLock<BTreeMap<Arc<str>, Arc<T>>>, name: &Arc<str>) -> Arc<T> {
    if let Some(found) = table.read().get(name) {
        return Arc::clone(found);
    }
    let mut table = table.write();
    let name = if table.len() < MAX_NAMES { Arc::clone(name) } else { OTHER.into() };
    Arc::clone(table.entry(name).or_default())
}
