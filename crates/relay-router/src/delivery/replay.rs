//! Running replays: history is queued for a target again, marked as a replay, at a limited rate.

use std::sync::Arc;

use relay_core::{EventLog, LogError, Offset, ReadLimit, Timestamp};
use tokio_util::sync::CancellationToken;

use super::attempt::LOG_RETRY;
use super::engine::Engine;
use super::event_rate::EventRate;
use super::held_events::{HeldEvent, HeldEvents};
use super::state::{DirectRefusal, Place, State};
use crate::log_page::read_page;
use crate::records::{QueuedEvent, Replay, ReplayState, RouteKey};
use crate::store::{StoreError, WriteBatch};

/// The most events in a target's own route before its replays wait.
const WINDOW: usize = 256;

/// The number of events that are read at a time.
const PAGE: usize = 64;

/// Queues the rest of `replay` for its target, from its position on, which moves. Returns when everything is queued, or
/// `cancelled` is cancelled. Calls `report` after each event and at the end.
///
/// # Errors
/// [`StoreError`]. Errors of the log are retried.
pub(crate) async fn run(
    engine: &Engine,
    replay: &mut Replay,
    cancelled: &CancellationToken,
    report: impl Fn(&Replay),
) -> Result<(), StoreError> {
    let deps = engine.deps();
    let key = RouteKey::Direct(replay.target.clone());
    let rate = EventRate::new(replay.rate, Arc::clone(&deps.clock));
    let mut completions = engine.completions();
    while replay.position < replay.through && !cancelled.is_cancelled() {
        while engine.read(|state| state.queued(&key)) >= WINDOW {
            tokio::select! {
                () = cancelled.cancelled() => return Ok(()),
                closed = completions.changed() => if closed.is_err() { return Ok(()) },
            }
        }
        let limit = ReadLimit { events: PAGE, ..ReadLimit::default() };
        let mut page = match read_page(&*deps.log, replay.position, limit).await {
            Ok(page) => page,
            Err(LogError::Closed) => return Ok(()),
            Err(error) => {
                tracing::error!(%error, replay = replay.id, "the log cannot be read for a replay; retrying");
                tokio::select! {
                    () = cancelled.cancelled() => return Ok(()),
                    () = tokio::time::sleep(LOG_RETRY) => continue,
                }
            }
        };
        let through = replay.through;
        page.retain(|(offset, _)| *offset <= through);
        if page.is_empty() {
            replay.position = through;
        }
        for (offset, event) in page {
            if cancelled.is_cancelled() {
                return Ok(());
            }
            let is_of_document = replay.document.as_ref().is_none_or(|document| *document == event.document);
            let table = engine.routing_table();
            let Some(rule) = table.rule_to(&event, &replay.target).filter(|_| is_of_document) else {
                replay.position = offset;
                continue;
            };
            while let Err(at) = rate.take(1) {
                let wait = at.since(deps.clock.monotonic());
                tokio::select! {
                    () = cancelled.cancelled() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
            }
            let progress = Replay { position: offset, queued: replay.queued + 1, ..replay.clone() };
            let mut queued = QueuedEvent::new(&event, table.version());
            queued.is_replay = true;
            queued.rule = Some(rule);
            let mut batch = WriteBatch::default();
            let (queued, mut held) = (Arc::new(queued), HeldEvents::new(engine));
            let mut enter = |state: &mut State| {
                let route = state.add_direct_route(&progress.target, &mut batch);
                state.check_direct(route, offset, usize::MAX)?;
                batch.put_queued(route, offset, &queued);
                let (queued, event) = (Arc::clone(&queued), Arc::clone(&event));
                held.hold(state, HeldEvent { route, offset, place: Place::Memory, queued, event });
                Ok::<_, DirectRefusal>(())
            };
            // The event may wait there already: as a retried dead letter, or of another replay. It is delivered for each.
            while engine.update(&mut enter).is_err() {
                tokio::select! {
                    () = cancelled.cancelled() => return Ok(()),
                    closed = completions.changed() => if closed.is_err() { return Ok(()) },
                }
            }
            batch.replay(&progress);
            deps.store.commit(batch).await?;
            held.queue();
            *replay = progress;
            report(replay);
        }
    }
    if cancelled.is_cancelled() {
        return Ok(());
    }
    replay.state = ReplayState::Finished;
    let mut batch = WriteBatch::default();
    batch.remove_replay(replay.id);
    deps.store.commit(batch).await?;
    report(replay);
    Ok(())
}

/// Returns the offset before the first event of `time` or later, at most `head`. The search assumes that times grow;
/// after a clock was set back, later events may have an earlier time.
///
/// # Errors
/// See [`LogError`].
pub(crate) async fn offset_before(
    log: &dyn EventLog,
    time: Timestamp,
    head: Offset,
) -> Result<Offset, LogError> {
    let (mut low, mut high) = (0, head.get());
    // Events up to `low` are earlier; events after `high` are not.
    while low < high {
        let middle = low + (high - low) / 2;
        let limit = ReadLimit { events: 1, ..ReadLimit::default() };
        match read_page(log, Offset::new(middle), limit).await?.first() {
            Some((offset, event)) if event.time < time => low = offset.get().max(middle + 1),
            _ => high = middle,
        }
    }
    Ok(Offset::new(low))
}
