//! The events that no target gets because of a limit or a change of the configuration: each is decided as lost.

use std::time::Duration;

use relay_core::ServiceName;

use super::Dispatcher;
use super::assign::Rejected;
use crate::decisions::{DecidedEvent, Decision, Outcome};
use crate::delivery::loss_report::Loss;
use crate::delivery::state::Abandoned;
use crate::store::{StoreError, WriteBatch};

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
                    id: queued.event,
                    document: queued.document.clone(),
                    kind: None,
                    offset: Some(entry.offset),
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

    fn record_lost(
        &self,
        event: DecidedEvent,
        target: Option<ServiceName>,
        reason: String,
        complete: impl FnOnce(&mut Decision),
    ) {
        let deps = self.engine.deps();
        match &target {
            Some(target) => {
                deps.metrics.count_outcome(target, Outcome::Lost, Duration::ZERO, false);
                let (document, target, reason) = (event.document.clone(), target.clone(), reason.clone());
                self.engine.count_loss(Loss { event: event.id, document, target, reason });
            }
            None => deps.metrics.count_decision(Outcome::Lost),
        }
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
