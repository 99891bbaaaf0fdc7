//! Targets as operators see them, and their dead letters.

use std::sync::Arc;

use relay_core::{LogError, ServiceName};
use relay_events::ServiceState;
use serde::Serialize;

use super::Router;
use crate::delivery::dead_letters::MAX_PAGE;
use crate::health::BreakerState;
use crate::records::{DeadLetter, DeadLetterId, QueuedEvent};
use crate::rules::Capability;
use crate::store::{StoreError, WriteBatch};

/// Why something about a target was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// There is no such target.
    #[error("there is no target `{0}`; `GET /v1/targets` lists them")]
    Unknown(ServiceName),
    /// There is no such dead letter.
    #[error("`{target}` has no dead letter `{id}`")]
    NoDeadLetter {
        /// The target.
        target: ServiceName,
        /// The id.
        id: DeadLetterId,
    },
    /// No rule sends anything there, so there is nothing to send again.
    #[error("no rule sends anything to `{0}`, so there is nothing to send again")]
    NoRule(ServiceName),
    /// There is no such replay.
    #[error("there is no replay {0}")]
    NoReplay(u64),
    /// As many replays as there may be are running.
    #[error("{running} replays are running, the most that are allowed; cancel one, or wait")]
    TooManyReplays {
        /// How many.
        running: usize,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A target as it stands.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TargetInfo {
    /// Its name.
    pub name: ServiceName,
    /// Whether it works.
    pub state: ServiceState,
    /// Its circuit breaker.
    pub breaker: BreakerState,
    /// It answered that it wants nothing any more (410), and gets nothing until it registers or is configured again.
    pub wants_nothing: bool,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// Requests under way.
    pub in_flight: usize,
    /// Events that wait in routes that may lead to it.
    pub queued: usize,
    /// Age of the oldest of them, in seconds.
    pub lag_seconds: f64,
    /// Dead letters.
    pub dead_letters: usize,
}

impl Router {
    /// All targets, by name.
    pub fn targets(&self) -> Vec<TargetInfo> {
        let mut names: Vec<_> = self.0.engine.read(|state| state.pool.names().cloned().collect());
        names.sort_unstable();
        names.iter().filter_map(|name| self.target(name)).collect()
    }

    /// One target.
    pub fn target(&self, name: &ServiceName) -> Option<TargetInfo> {
        let deps = self.0.engine.deps();
        let (monotonic, now) = (deps.clock.monotonic(), deps.clock.wall());
        let state_of = deps.monitor.state(name);
        let dead_letters = deps.dead_letters.count(name);
        self.0.engine.read(|state| {
            let (queued, oldest) = state.queued_for(name);
            Some(TargetInfo {
                name: name.clone(),
                state: state_of,
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

    /// Up to `limit`, and 1,000, of the target's dead letters after `after`, the oldest events first.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn dead_letters(
        &self,
        target: &ServiceName,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, TargetError> {
        self.check_target(target)?;
        Ok(self.0.engine.deps().store.dead_letters(target.clone(), after, limit.min(MAX_PAGE)).await?)
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
        self.check_target(target)?;
        let letter = self.0.engine.deps().store.dead_letter(target, id).await?;
        letter.ok_or_else(|| TargetError::NoDeadLetter { target: target.clone(), id })
    }

    /// Tries a dead letter again, with all the attempts that a new event has. It goes to this target alone.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn retry_dead_letter(&self, target: &ServiceName, id: DeadLetterId) -> Result<(), TargetError> {
        let _changing = self.0.config_lock.lock().await;
        let letter = self.dead_letter(target, id).await?;
        Ok(self.requeue(vec![letter]).await?)
    }

    /// Tries all of the target's dead letters again. Returns how many.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn retry_dead_letters(&self, target: &ServiceName) -> Result<usize, TargetError> {
        let _changing = self.0.config_lock.lock().await;
        let mut count = 0;
        // Those alone that are there now: what is given up once more meanwhile stays.
        let mut left = self.0.engine.deps().dead_letters.count(target);
        let mut after = None;
        while left > 0 {
            let page = self.dead_letters(target, after, left.min(MAX_PAGE)).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            left -= page.len();
            count += page.len();
            self.requeue(page).await?;
        }
        Ok(count)
    }

    async fn requeue(&self, letters: Vec<DeadLetter>) -> Result<(), StoreError> {
        let deps = self.0.engine.deps();
        let mut batch = WriteBatch::default();
        let mut queued = Vec::with_capacity(letters.len());
        let version = self.0.engine.routing_table().version();
        for letter in letters {
            let Ok(event) = relay_events::json::decode(letter.event.get().as_bytes()) else { continue };
            let route = self.0.engine.update(|state| state.add_direct_route(&letter.target, &mut batch));
            let mut record = QueuedEvent::new(&event, version);
            record.body = Some(letter.event.get().into());
            batch.put_queued(route, letter.id.offset, &record);
            deps.dead_letters.remove(&mut batch, &letter.target, letter.id);
            queued.push((route, letter.id.offset, Arc::new(record), Arc::new(event)));
        }
        deps.store.commit(batch).await?;
        self.0.engine.update(|state| {
            for (route, offset, record, event) in queued {
                state.enqueue(route, offset, record, Some(event));
            }
        });
        Ok(())
    }

    /// Drops a dead letter for good.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn drop_dead_letter(&self, target: &ServiceName, id: DeadLetterId) -> Result<(), TargetError> {
        let _changing = self.0.config_lock.lock().await;
        let letter = self.dead_letter(target, id).await?;
        let deps = self.0.engine.deps();
        let mut batch = WriteBatch::default();
        deps.dead_letters.remove(&mut batch, target, letter.id);
        Ok(deps.store.commit(batch).await?)
    }

    /// Drops all of the target's dead letters for good. Returns how many.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn drop_dead_letters(&self, target: &ServiceName) -> Result<usize, TargetError> {
        let _changing = self.0.config_lock.lock().await;
        let deps = self.0.engine.deps();
        let mut count = 0;
        let mut left = deps.dead_letters.count(target);
        while left > 0 {
            let page = self.dead_letters(target, None, left.min(MAX_PAGE)).await?;
            if page.is_empty() {
                break;
            }
            left -= page.len();
            count += page.len();
            let mut batch = WriteBatch::default();
            for letter in page {
                deps.dead_letters.remove(&mut batch, target, letter.id);
            }
            deps.store.commit(batch).await?;
        }
        Ok(count)
    }

    /// That there is such a target, or something that was once given up there.
    fn check_target(&self, target: &ServiceName) -> Result<(), TargetError> {
        let is_known = self.0.engine.read(|state| state.pool.contains(target));
        let is_remembered = || self.0.engine.deps().dead_letters.count(target) > 0;
        if is_known || is_remembered() { Ok(()) } else { Err(TargetError::Unknown(target.clone())) }
    }
}
