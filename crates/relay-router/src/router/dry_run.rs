//! Dry runs: the rules' decisions about an event, which is not delivered.

use std::sync::Arc;

use relay_core::{Event, ServiceName};
use relay_events::ServiceState;
use serde::Serialize;

use crate::decisions::Outcome;
use crate::delivery::engine::Engine;
use crate::delivery::selection::{Selection, SelectionContext};
use crate::records::QueuedEvent;
use crate::routing_table::RoutingTable;
use crate::rules::RuleVerdict;

/// The decisions of the rules about an event.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DryRun {
    /// The version of the rules; 0 for rules that are not in force.
    pub rules_version: u64,
    /// Each rule, and the reason why it matches or does not.
    pub verdicts: Vec<RuleVerdict>,
    /// The routes that would get the event.
    pub routes: Vec<DryRoute>,
    /// The decisions that send the event nowhere: loops, and rules without a target.
    pub decided: Vec<DryDecision>,
}

/// A route that would get the event.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DryRoute {
    /// The rule.
    pub rule: Arc<str>,
    /// The target that would take the event at this moment; none while the event would wait.
    pub target: Option<ServiceName>,
    /// True if `target` is one of the rule's fallback targets.
    pub is_fallback: bool,
    /// The targets, in the order of the rule.
    pub targets: Vec<ServiceName>,
    /// The targets that are used while none of `targets` is usable.
    pub fallback: Vec<ServiceName>,
}

/// A decision that would send the event nowhere.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DryDecision {
    /// The rule; none if no rule matches.
    pub rule: Option<Arc<str>>,
    /// The decision.
    pub outcome: Outcome,
    /// The reason.
    pub reason: Option<String>,
}

/// Runs `event` through `table`, and selects targets by their present state. Changes nothing.
pub(super) fn dry_run(engine: &Engine, table: &RoutingTable, event: &Event) -> DryRun {
    let deps = engine.deps();
    let health = |name: &ServiceName| deps.monitor.state(name);
    let now = deps.clock.monotonic();
    let found = table.route(event, |name| health(name) == ServiceState::Draining);
    let queued = QueuedEvent::new(event, table.version());
    let context = SelectionContext::of(&queued, 0);
    let routes = found.routes.iter().filter_map(|to| {
        let set = to.target_set();
        let selection = engine.read(|state| state.pool.select(&set, &context, health, now));
        let (target, is_fallback) = match selection {
            Selection::Target { name, is_fallback } => (Some(name), is_fallback),
            Selection::Wait(_) => (None, false),
        };
        let rule = Arc::clone(to.key.rule()?);
        Some(DryRoute { rule, target, is_fallback, targets: set.targets, fallback: set.fallback })
    });
    let routes = routes.collect();
    let decided = found.drops.into_iter();
    let decided =
        decided.map(|drop| DryDecision { rule: drop.rule, outcome: drop.outcome, reason: drop.reason });
    DryRun {
        rules_version: table.version(),
        verdicts: table.rules().explain(event),
        routes,
        decided: decided.collect(),
    }
}
