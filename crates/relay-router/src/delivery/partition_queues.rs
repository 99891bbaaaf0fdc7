//! The lanes of one route: for each document a queue, of which the head alone is under way. That is what keeps a
//! document's events in order, and one document's failing event from holding up another document.
//!
//! Values and rules only; who delivers is told what may go, and says how it went. Where order does not matter each
//! event has a partition of its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use relay_core::{DocumentId, Event, Monotonic, Offset, Timestamp};

use crate::records::QueuedEvent;

/// An event in a partition.
#[derive(Debug, Clone)]
pub(crate) struct QueueEntry {
    pub(crate) offset: Offset,
    pub(crate) queued: Arc<QueuedEvent>,
    /// The event itself, while there is memory for it.
    pub(crate) event: Option<Arc<Event>>,
}

/// What must come one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum PartitionKey {
    Document(DocumentId),
    Event(Offset),
}

#[derive(Debug, Default)]
struct PartitionQueue {
    entries: VecDeque<QueueEntry>,
    /// How many of the first entries are under way.
    in_flight: usize,
}

/// What may be delivered now, of one partition.
#[derive(Debug)]
pub(crate) struct Dequeued {
    pub(crate) partition: PartitionKey,
    pub(crate) entries: Vec<QueueEntry>,
}

/// All lanes of one route.
#[derive(Debug, Default)]
pub(crate) struct PartitionQueues {
    by_key: HashMap<PartitionKey, PartitionQueue>,
    /// Those whose head may go, each once, in the order in which they became ready.
    ready: VecDeque<PartitionKey>,
    /// Those that wait for their time.
    delayed: BinaryHeap<Reverse<(Monotonic, Offset)>>,
    delayed_by_head: HashMap<Offset, PartitionKey>,
    entries: usize,
}

impl PartitionQueues {
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

    /// The event that [`PartitionQueues::take`] begins with.
    pub(crate) fn peek(&self) -> Option<&QueueEntry> {
        self.by_key.get(self.ready.front()?)?.entries.front()
    }

    /// Lets the next partition have its turn.
    pub(crate) fn rotate(&mut self) {
        if !self.ready.is_empty() {
            self.ready.rotate_left(1);
        }
    }

    /// The time of the event that waits longest.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.by_key
            .values()
            .filter_map(|partition| partition.entries.front())
            .map(|entry| entry.queued.time)
            .min()
    }

    /// Adds an event; false if it is there already.
    pub(crate) fn insert(&mut self, key: PartitionKey, entry: QueueEntry) -> bool {
        let partition = self.by_key.entry(key.clone()).or_default();
        let is_new = partition.entries.is_empty();
        let at = partition.entries.partition_point(|other| other.offset < entry.offset);
        if partition.entries.get(at).is_some_and(|other| other.offset == entry.offset) {
            return false;
        }
        // What is under way is not overtaken.
        partition.entries.insert(at.max(partition.in_flight), entry);
        self.entries += 1;
        if is_new {
            self.ready.push_back(key);
        }
        true
    }

    /// The next partition's first events that may go together: as many as `most` of those that were never tried, or one that
    /// failed before. It goes alone, so that an event that cannot be taken does not spoil the others.
    pub(crate) fn take(&mut self, most: usize) -> Option<Dequeued> {
        let key = self.ready.pop_front()?;
        let partition = self.by_key.get_mut(&key)?;
        let untried = partition.entries.iter().take(most).take_while(|entry| entry.queued.tried == 0).count();
        partition.in_flight = untried.max(1).min(partition.entries.len());
        let entries = partition.entries.iter().take(partition.in_flight).cloned().collect();
        Some(Dequeued { partition: key, entries })
    }

    /// Gives back what was taken and not tried; it is the next to go.
    pub(crate) fn put_back(&mut self, dequeued: Dequeued) {
        if let Some(partition) = self.by_key.get_mut(&dequeued.partition) {
            partition.in_flight = 0;
            self.ready.push_front(dequeued.partition);
        }
    }

    /// Ends what is under way in a partition. What is in `again`, a part of it in its order, stays, with what is now known of
    /// it, and goes at `not_before`; the rest is removed and returned.
    pub(crate) fn end(
        &mut self,
        key: &PartitionKey,
        again: Vec<(Offset, Arc<QueuedEvent>)>,
        not_before: Monotonic,
    ) -> Vec<QueueEntry> {
        let Some(partition) = self.by_key.get_mut(key) else { return Vec::new() };
        let mut again = again.into_iter().peekable();
        let mut done = Vec::new();
        let mut kept = Vec::new();
        for mut entry in partition.entries.drain(..partition.in_flight) {
            match again.next_if(|(offset, _)| *offset == entry.offset) {
                Some((_, queued)) => {
                    entry.queued = queued;
                    kept.push(entry);
                }
                None => done.push(entry),
            }
        }
        partition.in_flight = 0;
        self.entries -= done.len();
        match kept.first().map(|entry| entry.offset) {
            Some(head) => {
                kept.into_iter().rev().for_each(|entry| partition.entries.push_front(entry));
                self.delayed.push(Reverse((not_before, head)));
                self.delayed_by_head.insert(head, key.clone());
            }
            None if partition.entries.is_empty() => drop(self.by_key.remove(key)),
            None => self.ready.push_back(key.clone()),
        }
        done
    }

    /// Makes ready what waited for a time that has come.
    pub(crate) fn wake(&mut self, now: Monotonic) {
        while let Some(Reverse((at, head))) = self.delayed.peek().copied()
            && at <= now
        {
            self.delayed.pop();
            let Some(key) = self.delayed_by_head.remove(&head) else { continue };
            self.ready.push_back(key);
        }
    }

    /// When [`PartitionQueues::wake`] is of use next.
    pub(crate) fn next_wake(&self) -> Option<Monotonic> {
        self.delayed.peek().map(|Reverse((at, _))| *at)
    }
}
