//! Targets as operators see them.

use relay_core::{LogError, ServiceName};
use relay_events::ServiceState;
use serde::Serialize;

use crate::delivery::engine::Engine;
use crate::health::BreakerState;
use crate::records::DeadLetterId;
use crate::rules::Capability;
use crate::store::StoreError;

/// A failure of a request about a target.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The target does not exist.
    #[error("there is no target `{0}`; `GET /v1/targets` lists them")]
    Unknown(ServiceName),
    /// The dead letter does not exist.
    #[error("`{target}` has no dead letter `{id}`")]
    NoDeadLetter {
        /// The target.
        target: ServiceName,
        /// The id.
        id: DeadLetterId,
    },
    /// The dead letter cannot be read.
    #[error(
        "dead letter `{id}` of `{target}` is damaged in the router's store and can only be dropped: {detail}"
    )]
    Damaged {
        /// The target.
        target: ServiceName,
        /// The id.
        id: DeadLetterId,
        /// The damage, in words.
        detail: String,
    },
    /// The event of a dead letter waits for its target already, as another retried dead letter or of a replay.
    #[error(
        "the event of dead letter `{id}` waits for `{target}` already; retry the letter after its delivery"
    )]
    AlreadyWaiting {
        /// The target.
        target: ServiceName,
        /// The id.
        id: DeadLetterId,
    },
    /// The most retried dead letters that are allowed wait for the target.
    #[error(
        "retried or replayed events wait for `{target}`, the most that are allowed: {limit} (`router.max_queued`), \
         or fewer while the waiting events of all targets take too much memory (`router.queue_bytes`); \
         retry the dead letter when some of them are delivered"
    )]
    TooManyWaiting {
        /// The target.
        target: ServiceName,
        /// The most that wait while there is enough memory.
        limit: usize,
    },
    /// No rule names the target, so a replay would send nothing.
    #[error("no rule sends anything to `{0}`, so there is nothing to replay")]
    NoRule(ServiceName),
    /// The replay does not exist.
    #[error("there is no replay {0}")]
    NoReplay(u64),
    /// The most replays that are allowed are running.
    #[error("{running} replays are running, the most that are allowed; cancel one, or wait")]
    TooManyReplays {
        /// The number of running replays.
        running: usize,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The state of a target.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TargetInfo {
    /// The target's name.
    pub name: ServiceName,
    /// The target's health.
    pub state: ServiceState,
    /// The state of its circuit breaker.
    pub breaker: BreakerState,
    /// True after the target answered that it wants no events any more (410). It gets none until it registers again, or
    /// is configured again.
    pub wants_nothing: bool,
    /// The target's capabilities.
    pub capabilities: Vec<Capability>,
    /// The number of requests under way.
    pub in_flight: usize,
    /// The number of events in routes that may lead to the target.
    pub queued: usize,
    /// The age of the oldest of these events, in seconds.
    pub lag_seconds: f64,
    /// The number of dead letters.
    pub dead_letters: usize,
}

/// All targets, by name.
pub(super) fn targets(engine: &Engine) -> Vec<TargetInfo> {
    let mut names: Vec<_> = engine.read(|state| state.pool.names().cloned().collect());
    names.sort_unstable();
    names.iter().filter_map(|name| target(engine, name)).collect()
}

/// One target, if it exists.
pub(super) fn target(engine: &Engine, name: &ServiceName) -> Option<TargetInfo> {
    let deps = engine.deps();
    let (monotonic, now) = (deps.clock.monotonic(), deps.clock.wall());
    let health = deps.monitor.state(name);
    let dead_letters = deps.store.dead_letter_count(name);
    engine.read(|state| {
        let (queued, oldest) = state.queued_for(name);
        Some(TargetInfo {
            name: name.clone(),
            state: health,
            breaker: state.pool.breaker(name, monotonic)?,
            wants_nothing: state.pool.is_gone(name),
            capabilities: state.pool.capabilities(name),
            in_flight: state.pool.in_flight(name),
            queued,
            lag_seconds: oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64()),
            dead_letters,
        })
    })
}
