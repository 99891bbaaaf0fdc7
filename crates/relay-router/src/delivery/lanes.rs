//! The lanes of one route: for each document a queue, of which the head alone is under way. That is what keeps a
//! document's events in order, and one document's failing event from holding up another document.
//!
//! Values and rules only; who delivers is told what may go, and says how it went. Where order does not matter each
//! event has a lane of its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use relay_core::{DocumentId, Event, Monotonic, Offset, Timestamp};

use super::entry::Waiting;

/// An event in a lane.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) offset: Offset,
    pub(crate) waiting: Arc<Waiting>,
    /// The event itself, while there is memory for it.
    pub(crate) event: Option<Arc<Event>>,
}

/// What must come one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum LaneKey {
    Document(DocumentId),
    Event(Offset),
}

#[derive(Debug, Default)]
struct Lane {
    entries: VecDeque<Entry>,
    /// How many of the first entries are under way.
    in_flight: usize,
}

/// What may be delivered now, of one lane.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) lane: LaneKey,
    pub(crate) entries: Vec<Entry>,
}

/// All lanes of one route.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    by_key: HashMap<LaneKey, Lane>,
    /// Those whose head may go, each once, in the order in which they became ready.
    ready: VecDeque<LaneKey>,
    /// Those that wait for their time.
    resting: BinaryHeap<Reverse<(Monotonic, Offset)>>,
    resting_at: HashMap<Offset, LaneKey>,
    entries: usize,
}

impl Lanes {
    /// How many events wait or are under way.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How many lanes have something that may go.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The event that [`Lanes::take`] begins with.
    pub(crate) fn peek(&self) -> Option<&Entry> {
        self.by_key.get(self.ready.front()?)?.entries.front()
    }

    /// Lets the next lane have its turn.
    pub(crate) fn rotate(&mut self) {
        if !self.ready.is_empty() {
            self.ready.rotate_left(1);
        }
    }

    /// The time of the event that waits longest.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.by_key.values().filter_map(|lane| lane.entries.front()).map(|entry| entry.waiting.time).min()
    }

    /// Adds an event; false if it is there already.
    pub(crate) fn insert(&mut self, key: LaneKey, entry: Entry) -> bool {
        let lane = self.by_key.entry(key.clone()).or_default();
        let is_new = lane.entries.is_empty();
        let at = lane.entries.partition_point(|other| other.offset < entry.offset);
        if lane.entries.get(at).is_some_and(|other| other.offset == entry.offset) {
            return false;
        }
        // What is under way is not overtaken.
        lane.entries.insert(at.max(lane.in_flight), entry);
        self.entries += 1;
        if is_new {
            self.ready.push_back(key);
        }
        true
    }

    /// The next lane's first events that may go together: as many as `most` of those that were never tried, or one that
    /// failed before. It goes alone, so that an event that cannot be taken does not spoil the others.
    pub(crate) fn take(&mut self, most: usize) -> Option<Taken> {
        let key = self.ready.pop_front()?;
        let lane = self.by_key.get_mut(&key)?;
        let untried = lane.entries.iter().take(most).take_while(|entry| entry.waiting.tried == 0).count();
        lane.in_flight = untried.max(1).min(lane.entries.len());
        let entries = lane.entries.iter().take(lane.in_flight).cloned().collect();
        Some(Taken { lane: key, entries })
    }

    /// Gives back what was taken and not tried; it is the next to go.
    pub(crate) fn put_back(&mut self, taken: Taken) {
        if let Some(lane) = self.by_key.get_mut(&taken.lane) {
            lane.in_flight = 0;
            self.ready.push_front(taken.lane);
        }
    }

    /// Ends what is under way in a lane. What is in `again`, a part of it in its order, stays, with what is now known of
    /// it, and goes at `not_before`; the rest is removed and returned.
    pub(crate) fn end(
        &mut self,
        key: &LaneKey,
        again: Vec<(Offset, Arc<Waiting>)>,
        not_before: Monotonic,
    ) -> Vec<Entry> {
        let Some(lane) = self.by_key.get_mut(key) else { return Vec::new() };
        let mut again = again.into_iter().peekable();
        let mut done = Vec::new();
        let mut kept = Vec::new();
        for mut entry in lane.entries.drain(..lane.in_flight) {
            match again.next_if(|(offset, _)| *offset == entry.offset) {
                Some((_, waiting)) => {
                    entry.waiting = waiting;
                    kept.push(entry);
                }
                None => done.push(entry),
            }
        }
        lane.in_flight = 0;
        self.entries -= done.len();
        match kept.first().map(|entry| entry.offset) {
            Some(head) => {
                kept.into_iter().rev().for_each(|entry| lane.entries.push_front(entry));
                self.resting.push(Reverse((not_before, head)));
                self.resting_at.insert(head, key.clone());
            }
            None if lane.entries.is_empty() => drop(self.by_key.remove(key)),
            None => self.ready.push_back(key.clone()),
        }
        done
    }

    /// Makes ready what waited for a time that has come.
    pub(crate) fn wake(&mut self, now: Monotonic) {
        while let Some(Reverse((at, head))) = self.resting.peek().copied()
            && at <= now
        {
            self.resting.pop();
            let Some(key) = self.resting_at.remove(&head) else { continue };
            self.ready.push_back(key);
        }
    }

    /// When [`Lanes::wake`] is of use next.
    pub(crate) fn next_wake(&self) -> Option<Monotonic> {
        self.resting.peek().map(|Reverse((at, _))| *at)
    }
}
