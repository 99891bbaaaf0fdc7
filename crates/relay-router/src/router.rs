//! [`Router`]: the parts of routing, put together.

mod replays;
mod rules;
mod services;
mod targets;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{Clock, ConfigError, EventLog, EventSink, LogError, Offset, ServiceName};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use self::rules::{DryDecision, DryRoute, DryRun, RulesError, RulesInForce, RulesSource};
use self::rules::{PersistedRules, rules_at_start};
pub use self::targets::{TargetError, TargetInfo};
use crate::config::RouterConfig;
use crate::decisions::DecisionLog;
use crate::delivery::LOG_RETRY;
use crate::delivery::dead_letters::DeadLetters;
use crate::delivery::deps::Deps;
use crate::delivery::engine::Engine;
use crate::delivery::pool::Pool;
use crate::delivery::state::State;
use crate::dispatch::{Cursor, Dispatcher};
use crate::metrics::{RouterMetrics, RouterStats, TargetGauges};
use crate::monitor::HealthMonitor;
use crate::records::Replay;
use crate::registry::{ServiceChange, ServiceRecord};
use crate::routing_table::{RoutingTable, TargetDirectory};
use crate::rules::RuleDocument;
use crate::store::{Store, StoreError, WriteBatch};
use crate::target::{Outbound, OutboundError};

/// Where the changes of services are told: as `service.changed` events of this document.
pub const SERVICES_DOCUMENT: &str = "relay:services";

/// What a router works on.
#[derive(Clone)]
pub struct RouterParts {
    /// The log whose events are routed.
    pub log: Arc<dyn EventLog>,
    /// Where `service.changed` events are published.
    pub sink: Arc<dyn EventSink>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// Routes a log's events to targets. Clones are handles to the same router.
///
/// Must be made and used in a Tokio runtime. Stop it with [`Router::stop`]; dropped instead, what is under way is
/// delivered once more after the next start.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    engine: Engine,
    cursor: Cursor,
    head: watch::Sender<Offset>,
    outbound: Outbound,
    sink: Arc<dyn EventSink>,
    configured: Mutex<RuleDocument>,
    active_rules: Mutex<PersistedRules>,
    /// One change of the rules, or of who is registered, at a time.
    config_lock: Arc<tokio::sync::Mutex<()>>,
    /// Targets that are no registered services, by who brought them.
    static_targets: Mutex<BTreeMap<ServiceName, Origin>>,
    /// Services whose change is not yet told; of each the last one.
    pending_changes: Arc<Mutex<BTreeMap<ServiceName, ServiceChange>>>,
    pending_notifications: Arc<Notify>,
    replays: Mutex<BTreeMap<u64, RunningReplay>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The rule document.
    Rules,
    /// This process.
    Attached,
}

struct RunningReplay {
    replay: Replay,
    cancelled: CancellationToken,
}

/// Why a router does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouterError {
    /// The configuration breaks a bound.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The configured rules cannot be used.
    #[error("the configured rules cannot be used: {0}")]
    Rules(#[from] RulesError),
    /// The decision log cannot be started.
    #[error(transparent)]
    Decisions(#[from] crate::decisions::DecisionLogError),
    /// What may be reached is not usable.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// Opening ended by a bug.
    #[error("opening the router's store ended by a bug: {0}")]
    Panicked(tokio::task::JoinError),
}

impl Router {
    /// Opens what was kept and goes on where that ends. The first one ever begins with what happens from now on.
    ///
    /// Not cancel-safe: dropped half way, the store may be open for another moment.
    ///
    /// # Errors
    /// See [`RouterError`].
    pub async fn start(config: RouterConfig, parts: RouterParts) -> Result<Self, RouterError> {
        config.validate()?;
        let RouterParts { log, sink, clock } = parts;
        let head = log.last_offset().await?;
        let outbound = Outbound::new(config.outbound)?;
        let directory = config.directory.join("store");
        let opening = tokio::task::spawn_blocking(move || {
            let (store, persisted) = Store::open(&directory)?;
            let rules = store.rules::<PersistedRules>()?;
            let services = store.services::<ServiceRecord>()?;
            let replays = store.replays()?;
            Ok::<_, StoreError>((store, persisted, rules, services, replays))
        });
        let (store, mut persisted, persisted_rules, services, replays) =
            opening.await.map_err(RouterError::Panicked)??;
        let (in_force, set) = rules_at_start(persisted_rules.as_ref(), &config.rules)?;
        let pending_changes = Arc::new(Mutex::new(BTreeMap::new()));
        let pending_notifications = Arc::new(Notify::new());
        let observer = {
            let (pending_changes, pending_notifications) =
                (Arc::clone(&pending_changes), Arc::clone(&pending_notifications));
            move |change: ServiceChange| {
                pending_changes.lock().insert(change.service.clone(), change);
                pending_notifications.notify_one();
            }
        };
        let monitor = HealthMonitor::start(config.health, outbound.clone(), Arc::clone(&clock), observer);
        let decisions = DecisionLog::start(&config.decisions, config.directory.join("decisions"))?;
        let pool = Pool::new(Arc::clone(&clock));
        let dead_letters = std::mem::take(&mut persisted.dead_letters);
        let deps = Deps {
            log,
            dead_letters: DeadLetters::new(store.clone(), config.max_dead_letters, dead_letters),
            store,
            metrics: Arc::new(RouterMetrics::new(Arc::clone(&clock))),
            clock,
            monitor,
            decisions,
        };
        let table = RoutingTable::new(in_force.version, Arc::default(), TargetDirectory::default());
        let engine = Engine::new(deps, State::new(pool, table, config.cache_bytes));
        // Events that a machine took with it when it went down are not there any more, nor what was routed of them.
        let cursor = Cursor::new(persisted.cursor.map(|at| at.min(head)));
        let router = Self(Arc::new(Inner {
            engine: engine.clone(),
            cursor: cursor.clone(),
            head: watch::Sender::new(head),
            outbound,
            sink,
            configured: Mutex::new(config.rules),
            active_rules: Mutex::new(in_force.clone()),
            config_lock: Arc::default(),
            static_targets: Mutex::new(BTreeMap::new()),
            pending_changes,
            pending_notifications,
            replays: Mutex::new(BTreeMap::new()),
        }));
        for record in services {
            router.restore(record);
        }
        for target in config.targets {
            router.put_attached(target);
        }
        let targets = router.targets_of(&set)?;
        let mut batch = WriteBatch::default();
        batch.rules(&in_force);
        engine.update(|state| state.restore(persisted, head));
        router.activate(in_force, set, targets, &mut batch);
        if engine.read(|state| !state.pool.is_empty()) {
            router.0.cursor.begin(head, &mut batch);
        }
        engine.deps().store.commit_synced(batch).await?;
        let dispatcher = Dispatcher {
            engine: engine.clone(),
            cursor,
            head: router.0.head.subscribe(),
            max_queued: config.max_queued,
            config_lock: Arc::clone(&router.0.config_lock),
        };
        engine.spawn(dispatcher.run());
        engine.spawn(follow_log(engine.clone(), router.0.head.clone()));
        engine.start();
        let keeping = router.clone();
        engine.spawn(async move { keeping.run_service_changes().await });
        for replay in replays {
            router.run_replay(replay);
        }
        Ok(router)
    }

    /// Why nothing more is routed and delivered, if that is so: the disk refused. It goes on after a restart.
    pub fn failure(&self) -> Option<StoreError> {
        self.0.engine.failure()
    }

    /// What was decided about events, and why.
    pub fn decisions(&self) -> &DecisionLog {
        &self.0.engine.deps().decisions
    }

    /// Stops: nothing new is begun, what is under way has until `timeout` is over. True when all of it ended; what did
    /// not is delivered again after the next start.
    pub async fn stop(&self, timeout: Duration) -> bool {
        for running in self.0.replays.lock().values() {
            running.cancelled.cancel();
        }
        let deps = self.0.engine.deps();
        let complete = self.0.engine.stop(timeout).await;
        deps.monitor.shutdown().await;
        deps.decisions.close().await;
        let store = deps.store.clone();
        let closed = tokio::task::spawn_blocking(move || store.close()).await.is_ok();
        complete && closed
    }

    /// What routing has done, and what waits.
    pub fn stats(&self) -> RouterStats {
        let deps = self.0.engine.deps();
        let head = *self.0.head.borrow();
        // Nobody is waited for while there are no targets.
        let behind = self.0.cursor.get().map_or(0, |cursor| head.get().saturating_sub(cursor.get()));
        let gauges = self.targets().into_iter().map(|target| TargetGauges {
            target: target.name,
            state: target.state,
            queued: target.queued,
            in_flight: target.in_flight,
            lag_events: target.queued as u64 + behind,
            lag_seconds: target.lag_seconds,
            dead_letters: target.dead_letters,
        });
        deps.metrics.snapshot(gauges.collect(), behind, deps.decisions.stats())
    }
}

impl Router {
    /// The end of the log. A log that does not answer ends, for its new target, where routing knows it to end: the target
    /// then gets events that came a moment before it, and misses none.
    async fn log_end(&self) -> Offset {
        let known = *self.0.head.borrow();
        self.0.engine.deps().log.last_offset().await.map_or(known, |last| last.max(known))
    }
}

/// Tells the dispatcher how far the log reaches, until the router stops or the log is closed.
async fn follow_log(engine: Engine, head: watch::Sender<Offset>) {
    let stopping = engine.stopping();
    let mut last = *head.borrow();
    while let Some(outcome) = stopping.run_until_cancelled(engine.deps().log.wait_past(last)).await {
        match outcome {
            Ok(through) => {
                last = through;
                head.send_replace(through);
            }
            Err(LogError::Closed) => return,
            Err(error) => {
                tracing::error!(%error, "the log does not say how far it reaches; routing asks again");
                stopping.run_until_cancelled(tokio::time::sleep(LOG_RETRY)).await;
            }
        }
    }
}
