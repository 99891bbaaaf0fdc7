//! The newest ephemeral event of each key.
//!
//! Each change gets a version. A reader remembers the version up to which it has seen everything and is given what is
//! newer: a fast one sees every change, a slow one only the latest of each key, and neither has a queue.
//!
//! The events are bounded by their number and by the bytes of a share of memory, to which their encoded copies count too.
//! Where a limit is reached the event that is unchanged for the longest time goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use relay_core::{Actor, DocumentId, Event, Kind, MemoryPurpose, MemoryShare, Reservation};

/// The key under which events replace each other: events of one document, kind, actor and key.
type Key = (DocumentId, Kind, Actor, Option<Arc<str>>);

fn key(event: &Event) -> Key {
    (event.document.clone(), event.kind.clone(), event.actor.clone(), event.key.clone())
}

#[derive(Debug)]
pub(crate) struct Ephemerals {
    by_version: BTreeMap<u64, Arc<Event>>,
    versions: HashMap<Key, u64>,
    version: u64,
    max_keys: usize,
    share: MemoryShare,
    bytes: usize,
    reserved: Reservation,
}

impl Ephemerals {
    /// Returns an empty set of at most `max_keys` events, which is at least 1. Its memory is limited by `share`.
    pub(crate) fn new(max_keys: usize, share: MemoryShare) -> Self {
        Self {
            by_version: BTreeMap::new(),
            versions: HashMap::new(),
            version: 0,
            max_keys,
            bytes: 0,
            reserved: share.charge(MemoryPurpose::Ephemerals, 0),
            share,
        }
    }

    /// The version of the latest change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Puts `event`, which replaces the one before it. Returns the number of other keys' events that were dropped for it.
    pub(crate) fn put(&mut self, event: Arc<Event>) -> u64 {
        self.version += 1;
        self.bytes += event.approx_bytes();
        if let Some(replaced) = self.versions.insert(key(&event), self.version)
            && let Some(replaced) = self.by_version.remove(&replaced)
        {
            self.bytes -= replaced.approx_bytes();
        }
        self.by_version.insert(self.version, event);
        self.reserved.resize(self.bytes);
        let mut dropped = 0;
        while self.by_version.len() > self.max_keys || (self.share.is_over() && self.by_version.len() > 1) {
            self.take_oldest();
            dropped += 1;
        }
        dropped
    }

    /// Drops all events. Returns their number.
    pub(crate) fn clear(&mut self) -> u64 {
        let dropped = self.by_version.len() as u64;
        (self.by_version, self.versions, self.bytes) = (BTreeMap::new(), HashMap::new(), 0);
        self.reserved.resize(0);
        dropped
    }

    /// Takes out the event that has been unchanged for the longest time.
    pub(crate) fn take_oldest(&mut self) -> Option<Arc<Event>> {
        let (_, oldest) = self.by_version.pop_first()?;
        self.versions.remove(&key(&oldest));
        self.bytes -= oldest.approx_bytes();
        self.reserved.resize(self.bytes);
        Some(oldest)
    }

    /// The events that changed after `version`, oldest first, each with its version.
    pub(crate) fn after(&self, version: u64) -> impl Iterator<Item = (u64, &Arc<Event>)> {
        self.by_version.range(version + 1..).map(|(version, event)| (*version, event))
    }
}
