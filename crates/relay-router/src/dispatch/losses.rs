//! The events that no target gets because of a limit or a change of the configuration: each is decided as lost. Those that
//! the log no longer has when they are to be routed share a decision.

use std::time::Duration;

use relay_core::{Offset, ServiceName};

use super::Dispatcher;
use super::assign::Rejected;
use crate::decisions::{DecidedEvent, Decision, Gap, Outcome};
use crate::delivery::loss_report::Loss;
use crate::delivery::state::Abandoned;
use crate::log_page::LogPage;
use crate::store::{StoreError, WriteBatch};

/// Finds the events after `after` and up to `through` that `page`, a read of all of them, does not have: the offset of the first,
/// and their extent. The log's offsets are contiguous.
pub(super) fn find_gap(page: &LogPage, after: Offset, through: Offset) -> Option<(Offset, Gap)> {
    let mut found: Option<(Offset, Gap)> = None;
    let mut expected = after.next();
    for offset in page.iter().map(|(offset, _)| *offset).chain([through.next()]) {
        let missing = offset.get().saturating_sub(expected.get());
        if missing > 0 {
            let (_, gap) = found.get_or_insert((expected, Gap { through, events: 0 }));
            gap.through = Offset::new(offset.get() - 1);
            gap.events += missing;
        }
        expected = offset.next();
    }
    found
}

impl Dispatcher {
    /// Decides the events as lost that wait for targets which no longer exist. Returns true while further ones may wait.
    pub(super) async fn drop_abandoned(&self) -> Result<bool, StoreError> {
        let deps = self.engine.deps();
        let (abandoned, is_more) = {
            let _no_changes = self.config_lock.lock().await;
            self.engine.update(|state| (state.take_abandoned(), state.has_abandoned()))
        };
        let mut batch = WriteBatch::default();
        for Abandoned { route, entries, .. } in &abandoned {
            for entry in entries {
                batch.remove_queued(*route, entry.offset);
            }
        }
        if !batch.is_empty() {
            deps.store.commit(batch).await?;
        }
        for Abandoned { key, target, entries, .. } in abandoned {
            let reason = match key.rule() {
                Some(rule) => format!("rule `{rule}` no longer leads to a target that exists"),
                None => "the target no longer exists, and no rule names it".to_owned(),
            };
            for entry in entries {
                let queued = &entry.queued;
                let event = DecidedEvent {
                    id: Some(queued.event),
                    document: Some(queued.document.clone()),
                    kind: None,
                    offset: Some(entry.offset),
                    gap: None,
                    bytes: 0,
                };
                self.record_lost(event, target.clone(), reason.clone(), |decision| {
                    decision.rules_version = queued.rules;
                    decision.rule = key.rule().or(queued.rule.as_ref()).cloned();
                    decision.is_replay = queued.is_replay;
                    decision.attempt = queued.tried;
                });
            }
        }
        Ok(is_more)
    }

    pub(super) fn record_rejected(&self, rules_version: u64, rejected: Rejected) {
        let Rejected { event, rule, target, limit } = rejected;
        let reason =
            format!("its route has {limit} waiting events, the most that are allowed (`router.max_waiting`)");
        self.record_lost(DecidedEvent::from(&*event), target, reason, |decision| {
            decision.rules_version = rules_version;
            decision.rule = rule;
        });
    }

    /// Decides the events as lost that the log dropped before they were routed.
    pub(super) fn record_gap(&self, rules_version: u64, first: Offset, gap: Gap) {
        let Gap { through, events } = gap;
        let reason = format!(
            "the log dropped {events} events between offsets {first} and {through} before they were routed: \
             routing was behind for longer than history is kept (`log.max_held_bytes`)"
        );
        let event = DecidedEvent {
            id: None,
            document: None,
            kind: None,
            offset: Some(first),
            gap: Some(gap),
            bytes: 0,
        };
        self.record_lost(event, None, reason, |decision| decision.rules_version = rules_version);
    }

    fn record_lost(
        &self,
        event: DecidedEvent,
        target: Option<ServiceName>,
        reason: String,
        complete: impl FnOnce(&mut Decision),
    ) {
        let deps = self.engine.deps();
        let events = event.gap.map_or(1, |gap| gap.events);
        match &target {
            Some(target) => deps.metrics.count_outcome(target, Outcome::Lost, Duration::ZERO, false),
            None => deps.metrics.count_decisions(Outcome::Lost, events),
        }
        self.engine.count_loss(Loss {
            events,
            event: event.id,
            document: event.document.clone(),
            target: target.clone(),
            reason: reason.clone(),
        });
        let mut decision = Decision {
            at: deps.clock.wall(),
            event,
            rules_version: 0,
            rule: None,
            target,
            is_fallback: false,
            is_replay: false,
            outcome: Outcome::Lost,
            attempt: 0,
            duration: Duration::ZERO,
            error: Some(reason),
            verdicts: Box::new(Vec::new),
        };
        complete(&mut decision);
        deps.decisions.record(decision);
    }
}
