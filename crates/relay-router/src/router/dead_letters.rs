//! The operators' requests about dead letters: list, requeue, drop.

use std::sync::Arc;

use relay_core::ServiceName;
use serde::Serialize;

use super::context::RouterContext;
use super::targets::TargetError;
use crate::delivery::held_events::{HeldEvent, HeldEvents};
use crate::delivery::state::{DirectRefusal, Place};
use crate::records::{DeadLetter, DeadLetterId, QueuedEvent, QueuedRecord};
use crate::store::{StoreError, WriteBatch};

/// The most dead letters in one page.
const MAX_PAGE: usize = 1_000;

/// Some dead letters of a target, the oldest events first.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DeadLetterPage {
    /// The dead letters.
    pub dead_letters: Vec<DeadLetter>,
    /// Those of the page that cannot be read. They can be dropped, and cannot be retried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<DamagedDeadLetter>,
    /// The last of both, after which the next page begins; none when there are no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_after: Option<DeadLetterId>,
}

/// A dead letter that cannot be read.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DamagedDeadLetter {
    /// The id among the target's dead letters.
    pub id: DeadLetterId,
    /// The damage, in words.
    pub error: String,
}

/// The result of a move of letters into their targets' own routes.
struct Requeued {
    count: usize,
    /// The reason for which the last letter that stays for the sake of its route does so.
    refusal: Option<DirectRefusal>,
    /// The last letter that stays because its event cannot be read.
    damaged: Option<DamagedDeadLetter>,
}

/// The operators' access to dead letters.
pub(super) struct DeadLetterQueues {
    context: Arc<RouterContext>,
    /// The most events that wait in a target's own route.
    max_queued: usize,
}

impl DeadLetterQueues {
    pub(super) fn new(context: Arc<RouterContext>, max_queued: usize) -> Self {
        Self { context, max_queued }
    }

    /// Up to `limit` and [`MAX_PAGE`] of the target's dead letters after `after`, as many as the store reads at once. Those of
    /// events that have expired meanwhile are without content.
    pub(super) async fn list(
        &self,
        target: &ServiceName,
        after: Option<DeadLetterId>,
        limit: usize,
    ) -> Result<DeadLetterPage, TargetError> {
        self.check_target(target)?;
        let deps = self.context.deps();
        let (letters, has_more) = deps.store.dead_letters(target.clone(), after, limit.min(MAX_PAGE)).await?;
        let now = deps.clock.wall();
        let next_after = letters.last().filter(|_| has_more).map(|(last, _)| *last);
        let mut page = DeadLetterPage { dead_letters: Vec::new(), damaged: Vec::new(), next_after };
        for (id, letter) in letters {
            match letter {
                Ok(letter) => page.dead_letters.push(letter.at(now)),
                Err(error) => page.damaged.push(DamagedDeadLetter { id, error }),
            }
        }
        Ok(page)
    }

    pub(super) async fn get(
        &self,
        target: &ServiceName,
        id: DeadLetterId,
    ) -> Result<DeadLetter, TargetError> {
        self.check_target(target)?;
        let letter = self.context.deps().store.dead_letter(target, id).await?;
        match letter.ok_or_else(|| TargetError::NoDeadLetter { target: target.clone(), id })? {
            Ok(letter) => Ok(letter.at(self.context.deps().clock.wall())),
            Err(detail) => Err(TargetError::Damaged { target: target.clone(), id, detail }),
        }
    }

    /// Puts a dead letter into the target's own route, with all the attempts of a new event.
    pub(super) async fn retry(&self, target: &ServiceName, id: DeadLetterId) -> Result<(), TargetError> {
        let _guard = self.context.config_lock.lock().await;
        let letter = self.get(target, id).await?;
        let requeued = self.requeue(vec![letter]).await?;
        if let Some(DamagedDeadLetter { id, error }) = requeued.damaged {
            return Err(TargetError::Damaged { target: target.clone(), id, detail: error });
        }
        match requeued.refusal {
            None => Ok(()),
            Some(DirectRefusal::AlreadyWaiting) => {
                Err(TargetError::AlreadyWaiting { target: target.clone(), id })
            }
            Some(DirectRefusal::Full) => {
                Err(TargetError::TooManyWaiting { target: target.clone(), limit: self.max_queued })
            }
        }
    }

    /// Requeues the target's dead letters, except damaged ones. Returns the number of those that wait now.
    pub(super) async fn retry_all(&self, target: &ServiceName) -> Result<usize, TargetError> {
        let _guard = self.context.config_lock.lock().await;
        let mut count = 0;
        // Only the letters that exist now. An event that becomes a dead letter again meanwhile stays one.
        let mut left = self.context.deps().store.dead_letter_count(target);
        let mut after = None;
        while left > 0 {
            let page = self.list(target, after, left).await?;
            left = left.saturating_sub(page.dead_letters.len() + page.damaged.len());
            after = page.next_after;
            let requeued = self.requeue(page.dead_letters).await?;
            count += requeued.count;
            if requeued.refusal == Some(DirectRefusal::Full) || after.is_none() {
                break;
            }
        }
        Ok(count)
    }

    /// Moves `letters` into their targets' own routes. A letter stays whose event waits there already or cannot be read, and so do
    /// those for which there is no space.
    async fn requeue(&self, letters: Vec<DeadLetter>) -> Result<Requeued, StoreError> {
        let (engine, deps) = (&self.context.engine, self.context.deps());
        let version = engine.routing_table().version();
        let (mut batch, mut held) = (WriteBatch::default(), HeldEvents::new(engine));
        let mut requeued = Requeued { count: 0, refusal: None, damaged: None };
        for letter in letters {
            let event = match relay_events::json::decode(letter.event.get().as_bytes()) {
                Ok(event) => Arc::new(event),
                Err(error) => {
                    requeued.damaged = Some(DamagedDeadLetter { id: letter.id, error: error.to_string() });
                    continue;
                }
            };
            let mut record = QueuedEvent::new(&event, version);
            record.is_requeued = true;
            record.rule = letter.rule;
            let (offset, queued) = (letter.id.offset, Arc::new(record));
            let entered = engine.update(|state| {
                let route = state.add_direct_route(&letter.target, &mut batch);
                state.check_direct(route, offset, self.max_queued)?;
                let body = Some(letter.event.get());
                batch.put_record(route, offset, &QueuedRecord { queued: &queued, attempts: &[], body });
                held.hold(state, HeldEvent { route, offset, place: Place::Memory, queued, event });
                Ok::<_, DirectRefusal>(())
            });
            match entered {
                Ok(()) => {
                    batch.remove_dead_letter(&letter.target, letter.id);
                    requeued.count += 1;
                }
                Err(refusal) => requeued.refusal = Some(refusal),
            }
        }
        deps.store.commit_then(batch, || held.queue()).await?;
        Ok(requeued)
    }

    /// Removes a dead letter.
    pub(super) async fn remove(&self, target: &ServiceName, id: DeadLetterId) -> Result<(), TargetError> {
        let _guard = self.context.config_lock.lock().await;
        match self.get(target, id).await {
            Ok(_) | Err(TargetError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let deps = self.context.deps();
        let mut batch = WriteBatch::default();
        batch.remove_dead_letter(target, id);
        Ok(deps.store.commit(batch).await?)
    }

    /// Removes all of the target's dead letters. Returns their number.
    pub(super) async fn remove_all(&self, target: &ServiceName) -> Result<usize, TargetError> {
        let _guard = self.context.config_lock.lock().await;
        let deps = self.context.deps();
        let mut count = 0;
        let mut left = deps.store.dead_letter_count(target);
        while left > 0 {
            let page = self.list(target, None, left).await?;
            let letters = page.dead_letters.iter().map(|letter| letter.id);
            let ids: Vec<_> = letters.chain(page.damaged.iter().map(|letter| letter.id)).collect();
            if ids.is_empty() {
                break;
            }
            left = left.saturating_sub(ids.len());
            count += ids.len();
            let mut batch = WriteBatch::default();
            for id in ids {
                batch.remove_dead_letter(target, id);
            }
            deps.store.commit(batch).await?;
        }
        Ok(count)
    }

    /// Checks that the target exists, or has dead letters from the time when it did.
    fn check_target(&self, target: &ServiceName) -> Result<(), TargetError> {
        let exists = self.context.engine.read(|state| state.pool.contains(target));
        if exists || self.context.deps().store.dead_letter_count(target) > 0 {
            Ok(())
        } else {
            Err(TargetError::Unknown(target.clone()))
        }
    }
}
