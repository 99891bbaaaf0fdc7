//! Replays: asked for, running, ended.

use relay_core::{Offset, ServiceName};

use super::{Router, RunningReplay};
use crate::delivery::replay;
use crate::records::{Replay, ReplayRequest, ReplayStart, ReplayState};
use crate::router::targets::TargetError;
use crate::store::WriteBatch;

/// How many replays run at once.
const MAX_REPLAYS: usize = 64;

/// How many replays that are over are still told.
const MAX_ENDED_REPLAYS: usize = 100;

impl Router {
    /// Sends history to a target again, up to what has happened by now, marked as a replay: what the rules would have
    /// go there. It goes on after a restart.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn replay(&self, target: &ServiceName, request: ReplayRequest) -> Result<Replay, TargetError> {
        let deps = self.0.engine.deps();
        if !self.0.engine.read(|state| state.pool.contains(target)) {
            return Err(TargetError::Unknown(target.clone()));
        }
        if !self.0.engine.routing_table().names(target) {
            return Err(TargetError::NoRule(target.clone()));
        }
        let head = *self.0.head.borrow();
        let after = match request.from {
            ReplayStart::Offset(offset) => Offset::new(offset.get().saturating_sub(1)),
            ReplayStart::Time(time) => replay::offset_before(&*deps.log, time, head).await?,
        };
        let replay = {
            let mut replays = self.0.replays.lock();
            let running = replays.values().filter(|one| one.replay.state == ReplayState::Running).count();
            if running >= MAX_REPLAYS {
                return Err(TargetError::TooManyReplays { running });
            }
            let started_at = deps.clock.wall();
            // Ids do not come again after a restart.
            let now = u64::try_from(started_at.as_micros()).unwrap_or(0);
            let id = replays.keys().next_back().map_or(now, |last| now.max(last + 1));
            let replay = Replay {
                id,
                target: target.clone(),
                document: request.document,
                rate: request.rate,
                after,
                through: head,
                position: after,
                queued: 0,
                started_at,
                state: ReplayState::Running,
            };
            let running =
                RunningReplay { replay: replay.clone(), cancelled: self.0.engine.stopping().child_token() };
            replays.insert(id, running);
            replay
        };
        let mut batch = WriteBatch::default();
        batch.replay(&replay);
        deps.store.commit_synced(batch).await?;
        self.run_replay(replay.clone());
        Ok(replay)
    }

    pub(super) fn run_replay(&self, replay: Replay) {
        let cancelled = {
            let mut replays = self.0.replays.lock();
            let ended: Vec<_> = replays
                .iter()
                .filter(|(_, one)| one.replay.state != ReplayState::Running)
                .map(|(id, _)| *id)
                .collect();
            for id in ended.iter().take(ended.len().saturating_sub(MAX_ENDED_REPLAYS)) {
                replays.remove(id);
            }
            let running = replays.entry(replay.id).or_insert_with(|| RunningReplay {
                replay: replay.clone(),
                cancelled: self.0.engine.stopping().child_token(),
            });
            running.cancelled.clone()
        };
        let router = self.clone();
        self.0.engine.spawn(async move {
            let report = |now: &Replay| {
                if let Some(running) = router.0.replays.lock().get_mut(&now.id)
                    && running.replay.state == ReplayState::Running
                {
                    running.replay = now.clone();
                }
            };
            if let Err(error) = replay::run(&router.0.engine, replay, &cancelled, report).await {
                router.0.engine.fail(error);
            }
        });
    }

    /// The target's replays, those that run and the last ones that are over, by id.
    pub fn replays(&self, target: &ServiceName) -> Vec<Replay> {
        let replays = self.0.replays.lock();
        replays
            .values()
            .map(|running| &running.replay)
            .filter(|replay| replay.target == *target)
            .cloned()
            .collect()
    }

    /// Ends a replay; what of it is queued is still delivered.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub async fn cancel_replay(&self, target: &ServiceName, id: u64) -> Result<Replay, TargetError> {
        let replay = {
            let mut replays = self.0.replays.lock();
            let running = replays.get_mut(&id).filter(|running| running.replay.target == *target);
            let running = running.ok_or(TargetError::NoReplay(id))?;
            running.cancelled.cancel();
            if running.replay.state == ReplayState::Running {
                running.replay.state = ReplayState::Cancelled;
            }
            running.replay.clone()
        };
        let mut batch = WriteBatch::default();
        batch.remove_replay(id);
        self.0.engine.deps().store.commit(batch).await?;
        Ok(replay)
    }
}
