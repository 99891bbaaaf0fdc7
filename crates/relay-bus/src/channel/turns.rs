//! [`Turns`]: the drafts that wait until their document takes them, with turns among their actors.
//!
//! Drafts of one actor stay in order. Among actors the queue is fair by what they publish: each draft has a start on a common
//! scale, which is the end of the actor's draft before it. A draft has its turn at its end, or [`MAX_SPAN`] after its start when
//! that is earlier, and the earliest turn is taken first. So an actor that has hundreds of drafts under way delays another actor's
//! draft by one of its own, and many actors with large drafts together delay a small one by one draft.

use std::collections::{BTreeMap, HashMap};

use relay_core::Actor;

use super::batch::PendingDraft;

/// The number of actors up to which those that wait for nothing are not looked for.
const MIN_ENDS: usize = 64;
/// The number of actors from which only those that wait are kept.
const MAX_ENDS: usize = 4096;
/// The most cost by which a draft's turn comes after its start. Small drafts of each other actor pass a large one up to this cost.
const MAX_SPAN: u64 = 50;

/// The drafts that wait, in the order in which they are taken.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: BTreeMap<TurnKey, PendingDraft>,
    /// The end of the last draft of each actor. It is kept while others wait and have not come as far, so that an actor gets no
    /// more by having one draft wait at a time.
    ends: HashMap<Actor, ActorEnd>,
    /// The start of an actor that has published nothing lately. No draft that waits has an earlier one.
    now: u64,
    next_id: u64,
}

#[derive(Debug)]
struct ActorEnd {
    end: u64,
    waiting: usize,
}

/// The place of a draft that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TurnKey {
    turn: u64,
    id: u64,
}

/// The distance from the start of a draft to its turn.
fn span(cost: u32) -> u64 {
    u64::from(cost).min(MAX_SPAN)
}

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True when a draft of `actor` waits.
    pub(super) fn has_draft_of(&self, actor: &Actor) -> bool {
        self.ends.get(actor).is_some_and(|end| end.waiting > 0)
    }

    /// Adds a draft behind those of its actor.
    pub(super) fn push(&mut self, pending: PendingDraft) -> TurnKey {
        let now = self.now;
        let actor = self.ends.entry(pending.draft.actor.clone()).or_insert(ActorEnd { end: now, waiting: 0 });
        let start = actor.end.max(now);
        let key = TurnKey { turn: start + span(pending.cost), id: self.next_id };
        actor.end = start + u64::from(pending.cost);
        actor.waiting += 1;
        self.next_id += 1;
        self.waiting.insert(key, pending);
        key
    }

    /// The cost of the draft whose turn it is.
    pub(super) fn next_cost(&self) -> Option<u32> {
        self.waiting.first_key_value().map(|(_, pending)| pending.cost)
    }

    /// Takes the draft whose turn it is.
    pub(super) fn pop(&mut self) -> Option<PendingDraft> {
        let (key, pending) = self.waiting.pop_first()?;
        self.now = self.now.max(key.turn.saturating_sub(MAX_SPAN));
        self.forget(&pending.draft.actor);
        Some(pending)
    }

    /// Takes the draft at `key` out, which is not published; `None` when it no longer waits.
    pub(super) fn remove(&mut self, key: TurnKey) -> Option<PendingDraft> {
        let pending = self.waiting.remove(&key)?;
        let start = key.turn - span(pending.cost);
        if let Some(actor) = self.ends.get_mut(&pending.draft.actor)
            && actor.end == start + u64::from(pending.cost)
        {
            // Nothing of the actor comes after it.
            actor.end = start;
        }
        self.forget(&pending.draft.actor);
        Some(pending)
    }

    /// Takes all drafts out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = PendingDraft> + use<> {
        self.ends.clear();
        std::mem::take(&mut self.waiting).into_values()
    }

    /// Counts one draft of `actor` less.
    fn forget(&mut self, actor: &Actor) {
        if let Some(end) = self.ends.get_mut(actor) {
            end.waiting -= 1;
        }
        if self.waiting.is_empty() {
            self.ends.clear();
        } else if self.ends.len() > 2 * self.waiting.len() + MIN_ENDS {
            let (now, keeps_ends) = (self.now, self.ends.len() <= MAX_ENDS);
            self.ends.retain(|_, end| end.waiting > 0 || keeps_ends && end.end > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use relay_core::{DocumentId, Draft, MemoryBudget, MemoryPurpose, Payload, UserId};

    use super::*;
    use crate::channel::batch::{AckSender, cost_of};

    fn draft(user: &str, number: usize, bytes: usize) -> PendingDraft {
        let kind = relay_events::kind("x-note").unwrap();
        let payload = Payload::json(&format!("{number:0bytes$}")).unwrap();
        let draft = Draft::new(DocumentId::new("doc").unwrap(), kind, payload)
            .actor(Actor::User(UserId::new(user).unwrap()));
        let reserved = MemoryBudget::default().total().charge(MemoryPurpose::PublishQueue, 0);
        let draft = relay_events::check(draft).unwrap();
        let cost = cost_of(draft.approx_bytes());
        PendingDraft { draft, sender: AckSender::new(reserved).0, cost, price: Duration::ZERO }
    }

    fn taken(turns: &mut Turns) -> Vec<(String, usize)> {
        std::iter::from_fn(|| turns.pop())
            .map(|pending| {
                let Payload::Json(text) = &pending.draft.payload else { panic!("binary") };
                (pending.draft.actor.to_string(), text.as_str().trim_matches('"').parse().unwrap())
            })
            .collect()
    }

    fn named(expected: &[(&str, usize)]) -> Vec<(String, usize)> {
        expected.iter().map(|(user, number)| (format!("user:{user}"), *number)).collect()
    }

    #[test]
    fn an_actor_with_many_drafts_delays_another_by_one() {
        let mut turns = Turns::default();
        for number in 0..4 {
            turns.push(draft("fast", number, 1));
        }
        turns.push(draft("polite", 0, 1));
        let order = named(&[("fast", 0), ("polite", 0), ("fast", 1), ("fast", 2), ("fast", 3)]);
        assert_eq!(taken(&mut turns), order);
        // Later too, when the fast actor was served for a while.
        for number in 0..4 {
            turns.push(draft("fast", number, 1));
        }
        turns.pop();
        turns.pop();
        turns.push(draft("polite", 0, 1));
        assert_eq!(taken(&mut turns), named(&[("polite", 0), ("fast", 2), ("fast", 3)]));
    }

    #[test]
    fn an_actor_with_large_drafts_gets_fewer_turns() {
        let mut turns = Turns::default();
        for number in 0..2 {
            turns.push(draft("large", number, 2048));
        }
        for number in 0..4 {
            turns.push(draft("small", number, 1));
        }
        let order =
            named(&[("small", 0), ("small", 1), ("large", 0), ("small", 2), ("small", 3), ("large", 1)]);
        assert_eq!(taken(&mut turns), order);
    }

    #[test]
    fn an_actor_with_one_large_draft_at_a_time_gets_no_more_turns_for_it() {
        let mut turns = Turns::default();
        turns.push(draft("large", 0, 8192));
        for number in 0..20 {
            turns.push(draft("small", number, 1));
        }
        let mut order = Vec::new();
        for _ in 0..12 {
            let taken = turns.pop().unwrap().draft.actor.to_string();
            if taken == "user:large" {
                turns.push(draft("large", 0, 8192));
            }
            order.push(taken);
        }
        let large = order.iter().filter(|actor| *actor == "user:large").count();
        assert!(large <= 2, "{order:?}");
    }

    #[test]
    fn many_actors_with_large_drafts_delay_a_small_one_by_one_draft() {
        let mut turns = Turns::default();
        for actor in 0..40 {
            turns.push(draft(&format!("large-{actor}"), 0, 65_000));
        }
        for number in 0..40 {
            // Each large draft is followed by another one of its actor.
            let large = turns.pop().unwrap().draft.actor.to_string();
            turns.push(draft(large.trim_start_matches("user:"), 0, 65_000));
            turns.push(draft("ada", number, 1));
            assert_eq!(turns.pop().unwrap().draft.actor.to_string(), "user:ada", "draft {number}");
        }
    }

    #[test]
    fn many_small_drafts_of_an_actor_delay_a_large_one_by_its_span() {
        let mut turns = Turns::default();
        for number in 0..1000 {
            turns.push(draft("fast", number, 1));
        }
        turns.push(draft("large", 0, 65_000));
        let before = std::iter::from_fn(|| turns.pop()).take_while(|pending| pending.cost == 1).count();
        assert_eq!(before as u64, MAX_SPAN);
    }

    #[test]
    fn a_draft_that_is_removed_costs_its_actor_no_turn() {
        let mut turns = Turns::default();
        for number in 0..10 {
            turns.push(draft("other", number, 1));
        }
        for _ in 0..10 {
            let key = turns.push(draft("ada", 0, 65_000));
            assert!(turns.remove(key).is_some());
        }
        turns.push(draft("ada", 7, 1));
        assert_eq!(taken(&mut turns)[..2], named(&[("other", 0), ("ada", 7)]));
    }

    #[test]
    fn a_draft_that_is_removed_leaves_nothing_behind() {
        let mut turns = Turns::default();
        let key = turns.push(draft("ada", 0, 1));
        let other = turns.push(draft("bob", 0, 1));
        assert!(turns.remove(key).is_some());
        assert!(turns.remove(key).is_none());
        assert_eq!(turns.next_cost(), Some(1));
        assert!(turns.remove(other).is_some());
        assert!(turns.is_empty() && turns.ends.is_empty());
    }
}
