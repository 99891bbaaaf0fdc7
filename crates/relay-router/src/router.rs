//! [`Router`]: the interface to routing, each part of which has a file of its own.

mod context;
mod dead_letters;
mod dry_run;
mod replays;
mod rule_activation;
mod services;
mod start;
mod targets;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use relay_core::{Event, ServiceName};

pub use self::dead_letters::{DamagedDeadLetter, DeadLetterPage};
pub use self::dry_run::{DryDecision, DryRoute, DryRun};
pub use self::rule_activation::{ActiveRules, RulesError, RulesSource};
pub use self::services::SERVICES_DOCUMENT;
use self::start::Inner;
pub use self::start::{RouterError, RouterParts};
pub use self::targets::{TargetError, TargetInfo};
use crate::config::RouterConfig;
use crate::decisions::DecisionLog;
use crate::delivery::state::State;
use crate::loop_detection::CausesKey;
use crate::metrics::{RouterStats, TargetGauges};
use crate::records::{DeadLetter, DeadLetterId, Replay, ReplayRequest};
use crate::registry::{
    Heartbeat, LeaseError, LeaseId, RegisterError, Registered, Registration, ServiceInfo, ServiceQuery,
};
use crate::rules::{RuleDocument, RuleSetError};
use crate::store::StoreError;
use crate::target::InProcessTarget;

/// Routes a log's events to targets. Clones share the router.
///
/// Start and use it in a Tokio runtime, and stop it with [`Router::stop`]. If it is dropped instead, the next run
/// delivers the events once more that were under way. A call that changes something runs to its end, also when its
/// caller stops waiting.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

impl Router {
    /// Starts a router, which goes on where the last run ended. The first run begins with the next event of the log.
    ///
    /// Not cancel-safe: dropped half way, the store stays open for another moment.
    ///
    /// # Errors
    /// See [`RouterError`].
    pub async fn start(config: RouterConfig, parts: RouterParts) -> Result<Self, RouterError> {
        Ok(Self(Arc::new(start::start(config, parts).await?)))
    }

    /// Checks a configuration as [`Router::start`] does on an empty store: its bounds, its rules, and the addresses of their
    /// targets. It opens nothing.
    ///
    /// # Errors
    /// The error with which the start would fail.
    pub fn check(config: &RouterConfig) -> Result<(), RouterError> {
        start::check(config)
    }

    async fn run_to_end<T, F>(&self, operation: impl FnOnce(Arc<Inner>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.0.context.engine.run_to_end(operation(Arc::clone(&self.0))).await
    }

    /// Stops the router. Nothing new begins, and requests under way are aborted after `timeout`. Returns true if all
    /// ended by themselves; the next run delivers the rest again.
    pub async fn stop(&self, timeout: Duration) -> bool {
        self.0.replays.stop();
        let deps = self.0.context.deps();
        let complete = self.0.context.engine.stop(timeout).await;
        deps.losses.log_rest();
        deps.monitor.shutdown().await;
        deps.decisions.close().await;
        let store = deps.store.clone();
        let closed = relay_tasks::call_blocking(move || store.close()).await.is_ok();
        complete && closed
    }

    /// The failure of the disk that has stopped routing and delivery, if there was one. A restart goes on.
    pub fn failure(&self) -> Option<StoreError> {
        self.0.context.engine.failure()
    }

    /// The key that signs the causes of deliveries. A [`VerifiedSink`](crate::VerifiedSink) with it takes what services
    /// publish.
    pub fn causes_key(&self) -> CausesKey {
        self.0.context.deps().causes_key.clone()
    }

    /// The log of decisions about events.
    pub fn decisions(&self) -> &DecisionLog {
        &self.0.context.deps().decisions
    }

    /// The counters and gauges of routing.
    pub fn stats(&self) -> RouterStats {
        let deps = self.0.context.deps();
        let head = *self.0.context.head.borrow();
        // Without targets there is no cursor, and nothing to catch up with.
        let behind = self.0.context.cursor.get().map_or(0, |cursor| head.get().saturating_sub(cursor.get()));
        let gauges = self.targets().into_iter().map(|target| TargetGauges {
            target: target.name,
            state: target.state,
            queued: target.queued,
            in_flight: target.in_flight,
            lag_events: target.queued as u64 + behind,
            lag_seconds: target.lag_seconds,
            dead_letters: target.dead_letters,
        });
        let dropped = |target: &str| {
            ServiceName::new(target).map_or(0, |target| deps.store.dropped_dead_letters(&target))
        };
        let queued_bytes = self.0.context.engine.read(State::queued_bytes);
        deps.metrics.snapshot(gauges.collect(), behind, queued_bytes, deps.decisions.stats(), dropped)
    }

    /// The rules in force.
    pub fn rules(&self) -> ActiveRules {
        self.0.rules.active()
    }

    /// Replaces the rules as a whole, also the configured ones. If `expected` is given, the version in force must
    /// be that. Events that wait for targets of removed rules are still delivered.
    ///
    /// # Errors
    /// See [`RulesError`]; then the old rules stay in force.
    pub async fn put_rules(
        &self,
        document: RuleDocument,
        expected: Option<u64>,
    ) -> Result<ActiveRules, RulesError> {
        self.run_to_end(move |inner| async move { inner.rules.put(document, expected).await }).await
    }

    /// Puts the configured rules in force again. `expected` is as in [`Router::put_rules`].
    ///
    /// # Errors
    /// See [`RulesError`]; then the old rules stay in force.
    pub async fn reset_rules(&self, expected: Option<u64>) -> Result<ActiveRules, RulesError> {
        self.run_to_end(move |inner| async move { inner.rules.reset(expected).await }).await
    }

    /// Replaces the configured rules. They come into force unless rules from the API are in force.
    ///
    /// # Errors
    /// See [`RulesError`]; then the old rules stay in force.
    pub async fn configure_rules(&self, document: RuleDocument) -> Result<ActiveRules, RulesError> {
        self.run_to_end(move |inner| async move { inner.rules.configure(document).await }).await
    }

    /// Returns the decisions about `event` by the rules in force, or by `rules`. Delivers and changes nothing.
    ///
    /// # Errors
    /// [`RuleSetError`], if `rules` has mistakes.
    pub fn dry_run(&self, event: &Event, rules: Option<&RuleDocument>) -> Result<DryRun, RuleSetError> {
        self.0.rules.dry_run(event, rules)
    }

    /// Adds or replaces a target that is code in this process. It gets events from now on. A target that shall also get
    /// the events since the last run belongs into [`RouterConfig::targets`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn attach(&self, target: InProcessTarget) -> Result<(), StoreError> {
        self.run_to_end(move |inner| async move { inner.services.attach(target).await }).await
    }

    /// Registers a service, or renews its registration. It is a target from then on. With `address`, that of the client
    /// that asks, it counts among the [services of that address](crate::health::HealthConfig::max_services_per_address).
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub async fn register(
        &self,
        name: ServiceName,
        registration: Registration,
        address: Option<IpAddr>,
    ) -> Result<Registered, RegisterError> {
        self.run_to_end(
            move |inner| async move { inner.services.register(name, registration, address).await },
        )
        .await
    }

    /// Renews a service's lease. Returns its duration.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn heartbeat(
        &self,
        name: &ServiceName,
        lease: LeaseId,
        heartbeat: Heartbeat,
    ) -> Result<Duration, LeaseError> {
        self.0.context.deps().monitor.heartbeat(name, lease, heartbeat)
    }

    /// Begins to remove a service. It gets no new events; those that wait for it are still delivered.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn deregister(&self, name: &ServiceName, lease: LeaseId) -> Result<ServiceInfo, LeaseError> {
        self.0.context.deps().monitor.deregister(name, lease)
    }

    /// Gives a service a new secret, and returns it. For a while deliveries are signed with the old one too.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn rotate_secret(&self, name: &ServiceName, lease: LeaseId) -> Result<String, RegisterError> {
        let name = name.clone();
        self.run_to_end(move |inner| async move { inner.services.rotate_secret(&name, lease).await }).await
    }

    /// The services that `query` selects, by name.
    pub fn services(&self, query: &ServiceQuery) -> Vec<ServiceInfo> {
        self.0.context.deps().monitor.services(query)
    }

    /// One service. A service that is gone is found until it is forgotten.
    pub fn service(&self, name: &ServiceName) -> Option<ServiceInfo> {
        self.0.context.deps().monitor.service(name)
    }

    /// All targets, by name.
    pub fn targets(&self) -> Vec<TargetInfo> {
        targets::targets(&self.0.context.engine)
    }

    /// One target.
    pub fn target(&self, name: &ServiceName) -> Option<TargetInfo> {
        targets::target(&self.0.context.engine, name)
    }

    /// A page of up to `limit`, and 1,000, of the target's dead letters after `after`, the oldest events first. A page ends
    /// earlier when it has about a mebibyte.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn dead_letters(
        &self,
        target: &ServiceName,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<DeadLetterPage, TargetError> {
        self.0.dead_letters.list(target, after, limit).await
    }

    /// One dead letter.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn dead_letter(
        &self,
        target: &ServiceName,
        id: DeadLetterId,
    ) -> Result<DeadLetter, TargetError> {
        self.0.dead_letters.get(target, id).await
    }

    /// Delivers a dead letter again, with all the attempts of a new event, to its target alone.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn retry_dead_letter(&self, target: &ServiceName, id: DeadLetterId) -> Result<(), TargetError> {
        let target = target.clone();
        self.run_to_end(move |inner| async move { inner.dead_letters.retry(&target, id).await }).await
    }

    /// Delivers the target's dead letters again. Returns the number of those that wait for that now. A letter stays one whose
    /// event waits for the target already, and so do damaged ones and those beyond [`RouterConfig::max_queued`].
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn retry_dead_letters(&self, target: &ServiceName) -> Result<usize, TargetError> {
        let target = target.clone();
        self.run_to_end(move |inner| async move { inner.dead_letters.retry_all(&target).await }).await
    }

    /// Removes a dead letter.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn drop_dead_letter(&self, target: &ServiceName, id: DeadLetterId) -> Result<(), TargetError> {
        let target = target.clone();
        self.run_to_end(move |inner| async move { inner.dead_letters.remove(&target, id).await }).await
    }

    /// Removes all of the target's dead letters. Returns their number.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn drop_dead_letters(&self, target: &ServiceName) -> Result<usize, TargetError> {
        let target = target.clone();
        self.run_to_end(move |inner| async move { inner.dead_letters.remove_all(&target).await }).await
    }

    /// Sends history to a target again, marked as a replay: the events up to now that the rules send there. A replay goes
    /// on after a restart.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn replay(&self, target: &ServiceName, request: ReplayRequest) -> Result<Replay, TargetError> {
        let target = target.clone();
        self.run_to_end(move |inner| async move { inner.replays.start(&target, request).await }).await
    }

    /// The target's replays, by id: those that run, and the last ended ones.
    pub fn replays(&self, target: &ServiceName) -> Vec<Replay> {
        self.0.replays.of(target)
    }

    /// Cancels a replay. Its queued events are still delivered.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn cancel_replay(&self, target: &ServiceName, id: u64) -> Result<Replay, TargetError> {
        let target = target.clone();
        self.run_to_end(move |inner| async move { inner.replays.cancel(&target, id).await }).await
    }
}
