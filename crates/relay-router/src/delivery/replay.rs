//! Replays: a target gets history again, marked as such, at a limited rate, beside what happens now.

use std::sync::Arc;

use relay_core::{EventLog, LogError, Offset, ReadLimit, Timestamp};
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::event_rate::EventRate;
use crate::records::{QueuedEvent, Replay, ReplayState, RouteKey};
use crate::store::{StoreError, WriteBatch};

/// How many events of replays wait for one target at once.
const WINDOW: usize = 256;

/// How many events of history are read at a time.
const PAGE: usize = 64;

/// Sends what is left of `replay` to its target's lanes. Ends when all is queued, or when `cancelled`.
///
/// # Errors
/// [`StoreError`]; what the log cannot read is waited for.
pub(crate) async fn run(
    engine: &Engine,
    mut replay: Replay,
    cancelled: &CancellationToken,
    told: impl Fn(&Replay),
) -> Result<(), StoreError> {
    let deps = engine.deps();
    let key = RouteKey::Direct(replay.target.clone());
    let rate = EventRate::new(replay.rate, Arc::clone(&deps.clock));
    let mut completions = engine.completions();
    while replay.position < replay.through && !cancelled.is_cancelled() {
        let queued = |engine: &Engine| {
            engine.read(|state| {
                state.ids.get(&key).and_then(|id| state.routes.get(id)).map_or(0, |r| r.queues.len())
            })
        };
        while queued(engine) >= WINDOW {
            tokio::select! {
                () = cancelled.cancelled() => return Ok(()),
                closed = completions.changed() => if closed.is_err() { return Ok(()) },
            }
        }
        let limit = ReadLimit { events: PAGE, ..ReadLimit::default() };
        let page = match deps.log.read(replay.position, limit).await {
            Ok(page) => page,
            Err(LogError::Closed) => return Ok(()),
            Err(error) => {
                tracing::error!(%error, replay = replay.id, "the log cannot be read for a replay; it is tried again");
                tokio::select! {
                    () = cancelled.cancelled() => return Ok(()),
                    () = tokio::time::sleep(super::attempt::LOG_RETRY) => continue,
                }
            }
        };
        let through = replay.through;
        let page: Vec<_> =
            page.into_iter().filter(|event| event.offset.is_some_and(|at| at <= through)).collect();
        if page.is_empty() {
            replay.position = through;
        }
        for event in page.into_iter().map(Arc::new) {
            let Some(offset) = event.offset else { continue };
            replay.position = offset;
            let is_meant = replay.document.as_ref().is_none_or(|document| *document == event.document)
                && engine.read(|state| state.sends(&event, &replay.target));
            if !is_meant {
                continue;
            }
            while let Err(at) = rate.take(1) {
                let wait = at.since(deps.clock.monotonic());
                tokio::select! {
                    () = cancelled.cancelled() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
            }
            replay.queued += 1;
            let mut batch = WriteBatch::default();
            let (route, queued) = engine.update(|state| {
                let mut queued = QueuedEvent::new(&event, state.rules.version);
                queued.is_replay = true;
                (state.route_id(&key, &mut batch), Arc::new(queued))
            });
            batch.put_queued(route, offset, &queued);
            batch.replay(&replay);
            deps.store.commit(batch).await?;
            engine.update(|state| state.enqueue(route, offset, queued, Some(event), deps.cache_bytes));
            told(&replay);
        }
    }
    if cancelled.is_cancelled() {
        return Ok(());
    }
    replay.state = ReplayState::Finished;
    let mut batch = WriteBatch::default();
    batch.remove_replay(replay.id);
    deps.store.commit(batch).await?;
    told(&replay);
    Ok(())
}

/// The offset before the first event of `time` or later, of those up to `head`. Later events may have an earlier time
/// where a clock was set back; the search takes times as growing.
///
/// # Errors
/// See [`LogError`].
pub(crate) async fn before(log: &dyn EventLog, time: Timestamp, head: Offset) -> Result<Offset, LogError> {
    let (mut low, mut high) = (0, head.get());
    // Everything up to `low` is earlier; what comes after `high` is not.
    while low < high {
        let middle = low + (high - low) / 2;
        let limit = ReadLimit { events: 1, ..ReadLimit::default() };
        match log.read(Offset::new(middle), limit).await?.first() {
            Some(event) if event.time < time => {
                low = event.offset.map_or(middle + 1, Offset::get).max(middle + 1);
            }
            _ => high = middle,
        }
    }
    Ok(Offset::new(low))
}
