//! The rules in force: how they are changed as a whole, kept, and asked what they would do.

use std::sync::Arc;

use relay_core::{Event, ServiceName, Target};
use relay_events::ServiceState;
use serde::{Deserialize, Serialize};

use super::{Origin, Router};
use crate::decisions::Outcome;
use crate::delivery::selection::{Selection, SelectionContext};
use crate::records::QueuedEvent;
use crate::rules::{RuleDocument, RuleSet, RuleSetError, RuleVerdict, TargetSpec};
use crate::store::{StoreError, WriteBatch};
use crate::target::{HttpTarget, HttpTargetConfig, OutboundError};

/// Rules as they are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PersistedRules {
    pub(super) version: u64,
    pub(super) source: RulesSource,
    pub(super) document: RuleDocument,
}

/// Where the rules in force came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RulesSource {
    /// The configuration.
    Configuration,
    /// [`Router::put_rules`].
    Api,
}

/// The rules in force.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RulesInForce {
    /// Grows with each change, restarts included.
    pub version: u64,
    /// Where they came from.
    pub source: RulesSource,
    /// As they were written.
    pub document: RuleDocument,
    /// As they are used.
    pub set: Arc<RuleSet>,
}

/// Why rules are not taken. The old ones stay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// The document is wrong, at all the places that are named.
    #[error(transparent)]
    Invalid(#[from] RuleSetError),
    /// A target's address must not be reached.
    #[error("target `{target}`: {source}")]
    Target {
        /// The target.
        target: ServiceName,
        /// Why.
        #[source]
        source: OutboundError,
    },
    /// Somebody else changed the rules in between.
    #[error("the rules are at version {version}, not {expected}; read them again before changing them")]
    Conflict {
        /// The version in force.
        version: u64,
        /// The version that was to be replaced.
        expected: u64,
    },
    /// They cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What would become of an event.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DryRun {
    /// The version of the rules that were asked; 0 for rules that are not in force.
    pub rules_version: u64,
    /// Each rule, and why it matches or does not.
    pub verdicts: Vec<RuleVerdict>,
    /// Where the event would go.
    pub routes: Vec<DryRoute>,
    /// What was decided besides: cycles, and rules that have nobody to send to.
    pub decided: Vec<DryDecision>,
}

/// Where an event would go by one rule.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DryRoute {
    /// The rule.
    pub rule: Arc<str>,
    /// Who would take it at this moment; none while it would wait.
    pub target: Option<ServiceName>,
    /// True when that is one of the rule's fallback targets.
    pub is_fallback: bool,
    /// Who could take it, in the order of the rule.
    pub targets: Vec<ServiceName>,
    /// Who could take it when none of those can.
    pub fallback: Vec<ServiceName>,
}

/// A rule by which an event would go nowhere.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DryDecision {
    /// The rule; none when no rule matches.
    pub rule: Option<Arc<str>>,
    /// What is decided.
    pub outcome: Outcome,
    /// Why.
    pub reason: Option<String>,
}

/// Targets that can be delivered to.
type Ready = Vec<(ServiceName, Arc<dyn Target>)>;

impl Router {
    /// The rules in force.
    pub fn rules(&self) -> RulesInForce {
        let PersistedRules { version, source, document } = self.0.active_rules.lock().clone();
        RulesInForce { version, source, document, set: Arc::clone(self.0.engine.routing_table().rules()) }
    }

    /// Replaces the rules as a whole, on top of the configured ones; only if version `expected` is in force, where one is
    /// given. What waits for targets of rules that are no more is still delivered.
    ///
    /// # Errors
    /// See [`RulesError`]; the old rules stay then.
    pub async fn put_rules(
        &self,
        document: RuleDocument,
        expected: Option<u64>,
    ) -> Result<RulesInForce, RulesError> {
        self.change_rules(document, RulesSource::Api, expected).await
    }

    /// Returns to the configured rules.
    ///
    /// # Errors
    /// See [`RulesError`]; the rules that were in force stay then.
    pub async fn reset_rules(&self, expected: Option<u64>) -> Result<RulesInForce, RulesError> {
        let document = self.0.configured.lock().clone();
        self.change_rules(document, RulesSource::Configuration, expected).await
    }

    /// Takes new configured rules. They come into force unless others came over the API.
    ///
    /// # Errors
    /// See [`RulesError`]; the old rules stay then.
    pub async fn configure_rules(&self, document: RuleDocument) -> Result<RulesInForce, RulesError> {
        let set = RuleSet::parse(&document.text, document.format)?;
        self.targets_of(&set)?;
        *self.0.configured.lock() = document.clone();
        let in_force = self.rules();
        if in_force.source == RulesSource::Api || in_force.document == document {
            return Ok(in_force);
        }
        self.change_rules(document, RulesSource::Configuration, None).await
    }

    async fn change_rules(
        &self,
        document: RuleDocument,
        source: RulesSource,
        expected: Option<u64>,
    ) -> Result<RulesInForce, RulesError> {
        let _changing = self.0.config_lock.lock().await;
        let version = self.0.active_rules.lock().version;
        if let Some(expected) = expected.filter(|expected| *expected != version) {
            return Err(RulesError::Conflict { version, expected });
        }
        let set = RuleSet::parse(&document.text, document.format)?;
        let targets = self.targets_of(&set)?;
        let persisted = PersistedRules { version: version + 1, source, document };
        let mut batch = WriteBatch::default();
        batch.rules(&persisted);
        // Kept before they are used, so that no event is ever routed by rules that a crash would take back.
        let store = &self.0.engine.deps().store;
        store.commit_synced(std::mem::take(&mut batch)).await?;
        self.activate(persisted, set, targets, &mut batch);
        if self.0.engine.read(|state| !state.pool.is_empty()) {
            self.0.cursor.begin(self.log_end().await, &mut batch);
        }
        store.commit(batch).await?;
        Ok(self.rules())
    }

    /// The targets that the rule document itself names, ready to be delivered to.
    pub(super) fn targets_of(&self, set: &RuleSet) -> Result<Ready, RulesError> {
        let target = |spec: &TargetSpec| {
            let config = HttpTargetConfig {
                url: spec.url.clone(),
                format: spec.format,
                secrets: spec.secrets.clone(),
                retry_statuses: spec.policy.retry.statuses.clone(),
            };
            match HttpTarget::new(config, self.0.outbound.clone(), Arc::clone(&self.0.engine.deps().clock)) {
                Ok(target) => Ok((spec.name.clone(), Arc::new(target) as Arc<dyn Target>)),
                Err(source) => Err(RulesError::Target { target: spec.name.clone(), source }),
            }
        };
        set.targets().iter().map(target).collect()
    }

    pub(super) fn activate(
        &self,
        persisted: PersistedRules,
        set: RuleSet,
        targets: Ready,
        batch: &mut WriteBatch,
    ) {
        let monitor = &self.0.engine.deps().monitor;
        monitor.configure(set.targets());
        let mut static_targets = self.0.static_targets.lock();
        let records = self.0.engine.update(|state| {
            let old: Vec<_> = static_targets
                .iter()
                .filter(|(_, origin)| **origin == Origin::Rules)
                .map(|(n, _)| n.clone())
                .collect();
            for name in old {
                static_targets.remove(&name);
                if set.target(&name).is_none() {
                    state.pool.remove(&name);
                }
            }
            for (name, target) in targets {
                let Some(spec) = set.target(&name) else { continue };
                static_targets.insert(name.clone(), Origin::Rules);
                state.pool.put(name, target, spec.capabilities.clone(), spec.weight, spec.policy.clone());
            }
            state.set_rules(persisted.version, Arc::new(set));
            state.recompute_targets()
        });
        batch.append(records);
        *self.0.active_rules.lock() = persisted;
    }

    /// What would become of `event` now, by the rules in force or by others. Nothing is delivered.
    ///
    /// # Errors
    /// [`RuleSetError`], when the other rules are wrong.
    pub fn dry_run(&self, event: &Event, rules: Option<&RuleDocument>) -> Result<DryRun, RuleSetError> {
        let other = rules.map(|document| RuleSet::parse(&document.text, document.format)).transpose()?;
        let mut table = self.0.engine.routing_table();
        if let Some(set) = other {
            table = Arc::new(table.with_rules(0, Arc::new(set)));
        }
        let deps = self.0.engine.deps();
        let health = |name: &ServiceName| deps.monitor.state(name);
        let now = deps.clock.monotonic();
        let found = table.route(event, |name| health(name) == ServiceState::Draining);
        let queued = QueuedEvent::new(event, table.version());
        let context = SelectionContext::of(&queued, 0);
        let routes = found.routes.iter().filter_map(|to| {
            let set = to.target_set();
            let selection = self.0.engine.read(|state| state.pool.select(&set, &context, health, now));
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
        Ok(DryRun {
            rules_version: table.version(),
            verdicts: table.rules().explain(event),
            routes,
            decided: decided.collect(),
        })
    }
}

/// The rules to start with: those that came over the API, unless they cannot be used any more, else the configured ones.
pub(super) fn rules_at_start(
    persisted: Option<&PersistedRules>,
    configured: &RuleDocument,
) -> Result<(PersistedRules, RuleSet), RulesError> {
    let version = persisted.map_or(0, |persisted| persisted.version);
    if let Some(persisted) = persisted {
        let is_in_force = persisted.source == RulesSource::Api || persisted.document == *configured;
        match RuleSet::parse(&persisted.document.text, persisted.document.format) {
            Ok(set) if is_in_force => return Ok((persisted.clone(), set)),
            Err(error) if persisted.source == RulesSource::Api => {
                tracing::error!(%error, "the rules that came over the API cannot be used any more; the configured ones are");
            }
            _ => {}
        }
    }
    let set = RuleSet::parse(&configured.text, configured.format)?;
    let document = configured.clone();
    Ok((PersistedRules { version: version + 1, source: RulesSource::Configuration, document }, set))
}
