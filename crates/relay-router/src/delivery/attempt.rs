//! One attempt: its events are read, delivered, and what became of each is kept before anybody else gets the place.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use relay_core::{
    Delivery, DeliveryError, Event, FailureKind, LogError, Offset, ReadLimit, ServiceName, Target,
};

use super::engine::Engine;
use super::partition_queues::{Dequeued, QueueEntry};
use super::pool::TargetOutcome;
use crate::decisions::Outcome;
use crate::health::Ticket;
use crate::loop_detection;
use crate::records::{Attempt, DeadLetter, DeadLetterId, DeadReason, QueuedEvent, RouteId, RouteKey};
use crate::rules::{RetryPolicy, TargetPolicy};
use crate::store::{StoreError, WriteBatch};

/// How long what cannot be read from the log waits before it is tried again.
pub(crate) const LOG_RETRY: Duration = Duration::from_secs(1);

/// An attempt that has its place at a target.
pub(crate) struct InFlight {
    pub(crate) route: RouteId,
    pub(crate) key: RouteKey,
    pub(crate) dequeued: Dequeued,
    pub(crate) name: ServiceName,
    pub(crate) target: Arc<dyn Target>,
    pub(crate) policy: TargetPolicy,
    pub(crate) ticket: Ticket,
    pub(crate) is_fallback: bool,
}

/// What becomes of one event of an attempt.
pub(crate) enum Disposition {
    /// It need not be delivered any more.
    Done(Outcome),
    /// It is tried again, with what is known of it now.
    Retry(Arc<QueuedEvent>),
    /// It is given up, with what is known of it.
    DeadLetter(QueuedEvent, DeadReason),
}

impl Disposition {
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Done(outcome) => *outcome,
            Self::Retry(_) => Outcome::Retrying,
            Self::DeadLetter(..) => Outcome::DeadLettered,
        }
    }
}

/// What came of an attempt.
pub(crate) struct AttemptResult {
    /// The attempt's events; those that neither the log nor anybody else has any more are missing.
    pub(crate) events: Vec<Option<Arc<Event>>>,
    /// One for each of them.
    pub(crate) dispositions: Vec<Disposition>,
    /// None when the target was not asked.
    pub(crate) answer: Option<Result<(), DeliveryError>>,
    /// How long the target took.
    pub(crate) took: Duration,
    /// How long those that are tried again wait.
    pub(crate) backoff: Duration,
}

impl InFlight {
    /// Makes the attempt, and keeps what came of it. `None` when the engine has stopped meanwhile: what was under way
    /// is then delivered again after the next start.
    ///
    /// # Errors
    /// See [`StoreError`]: what came of it is not kept.
    pub(crate) async fn run(&self, engine: &Engine) -> Result<Option<AttemptResult>, StoreError> {
        let mut result = match self.load(engine).await {
            Ok(events) => match self.try_to_deliver(engine, events).await {
                Some(result) => result,
                None => return Ok(None),
            },
            Err(error) => {
                tracing::error!(%error, target = %self.name, "what waits cannot be read from the log; it is tried again");
                let again = |entry: &QueueEntry| Disposition::Retry(Arc::clone(&entry.queued));
                let dispositions: Vec<_> = self.dequeued.entries.iter().map(again).collect();
                let events = vec![None; dispositions.len()];
                return Ok(Some(AttemptResult {
                    events,
                    dispositions,
                    answer: None,
                    took: Duration::ZERO,
                    backoff: LOG_RETRY,
                }));
            }
        };
        self.persist(engine, &mut result).await?;
        Ok(Some(result))
    }

    /// The events, from memory or from where they are kept.
    async fn load(&self, engine: &Engine) -> Result<Vec<Option<Arc<Event>>>, LogError> {
        let mut events = Vec::with_capacity(self.dequeued.entries.len());
        for entry in &self.dequeued.entries {
            events.push(match (&entry.event, &entry.queued.body) {
                (Some(event), _) => Some(Arc::clone(event)),
                (None, Some(body)) => match relay_events::json::decode(body.as_bytes()) {
                    Ok(event) => Some(Arc::new(event)),
                    Err(error) => {
                        tracing::error!(%error, event = %entry.queued.event, "a dead letter cannot be read");
                        None
                    }
                },
                (None, None) => {
                    let before = Offset::new(entry.offset.get().saturating_sub(1));
                    let limit = ReadLimit { events: 1, ..ReadLimit::default() };
                    let read = engine.deps().log.read(before, limit).await?;
                    // Another event is there when this one is no longer kept.
                    read.into_iter().find(|event| event.id == entry.queued.event).map(Arc::new)
                }
            });
        }
        Ok(events)
    }

    async fn try_to_deliver(
        &self,
        engine: &Engine,
        events: Vec<Option<Arc<Event>>>,
    ) -> Option<AttemptResult> {
        let clock = &engine.deps().clock;
        let (now, started) = (clock.wall(), clock.monotonic());
        let unneeded = |event: &Option<Arc<Event>>| match event {
            None => Some(Outcome::Lost),
            Some(event) if event.is_expired(now) => Some(Outcome::Expired),
            Some(_) => None,
        };
        let unneeded: Vec<_> = events.iter().map(unneeded).collect();
        let needed = events.iter().zip(&unneeded).filter(|(_, unneeded)| unneeded.is_none());
        let needed: Vec<_> =
            needed.filter_map(|(event, _)| event.as_ref()).map(|event| self.with_causes(event)).collect();
        let is_alone = needed.len() == 1;
        let answer = if needed.is_empty() { None } else { Some(self.ask(engine, needed).await?) };
        let took = clock.monotonic().since(started);
        let dispose = |(entry, unneeded): (&QueueEntry, &Option<Outcome>)| match (unneeded, &answer) {
            (Some(outcome), _) => Disposition::Done(*outcome),
            (None, Some(Err(error))) => {
                let mut queued = QueuedEvent::clone(&entry.queued);
                queued.push(Attempt::new(now, self.name.clone(), error, took));
                disposition(queued, error.kind, is_alone, &self.policy.retry)
            }
            (None, _) => Disposition::Done(Outcome::Delivered),
        };
        let dispositions: Vec<_> = self.dequeued.entries.iter().zip(&unneeded).map(dispose).collect();
        let tried = self.dequeued.entries.first().map_or(0, |entry| entry.queued.tried);
        let wanted = answer.as_ref().and_then(|answer| answer.as_ref().err()?.retry_after);
        let backoff = backoff(&self.policy.retry, tried).max(wanted.unwrap_or_default());
        Some(AttemptResult { events, dispositions, answer, took, backoff })
    }

    /// The event with what led to it.
    fn with_causes(&self, event: &Arc<Event>) -> Arc<Event> {
        match self.key.rule() {
            Some(rule) => loop_detection::with_causes(event, rule),
            None => Arc::clone(event),
        }
    }

    /// The target's answer; a target that takes too long, or panics, has failed. `None` when the engine stops.
    async fn ask(&self, engine: &Engine, events: Vec<Arc<Event>>) -> Option<Result<(), DeliveryError>> {
        let head = self.dequeued.entries.first();
        let mut delivery =
            Delivery::new(events).attempt(head.map_or(1, |head| head.queued.tried.saturating_add(1)));
        if head.is_some_and(|head| head.queued.is_replay) {
            delivery = delivery.replay();
        }
        let call = AssertUnwindSafe(self.target.deliver(delivery)).catch_unwind();
        tokio::select! {
            answer = tokio::time::timeout(self.policy.timeout, call) => Some(match answer {
                Ok(Ok(answer)) => answer,
                Ok(Err(_panic)) => Err(DeliveryError::new(FailureKind::Retry, "the target panicked")),
                Err(_elapsed) => {
                    let detail = format!("no answer within {} ms", self.policy.timeout.as_millis());
                    Err(DeliveryError::new(FailureKind::Retry, detail))
                }
            }),
            () = engine.aborting() => None,
        }
    }

    async fn persist(&self, engine: &Engine, result: &mut AttemptResult) -> Result<(), StoreError> {
        let deps = engine.deps();
        let mut batch = WriteBatch::default();
        let mut dead = Vec::new();
        for ((entry, disposition), event) in
            self.dequeued.entries.iter().zip(&result.dispositions).zip(&result.events)
        {
            match (disposition, event) {
                (Disposition::Retry(queued), _) => batch.put_queued(self.route, entry.offset, queued),
                (Disposition::DeadLetter(queued, reason), Some(event)) => {
                    batch.remove_queued(self.route, entry.offset);
                    let letter =
                        self.dead_letter(engine, entry.offset, queued, event, *reason, deps.clock.wall())?;
                    dead.push(deps.dead_letters.add(&mut batch, &letter).await?);
                }
                (Disposition::Done(_) | Disposition::DeadLetter(..), _) => {
                    batch.remove_queued(self.route, entry.offset);
                }
            }
        }
        deps.store.commit(batch).await?;
        for dropped in dead {
            deps.dead_letters.added(&self.name, dropped);
            (0..dropped).for_each(|_| deps.metrics.dead_letter_dropped(&self.name));
        }
        Ok(())
    }

    fn dead_letter(
        &self,
        engine: &Engine,
        offset: Offset,
        queued: &QueuedEvent,
        event: &Event,
        reason: DeadReason,
        at: relay_core::Timestamp,
    ) -> Result<DeadLetter, StoreError> {
        let json = relay_events::json::encode(event);
        let event = serde_json::from_slice(&json).map_err(|error| {
            engine.deps().store.error(&format_args!("event {} cannot be kept as JSON: {error}", event.id))
        })?;
        Ok(DeadLetter {
            id: DeadLetterId { offset, route: self.route },
            target: self.name.clone(),
            rule: self.key.rule().cloned(),
            event_id: queued.event,
            document: queued.document.clone(),
            at,
            reason,
            attempts: queued.attempts.clone(),
            event,
        })
    }
}

impl AttemptResult {
    /// What the attempt says of the target.
    pub(crate) fn of_target(&self) -> TargetOutcome {
        match &self.answer {
            None => TargetOutcome::Untried,
            // A refusal is an answer too.
            Some(Ok(())) => TargetOutcome::Answered,
            Some(Err(error)) if error.kind == FailureKind::Reject => TargetOutcome::Answered,
            Some(Err(error)) => TargetOutcome::Failed {
                retry_after: error.retry_after,
                is_gone: error.kind == FailureKind::Gone,
            },
        }
    }
}

/// What becomes of an event that was not taken. One of several that were refused together is tried alone first: it need
/// not be the one that was meant.
fn disposition(queued: QueuedEvent, kind: FailureKind, is_alone: bool, retry: &RetryPolicy) -> Disposition {
    let is_final = match kind {
        FailureKind::Reject => is_alone,
        _ => queued.tried >= retry.max_attempts.get(),
    };
    if is_final {
        Disposition::DeadLetter(queued, DeadReason::of(kind))
    } else {
        Disposition::Retry(Arc::new(queued))
    }
}

/// How long an event waits that failed after `tried` earlier attempts: twice as long each time, and of that between
/// half and all, so that what failed together does not come back together.
fn backoff(retry: &RetryPolicy, tried: u32) -> Duration {
    let whole = retry.initial.saturating_mul(1_u32.checked_shl(tried).unwrap_or(u32::MAX)).min(retry.max);
    whole.mul_f64(rand::random_range(0.5..=1.0))
}
