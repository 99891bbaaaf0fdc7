//! The newest ephemeral event of each key.
//!
//! Each change gets a version. A reader remembers the version up to which it has seen everything and is given what is
//! newer: a fast one sees every change, a slow one only the latest of each key, and neither has a queue.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use relay_core::{Actor, DocumentId, Event, Kind};

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
}

impl Ephemerals {
    /// Returns an empty set of at most `max_keys` events, which is at least 1.
    pub(crate) fn new(max_keys: usize) -> Self {
        Self { by_version: BTreeMap::new(), versions: HashMap::new(), version: 0, max_keys }
    }

    /// The version of the latest change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Puts `event`, which replaces the one before it. Returns whether another key's event had to go for it.
    pub(crate) fn put(&mut self, event: Arc<Event>) -> bool {
        self.version += 1;
        if let Some(replaced) = self.versions.insert(key(&event), self.version) {
            self.by_version.remove(&replaced);
        }
        self.by_version.insert(self.version, event);
        if self.by_version.len() <= self.max_keys {
            return false;
        }
        self.take_oldest();
        true
    }

    /// Takes out the event that has been unchanged for the longest time.
    pub(crate) fn take_oldest(&mut self) -> Option<Arc<Event>> {
        let (_, oldest) = self.by_version.pop_first()?;
        self.versions.remove(&key(&oldest));
        Some(oldest)
    }

    /// The events that changed after `version`, oldest first.
    pub(crate) fn after(&self, version: u64) -> impl Iterator<Item = &Arc<Event>> {
        self.by_version.range(version + 1..).map(|(_, event)| event)
    }
}
