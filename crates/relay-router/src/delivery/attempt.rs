//! One attempt to deliver events to a target. The store has its result before its slot is given to another attempt.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use relay_core::{
    Delivery, DeliveryError, Event, FailureKind, LogError, Offset, ReadLimit, ServiceName, Target, Timestamp,
};
use tokio_util::sync::CancellationToken;

use super::deps::Deps;
use super::engine::Engine;
use super::partition_queues::{Dequeued, QueueEntry};
use super::pool::TargetOutcome;
use crate::decisions::{DecidedEvent, Decision, DecisionRecord, Outcome};
use crate::health::BreakerTicket;
use crate::loop_detection;
use crate::records::{
    Attempt, DeadLetter, DeadLetterId, DeadReason, FailedAttempts, QueuedEvent, QueuedRecord, RouteId,
    RouteKey, json_of,
};
use crate::rules::{RetryPolicy, TargetPolicy};
use crate::store::{StoreError, WriteBatch};

/// The pause after a failure to read the log.
pub(crate) const LOG_RETRY: Duration = Duration::from_secs(1);

/// An attempt that has a slot at a target.
pub(crate) struct InFlight {
    pub(crate) route: RouteId,
    pub(crate) key: RouteKey,
    pub(crate) dequeued: Dequeued,
    pub(crate) name: ServiceName,
    pub(crate) target: Arc<dyn Target>,
    pub(crate) policy: TargetPolicy,
    pub(crate) ticket: BreakerTicket,
    pub(crate) is_fallback: bool,
}

/// The reason for losing an event that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LossReason {
    /// The log dropped the event.
    Dropped,
    /// The log cannot read the event.
    Damaged,
    /// The store cannot read the body of a requeued dead letter.
    BodyDamaged,
}

impl LossReason {
    /// The reason in words.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Dropped => {
                "the log no longer has the event: it waited for longer than history is kept (`log.max_held_bytes`)"
            }
            Self::Damaged => "the log cannot read the event: it is damaged (`relay log check`)",
            Self::BodyDamaged => "the event of the retried dead letter was damaged in the router's store",
        }
    }
}

/// The further course of one event after an attempt.
pub(crate) enum Disposition {
    /// The event leaves the queue.
    Done(Outcome),
    /// The event cannot be delivered any more.
    Lost(LossReason),
    /// The event is tried again, with this record of its attempts.
    Retry(Arc<QueuedEvent>),
    /// The event becomes a dead letter.
    DeadLetter(QueuedEvent, DeadReason),
}

/// The reason for not asking a target about an event.
enum Unneeded {
    Lost(LossReason),
    Expired,
}

/// A failure to read the events of an attempt.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The result of an attempt.
pub(crate) struct AttemptResult {
    /// The attempt's events. None stands for an event that was not read.
    pub(crate) events: Vec<Option<Arc<Event>>>,
    /// The disposition of each event.
    pub(crate) dispositions: Vec<Disposition>,
    /// The target's answer; none if it was not asked.
    pub(crate) answer: Option<Result<(), DeliveryError>>,
    /// The attempt as it is kept with its events, if it failed.
    pub(crate) failed: Option<Attempt>,
    /// The time until the answer.
    pub(crate) took: Duration,
    /// The pause before events are tried again.
    pub(crate) backoff: Duration,
    /// The stored decisions about the events that are lost.
    pub(crate) losses: Vec<Arc<DecisionRecord>>,
}

impl InFlight {
    /// Makes the attempt and writes its result to the store. Returns none if `aborting` was cancelled first; then the
    /// next run delivers the events again.
    ///
    /// # Errors
    /// [`StoreError`], when the result is not written.
    pub(crate) async fn run(
        &self,
        engine: &Engine,
        aborting: &CancellationToken,
    ) -> Result<Option<AttemptResult>, StoreError> {
        let deps = engine.deps();
        let events = match self.load(deps).await {
            Ok(events) => events,
            Err(error) => {
                tracing::error!(%error, target = %self.name, "queued events cannot be read; retrying");
                return Ok(Some(self.interrupted()));
            }
        };
        let Some(mut result) = self.deliver(deps, aborting, events).await else { return Ok(None) };
        result.losses = self.persist(engine, &result).await?;
        Ok(Some(result))
    }

    /// The result of an attempt that could not be made: its events are tried again after a pause.
    pub(crate) fn interrupted(&self) -> AttemptResult {
        let again = |entry: &QueueEntry| Disposition::Retry(Arc::clone(&entry.queued));
        let dispositions: Vec<_> = self.dequeued.entries.iter().map(again).collect();
        let (events, took, losses) = (vec![None; dispositions.len()], Duration::ZERO, Vec::new());
        AttemptResult { events, dispositions, answer: None, failed: None, took, backoff: LOG_RETRY, losses }
    }

    /// The events, from memory, from their records or from the log.
    async fn load(&self, deps: &Deps) -> Result<Vec<Result<Arc<Event>, LossReason>>, LoadError> {
        let mut events = Vec::with_capacity(self.dequeued.entries.len());
        for entry in &self.dequeued.entries {
            events.push(match (&entry.event, entry.queued.is_requeued) {
                (Some(event), _) => Ok(Arc::clone(event)),
                (None, true) => {
                    let body = deps.store.requeued_body(self.route, entry.offset).await?;
                    let event = relay_events::json::decode(body.unwrap_or_default().as_bytes());
                    event.map(Arc::new).map_err(|_| LossReason::BodyDamaged)
                }
                (None, false) if deps.dropped.contains(entry.offset) => Err(LossReason::Dropped),
                (None, false) => {
                    let before = Offset::new(entry.offset.get().saturating_sub(1));
                    let limit = ReadLimit { events: 1, ..ReadLimit::default() };
                    let read = deps.log.read(before, limit).await?;
                    let event = read.into_iter().next();
                    if let Some(offset) = event.as_ref().and_then(|event| event.offset) {
                        deps.dropped.note(entry.offset, offset);
                    }
                    match event {
                        Some(event) if event.id == entry.queued.event => Ok(Arc::new(event)),
                        // A damaged event has another id.
                        Some(event) if event.is_lost() && event.offset == Some(entry.offset) => {
                            Err(LossReason::Damaged)
                        }
                        _ => Err(LossReason::Dropped),
                    }
                }
            });
        }
        Ok(events)
    }

    async fn deliver(
        &self,
        deps: &Deps,
        aborting: &CancellationToken,
        events: Vec<Result<Arc<Event>, LossReason>>,
    ) -> Option<AttemptResult> {
        let (now, started) = (deps.clock.wall(), deps.clock.monotonic());
        let unneeded = |event: &Result<Arc<Event>, LossReason>| match event {
            Err(reason) => Some(Unneeded::Lost(*reason)),
            Ok(event) if event.is_lost() => Some(Unneeded::Lost(LossReason::Damaged)),
            Ok(event) if event.is_expired(now) => Some(Unneeded::Expired),
            Ok(_) => None,
        };
        let unneeded: Vec<_> = events.iter().map(unneeded).collect();
        let events: Vec<_> = events.into_iter().map(Result::ok).collect();
        let entries = self.dequeued.entries.iter().zip(&events).zip(&unneeded);
        let needed = entries.filter(|(_, unneeded)| unneeded.is_none()).filter_map(|((entry, event), _)| {
            let rule = self.rule_of(&entry.queued);
            Some(loop_detection::with_causes(event.as_ref()?, rule, &deps.causes_key))
        });
        let needed: Vec<_> = needed.collect();
        let is_alone = needed.len() == 1;
        let answer = if needed.is_empty() { None } else { Some(self.ask(aborting, needed).await?) };
        let took = deps.clock.monotonic().since(started);
        let dispose = |(entry, unneeded): (&QueueEntry, &Option<Unneeded>)| match (unneeded, &answer) {
            (Some(Unneeded::Lost(reason)), _) => Disposition::Lost(*reason),
            (Some(Unneeded::Expired), _) => Disposition::Done(Outcome::Expired),
            (None, Some(Err(error))) => {
                let mut queued = QueuedEvent::clone(&entry.queued);
                queued.count_failure(self.name.clone());
                disposition(queued, error.kind, is_alone, &self.policy.retry)
            }
            (None, _) => Disposition::Done(Outcome::Delivered),
        };
        let dispositions: Vec<_> = self.dequeued.entries.iter().zip(&unneeded).map(dispose).collect();
        let tried = self.dequeued.entries.first().map_or(0, |entry| entry.queued.tried);
        let backoff = backoff(&self.policy.retry, tried);
        let failed = answer.as_ref().and_then(|answer| answer.as_ref().err());
        let failed = failed.map(|error| Attempt::new(now, self.name.clone(), error, took));
        Some(AttemptResult { events, dispositions, answer, failed, took, backoff, losses: Vec::new() })
    }

    /// The rule that selected the event.
    pub(super) fn rule_of<'a>(&'a self, queued: &'a QueuedEvent) -> Option<&'a Arc<str>> {
        self.key.rule().or(queued.rule.as_ref())
    }

    /// Returns the target's answer, or none if `aborting` was cancelled first. A target that panics or takes too long
    /// has failed.
    async fn ask(
        &self,
        aborting: &CancellationToken,
        events: Vec<Arc<Event>>,
    ) -> Option<Result<(), DeliveryError>> {
        let head = self.dequeued.entries.first();
        let attempt = head.map_or(1, |head| head.queued.tried.saturating_add(1));
        let mut delivery = Delivery::new(events).attempt(attempt);
        if head.is_some_and(|head| head.queued.is_replay) {
            delivery = delivery.replay();
        }
        let call = AssertUnwindSafe(self.target.deliver(delivery)).catch_unwind();
        tokio::select! {
            // An answer that is there counts, so that the next run does not deliver the events again.
            biased;
            answer = tokio::time::timeout(self.policy.timeout, call) => Some(match answer {
                Ok(Ok(answer)) => answer,
                Ok(Err(_panic)) => Err(DeliveryError::new(FailureKind::Retry, "the target panicked")),
                Err(_elapsed) => {
                    let detail = format!("no answer within {} ms", self.policy.timeout.as_millis());
                    Err(DeliveryError::new(FailureKind::Retry, detail))
                }
            }),
            () = aborting.cancelled() => None,
        }
    }

    /// Writes the result to the store. Returns the decisions about the events that are lost.
    async fn persist(
        &self,
        engine: &Engine,
        result: &AttemptResult,
    ) -> Result<Vec<Arc<DecisionRecord>>, StoreError> {
        let deps = engine.deps();
        let (mut batch, mut losses) = (WriteBatch::default(), Vec::new());
        for ((entry, disposition), event) in
            self.dequeued.entries.iter().zip(&result.dispositions).zip(&result.events)
        {
            match (disposition, event) {
                (Disposition::Retry(queued), event) => {
                    let failed = self.failed_attempts(deps, entry, result).await?;
                    let body = event.as_ref().filter(|_| queued.is_requeued).map(|event| json_of(event));
                    let record = QueuedRecord { queued, attempts: &failed.attempts, body: body.as_deref() };
                    batch.put_record(self.route, entry.offset, &record);
                }
                (Disposition::DeadLetter(queued, reason), Some(event)) => {
                    let failed = self.failed_attempts(deps, entry, result).await?;
                    batch.remove_queued(self.route, entry.offset);
                    batch.dead_letter(&self.dead_letter(
                        deps,
                        entry.offset,
                        queued,
                        failed,
                        event,
                        *reason,
                    )?);
                }
                (Disposition::Lost(reason), event) => {
                    batch.remove_queued(self.route, entry.offset);
                    let decision = self.loss(deps, entry, event.as_deref(), *reason);
                    losses.push(engine.decide_loss(decision, &mut batch));
                }
                (Disposition::Done(_) | Disposition::DeadLetter(..), _) => {
                    batch.remove_queued(self.route, entry.offset);
                }
            }
        }
        deps.store.commit(batch).await?;
        Ok(losses)
    }

    /// The decision that an event of this attempt is lost.
    fn loss(&self, deps: &Deps, entry: &QueueEntry, event: Option<&Event>, reason: LossReason) -> Decision {
        let queued = &entry.queued;
        let event = event.map_or_else(|| DecidedEvent::unread(queued, entry.offset), DecidedEvent::from);
        let mut decision =
            Decision::lost(deps.clock.wall(), event, Some(self.name.clone()), reason.text().to_owned());
        decision.rules_version = queued.rules;
        decision.rule = self.rule_of(queued).cloned();
        decision.is_fallback = self.is_fallback;
        decision.is_replay = queued.is_replay;
        decision.attempt = queued.tried;
        decision
    }

    /// The failed attempts of an event of this attempt, with this one.
    async fn failed_attempts(
        &self,
        deps: &Deps,
        entry: &QueueEntry,
        result: &AttemptResult,
    ) -> Result<FailedAttempts, StoreError> {
        let mut failed = match entry.queued.tried {
            0 => FailedAttempts::default(),
            _ => deps.store.failed_attempts(self.route, entry.offset).await?,
        };
        result.failed.iter().for_each(|attempt| failed.push(attempt.clone()));
        Ok(failed)
    }

    fn dead_letter(
        &self,
        deps: &Deps,
        offset: Offset,
        queued: &QueuedEvent,
        failed: FailedAttempts,
        event: &Event,
        reason: DeadReason,
    ) -> Result<DeadLetter, StoreError> {
        let at: Timestamp = deps.clock.wall();
        let json = relay_events::json::encode(event);
        let event = serde_json::from_slice(&json).map_err(|error| {
            deps.store.error(&format_args!("event {} cannot be kept as JSON: {error}", event.id))
        })?;
        Ok(DeadLetter {
            id: DeadLetterId { offset, route: self.route },
            target: self.name.clone(),
            rule: self.rule_of(queued).cloned(),
            event_id: queued.event,
            document: queued.document.clone(),
            at,
            reason,
            attempts: failed.attempts,
            event,
        })
    }
}

impl AttemptResult {
    /// The result as far as the target's state depends on it.
    pub(crate) fn of_target(&self) -> TargetOutcome {
        match &self.answer {
            None => TargetOutcome::Untried,
            // A rejected event is an answer too.
            Some(Ok(())) => TargetOutcome::Answered,
            Some(Err(error)) if error.kind == FailureKind::Reject => TargetOutcome::Answered,
            Some(Err(error)) => TargetOutcome::Failed {
                retry_after: error.retry_after,
                is_gone: error.kind == FailureKind::Gone,
            },
        }
    }
}

/// The disposition of an event that was not taken. An event of a rejected batch is tried alone first, because the
/// target may have rejected another event of the batch.
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

/// The pause after a failure that followed `tried` earlier ones. It doubles each time; a random part of up to half is
/// taken off, so that events that failed together do not come back together.
fn backoff(retry: &RetryPolicy, tried: u32) -> Duration {
    let whole = retry.initial.saturating_mul(1_u32.checked_shl(tried).unwrap_or(u32::MAX)).min(retry.max);
    whole.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use relay_core::testing::MemoryLog;
    use relay_core::{EventLog, Seq};
    use relay_events::ServiceState;

    use super::*;
    use crate::delivery::state::Round;
    use crate::test_support::{engine_on, name, note};

    #[tokio::test]
    async fn an_answer_that_is_there_counts_also_when_the_router_gives_up_waiting() {
        let (directory, log) = (tempfile::tempdir().unwrap(), MemoryLog::new());
        let engine = engine_on(log.clone(), directory.path(), "");
        let mut batch = WriteBatch::default();
        let route = engine.update(|state| state.add_direct_route(&name("a"), &mut batch));
        for n in 0..20 {
            let draft = note(&format!("d{n}"), n);
            let (document, head) = (draft.document.clone(), log.head(&draft.document).await.unwrap());
            let event = draft.into_event(head.epoch, Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
            let offset = log.append(&document, std::slice::from_ref(&event)).await.unwrap()[0];
            let queued = Arc::new(QueuedEvent::new(&event, 1));
            engine.update(|state| state.enqueue(route, offset, queued, None));
        }
        let (aborting, now) = (CancellationToken::new(), engine.deps().clock.monotonic());
        aborting.cancel();
        let scheduled = engine.update(|state| state.schedule(now, |_| ServiceState::Healthy, Round::New));
        assert!(!scheduled.attempts.is_empty());
        for attempt in scheduled.attempts {
            let result = attempt.run(&engine, &aborting).await.unwrap();
            assert!(matches!(result.unwrap().answer, Some(Ok(()))));
        }
    }
}
