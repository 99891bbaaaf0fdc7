//! Doubles and values that the unit tests of this crate share.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use relay_core::testing::{FnClock, MemoryLog};
use relay_core::{
    Clock, Delivery, DeliveryError, DocumentId, Draft, Epoch, Payload, Seq, ServiceName, Target, Timestamp,
};
use relay_tasks::Supervisor;

use crate::decisions::{DecidedEvent, Decision, DecisionLog, DecisionLogConfig};
use crate::delivery::deps::Deps;
use crate::delivery::dropped_offsets::DroppedOffsets;
use crate::delivery::engine::Engine;
use crate::delivery::loss_report::LossReport;
use crate::delivery::pool::Pool;
use crate::delivery::state::{ByteLimits, State};
use crate::health::HealthConfig;
use crate::loop_detection::CausesKey;
use crate::metrics::RouterMetrics;
use crate::monitor::HealthMonitor;
use crate::routing_table::{RoutingTable, TargetDirectory};
use crate::rules::{RuleFormat, RuleSet, TargetPolicy};
use crate::store::{Store, StoreLimits};
use crate::target::{Outbound, OutboundPolicy};

/// Returns the clock of the runtime. In a paused one it advances whenever every task waits for it.
pub(crate) fn paused_clock() -> Arc<dyn Clock> {
    let start = tokio::time::Instant::now();
    Arc::new(FnClock::new(move || start.elapsed()))
}

pub(crate) fn name(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

/// An `x-note` event with the number `n`.
pub(crate) fn note(document: &str, n: usize) -> Draft {
    let payload = Payload::json(&serde_json::json!({ "n": n })).unwrap();
    Draft::new(DocumentId::new(document).unwrap(), relay_events::kind("x-note").unwrap(), payload)
}

/// The decision that the target does not get an event.
pub(crate) fn loss(target: &str) -> Decision {
    let event = note("d", 1).into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
    Decision::lost(Timestamp::UNIX_EPOCH, DecidedEvent::from(&event), Some(name(target)), "a test".to_owned())
}

/// A target that takes everything.
struct Nowhere;

#[async_trait]
impl Target for Nowhere {
    async fn deliver(&self, _: Delivery) -> Result<(), DeliveryError> {
        Ok(())
    }
}

/// An engine that is not started, with an empty log, these rules and the target `a`.
pub(crate) fn engine(directory: &Path, rules: &str) -> Engine {
    engine_on(MemoryLog::new(), directory, rules)
}

/// An engine that is not started, with these rules and the target `a`.
pub(crate) fn engine_on(log: MemoryLog, directory: &Path, rules: &str) -> Engine {
    let (clock, tasks) = (paused_clock(), Supervisor::default().group());
    let limits = StoreLimits { queued: 10, queued_bytes: 1_000_000, dead_letters: 1, losses: 10 };
    let (store, _) = Store::open(&directory.join("store"), limits, tasks.clone()).unwrap();
    let outbound = Outbound::new(OutboundPolicy::default()).unwrap();
    let (health, decisions) = (HealthConfig::default(), DecisionLogConfig::default());
    let deps = Deps {
        log: Arc::new(log),
        store,
        clock: clock.clone(),
        monitor: HealthMonitor::start(health, outbound, clock.clone(), tasks.clone(), |_| {}),
        decisions: DecisionLog::start(&decisions, directory.join("log"), Vec::new(), &tasks).unwrap(),
        metrics: Arc::new(RouterMetrics::new(clock.clone())),
        losses: LossReport::default(),
        dropped: DroppedOffsets::default(),
        causes_key: CausesKey::new(&[0; CausesKey::BYTES]),
    };
    let rules = Arc::new(RuleSet::parse(rules, RuleFormat::Toml).unwrap());
    let table = RoutingTable::new(1, rules, TargetDirectory::default());
    let memory = ByteLimits { cached: 0, queued: 1_000_000 };
    let engine = Engine::new(deps, State::new(Pool::new(clock), table, memory), tasks);
    engine.update(|state| add_target(state, "a"));
    engine
}

/// Adds a target that takes everything.
pub(crate) fn add_target(state: &mut State, target: &str) {
    let policy = TargetPolicy::default();
    state.pool.put(name(target), Arc::new(Nowhere), Vec::new(), NonZeroU32::MIN, policy);
    state.recompute_targets();
}
