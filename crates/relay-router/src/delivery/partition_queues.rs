//! The queues of one route: one for each partition, of which only the head is in flight.
//!
//! A partition is a document, so its events stay in order, and a failing event does not hold up other documents. Where
//! the order does not matter each event is a partition of its own. Plain values without a clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use relay_core::{DocumentId, Event, Monotonic, Offset, Timestamp};

use crate::records::QueuedEvent;

/// An event in a queue.
#[derive(Debug, Clone)]
pub(crate) struct QueueEntry {
    pub(crate) offset: Offset,
    pub(crate) queued: Arc<QueuedEvent>,
    /// The event itself, if it is in memory.
    pub(crate) event: Option<Arc<Event>>,
}

/// The events that are delivered one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum PartitionKey {
    Document(DocumentId),
    Event(Offset),
}

#[derive(Debug, Default)]
struct PartitionQueue {
    entries: VecDeque<QueueEntry>,
    /// The number of entries at the head that are in flight.
    in_flight: usize,
}

/// Events of one partition that are delivered together.
#[derive(Debug)]
pub(crate) struct Dequeued {
    pub(crate) partition: PartitionKey,
    pub(crate) entries: Vec<QueueEntry>,
}

/// All queues of one route.
#[derive(Debug, Default)]
pub(crate) struct PartitionQueues {
    by_key: HashMap<PartitionKey, PartitionQueue>,
    /// The partitions whose head may be delivered, each once, in the order in which they became ready.
    ready: VecDeque<PartitionKey>,
    /// The number of partitions at the end of `ready` whose head was looked at in vain in this round.
    refused: usize,
    /// The heads of delayed partitions, by the moment at which they become ready.
    delayed: BinaryHeap<Reverse<(Monotonic, Offset)>>,
    delayed_by_head: HashMap<Offset, PartitionKey>,
    len: usize,
}

impl PartitionQueues {
    /// The number of events, those in flight included.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first event that [`PartitionQueues::take`] would take, and its partition.
    pub(crate) fn peek(&self) -> Option<(&PartitionKey, &QueueEntry)> {
        let key = self.ready.front()?;
        Some((key, self.by_key.get(key)?.entries.front()?))
    }

    /// The offset of a partition's first event, which may be in flight.
    pub(crate) fn first_offset(&self, key: &PartitionKey) -> Option<Offset> {
        self.by_key.get(key)?.entries.front().map(|entry| entry.offset)
    }

    /// The number of ready partitions whose head was not looked at in this round.
    pub(crate) fn unseen(&self) -> usize {
        self.ready.len().saturating_sub(self.refused)
    }

    /// Begins a round, in which each head is looked at again.
    pub(crate) fn begin_round(&mut self) {
        self.refused = 0;
    }

    /// Puts the first ready partition, whose head was looked at in vain, behind the others.
    pub(crate) fn refuse(&mut self) {
        if !self.ready.is_empty() {
            self.ready.rotate_left(1);
            self.refused += 1;
        }
    }

    /// Adds a ready partition. It is behind those that were looked at, so all of them are looked at again.
    fn push_ready(&mut self, key: PartitionKey) {
        self.ready.push_back(key);
        self.refused = 0;
    }

    /// The time of the oldest event.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.by_key.values().filter_map(|queue| queue.entries.front()).map(|entry| entry.queued.time).min()
    }

    /// Adds an event, ordered by offset. Returns false if the event is there already.
    pub(crate) fn insert(&mut self, key: PartitionKey, entry: QueueEntry) -> bool {
        let queue = self.by_key.entry(key.clone()).or_default();
        let is_new = queue.entries.is_empty();
        // Nearly all events come in their order. Entries in flight stay at the head.
        let waiting = queue.entries.range(queue.in_flight..);
        let later = waiting.rev().take_while(|other| other.offset > entry.offset).count();
        let at = queue.entries.len() - later;
        let mut in_flight_and_before =
            queue.entries.range(..queue.in_flight).chain(queue.entries.range(..at).next_back());
        if in_flight_and_before.any(|other| other.offset == entry.offset) {
            return false;
        }
        queue.entries.insert(at, entry);
        self.len += 1;
        if is_new {
            self.push_ready(key);
        }
        true
    }

    /// Takes the events at the head of the first ready partition: up to `most` that were never tried and are before
    /// `end`, or one that has failed before. A failed event goes alone, so that it does not spoil the others.
    pub(crate) fn take(&mut self, most: usize, end: Offset) -> Option<Dequeued> {
        let key = self.ready.pop_front()?;
        let queue = self.by_key.get_mut(&key)?;
        let fits = |entry: &&QueueEntry| entry.queued.tried == 0 && entry.offset < end;
        let untried = queue.entries.iter().take(most).take_while(fits).count();
        queue.in_flight = untried.max(1).min(queue.entries.len());
        let entries = queue.entries.iter().take(queue.in_flight).cloned().collect();
        Some(Dequeued { partition: key, entries })
    }

    /// Undoes [`PartitionQueues::take`]. The partition is the first ready one again.
    pub(crate) fn put_back(&mut self, dequeued: Dequeued) {
        if let Some(queue) = self.by_key.get_mut(&dequeued.partition) {
            queue.in_flight = 0;
            self.ready.push_front(dequeued.partition);
        }
    }

    /// Ends the flight of a partition's head. The events in `retries`, which has the order of the queue, stay with their
    /// new records, in their places by offset. Their partition is delayed until `not_before`. The others are removed and
    /// returned.
    pub(crate) fn end(
        &mut self,
        key: &PartitionKey,
        retries: Vec<(Offset, Arc<QueuedEvent>)>,
        not_before: Monotonic,
    ) -> Vec<QueueEntry> {
        let Some(queue) = self.by_key.get_mut(key) else { return Vec::new() };
        let mut retries = retries.into_iter().peekable();
        let (mut done, mut kept) = (Vec::new(), Vec::new());
        for mut entry in queue.entries.drain(..queue.in_flight) {
            match retries.next_if(|(offset, _)| *offset == entry.offset) {
                Some((_, queued)) => {
                    entry.queued = queued;
                    kept.push(entry);
                }
                None => done.push(entry),
            }
        }
        queue.in_flight = 0;
        self.len -= done.len();
        match kept.first().map(|entry| entry.offset) {
            Some(head) => {
                for entry in kept.into_iter().rev() {
                    let at = queue.entries.partition_point(|other| other.offset < entry.offset);
                    queue.entries.insert(at, entry);
                }
                self.delayed.push(Reverse((not_before, head)));
                self.delayed_by_head.insert(head, key.clone());
            }
            None if queue.entries.is_empty() => drop(self.by_key.remove(key)),
            None => self.push_ready(key.clone()),
        }
        done
    }

    /// Takes all events of the partitions of which none is in flight.
    pub(crate) fn take_idle(&mut self) -> Vec<QueueEntry> {
        let idle = self.by_key.extract_if(|_, queue| queue.in_flight == 0);
        let entries: Vec<_> = idle.flat_map(|(_, queue)| queue.entries).collect();
        self.len -= entries.len();
        self.ready.retain(|key| self.by_key.contains_key(key));
        self.refused = 0;
        self.delayed_by_head.retain(|_, key| self.by_key.contains_key(key));
        self.delayed.retain(|Reverse((_, head))| self.delayed_by_head.contains_key(head));
        entries
    }

    /// Makes the delayed partitions ready whose moment has come.
    pub(crate) fn wake(&mut self, now: Monotonic) {
        while let Some(Reverse((at, head))) = self.delayed.peek().copied()
            && at <= now
        {
            self.delayed.pop();
            let Some(key) = self.delayed_by_head.remove(&head) else { continue };
            self.push_ready(key);
        }
    }

    /// The moment at which the next delayed partition becomes ready.
    pub(crate) fn next_wake(&self) -> Option<Monotonic> {
        self.delayed.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests;
