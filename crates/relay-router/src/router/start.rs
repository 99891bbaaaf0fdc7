//! The start of a router: its store is opened, its state restored, and its tasks begin.

use std::path::PathBuf;
use std::sync::Arc;

use relay_core::{Clock, ConfigError, EventLog, EventSink, LogError};
use relay_tasks::{Supervisor, TaskGroup, TaskName, call_blocking};
use tokio::sync::watch;

use super::context::RouterContext;
use super::dead_letters::DeadLetterQueues;
use super::replays::Replays;
use super::rule_activation::{PersistedRules, RuleActivation, RulesError, check_rules, rules_at_start};
use super::services::{PendingChanges, Services};
use crate::config::RouterConfig;
use crate::decisions::{DecisionLog, DecisionLogError, DecisionRecord};
use crate::delivery::deps::Deps;
use crate::delivery::dropped_offsets::DroppedOffsets;
use crate::delivery::engine::Engine;
use crate::delivery::loss_report::LossReport;
use crate::delivery::pool::Pool;
use crate::delivery::state::{ByteLimits, QueueLimits, State};
use crate::dispatch::{Dispatcher, RoutingCursor, hold_log};
use crate::loop_detection::CausesKey;
use crate::metrics::RouterMetrics;
use crate::monitor::HealthMonitor;
use crate::records::Replay;
use crate::registry::ServiceRecord;
use crate::routing_table::{RoutingTable, TargetDirectory};
use crate::store::{PersistedState, Store, StoreError, StoreLimits, WriteBatch};
use crate::target::{Outbound, OutboundError};

/// The task that routes the log.
const DISPATCHER: TaskName = TaskName::new("router.dispatcher");
/// The task that waits for the log's next events.
const LOG_FOLLOWER: TaskName = TaskName::new("router.log-follower");
/// The task that publishes the changes of services.
const SERVICE_CHANGES: TaskName = TaskName::new("router.service-changes");

/// The parts outside the router that it works with.
#[derive(Clone)]
#[non_exhaustive]
pub struct RouterParts {
    /// The log whose events are routed.
    pub log: Arc<dyn EventLog>,
    /// The sink for `service.changed` events.
    pub sink: Arc<dyn EventSink>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The owner of the router's tasks.
    pub supervisor: Supervisor,
    /// The key that signs the causes of deliveries, for servers that share one. Without it the router makes one, and keeps it
    /// in its store.
    pub causes_key: Option<CausesKey>,
}

impl RouterParts {
    /// The parts of a router that follows `log` and publishes to `sink`.
    pub fn new(log: Arc<dyn EventLog>, sink: Arc<dyn EventSink>, clock: Arc<dyn Clock>) -> Self {
        Self { log, sink, clock, supervisor: Supervisor::default(), causes_key: None }
    }
}

/// A failure to start a router.
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
    /// The configured rules are not valid.
    #[error("the configured rules cannot be used: {0}")]
    Rules(#[from] RulesError),
    /// The decision log cannot be started.
    #[error(transparent)]
    Decisions(#[from] DecisionLogError),
    /// The HTTP client cannot be made.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// A panic ended the opening of the store.
    #[error("opening the router's store panicked: {0}")]
    Panicked(tokio::task::JoinError),
}

/// The parts of a running router.
pub(super) struct Inner {
    pub(super) context: Arc<RouterContext>,
    pub(super) rules: RuleActivation,
    pub(super) services: Arc<Services>,
    pub(super) dead_letters: DeadLetterQueues,
    pub(super) replays: Arc<Replays>,
}

/// Everything that the last run has stored.
struct LastRun {
    state: PersistedState,
    rules: Option<PersistedRules>,
    services: Vec<ServiceRecord>,
    replays: Vec<Replay>,
    causes_key: Option<[u8; CausesKey::BYTES]>,
    /// The latest decisions about losses.
    losses: Vec<DecisionRecord>,
    lost_events: Vec<(String, u64)>,
}

async fn open_store(
    directory: PathBuf,
    limits: StoreLimits,
    tasks: TaskGroup,
) -> Result<(Store, LastRun), RouterError> {
    let opened = call_blocking(move || {
        let (store, state) = Store::open(&directory, limits, tasks)?;
        let (rules, services, replays) = (store.rules()?, store.services()?, store.replays()?);
        let (causes_key, losses, lost_events) = (store.causes_key()?, store.losses()?, store.lost_events()?);
        Ok::<_, StoreError>((
            store,
            LastRun { state, rules, services, replays, causes_key, losses, lost_events },
        ))
    });
    Ok(opened.await.map_err(RouterError::Panicked)??)
}

/// Checks a configuration with its rules, and opens nothing.
pub(super) fn check(config: &RouterConfig) -> Result<(), RouterError> {
    config.validate()?;
    Ok(check_rules(&config.rules, &Outbound::new(config.outbound.clone())?)?)
}

pub(super) async fn start(config: RouterConfig, parts: RouterParts) -> Result<Inner, RouterError> {
    config.validate()?;
    let RouterParts { log, sink, clock, supervisor, causes_key } = parts;
    let head = log.last_offset().await?;
    let outbound = Outbound::new(config.outbound)?;
    let directory = config.directory.join("store");
    let limits = StoreLimits {
        queued: config.max_queued,
        queued_bytes: config.queue_bytes,
        dead_letters: config.max_dead_letters,
        losses: config.decisions.max_losses(),
    };
    let (store, last_run) = open_store(directory, limits, supervisor.group()).await?;
    let mut batch = WriteBatch::default();
    let causes_key = causes_key.unwrap_or_else(|| {
        CausesKey::new(&last_run.causes_key.unwrap_or_else(|| {
            let bytes = rand::random();
            batch.causes_key(&bytes);
            bytes
        }))
    });
    let (rules, set) = rules_at_start(last_run.rules, &config.rules)?;
    let pending = Arc::new(PendingChanges::default());
    let observer = {
        let pending = Arc::clone(&pending);
        move |change| pending.add(change)
    };
    let monitor = HealthMonitor::start(
        config.health,
        outbound.clone(),
        Arc::clone(&clock),
        supervisor.group(),
        observer,
    );
    let metrics = RouterMetrics::new(Arc::clone(&clock));
    metrics.restore_lost(last_run.lost_events);
    let deps = Deps {
        log,
        store,
        metrics: Arc::new(metrics),
        decisions: DecisionLog::start(
            &config.decisions,
            config.directory.join("decisions"),
            last_run.losses,
            &supervisor.group(),
        )?,
        monitor,
        losses: LossReport::default(),
        dropped: DroppedOffsets::default(),
        causes_key,
        clock: Arc::clone(&clock),
    };
    let table = RoutingTable::new(rules.version(), Arc::default(), TargetDirectory::default());
    let limits = ByteLimits { cached: config.cache_bytes, queued: config.queue_bytes };
    let engine = Engine::new(deps, State::new(Pool::new(clock), table, limits), supervisor.group());
    let context = Arc::new(RouterContext {
        engine: engine.clone(),
        // A crash of the machine may have taken the last events of the log, and what was routed of them.
        cursor: RoutingCursor::new(last_run.state.cursor.map(|at| at.min(head))),
        head: watch::Sender::new(head),
        outbound,
        config_lock: Arc::default(),
        static_targets: parking_lot::Mutex::default(),
    });
    let inner = Inner {
        rules: RuleActivation::new(Arc::clone(&context), config.rules, rules.clone()),
        services: Arc::new(Services::new(Arc::clone(&context), sink, pending)),
        dead_letters: DeadLetterQueues::new(Arc::clone(&context), config.max_queued),
        replays: Arc::new(Replays::new(Arc::clone(&context))),
        context,
    };
    for record in last_run.services {
        inner.services.restore(record);
    }
    for target in config.targets {
        inner.services.put_attached(target);
    }
    engine.update(|state| state.restore(last_run.state));
    let checked = inner.rules.check(rules.clone(), set)?;
    batch.append(inner.rules.activate(checked));
    batch.rules(&rules);
    if engine.read(|state| !state.pool.is_empty()) {
        inner.context.cursor.begin(head, &mut batch);
        // The stored cursor may lie past the end of a log that a crash has cut off.
        batch.cursor(inner.context.cursor.get());
    }
    engine.deps().store.commit_synced(batch).await?;
    begin(&inner, QueueLimits { in_memory: config.max_queued, in_all: config.max_waiting });
    for replay in last_run.replays {
        inner.replays.run(replay);
    }
    Ok(inner)
}

/// Begins the tasks that run until the router stops.
fn begin(inner: &Inner, limits: QueueLimits) {
    let context = &inner.context;
    let dispatcher = Dispatcher {
        engine: context.engine.clone(),
        cursor: context.cursor.clone(),
        head: context.head.subscribe(),
        limits,
        config_lock: Arc::clone(&context.config_lock),
        may_have_abandoned: true,
    };
    hold_log(&context.engine, &context.cursor);
    let tasks = context.engine.tasks();
    tasks.keep_running(DISPATCHER, dispatcher, |dispatcher| Box::pin(dispatcher.run()));
    tasks.keep_running(LOG_FOLLOWER, Arc::clone(context), |context| Box::pin(context.follow_log()));
    context.engine.start();
    let services = Arc::clone(&inner.services);
    tasks.keep_running(SERVICE_CHANGES, services, |services| Box::pin(services.run_service_changes()));
}
