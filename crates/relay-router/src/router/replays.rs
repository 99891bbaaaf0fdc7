//! The operators' requests about replays: start, list, cancel.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use relay_core::{Offset, ServiceName};
use relay_tasks::TaskName;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::context::RouterContext;
use super::targets::TargetError;
use crate::delivery::replay;
use crate::records::{Replay, ReplayRequest, ReplayStart, ReplayState};
use crate::store::WriteBatch;

/// A replay.
const REPLAY: TaskName = TaskName::new("router.replay");

/// The most replays that run at once.
const MAX_REPLAYS: usize = 64;

/// The most ended replays that are listed.
const MAX_ENDED_REPLAYS: usize = 100;

/// The running replays, and the last ended ones.
pub(super) struct Replays {
    context: Arc<RouterContext>,
    by_id: Mutex<BTreeMap<u64, ReplayTask>>,
}

struct ReplayTask {
    replay: Replay,
    cancelled: CancellationToken,
    /// Cancelled when nothing is queued or stored for the replay any more.
    ended: CancellationToken,
}

/// A replay with the task that runs it.
struct RunningReplay {
    replays: Arc<Replays>,
    replay: Replay,
    cancelled: CancellationToken,
    _ended: DropGuard,
}

impl RunningReplay {
    /// Runs the replay from its position on.
    async fn run(&mut self) {
        let Self { replays, replay, cancelled, .. } = self;
        let engine = &replays.context.engine;
        if let Err(error) = replay::run(engine, replay, cancelled, |now| replays.report(now)).await {
            engine.fail(error);
        }
    }
}

impl Replays {
    pub(super) fn new(context: Arc<RouterContext>) -> Self {
        Self { context, by_id: Mutex::new(BTreeMap::new()) }
    }

    /// Starts a replay of the events that the rules send to `target`, up to the present end of the log.
    pub(super) async fn start(
        self: &Arc<Self>,
        target: &ServiceName,
        request: ReplayRequest,
    ) -> Result<Replay, TargetError> {
        let (engine, deps) = (&self.context.engine, self.context.deps());
        if !engine.read(|state| state.pool.contains(target)) {
            return Err(TargetError::Unknown(target.clone()));
        }
        if !engine.routing_table().names(target) {
            return Err(TargetError::NoRule(target.clone()));
        }
        let head = *self.context.head.borrow();
        let after = match request.from {
            ReplayStart::Offset(offset) => Offset::new(offset.get().saturating_sub(1)),
            ReplayStart::Time(time) => replay::offset_before(&*deps.log, time, head).await?,
        };
        let replay = {
            let mut by_id = self.by_id.lock();
            let running = by_id.values().filter(|one| one.replay.state == ReplayState::Running).count();
            if running >= MAX_REPLAYS {
                return Err(TargetError::TooManyReplays { running });
            }
            let started_at = deps.clock.wall();
            // Ids grow across restarts, since they are at least the time in microseconds.
            let now = u64::try_from(started_at.as_micros()).unwrap_or(0);
            let id = by_id.keys().next_back().map_or(now, |last| now.max(last + 1));
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
            by_id.insert(id, self.task(&replay));
            replay
        };
        let mut batch = WriteBatch::default();
        batch.replay(&replay);
        if let Err(error) = deps.store.commit_synced(batch).await {
            if let Some(task) = self.by_id.lock().remove(&replay.id) {
                task.ended.cancel();
            }
            return Err(error.into());
        }
        self.run(replay.clone());
        Ok(replay)
    }

    /// Runs a replay that was started, in this run or in the last one.
    pub(super) fn run(self: &Arc<Self>, replay: Replay) {
        let (cancelled, ended) = {
            let mut by_id = self.by_id.lock();
            let ended = by_id.iter().filter(|(_, one)| one.replay.state != ReplayState::Running);
            let ended: Vec<_> = ended.map(|(id, _)| *id).collect();
            for id in ended.iter().take(ended.len().saturating_sub(MAX_ENDED_REPLAYS)) {
                by_id.remove(id);
            }
            let task = by_id.entry(replay.id).or_insert_with(|| self.task(&replay));
            (task.cancelled.clone(), task.ended.clone())
        };
        let running =
            RunningReplay { replays: Arc::clone(self), replay, cancelled, _ended: ended.drop_guard() };
        self.context.engine.tasks().keep_running(REPLAY, running, |running| Box::pin(running.run()));
    }

    fn task(&self, replay: &Replay) -> ReplayTask {
        let cancelled = self.context.engine.stopping().child_token();
        ReplayTask { replay: replay.clone(), cancelled, ended: CancellationToken::new() }
    }

    /// Takes over the progress of a replay.
    fn report(&self, now: &Replay) {
        if let Some(task) = self.by_id.lock().get_mut(&now.id) {
            task.replay = now.clone();
        }
    }

    /// The target's replays, by id.
    pub(super) fn of(&self, target: &ServiceName) -> Vec<Replay> {
        let by_id = self.by_id.lock();
        by_id.values().map(|task| &task.replay).filter(|replay| replay.target == *target).cloned().collect()
    }

    /// Cancels a replay. Its queued events are still delivered.
    pub(super) async fn cancel(&self, target: &ServiceName, id: u64) -> Result<Replay, TargetError> {
        let of_target = |task: &&mut ReplayTask| task.replay.target == *target;
        let ended = {
            let mut by_id = self.by_id.lock();
            let task = by_id.get_mut(&id).filter(of_target).ok_or(TargetError::NoReplay(id))?;
            task.cancelled.cancel();
            task.ended.clone()
        };
        // The task of the replay stores its progress with each event, also with one that it is queueing now.
        ended.cancelled().await;
        let mut batch = WriteBatch::default();
        batch.remove_replay(id);
        self.context.deps().store.commit(batch).await?;
        let mut by_id = self.by_id.lock();
        let task = by_id.get_mut(&id).filter(of_target).ok_or(TargetError::NoReplay(id))?;
        if task.replay.state == ReplayState::Running {
            task.replay.state = ReplayState::Cancelled;
        }
        Ok(task.replay.clone())
    }

    /// Ends all replays for this run. The next run goes on with them.
    pub(super) fn stop(&self) {
        for task in self.by_id.lock().values() {
            task.cancelled.cancel();
        }
    }
}
