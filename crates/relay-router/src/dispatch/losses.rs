//! The events that no target gets because of a limit or a change of the configuration: each is decided as lost. Those that
//! the log no longer has when they are to be routed share a decision.

use relay_core::{Event, Offset};

use super::Dispatcher;
use super::assign::Rejected;
use crate::decisions::{DecidedEvent, Decision, Gap};
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
        let (mut batch, mut losses) = (WriteBatch::default(), Vec::new());
        for Abandoned { route, key, target, entries } in abandoned {
            let reason = match key.rule() {
                Some(rule) => format!("rule `{rule}` no longer leads to a target that exists"),
                None => "the target no longer exists, and no rule names it".to_owned(),
            };
            for entry in entries {
                batch.remove_queued(route, entry.offset);
                let queued = &entry.queued;
                let event = DecidedEvent::unread(queued, entry.offset);
                let mut decision = Decision::lost(deps.clock.wall(), event, target.clone(), reason.clone());
                decision.rules_version = queued.rules;
                decision.rule = key.rule().or(queued.rule.as_ref()).cloned();
                decision.is_replay = queued.is_replay;
                decision.attempt = queued.tried;
                losses.push(self.engine.decide_loss(decision, &mut batch));
            }
        }
        if !batch.is_empty() {
            deps.store.commit(batch).await?;
        }
        for loss in losses {
            self.engine.tell_loss(loss);
        }
        Ok(is_more)
    }

    /// The decision that an event found its route full.
    pub(super) fn rejection(&self, rejected: Rejected) -> Decision {
        let Rejected { event, rule, target, limit } = rejected;
        let reason =
            format!("its route has {limit} waiting events, the most that are allowed (`router.max_waiting`)");
        let now = self.engine.deps().clock.wall();
        Decision { rule, ..Decision::lost(now, DecidedEvent::from(&*event), target, reason) }
    }

    /// The decision that events are lost which the log dropped before they were routed.
    pub(super) fn gap(&self, first: Offset, gap: Gap) -> Decision {
        let Gap { through, events } = gap;
        let reason = format!(
            "the log dropped {events} events between offsets {first} and {through} before they were routed: \
             routing was behind for longer than history is kept (`log.max_held_bytes`)"
        );
        Decision::lost(self.engine.deps().clock.wall(), DecidedEvent::of_gap(first, gap), None, reason)
    }

    /// The decision that the log cannot read an event that is to be routed.
    pub(super) fn unreadable(&self, event: &Event) -> Decision {
        let reason = "the log cannot read the event any more".to_owned();
        Decision::lost(self.engine.deps().clock.wall(), DecidedEvent::from(event), None, reason)
    }
}
