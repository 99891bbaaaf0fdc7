//! The rules in force, and their replacement as a whole.

use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::{Clock, Event, ServiceName, SystemClock, Target};
use serde::{Deserialize, Serialize};

use super::context::{Origin, RouterContext};
use super::dry_run::{DryRun, dry_run};
use crate::rules::{RuleDocument, RuleSet, RuleSetError, TargetSpec};
use crate::store::{StoreError, WriteBatch};
use crate::target::{HttpTarget, HttpTargetConfig, Outbound, OutboundError};

/// The rules as the store keeps them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PersistedRules {
    version: u64,
    source: RulesSource,
    document: RuleDocument,
}

/// The source of the rules in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RulesSource {
    /// The configuration.
    Configuration,
    /// [`Router::put_rules`](crate::Router::put_rules).
    Api,
}

/// The rules in force.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ActiveRules {
    /// The version, which grows with each change, across restarts too.
    pub version: u64,
    /// The source of the rules.
    pub source: RulesSource,
    /// The rules as they were written.
    pub document: RuleDocument,
    /// The rules as they are evaluated.
    pub set: Arc<RuleSet>,
}

/// A reason why rules are refused. The old ones stay in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// The document has mistakes.
    #[error(transparent)]
    Invalid(#[from] RuleSetError),
    /// The address of a target is not allowed.
    #[error("target `{target}`: {source}")]
    Target {
        /// The target.
        target: ServiceName,
        /// The reason.
        #[source]
        source: OutboundError,
    },
    /// The rules were changed in between.
    #[error("the rules are at version {version}, not {expected}; read them again before changing them")]
    Conflict {
        /// The version in force.
        version: u64,
        /// The version that was expected.
        expected: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The rules in force, and their replacement.
pub(super) struct RuleActivation {
    context: Arc<RouterContext>,
    /// The rules of the configuration, which rules from the API override.
    configured: Mutex<RuleDocument>,
    active: Mutex<PersistedRules>,
}

/// Targets that are ready to be delivered to, by name.
type ReadyTargets = Vec<(ServiceName, Arc<dyn Target>)>;

/// Rules that passed all checks, with the targets that the document describes.
pub(super) struct CheckedRules {
    rules: PersistedRules,
    set: RuleSet,
    targets: ReadyTargets,
}

impl PersistedRules {
    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

impl RuleActivation {
    /// Puts no rules in force yet; [`RuleActivation::activate`] must follow.
    pub(super) fn new(context: Arc<RouterContext>, configured: RuleDocument, active: PersistedRules) -> Self {
        Self { context, configured: Mutex::new(configured), active: Mutex::new(active) }
    }

    pub(super) fn active(&self) -> ActiveRules {
        let PersistedRules { version, source, document } = self.active.lock().clone();
        ActiveRules {
            version,
            source,
            document,
            set: Arc::clone(self.context.engine.routing_table().rules()),
        }
    }

    /// Puts `document` in force, as version `expected` + 1 if one is given.
    pub(super) async fn put(
        &self,
        document: RuleDocument,
        expected: Option<u64>,
    ) -> Result<ActiveRules, RulesError> {
        let _guard = self.context.config_lock.lock().await;
        self.replace(document, RulesSource::Api, expected).await
    }

    /// Puts the configured rules in force.
    pub(super) async fn reset(&self, expected: Option<u64>) -> Result<ActiveRules, RulesError> {
        let _guard = self.context.config_lock.lock().await;
        let document = self.configured.lock().clone();
        self.replace(document, RulesSource::Configuration, expected).await
    }

    /// Replaces the configured rules. They come into force unless rules from the API are.
    pub(super) async fn configure(&self, document: RuleDocument) -> Result<ActiveRules, RulesError> {
        let _guard = self.context.config_lock.lock().await;
        let set = RuleSet::parse(&document.text, document.format)?;
        self.targets_of(&set)?;
        *self.configured.lock() = document.clone();
        let active = self.active();
        if active.source == RulesSource::Api || active.document == document {
            return Ok(active);
        }
        self.replace(document, RulesSource::Configuration, None).await
    }

    /// Replaces the rules in force. The caller holds the lock of the configuration.
    async fn replace(
        &self,
        document: RuleDocument,
        source: RulesSource,
        expected: Option<u64>,
    ) -> Result<ActiveRules, RulesError> {
        let version = self.active.lock().version;
        if let Some(expected) = expected.filter(|expected| *expected != version) {
            return Err(RulesError::Conflict { version, expected });
        }
        let set = RuleSet::parse(&document.text, document.format)?;
        let checked = self.check(PersistedRules { version: version + 1, source, document }, set)?;
        let store = &self.context.deps().store;
        // Stored before they are used, so that a crash never takes back rules by which an event was routed.
        let mut batch = WriteBatch::default();
        batch.rules(&checked.rules);
        store.commit_synced(batch).await?;
        let mut batch = self.activate(checked);
        if self.context.engine.read(|state| !state.pool.is_empty()) {
            self.context.begin_routing(&mut batch).await;
        }
        store.commit(batch).await?;
        Ok(self.active())
    }

    /// Makes the targets that the rule document describes.
    pub(super) fn check(&self, rules: PersistedRules, set: RuleSet) -> Result<CheckedRules, RulesError> {
        let targets = self.targets_of(&set)?;
        Ok(CheckedRules { rules, set, targets })
    }

    fn targets_of(&self, set: &RuleSet) -> Result<ReadyTargets, RulesError> {
        targets_of(set, |config| self.context.http_target(config))
    }

    /// Puts `checked` in force. Returns the changes of routes.
    pub(super) fn activate(&self, checked: CheckedRules) -> WriteBatch {
        let CheckedRules { rules, set, targets } = checked;
        self.context.deps().monitor.configure(set.targets());
        let mut static_targets = self.context.static_targets.lock();
        let batch = self.context.engine.update(|state| {
            static_targets.retain(|name, origin| {
                let stays = *origin != Origin::Rules || set.target(name).is_some();
                if !stays {
                    state.pool.remove(name);
                }
                stays
            });
            for (name, target) in targets {
                let Some(spec) = set.target(&name) else { continue };
                static_targets.insert(name.clone(), Origin::Rules);
                state.pool.put(name, target, spec.capabilities.clone(), spec.weight, spec.policy.clone());
            }
            state.set_rules(rules.version, Arc::new(set));
            state.recompute_targets()
        });
        *self.active.lock() = rules;
        self.context.engine.notify_routes_changed();
        batch
    }

    /// Runs `event` through the rules in force or through `rules`.
    pub(super) fn dry_run(
        &self,
        event: &Event,
        rules: Option<&RuleDocument>,
    ) -> Result<DryRun, RuleSetError> {
        let table = self.context.engine.routing_table();
        Ok(match rules {
            Some(document) => {
                let set = RuleSet::parse(&document.text, document.format)?;
                dry_run(&self.context.engine, &table.with_rules(0, Arc::new(set)), event)
            }
            None => dry_run(&self.context.engine, &table, event),
        })
    }
}

/// Makes the targets of `set`.
fn targets_of<T>(
    set: &RuleSet,
    make: impl Fn(HttpTargetConfig) -> Result<T, OutboundError>,
) -> Result<Vec<(ServiceName, T)>, RulesError> {
    let target = |spec: &TargetSpec| {
        let config = HttpTargetConfig {
            url: spec.url.clone(),
            format: spec.format,
            secrets: spec.secrets.clone(),
            retry_statuses: spec.policy.retry.statuses.clone(),
        };
        match make(config) {
            Ok(target) => Ok((spec.name.clone(), target)),
            Err(source) => Err(RulesError::Target { target: spec.name.clone(), source }),
        }
    };
    set.targets().iter().map(target).collect()
}

/// Checks rules and their targets as at the start.
pub(super) fn check_rules(document: &RuleDocument, outbound: &Outbound) -> Result<(), RulesError> {
    let set = RuleSet::parse(&document.text, document.format)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    targets_of(&set, |config| HttpTarget::new(config, outbound.clone(), Arc::clone(&clock))).map(drop)
}

/// The rules to start with: those of the last run if they came over the API and are still valid, else the configured
/// ones.
pub(super) fn rules_at_start(
    persisted: Option<PersistedRules>,
    configured: &RuleDocument,
) -> Result<(PersistedRules, RuleSet), RulesError> {
    let version = persisted.as_ref().map_or(0, |persisted| persisted.version);
    if let Some(persisted) = persisted {
        let stays = persisted.source == RulesSource::Api || persisted.document == *configured;
        match RuleSet::parse(&persisted.document.text, persisted.document.format) {
            Ok(set) if stays => return Ok((persisted, set)),
            Err(error) if persisted.source == RulesSource::Api => {
                tracing::error!(%error, "the rules that came over the API are no longer valid; the configured rules are used");
            }
            _ => {}
        }
    }
    let set = RuleSet::parse(&configured.text, configured.format)?;
    let document = configured.clone();
    Ok((PersistedRules { version: version + 1, source: RulesSource::Configuration, document }, set))
}
